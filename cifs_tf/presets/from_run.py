"""Make a preset of a network of a run: its weights, and a card of how it was made and what was measured.

    python -m cifs_tf.presets.from_run --run runs/digits --folder presets/mine

What the suite strict found is in the card if it was measured before:
`cifs-tf evaluate --model runs/digits --suite strict`.
"""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cifs_tf.command_line import parse_options, run_program
from cifs_tf.config import Group
from cifs_tf.errors import UserError
from cifs_tf.files import print_written
from cifs_tf.runs.recipes import arguments, changes_of, recipe_for
from cifs_tf.runs.trained import TrainedNetwork, find_network
from cifs_tf.statistics import accuracy_of

PRESET_SUITES = ("paper", "strict")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PresetOptions(Group):
    """Make a preset of a network of a run: a folder with its weights and a card, for `cifs_tf.from_preset`.

    Args:
        run: workdir of a finished run.
        folder: of the preset, which is made; its name is the preset's.
        defense: which of the run's networks; null is its own, not the twin.
        checkpoint: the network after its last epoch, or after its best on the validation images.
        recipe: name of the recipe whose options the commands of the card leave out; null is that of the dataset.
        strict_options: what the suite strict was measured with beside its defaults, as on the command line.
    """

    run: str
    folder: str
    defense: str | None = None
    checkpoint: Literal["last", "best"] = "last"
    recipe: str | None = None
    strict_options: str = ""


def save_run_to_preset(
    network: TrainedNetwork, folder: Path, recipe: str | None = None, strict_options: Sequence[str] = ()
) -> dict[str, Any]:
    """Write a preset.

    Args:
        network: of a finished run, evaluated with the suite paper, and with strict if its numbers shall be told.
        folder: of the preset; its name is the preset's.
        recipe: whose options the commands of the card leave out. Default that of the dataset.
        strict_options: what the suite strict was measured with beside its defaults, such as `["--examples=100"]`.

    Returns:
        the card.

    Raises:
        UserError: if the suite paper was not measured, or the folder holds a preset.
    """
    reports, config, defense = network.reports(), network.config, network.defense
    if "paper" not in reports:
        which = f"--model {network.path} --defense {defense} --checkpoint {network.checkpoint}"
        raise UserError("run", network.path, f"measure it first: cifs-tf evaluate {which} --suite paper")
    natural = reports["paper"]["natural"]["count"]
    dataset, num_examples = config.data.dataset, reports["paper"]["num_examples"]
    base = f"--recipe training/recipes/{recipe}.yaml" if recipe else f"--dataset {dataset}"
    made = arguments({**changes_of(config, recipe or str(recipe_for(dataset))), "seed": config.train.seed})
    # What measures again reads the dataset's recipe.
    other = changes_of(config, str(recipe_for(dataset)))
    measured: dict[str, Any] = {name: other[name] for name in ("epsilon", "attacks", "attack_betas") if name in other}
    examples = {} if config.data.test_examples is None else {"examples": num_examples}
    common, all_of_them = arguments(measured), arguments(examples)
    how = {"paper": " ".join(common + all_of_them), "strict": " ".join(common + list(strict_options or all_of_them))}
    model = folder / "model.keras"
    card = {
        "data": {
            "dataset": dataset,
            "split": "test",
            "num_examples": num_examples,
            "epsilon": float(config.attack.epsilon),
            "norm": "linf",
        },
        "recipe": config.flat() | {"workdir": None, "data_dir": None, "cache_dir": None, "defense": defense},
        "checkpoint": network.checkpoint,
        "revision": network.result().get("revision"),
        "measured": {
            "natural": accuracy_of(natural, num_examples),
            **{suite: _worst_case(reports.get(suite)) for suite in PRESET_SUITES},
            "audit_passed": reports.get("strict", {}).get("believable"),
        },
        "commands": {
            "train": " ".join(["python training/run.py", base, *made]),
            **{
                f"measure_{suite}": f"python training/evaluate.py --model {model} --suite {suite} "
                f"--dataset {dataset} {how[suite]}".strip()
                for suite in PRESET_SUITES
            },
        },
    }
    network.load().save_to_preset(folder, card)
    return card


def _worst_case(report: dict[str, Any] | None) -> dict[str, Any] | None:
    return report and accuracy_of(report["worst_case"]["count"], report["num_examples"])


def main(argv: Sequence[str]) -> None:
    """Make a preset, as the module's text says."""
    options = parse_options(PresetOptions, "cifs_tf.presets.from_run", argv, __doc__ or "")
    network, folder = find_network(options.run, options.defense, options.checkpoint), Path(options.folder)
    save_run_to_preset(network, folder, options.recipe, shlex.split(options.strict_options))
    print_written([folder / "model.keras", folder / "card.json"])


if __name__ == "__main__":
    run_program(main)
