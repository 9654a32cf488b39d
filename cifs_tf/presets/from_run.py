"""Make a preset of a network of a run: its weights, and a card of how it was made and what was measured.

    python -m cifs_tf.presets.from_run runs/digits cifs cifs_tf/presets/digits_cifs [RECIPE [OPTIONS OF STRICT]]

What the suite strict found is in the card if it was measured before:
`cifs-tf evaluate --model runs/digits --defense cifs --suite strict [OPTIONS OF STRICT]`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifs_tf.command_line import run_program
from cifs_tf.errors import UserError
from cifs_tf.runs.recipes import arguments, changes_of, recipe_for
from cifs_tf.runs.trained import TrainedNetwork, find_network
from cifs_tf.statistics import accuracy_of

PRESET_SUITES = ("paper", "strict")


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
        advice = f"measure it first: cifs-tf evaluate --model {network.path} --defense {defense} --suite paper"
        raise UserError("run", network.path, advice)
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
    model = f"cifs_tf/presets/{folder.name}/model.keras"
    card = {
        "data": {
            "dataset": dataset,
            "split": "test",
            "num_examples": num_examples,
            "epsilon": float(config.attack.epsilon),
            "norm": "linf",
        },
        "recipe": config.flat() | {"workdir": None, "data_dir": None, "cache_dir": None, "defense": defense},
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
    if len(argv) < 3:
        raise UserError("arguments", list(argv), "give RUN DEFENSE FOLDER [RECIPE [OPTIONS OF STRICT]]")
    run, defense, folder, *more = argv
    save_run_to_preset(find_network(run, defense, option="run"), Path(folder), more[0] if more else None, more[1:])


if __name__ == "__main__":
    run_program(main)
