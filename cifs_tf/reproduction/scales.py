"""The scales of a reproduction: the paper's setting, hours on two cores, or two steps that show that it all runs."""

import dataclasses
import functools
from typing import Any

from cifs_tf.reproduction.catalogue import NetworkSpec
from cifs_tf.runs.recipes import RECIPES, arguments, parse_config

# A run ends with the cheapest evaluation; what a table needs is measured by commands of its own.
QUICK_LOOK = {"twin": None, "attacks": ["fgsm"], "attack_betas": [0], "checkpoints": ["last"], "export": False}
ATTACKS = ("fgsm", "pgd20", "cw30", "pgd100")
FINAL_LOGITS = (
    "APGD-CE and APGD-T stand here for AutoAttack. They attack the final logits alone; a network with masks can stand "
    "that and fall to the attacks of Table 1, which try every beta_atk."
)
ADAPTIVE = "Strict is the worst case of each image under all attacks of `evaluate.py --suite adaptive`."
HELD_OUT = (
    "Measured at the best epoch, on the images that were held out for validation and chose it; no test image took part."
)


@dataclasses.dataclass(frozen=True)
class EvaluationSetup:
    """The settings of one kind of evaluation.

    Args:
        suite: of evaluate.py.
        examples: class-balanced test images; None for all of them, or what the suite says.
        attacks: of the suite `paper`; none for those of the recipe.
        about: a sentence for the reader of a table, if its numbers are not what its title says.
        split: `"test"` (default) or `"validation"`.
    """

    suite: str
    examples: int | None
    attacks: tuple[str, ...] = ()
    about: str = ""
    split: str = "test"


@dataclasses.dataclass(frozen=True)
class Scale:
    """A size at which the paper's networks and evaluations are carried out.

    Args:
        name: `"full"`, `"small"` or `"smoke"`.
        about: one sentence for the reader of a table.
        settings: of every run, on top of its recipe.
        setups: of evaluations, by kind, `"paper"`, `"autoattack"`, `"strict"` and `"validation"`.
        recipe: for every network, in place of the row's own; None keeps that.
        methods: what a recipe of the paper changes in `recipe`, by name: its training method.
        keeps: which changes of a network survive; None for all of them.
        renamed: attacks that take the place of the paper's.
        in_one_process: whether all jobs share this process.
    """

    name: str
    about: str
    settings: dict[str, Any]
    setups: dict[str, EvaluationSetup]
    recipe: str | None = None
    methods: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    keeps: tuple[str, ...] | None = None
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)
    in_one_process: bool = False

    def recipe_of(self, network: NetworkSpec) -> str:
        """Return the name of the recipe of a network."""
        return (self.recipe and network.small_recipe) or self.recipe or network.recipe

    def changes_of(self, network: NetworkSpec) -> dict[str, Any]:
        """Return what a network changes in its recipe."""
        small = network.small_changes if self.recipe else {}
        changes = {**self.methods.get(network.recipe, {}), **network.changes, **small}
        return {name: value for name, value in changes.items() if self.keeps is None or name in self.keeps}

    def setup(self, kind: str, recipe: str) -> EvaluationSetup:
        """Return how a network of a recipe is evaluated."""
        setup = self.setups[kind]
        if kind == "paper" and not setup.attacks:
            return dataclasses.replace(setup, attacks=tuple(flat_config(recipe)["attacks"]))
        return setup

    def place(self, place: str) -> str:
        """Return where a column is read, with the attacks that are really made."""
        return ":".join(self.renamed.get(part, part) for part in place.split(":"))


def flat_config(recipe: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return every option of a run with a recipe and changes to it.

    Raises:
        UserError: if the changes do not fit.
    """
    return dict(_flat(recipe, tuple(arguments(changes or {}))))


@functools.cache
def _flat(recipe: str, changes: tuple[str, ...]) -> dict[str, Any]:
    return parse_config("reproduce.py", "", [f"--recipe={RECIPES / recipe}.yaml", *changes]).flat()


SCALES = {
    "full": Scale(
        name="full",
        about="The paper's setting.",
        settings=QUICK_LOOK,
        setups={"paper": EvaluationSetup("paper", None), "autoattack": EvaluationSetup("paper_aa", None)},
    ),
    "small": Scale(
        name="small",
        about="Fashion-MNIST, 10,000 training images, ResNet-10 of width 16, 10 epochs: another dataset, network and "
        "budget than the paper's, so that the differences to it say little; those between the rows are the result.",
        settings={"epochs": 10, "lr_milestones": [6, 8], **QUICK_LOOK},
        setups={
            "paper": EvaluationSetup("paper", 200, ATTACKS),
            "autoattack": EvaluationSetup("apgd", 1000, about=FINAL_LOGITS),
            "strict": EvaluationSetup("adaptive", 100, ("pgd20",), about=ADAPTIVE),
            "validation": EvaluationSetup("paper", None, ("pgd20",), about=HELD_OUT, split="validation"),
        },
        recipe="fashion_mnist_small",
        methods={
            # The paper's epochs 50 and 90 of 120.
            "cifar10_fat": {"method": "fat", "fat_tau_milestones": [4, 8]},
            "cifar10_trades": {"method": "trades"},
        },
        renamed={"pgd40": "pgd20"},
    ),
    "smoke": Scale(
        name="smoke",
        about="Two steps on sixteen digits: the numbers mean nothing, they show that everything runs.",
        settings={
            **{"width": 4, "train_examples": 16, "test_examples": 10, "val_examples": 8, "num_steps": 2},
            **{"epochs": 1, "lr_milestones": [1], "batch_size": 8, "eval_audit": False, **QUICK_LOOK},
        },
        setups={
            "paper": EvaluationSetup("paper", 3, ("fgsm", "pgd2", "cw2")),
            "autoattack": EvaluationSetup("apgd", 3, about=FINAL_LOGITS),
        },
        recipe="digits",
        keeps=("defense",),
        renamed={"pgd20": "pgd2", "pgd40": "pgd2", "cw30": "cw2", "pgd100": "pgd2"},
        in_one_process=True,
    ),
}
