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
from cifs_tf.config import EvaluationConfig, Group, RunConfig
from cifs_tf.errors import UserError
from cifs_tf.evaluation.networks.attacked import fingerprint_of
from cifs_tf.evaluation.records import is_through_usual_gradients
from cifs_tf.files import print_written
from cifs_tf.losses import attack_betas_for
from cifs_tf.runs.recipes import arguments, changes_of, parse_config, recipe_for
from cifs_tf.runs.trained import TrainedNetwork, find_network
from cifs_tf.statistics import accuracy_of

PRESET_SUITES = ("paper", "strict")
# Options of a run's measurement that evaluate.py has too, and that it has not.
TOLD = ("image_size", "resize", "epsilon", "seed")
UNTOLD = ("eval_step_size", "eval_step_sizes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PresetOptions(Group):
    """Make a preset of a network of a run: a folder with its weights and a card, for `cifs_tf.from_preset`.

    Args:
        run: workdir of a finished run.
        folder: of the preset, which is made; its name is the preset's.
        defense: which of the run's networks; null is its own, not the twin.
        checkpoint: the network after its last epoch, or after its best on the validation images.
        recipe: name or file of the recipe whose options the commands of the card leave out; null is the dataset's.
    """

    run: str
    folder: str
    defense: str | None = None
    checkpoint: Literal["last", "best"] = "last"
    recipe: str | None = None


def save_run_to_preset(network: TrainedNetwork, folder: Path, recipe: str | None = None) -> dict[str, Any]:
    """Write a preset.

    Args:
        network: of a finished run, evaluated with the suite paper, and with strict if its numbers shall be told.
        folder: of the preset; its name is the preset's.
        recipe: name or file, whose options the commands of the card leave out. Default that of the dataset.

    Returns:
        the card.

    Raises:
        UserError: if the suite paper was not measured, a report is not of this network and the run's images and
            epsilon, its commands cannot say how it was measured, or the folder holds a preset.
    """
    config, defense, classifier = network.config, network.defense, network.load()
    reports = {suite: report for suite, report in network.reports().items() if suite in PRESET_SUITES}
    if "paper" not in reports:
        advice = f"measure it first: {_command(network, 'paper')}"
        raise UserError(network.option, network.path, advice)
    for suite, report in reports.items():
        _check_report(network, suite, report, fingerprint_of(classifier))
    if "strict" in reports:
        _check_strict(network, reports["strict"])
    natural = reports["paper"]["natural"]["count"]
    dataset, num_examples = config.data.dataset, reports["paper"]["num_examples"]
    base = f"--dataset {dataset}"
    if recipe:
        base = f"--recipe {shlex.quote(recipe if '/' in recipe else f'training/recipes/{recipe}.yaml')}"
    made = arguments({**changes_of(config, recipe or str(recipe_for(dataset))), "seed": config.train.seed})
    # What measures again reads the dataset's recipe.
    other = changes_of(config, str(recipe_for(dataset)))
    if untold := [name for name in UNTOLD if name in other]:
        advice = f"its {', '.join(untold)} is not that of the dataset's recipe, which evaluate.py has no option for"
        raise UserError(network.option, network.path, advice)
    told = {name: other[name] for name in TOLD if name in other}
    usual = parse_config("run.py", "", [f"--dataset={dataset}"]).evaluation

    def how(suite: str) -> str:
        options = told | _options_of(reports.get(suite, reports["paper"]), config, usual, classifier.num_probes)
        if suite == "paper" and not is_through_usual_gradients(reports["paper"]):
            tasks = reports["paper"]["tasks"]
            options["mask_gradients"] = next(task["mask_gradient"] for task in tasks if task["section"] == "paper")
        return " ".join(map(shlex.quote, arguments(options)))

    model = shlex.quote(str(folder / "model.keras"))
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
                f"--dataset {dataset} {how(suite)}".strip()
                for suite in PRESET_SUITES
            },
        },
    }
    classifier.save_to_preset(folder, card)
    return card


def _command(network: TrainedNetwork, suite: str) -> str:
    which = f"--model {shlex.quote(str(network.path))} --defense {network.defense} --checkpoint {network.checkpoint}"
    return f"cifs-tf evaluate {which} --suite {suite}"


def _check_report(network: TrainedNetwork, suite: str, report: dict[str, Any], weights: str) -> None:
    """Refuse a report of another network, suite, epsilon or images than the card will say."""
    if different := network.differences(report, suite, weights):
        file = (network.evaluation(suite) / "report.json").relative_to(network.path)
        advice = f"{file} is of other {', '.join(different)}; measure it anew: {_command(network, suite)}"
        raise UserError(network.option, network.path, advice)


def _check_strict(network: TrainedNetwork, report: dict[str, Any]) -> None:
    """Refuse what is less than the suite: an attack through some gradients of the mask alone, or without the audit."""
    if not is_through_usual_gradients(report) or report.get("believable") is None:
        advice = f"strict was measured without the audit or some mask gradients; anew: {_command(network, 'strict')}"
        raise UserError(network.option, network.path, advice)


def _options_of(report: dict[str, Any], config: RunConfig, usual: EvaluationConfig, num_probes: int) -> dict[str, Any]:
    """Return the options that say what a report was measured with, where that is not usual for the dataset."""
    attacks, number = report["paper"]["attacks"], report["num_examples"]
    betas = list(next(iter(attacks.values()))["by_beta"])
    seed = report["about"]["seed"]
    # The preset is no run: without an option its seed is 0.
    options: dict[str, Any] = {"seed": seed} if seed or config.train.seed else {}
    if list(attacks) != list(usual.attacks):
        options["attacks"] = list(attacks)
    if betas != [str(beta) for beta in attack_betas_for(usual.attack_betas, num_probes)]:
        options["attack_betas"] = betas
    if config.data.test_examples is not None or number != report["about"].get("subset_of", number):
        options["examples"] = number
    return options


def _worst_case(report: dict[str, Any] | None) -> dict[str, Any] | None:
    return report and accuracy_of(report["worst_case"]["count"], report["num_examples"])


def main(argv: Sequence[str]) -> None:
    """Make a preset, as the module's text says."""
    options = parse_options(PresetOptions, "cifs_tf.presets.from_run", argv, __doc__ or "")
    network, folder = find_network(options.run, options.defense, options.checkpoint), Path(options.folder)
    save_run_to_preset(network, folder, options.recipe)
    print_written([folder / "model.keras", folder / "card.json"])


if __name__ == "__main__":
    run_program(main)
