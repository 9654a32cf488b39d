"""Make a preset of a network of a run: its weights, and a card of how it was made and what was measured.

    python -m cifs_tf.presets.from_run runs/digits cifs cifs_tf/presets/digits_cifs [OPTIONS OF STRICT]

What the suite strict found is in the card if it was measured before:
`cifs-tf evaluate --model runs/digits --defense cifs --suite strict [OPTIONS OF STRICT]`.
"""

import sys
from pathlib import Path
from typing import Any

from cifs_tf.errors import UserError
from cifs_tf.runs.trained import TrainedNetwork, find_network
from cifs_tf.statistics import accuracy_of

SUITES = ("paper", "strict")


def save_run_to_preset(network: TrainedNetwork, folder: Path, strict_options: str = "") -> dict[str, Any]:
    """Write a preset.

    Args:
        network: of a finished run, evaluated with the suite paper, and with strict if its numbers shall be told.
        folder: of the preset; its name is the preset's.
        strict_options: what the suite strict was measured with beside its defaults, such as `" --examples 100"`.

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
    options = {"paper": "", "strict": strict_options}
    model = f"cifs_tf/presets/{folder.name}/model.keras"
    card = {
        "data": {
            "dataset": config.data.dataset,
            "split": "test",
            "num_examples": reports["paper"]["num_examples"],
            "epsilon": float(config.attack.epsilon),
            "norm": "linf",
        },
        "recipe": config.flat() | {"workdir": None, "data_dir": None, "cache_dir": None, "defense": defense},
        "revision": network.result().get("revision"),
        "measured": {
            "natural": accuracy_of(natural, reports["paper"]["num_examples"]),
            **{suite: _worst_case(reports.get(suite)) for suite in SUITES},
            "audit_passed": reports.get("strict", {}).get("believable"),
        },
        "commands": {
            "train": f"python training/run.py --dataset {config.data.dataset} --seed {config.train.seed}",
            **{
                f"measure_{suite}": f"python training/evaluate.py --model {model} --suite {suite} "
                f"--dataset {config.data.dataset}{options[suite]}"
                for suite in SUITES
            },
        },
    }
    network.load().save_to_preset(folder, card)
    return card


def _worst_case(report: dict[str, Any] | None) -> dict[str, Any] | None:
    return report and accuracy_of(report["worst_case"]["count"], report["num_examples"])


if __name__ == "__main__":
    run, defense, folder, *options = sys.argv[1:]
    save_run_to_preset(find_network(run, defense, option="run"), Path(folder), "".join(f" {each}" for each in options))
