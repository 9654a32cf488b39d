"""Plan the work for rows: distinct networks to train and evaluations to make, as commands that a person could type."""

import abc
import dataclasses
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from cifs_tf.attack_names import SUITE_EXAMPLES
from cifs_tf.config import EvaluationConfig, Ratio
from cifs_tf.files import read_results
from cifs_tf.reproduction.catalogue import Figure, NetworkSpec, PaperTable, Row
from cifs_tf.reproduction.scales import EvaluationSetup, Scale, flat_config
from cifs_tf.runs.curves import best_epoch
from cifs_tf.runs.recipes import RECIPES, arguments
from cifs_tf.runs.trained import find_network
from cifs_tf.runs.workdir import PLACES, SETTLED_LATER, Workdir

# Of Section 4.1; a run's own closing look has but one of them.
ATTACK_BETAS = EvaluationConfig().attack_betas


class Job(abc.ABC):
    """A program with its options, which leaves everything in one folder and continues there when started again."""

    program: ClassVar[str]  # a module of `cifs_tf.programs`

    @property
    @abc.abstractmethod
    def folder(self) -> str:
        """The folder that it writes to, below the workdir of the reproduction."""

    @abc.abstractmethod
    def argv(self, workdir: Path, data_dir: str | None = None) -> list[str]:
        """Return its command line, without the program."""

    @abc.abstractmethod
    def is_done(self, workdir: Path) -> bool:
        """Return whether nothing is left of it to do."""

    def resolved(self, workdir: Path) -> Self:
        """Return the job that really has to be done, as far as is known by now."""
        return self

    def command(self, workdir: Path, data_dir: str | None = None) -> str:
        """Return what a person types for it in the project's folder."""
        words = [
            word.replace(f"--recipe={RECIPES}/", "--recipe=training/recipes/") for word in self.argv(workdir, data_dir)
        ]
        return f"python training/{self.program}.py {shlex.join(words)}"


@dataclasses.dataclass(frozen=True)
class Training(Job):
    """A network to train: an ordinary run.

    Args:
        name: of its folder.
        recipe: of the network.
        options: what differs from the recipe, as a command line has it.
        config: every option, as (name, value as JSON).
    """

    program = "run"
    name: str
    recipe: str
    options: tuple[str, ...]
    config: tuple[tuple[str, str], ...]

    def __getitem__(self, option: str) -> Any:
        """Return an option of the run."""
        return json.loads(dict(self.config)[option])

    @property
    def folder(self) -> str:
        return f"runs/{self.name}"

    def argv(self, workdir: Path, data_dir: str | None = None) -> list[str]:
        return [f"--recipe={RECIPES / self.recipe}.yaml", *self.options, *_places(workdir / self.folder, data_dir)]

    def is_done(self, workdir: Path) -> bool:
        file = Workdir(workdir / self.folder).result_file
        result = read_results(file) if file.exists() else {}
        # A run of another config is not this one; run.py will say so.
        return "finished" in result and self.is_of(result.get("config", {}))

    def is_of(self, stored: Mapping[str, Any]) -> bool:
        """Say whether a finished run's config is this one, but for places and options that there were not then."""
        wanted = {name: self[name] for name, _ in self.config if name in stored and name not in PLACES}
        return all(stored[name] == value or (name, value) in SETTLED_LATER for name, value in wanted.items())


@dataclasses.dataclass(frozen=True)
class Evaluation(Job):
    """A network to evaluate: an ordinary evaluation.

    Args:
        training: that makes the network.
        kind: `"paper"`, `"autoattack"`, `"strict"` or `"validation"`.
        setup: how it is carried out.
        checkpoint: `"last"` or `"best"` epoch.
    """

    program = "evaluate"
    training: Training
    kind: str
    setup: EvaluationSetup
    checkpoint: str

    @property
    def folder(self) -> str:
        return f"evaluations/{self.training.name}/{self.checkpoint}/{self.kind}"

    @property
    def report_file(self) -> str:
        """The file with its numbers, below the workdir of the reproduction."""
        return f"{self.folder}/report.json"

    def argv(self, workdir: Path, data_dir: str | None = None) -> list[str]:
        options: dict[str, Any] = {
            "model": workdir / self.training.folder,
            "checkpoint": self.checkpoint,
            "suite": self.setup.suite,
        }
        if self.setup.examples is not None:
            options["examples"] = self.setup.examples
        if self.setup.attacks:
            options |= {"attacks": self.setup.attacks, "attack_betas": ATTACK_BETAS}
        if self.setup.split != "test":
            options["split"] = self.setup.split
        return [*arguments(options), *_places(workdir / self.folder, data_dir)]

    def is_done(self, workdir: Path) -> bool:
        file = workdir / self.report_file
        if not file.exists():
            return False
        # Slow, and a plan is often of what is not there yet.
        from cifs_tf.evaluation.records import is_through_usual_gradients
        from cifs_tf.losses import attack_betas_for

        # Another evaluation is not this one; evaluate.py will say so.
        report = read_results(file)
        about, attacks = report["about"], (report["paper"] or {"attacks": {}})["attacks"]
        betas = [str(beta) for beta in attack_betas_for(ATTACK_BETAS, about["num_probes"])]
        found = about["suite"], about.get("split") or "test", about.get("norm") or "linf", about["seed"], tuple(attacks)
        return (
            found == (self.setup.suite, self.setup.split, "linf", self.training["seed"], self.setup.attacks)
            and all(list(each["by_beta"]) == betas for each in attacks.values())
            and float(about["epsilon"]) == Ratio(self.training["epsilon"])
            and is_through_usual_gradients(report)
            and self._is_of_as_many_images(report["num_examples"], about.get("subset_of"))
            and not about.get("unlike_run")
            and self._measured_weights(workdir) in (None, report["key"]["weights"])
        )

    def _is_of_as_many_images(self, number: int, subset_of: int | None) -> bool:
        wanted = self.setup.examples or SUITE_EXAMPLES.get(self.setup.suite)
        return number == wanted or (self.setup.examples is None and subset_of is None)

    def _measured_weights(self, workdir: Path) -> str | None:
        """Return the hash of the weights that the run itself measured at this epoch; None if it is not known."""
        file = Workdir(workdir / self.training.folder).result_file
        networks = read_results(file)["networks"] if file.exists() else {}
        found = networks.get(self.training["defense"], {}).get("evaluation", {}).get(self.checkpoint, {})
        return found.get("weights")  # type: ignore[no-any-return]

    def resolved(self, workdir: Path) -> Self:
        """Measure a network once if its best epoch is the last one."""
        run, defense = workdir / self.training.folder, self.training["defense"]
        if self.checkpoint == "last" or not Workdir(run).model_file(defense).exists():
            return self
        is_last = best_epoch(find_network(run, defense).history()) == self.training["epochs"]
        return dataclasses.replace(self, checkpoint="last") if is_last else self


@dataclasses.dataclass(frozen=True)
class Analysis(Job):
    """Pictures of some networks side by side; figures that show the same networks share them.

    Args:
        trainings: that make the networks.
        names: what the pictures call each of them.
        classes: whose channels are drawn, or `"all"`; None for the most and the least robust.
        examples: images; None for all test images.
        attack: on the images.
    """

    program = "analyse"
    trainings: tuple[Training, ...]
    names: tuple[str, ...]
    classes: tuple[str, ...] | str | None
    examples: int | None
    attack: str

    @property
    def folder(self) -> str:
        classes = "-".join(self.classes) if isinstance(self.classes, tuple) else self.classes or "extremes"
        return f"analyses/{'+'.join(training.name for training in self.trainings)}/{classes}"

    def argv(self, workdir: Path, data_dir: str | None = None) -> list[str]:
        runs = [workdir / training.folder for training in self.trainings]
        options: dict[str, Any] = {"run": runs, "names": self.names}
        if self.classes is not None:
            options["classes"] = self.classes
        if self.examples is not None:
            options["examples"] = self.examples
        options["attack"] = self.attack
        return [*arguments(options), *_places(workdir / self.folder, data_dir)]

    def is_done(self, workdir: Path) -> bool:
        return (workdir / self.folder / "summary.json").exists()


@dataclasses.dataclass(frozen=True)
class PlannedRow:
    """A row, and what its numbers are read from.

    Args:
        row: of the paper.
        evaluations: one for each seed.
        places: where in their reports each column is read.
    """

    row: Row
    evaluations: tuple[Evaluation, ...]
    places: tuple[str, ...]


def plan_table(table: PaperTable, scale: Scale, seeds: int) -> list[PlannedRow]:
    """Plan the rows of a table with the seeds 0, 1, ...; rows that do not exist at a scale are left out."""
    return [
        PlannedRow(
            row,
            tuple(plan_evaluation(row, scale, seed) for seed in range(seeds)),
            tuple(scale.place(place) for place in row.places),
        )
        for row in table.rows
        if scale.name in row.scales
    ]


def plan_evaluation(row: Row, scale: Scale, seed: int) -> Evaluation:
    """Plan how the network of a row is evaluated."""
    training = plan_training(row.network, scale, seed)
    return Evaluation(training, row.kind, scale.setup(row.kind, training.recipe), row.checkpoint)


def plan_training(network: NetworkSpec, scale: Scale, seed: int) -> Training:
    """Plan how a network is trained; the same network has the same name, whichever row needs it."""
    recipe = scale.recipe_of(network)
    base = flat_config(recipe, scale.settings)
    config = flat_config(recipe, {**scale.settings, **scale.changes_of(network)})
    changes = {name: value for name, value in config.items() if value != base[name]}
    return Training(
        name=f"{_name(recipe, config['defense'], changes)}-seed{seed}",
        recipe=recipe,
        options=tuple(arguments({**scale.settings, **changes, "seed": seed})),
        config=tuple((name, json.dumps(value)) for name, value in {**config, "seed": seed}.items()),
    )


def plan_figure(figure: Figure, scale: Scale) -> Analysis:
    """Plan a figure at a scale: one network of each kind, of seed 0."""
    names: dict[Training, str] = {}
    for name, network in figure.networks.items():
        # Where a scale makes two networks one, the first name stays.
        names.setdefault(plan_training(network, scale, 0), name)
    # The paper's classes are those of CIFAR-10.
    classes = figure.classes if scale.recipe is None or figure.classes == "all" else None
    return Analysis(tuple(names), tuple(names.values()), classes, scale.setups["paper"].examples, scale.place("pgd20"))


def jobs_of(rows: Iterable[PlannedRow]) -> list[Job]:
    """Return the distinct jobs of some rows, each network followed by its evaluations."""
    measured: dict[Training, dict[Evaluation, None]] = {}
    for row in rows:
        for evaluation in row.evaluations:
            measured.setdefault(evaluation.training, {})[evaluation] = None
    return [job for training, evaluations in measured.items() for job in (training, *evaluations)]


def _places(folder: Path, data_dir: str | None) -> list[str]:
    return arguments({"workdir": folder, **({"data_dir": data_dir} if data_dir else {})})


def _name(recipe: str, defense: str, changes: dict[str, Any]) -> str:
    """Return the name of a folder, with what differs from the recipe but for FAT's schedule."""
    differences = [
        value if isinstance(value, str) else f"{name}{_joined(value)}"
        for name, value in changes.items()
        if name != "defense" and not name.startswith("fat_")
    ]
    return "-".join([recipe, defense, *differences])


def _joined(value: Any) -> str:
    return "".join(f"-{item}" for item in value) if isinstance(value, Sequence) else str(value)
