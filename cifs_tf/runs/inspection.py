"""Channels under attack: attack networks, measure their channels, write and show the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from cifs_tf.analysis import Measurement, last_layer_weights, measure_channels, read_verdicts
from cifs_tf.attack_names import attack_title
from cifs_tf.config import DataConfig
from cifs_tf.data import ImageDataset, Split
from cifs_tf.errors import UserError
from cifs_tf.evaluation import Ledger, make_attacks
from cifs_tf.evaluation.networks.attacked import fingerprint_of
from cifs_tf.figures import save_figure
from cifs_tf.files import print_written, write_results
from cifs_tf.losses import head_weights
from cifs_tf.models import Classifier
from cifs_tf.runs.comparison import Comparison
from cifs_tf.runs.curves import draw_curves
from cifs_tf.runs.images import MEASURED, OTHERWISE, load_images
from cifs_tf.runs.precision import tf32_disabled
from cifs_tf.runs.provenance import revision
from cifs_tf.runs.trained import TrainedNetwork


def inspect_networks(
    networks: Mapping[str, TrainedNetwork],
    data: DataConfig,
    folder: Path,
    measured_in: Mapping[str, Path],
    *,
    attack: str,
    attack_beta: float | str | None = None,
    examples: int | None = None,
    classes: Sequence[int | str] | None = None,
    batch_size: int = 250,
    other_images: bool = False,
) -> dict[str, Any]:
    """Attack networks on the same images, or do what is left of it, and write figures and numbers.

    Args:
        networks: by the names that figures and tables give them.
        data: the images.
        folder: where to write.
        measured_in: for each network, where its activations are kept, so that they are not measured again.
        attack: fgsm, pgdN or cwN.
        attack_beta: beta_atk. Default None: see `choose_beta`.
        examples: a class-balanced subset of so many test images. Default None: all.
        classes: names or numbers of the classes to draw, or `("all",)`. Default None: the most and the least robust
            class of the last network.
        batch_size: images per batch.
        other_images: accept images that the runs were not trained beside, see `load_images`. Default False.

    Returns:
        the content of `summary.json`.

    Raises:
        UserError: for input that does not fit; nothing has been written then.
    """
    runs = {network.path.resolve(): network.run for network in networks.values()}
    dataset = load_images(
        data,
        list(runs.values()),
        other_images=other_images,
        advice=OTHERWISE,
        splits=MEASURED,
        test_part=lambda test: test if examples is None else test.class_balanced(examples, "--examples"),
    )
    split = dataset.test
    labels = None if classes is None else _labels_of(classes, dataset, split)
    loaded = {name: _load(network, attack, attack_beta) for name, network in networks.items()}
    with tf32_disabled():
        measurements = {
            name: _measure(name, networks[name], *found, split, attack, batch_size, measured_in[name])
            for name, found in loaded.items()
        }
    comparison = Comparison(measurements, dataset.class_names, attack_title(attack))
    figures = comparison.draw(comparison.most_and_least_robust() if labels is None else labels)
    if histories := {name: logged for name, network in networks.items() if (logged := network.history())}:
        figures["curves.png"] = draw_curves(histories, dataset.name)
    first = next(iter(networks.values()))
    summary = {
        "revision": revision(),
        "dataset": dataset.name,
        "unlike_run": list(dataset.unlike_run),
        "num_examples": len(split),
        "subset_of": dataset.num_test_images if len(split) < dataset.num_test_images else None,
        "checkpoint": first.checkpoint,
        "attack": attack,
        "epsilon": float(first.config.attack.epsilon),
        "networks": {
            name: {
                "run": str(network.path),
                "defense": network.defense,
                "seed": network.config.train.seed,
                "attack_beta": loaded[name][1],
                **comparison.means[name],
            }
            for name, network in networks.items()
        },
    }
    written = _write(folder, comparison, figures, summary)
    _show(comparison, summary, written)
    return summary


def _write(folder: Path, comparison: Comparison, figures: dict[str, Figure], summary: dict[str, Any]) -> list[Path]:
    summary_file = folder / "summary.json"
    # First gone and last written: its presence says that the rest is there, and belongs to it.
    summary_file.unlink(missing_ok=True)
    for stale in set(folder.glob("channels_*.png")) - {folder / name for name in figures}:
        stale.unlink()  # of other options
    written = comparison.write_numbers(folder)
    for name, figure in figures.items():
        save_figure(figure, folder / name)
        written.append(folder / name)
    summary["files"] = [file.name for file in written]
    write_results(summary_file, summary)
    return [*written, summary_file]


def _show(comparison: Comparison, summary: dict[str, Any], written: Sequence[Path]) -> None:
    console = Console()
    networks = summary["networks"]
    if summary["unlike_run"]:
        console.print(f"note: these are not the images of the run: {'; '.join(summary['unlike_run'])}", soft_wrap=True)
    of = f" of {summary['subset_of']:,}" if summary["subset_of"] else ""
    seeds = ", ".join(str(seed) for seed in sorted({network["seed"] for network in networks.values()}))
    title = (
        f"{summary['dataset']}: {summary['num_examples']:,}{of} test images, {comparison.attack}, "
        f"epsilon {summary['epsilon']:.4g}\n{summary['checkpoint']} epoch, trained with seed {seeds}"
    )
    for table in comparison.tables(title, {name: network["attack_beta"] for name, network in networks.items()}):
        console.print(table)
    print_written(written)


def _labels_of(classes: Sequence[int | str], dataset: ImageDataset, split: Split) -> list[int]:
    """Return the labels of the classes that were asked for."""
    present = sorted(set(split.labels.tolist()))
    if list(classes) == ["all"]:
        return present
    known = {str(label): label for label in range(dataset.num_classes)}
    known |= {name: label for label, name in enumerate(dataset.class_names)}
    for name in classes:
        if str(name) not in known:
            some = ", ".join(dataset.class_names[:10]) + (", ..." if dataset.num_classes > 10 else "")
            raise UserError("--classes", name, f"give some of {some}, their numbers from 0, or all")
        if known[str(name)] not in present:
            advice = f"none of the {len(split)} images has this class, give another, or more --examples"
            raise UserError("--classes", name, advice)
    if not classes:
        raise UserError("--classes", [], "name a class at least, or leave the option out")
    return list(dict.fromkeys(known[str(name)] for name in classes))


def _load(network: TrainedNetwork, attack: str, attack_beta: float | str | None) -> tuple[Classifier, float | str]:
    """Load a network, and choose beta_atk.

    Raises:
        UserError: if the network's last layer is not dense, or it has no such beta_atk.
    """
    classifier = network.load()
    beta = choose_beta(network, attack, attack_beta, classifier)
    try:
        last_layer_weights(classifier)
        head_weights(beta, classifier.num_probes)
    except UserError as error:
        option = "--attack_beta" if error.argument == "beta" else "--run"
        raise UserError(option, error.received, error.advice) from error
    return classifier, beta


def _measure(
    name: str,
    network: TrainedNetwork,
    classifier: Classifier,
    beta: float | str,
    split: Split,
    attack: str,
    batch_size: int,
    folder: Path,
) -> Measurement:
    """Attack one network as its run's evaluation does, or do what is left of it."""
    evaluation = network.config.evaluation
    epsilon, steps = network.config.attack.epsilon, (evaluation.eval_step_size, evaluation.eval_step_sizes)
    return measure_channels(
        classifier,
        split,
        make_attacks([attack], epsilon, *steps)[attack],
        beta,
        mask_gradient=evaluation.eval_mask_gradient if classifier.num_probes else None,
        batch_size=batch_size,
        folder=folder,
        progress=lambda starts: track(starts, f"{name}: {attack_title(attack)}, beta_atk {beta}"),
    )


def choose_beta(
    network: TrainedNetwork, attack: str, attack_beta: float | str | None, classifier: Classifier
) -> float | str:
    """Return the attacker's beta: the one asked for, or the worst of the run's evaluation, or that of the run.

    Raises:
        UserError: if that evaluation is damaged, or of another network.
    """
    if classifier.num_probes == 0:
        return 0
    if attack_beta is not None:
        return attack_beta
    ledger_file = network.evaluation("paper") / "ledger.jsonl"
    if not ledger_file.exists():
        return network.config.train.beta
    ledger = Ledger.read(ledger_file)
    if ledger.finished:
        ledger.check_complete(ledger_file)
    if network.run.key is not None and ledger.header["key"]["weights"] != fingerprint_of(classifier):
        advice = f"{ledger_file.relative_to(network.path)} is of another network than {network.model_file.name}"
        raise UserError(network.option, network.path, f"{advice}; make it anew, or give --attack_beta")
    try:
        return read_verdicts(ledger, attack).beta
    except UserError:  # none of this attack
        return network.config.train.beta
