"""Look inside the networks of a run: channels under attack, training curves, robustness class by class.

    python training/analyse.py --run runs/digits
    python training/analyse.py --run runs/digits --checkpoint best --examples 200 --classes all
    python training/analyse.py --run runs/standard,runs/pgd                  several runs side by side
    python training/analyse.py --run runs/standard,runs/pgd --names standard,PGD        with names of your own

Draws the paper's Figures 1, 3 and A.2 (channels_*.png), 4 (curves.png) and A.1 (class_robustness.png), and writes the
numbers behind them (channels.csv, classes.csv, summary.json) into RUN/analysis; docs/analysis.md tells what they mean.
The same command again continues there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.progress import track

from cifs_tf.command_line import names_of, parse_options
from cifs_tf.config import RunConfig
from cifs_tf.errors import UserError
from cifs_tf.extras import require
from cifs_tf.programs.analyse_options import AnalyseOptions
from cifs_tf.runs.findings import Findings
from cifs_tf.runs.provenance import revision
from cifs_tf.runs.recipes import run_program
from cifs_tf.runs.workdir import Workdir, check_folder, read_json, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cifs_tf.analysis import Measurement
    from cifs_tf.data import ImageDataset, Split
    from cifs_tf.models import Classifier


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A trained network of a run: what the figures call it, and where it lies."""

    name: str
    run: Workdir
    config: RunConfig
    defense: str


def main(argv: Sequence[str]) -> None:
    """Parse the command line and look inside."""
    options = parse_options(AnalyseOptions, "analyse.py", argv, __doc__ or "")
    require("report")
    analyse(options)


def analyse(options: AnalyseOptions) -> dict[str, Any]:
    """Attack the networks of some runs, or what is left of it, and write figures and numbers.

    Returns:
        the content of `summary.json`.

    Raises:
        UserError: for input that does not fit; nothing has been written then.
    """
    networks = find_networks(options)
    folder = Path(options.workdir) if options.workdir else _default_folder(options)
    for each in (folder, *(_measured_in(network, options) for network in networks)):
        check_folder(each)
    # After the check: importing TensorFlow takes seconds, an error should not.
    from cifs_tf.runs.machine import exact_factors

    with exact_factors():
        return _look_inside(options, networks, folder)


def _look_inside(options: AnalyseOptions, networks: list[Network], folder: Path) -> dict[str, Any]:
    from cifs_tf.data import load_dataset

    dataset = load_dataset(_data_config(options, networks[0].config))
    split = dataset.test
    if options.examples is not None:
        split = split.class_balanced(options.examples, "--examples")
    classes = _classes_asked(options, dataset, split)
    loaded = {network: load(network, options) for network in networks}
    measurements = {
        network.name: measure(network, classifier, beta, split, options)
        for network, (classifier, beta) in loaded.items()
    }
    findings = Findings(measurements, dataset.class_names, options.attack_title)
    figures = findings.draw(findings.most_and_least_robust() if classes is None else classes)
    figures |= _curves(networks, dataset.name)
    summary = {
        "revision": revision(),
        "dataset": dataset.name,
        "num_examples": len(split),
        "subset_of": dataset.num_test_images if len(split) < dataset.num_test_images else None,
        "checkpoint": options.checkpoint,
        "attack": options.attack,
        "epsilon": float(networks[0].config.attack.epsilon),
        "networks": {
            network.name: {
                "run": str(network.run.path),
                "defense": network.defense,
                "seed": network.config.train.seed,
                "attack_beta": loaded[network][1],
                **findings.means[network.name],
            }
            for network in networks
        },
    }
    written = _write(folder, findings, figures, summary)
    _show(findings, summary, written)
    return summary


def _write(folder: Path, findings: Findings, figures: dict[str, Figure], summary: dict[str, Any]) -> list[Path]:
    from cifs_tf.figures import save_figure

    summary_file = folder / "summary.json"
    # First gone and last written: its presence says that the rest is there, and belongs to it.
    summary_file.unlink(missing_ok=True)
    for stale in set(folder.glob("channels_*.png")) - {folder / name for name in figures}:
        stale.unlink()  # of other options
    written = findings.write_numbers(folder)
    for name, figure in figures.items():
        save_figure(figure, folder / name)
        written.append(folder / name)
    summary["files"] = [file.name for file in written]
    write_json(summary_file, summary)
    return [*written, summary_file]


def _show(findings: Findings, summary: dict[str, Any], written: Sequence[Path]) -> None:
    console = Console()
    networks = summary["networks"]
    of = f" of {summary['subset_of']:,}" if summary["subset_of"] else ""
    seeds = ", ".join(str(seed) for seed in sorted({network["seed"] for network in networks.values()}))
    title = (
        f"{summary['dataset']}: {summary['num_examples']:,}{of} test images, {findings.attack}, "
        f"epsilon {summary['epsilon']:.4g}\n{summary['checkpoint']} epoch, trained with seed {seeds}"
    )
    for table in findings.tables(title, {name: network["attack_beta"] for name, network in networks.items()}):
        console.print(table)
    console.print("Written:", *(f"  {path}" for path in written), sep="\n", soft_wrap=True)


def _curves(networks: Sequence[Network], dataset_name: str) -> dict[str, Figure]:
    from cifs_tf.runs.curves import draw_curves

    files = {network.name: network.run.history_file(network.defense) for network in networks}
    histories = {name: read_json(file) for name, file in files.items() if file.exists()}
    return {"curves.png": draw_curves(histories, dataset_name)} if histories else {}


def find_networks(options: AnalyseOptions) -> list[Network]:
    """Find the networks of every run: in each the twin first, if there is one.

    Raises:
        UserError: if something is no run, a network is missing, or the runs cannot be compared.
    """
    networks: list[Network] = []
    for path in options.run:
        run = Workdir(path)
        try:
            config = run.read_config()
        except UserError as error:
            raise UserError("--run", path, error.advice) from error
        for defense in dict.fromkeys([config.output.twin or config.model.defense, config.model.defense]):
            file = run.model_file(defense, options.checkpoint)
            if not file.exists():
                advice = f"it has no {file.relative_to(run.path)}, finish its training, or give another --checkpoint"
                raise UserError("--run", path, advice)
            name = defense if len(options.run) == 1 else f"{_name(path)}, {defense}"
            networks.append(Network(name, run, config, defense))
    _check_comparable(options, networks)
    return _renamed(networks, options.names)


def _renamed(networks: list[Network], names: Sequence[str]) -> list[Network]:
    if names and len(names) != len(networks):
        found = ", ".join(network.name for network in networks)
        raise UserError("--names", list(names), f"give one for each of the {len(networks)} networks: {found}")
    if names:
        networks = [dataclasses.replace(network, name=name) for network, name in zip(networks, names, strict=True)]
    known = [network.name for network in networks]
    if len(set(known)) < len(known):
        raise UserError("--names", known, f"two are the same, give {len(known)} different names")
    return networks


def _check_comparable(options: AnalyseOptions, networks: Sequence[Network]) -> None:
    def terms(config: RunConfig) -> dict[str, Any]:
        flat = config.flat()
        names = ["dataset", "image_size", "epsilon"]
        if options.examples is None:
            names += ["test_examples", "train_examples"]
        return {name: flat[name] for name in names}

    first = networks[0]
    for other in networks[1:]:
        for name, value in terms(first.config).items():
            theirs = terms(other.config)[name]
            if theirs != value:
                advice = f"{name} is {value} in {first.run.path} and {theirs} there, give runs that can be compared"
                if name in ("test_examples", "train_examples"):
                    advice += ", or a number of --examples"
                raise UserError("--run", other.run.path, advice)


def _name(path: str) -> str:
    return Path(path).resolve().name


def _default_folder(options: AnalyseOptions) -> Path:
    if len(options.run) == 1:
        return Workdir(options.run[0]).path / "analysis"
    return Path("runs") / "analysis" / "-".join(map(_name, options.run))


def _measured_in(network: Network, options: AnalyseOptions) -> Path:
    folder = Path(options.workdir) if options.workdir else network.run.path / "analysis"
    return folder / "activations"


def _data_config(options: AnalyseOptions, config: RunConfig) -> Any:
    changes: dict[str, Any] = {"data_dir": options.data_dir} if options.data_dir else {}
    if options.examples is not None:
        # Without this, a run on a part of the training images offers a part of the test images only.
        changes |= {"test_examples": None, "train_examples": None}
    return dataclasses.replace(config.data, **changes)


def _classes_asked(options: AnalyseOptions, dataset: ImageDataset, split: Split) -> list[int] | None:
    """Labels of the classes that were asked for; None if none were."""
    if options.classes is None:
        return None
    present = sorted(set(split.labels.tolist()))
    if options.classes == ("all",):
        return present
    known = {str(label): label for label in range(dataset.num_classes)}
    known |= {name: label for label, name in enumerate(dataset.class_names)}
    for name in options.classes:
        if str(name) not in known:
            some = ", ".join(dataset.class_names[:10]) + (", ..." if dataset.num_classes > 10 else "")
            raise UserError("--classes", name, f"give some of {some}, their numbers from 0, or all")
        if known[str(name)] not in present:
            advice = f"none of the {len(split)} images has this class, give another, or more --examples"
            raise UserError("--classes", name, advice)
    if not options.classes:
        raise UserError("--classes", [], "name a class at least, or leave the option out")
    return list(dict.fromkeys(known[str(name)] for name in options.classes))


def load(network: Network, options: AnalyseOptions) -> tuple[Classifier, float | str]:
    """Load a network, and choose beta_atk.

    Raises:
        UserError: if the network's last layer is not dense, or it has no such beta_atk.
    """
    from cifs_tf.analysis import last_layer_weights
    from cifs_tf.losses import head_weights
    from cifs_tf.runs import network as experiment

    classifier = experiment.load(network.config, network.run, network.defense, options.checkpoint)
    beta = choose_beta(network, options, classifier.num_probes)
    try:
        last_layer_weights(classifier)
        head_weights(beta, classifier.num_probes)
    except UserError as error:
        option = "--attack_beta" if error.argument == "beta" else "--run"
        raise UserError(option, error.received, error.advice) from error
    return classifier, beta


def measure(
    network: Network, classifier: Classifier, beta: float | str, split: Split, options: AnalyseOptions
) -> Measurement:
    """Attack one network as its run's evaluation does, or what is left of it."""
    from cifs_tf.analysis import measure_channels
    from cifs_tf.evaluation import make_attacks

    evaluation = network.config.evaluation
    epsilon, steps = network.config.attack.epsilon, (evaluation.eval_step_size, evaluation.eval_step_sizes)
    return measure_channels(
        classifier,
        split,
        make_attacks([options.attack], epsilon, *steps)[options.attack],
        beta,
        mask_gradient=evaluation.eval_mask_gradient if classifier.num_probes else None,
        batch_size=options.batch_size,
        folder=_measured_in(network, options),
        progress=lambda starts: track(starts, f"{network.name}: {options.attack_title}, beta_atk {beta}"),
    )


def choose_beta(network: Network, options: AnalyseOptions, num_probes: int) -> float | str:
    """The attacker's beta: the one asked for, or the worst of the run's evaluation, or that of the run."""
    from cifs_tf.analysis import read_verdicts
    from cifs_tf.evaluation import Ledger

    if num_probes == 0:
        return 0
    if options.attack_beta is not None:
        return options.attack_beta
    file = network.run.evaluation(network.defense, options.checkpoint, "paper") / "ledger.jsonl"
    try:
        return read_verdicts(Ledger.read(file), options.attack).beta
    except UserError:  # there is none, or none of this attack
        return network.config.train.beta


def start() -> NoReturn:
    """Run the program on the command line of this process, and exit."""
    run_program(main, names_of(AnalyseOptions))
