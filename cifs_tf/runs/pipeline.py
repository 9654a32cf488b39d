"""A run from its config to its results: train, attack and export each of its networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf
from rich.console import Console

from cifs_tf.config import RunConfig
from cifs_tf.data import ImageDataset
from cifs_tf.data.resizing import served_mode
from cifs_tf.errors import UserError
from cifs_tf.evaluation.networks.attacked import fingerprint_of
from cifs_tf.export import FORMATS, ORIGIN_FILE, ExportError, export, find_fault, write_origin
from cifs_tf.extras import is_installed
from cifs_tf.files import CHECK, now, print_written, read_json, read_results, write_results
from cifs_tf.models import Classifier
from cifs_tf.runs.cluster import Cluster, make_cluster
from cifs_tf.runs.image_table import show_images
from cifs_tf.runs.images import check_recorded_images, load_training_images, record_images
from cifs_tf.runs.measurement import check_test_images, measure_checkpoints
from cifs_tf.runs.networks import build_networks, model_configs
from cifs_tf.runs.origin import PARTS
from cifs_tf.runs.precision import resolve_auto
from cifs_tf.runs.provenance import describe
from cifs_tf.runs.trained import TrainedNetwork
from cifs_tf.runs.training import fit
from cifs_tf.runs.workdir import Workdir
from cifs_tf.tables import Table


def run(config: RunConfig, workdir: Workdir) -> dict[str, Any]:
    """Carry out a run, or what is left of it.

    Args:
        config: what to do.
        workdir: where to leave it.

    Returns:
        the content of `result.json`; an empty dict in a worker that is not the chief.

    Raises:
        UserError: for input that does not fit; nothing has been written then.
    """
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    cluster = make_cluster(config.machine)
    config = resolve_auto(config, workdir, cluster)
    workdir.check(config)
    if cluster.is_chief:
        dataset = load_training_images(config.data, workdir)  # and download them
    cluster.wait_for_all()
    if not cluster.is_chief:
        dataset = load_training_images(config.data, workdir)
    check_test_images(dataset, cluster)
    networks = build_networks(config, dataset, cluster)
    if not cluster.is_chief:
        _run_worker(config, workdir, dataset, networks, cluster)
        cluster.wait_for_all()
        return {}
    with workdir.open(config):
        record_images(dataset, workdir, config.train.warm_start)
        cluster.wait_for_all()
        result = _run_chief(config, workdir, dataset, networks, cluster)
    cluster.wait_for_all()
    return result


def _run_worker(
    config: RunConfig, workdir: Workdir, dataset: ImageDataset, networks: dict[str, Classifier], cluster: Cluster
) -> None:
    """Make the same steps as the chief; write nothing but what this worker's attacks found."""
    cluster.wait_for_all()  # the chief has opened the workdir
    cluster.check_shared(workdir.images_file)
    check_recorded_images(dataset, workdir)  # with the chief's
    for model in model_configs(config):
        fit(config, model, networks[model.defense], dataset, workdir, cluster=cluster)
        measure_checkpoints(config, model.defense, dataset, workdir, cluster)


def _run_chief(
    config: RunConfig, workdir: Workdir, dataset: ImageDataset, networks: dict[str, Classifier], cluster: Cluster
) -> dict[str, Any]:
    console = Console()
    if missing := [extra for extra in ("report", "export") if not is_installed(extra)]:
        left_out = {"report": "figures", "export": "ONNX files"}
        console.print(
            f"note: no {' and no '.join(left_out[extra] for extra in missing)}, for want of an extra: "
            f"pip install 'cifs-tf[{','.join(missing)}]'",
            soft_wrap=True,
            markup=False,
        )
    key = {"run": workdir.key, "images": dataset.identity.hash}
    result = _result_of(key, workdir, console) or {**describe(config), "key": key, "networks": {}}
    result["images"] = show_images(dataset, console)
    if dataset.unreadable:
        result["unreadable_images"] = list(dataset.unreadable)
    reports = {}
    for model in model_configs(config):
        defense, network = model.defense, networks[model.defense]
        console.rule(f"{defense}: {len(dataset.train):,} training images, {config.train.epochs} epochs")
        fit(config, model, network, dataset, workdir, cluster=cluster)
        measured = measure_checkpoints(config, defense, dataset, workdir, cluster)
        evaluations = {}
        for checkpoint, found in measured.items():
            epoch, report = found["epoch"], found["report"]
            reports[f"{defense}, {checkpoint} epoch ({epoch})"] = report
            evaluations[checkpoint] = {"epoch": epoch, "weights": report["key"]["weights"], **summarise(report)}
        result["networks"][defense] = {
            "evaluation": evaluations,
            "name": network.name,
            "parameters": network.count_params(),
            "history": read_json(workdir.history_file(defense)),
        }
        write_results(workdir.result_file, result)
    result.setdefault("finished", now())
    write_results(workdir.result_file, result)
    about = f"{config.data.dataset}: accuracy in % on {len(dataset.test):,} test images"
    caption = "attacks: worst over beta_atk (in brackets)"
    console.print(results_table(reports).screen(f"{about}, epsilon {config.attack.epsilon}", caption))
    if len(networks) > 1:
        console.print(footnote(*((name, result["networks"][name]["evaluation"]) for name in networks)))

    defense = config.model.defense
    written = [workdir.config_file, workdir.result_file, workdir.model_file(defense)]
    written += [workdir.curves_file(defense)] if is_installed("report") else []
    written.append(workdir.tensorboard(defense))
    written.append(workdir.evaluation(defense, next(iter(measured)), "paper") / "report.html")
    if config.output.export:
        written.append(_export(config, workdir, dataset, console))
        result["exported_example"] = example = classify_one(written[-1], dataset)
        write_results(workdir.result_file, result)
        console.print(
            f"The exported SavedModel takes test image {example['test_image']}, {example['label']!r}, for "
            f"{example['predicted']!r} with probability {example['probability']:.3f}."
        )
    print_written(written)
    return result


def _result_of(key: dict[str, Any], workdir: Workdir, console: Console) -> dict[str, Any] | None:
    """Return what the run has written to result.json before; what is damaged or of another run is named."""
    if not workdir.result_file.exists():
        return None
    try:
        result = read_json(workdir.result_file)
        # Of an earlier version, without a checksum: no number in it is taken over, they are all made again.
        result = read_results(workdir.result_file) if CHECK in result else result
        if isinstance(result, dict) and isinstance(result.get("networks"), dict):
            if result.get("key") == key or key["run"] is None:
                return result
            reason = "it is of another run"
        else:
            reason = "it is damaged"
    except UserError:
        reason = "it is damaged"
    console.print(f"{workdir.result_file} cannot be used ({reason}); it is made again.", soft_wrap=True, markup=False)
    return None


def _export(config: RunConfig, workdir: Workdir, dataset: ImageDataset, console: Console) -> Path:
    """Export the run's own network, if no version there is whole and of it, and return the version's folder."""
    defense, checkpoint = config.model.defense, config.output.export_checkpoint
    base = workdir.export_base(defense)
    formats = FORMATS if is_installed("export") else ("savedmodel",)
    classifier = TrainedNetwork(workdir, config, defense, checkpoint, "--workdir").load()
    origin = {
        "run": workdir.key,
        "images": dataset.identity.hash,
        "defense": defense,
        "checkpoint": checkpoint,
        "weights": fingerprint_of(classifier),
        "formats": list(formats),
    }
    recipe = {part: getattr(config.data, part) for part in PARTS}
    versions = sorted((version for version in base.glob("[1-9]*") if version.name.isdecimal()), key=_number)
    for version in versions:
        fault = find_fault(version, origin)
        if fault is None or (workdir.key is None and version.name == "1"):
            return version
        if version.name == "1" or (version / ORIGIN_FILE).exists():
            text = f"{version} is not taken ({fault}); the network is exported as another version."
            console.print(text, soft_wrap=True, markup=False)
    with console.status(f"exporting {', '.join(formats)}, and comparing with the trained network"):
        try:
            return export(
                classifier,
                base,
                class_names=dataset.class_names,
                version=None if versions else 1,
                formats=formats,
                resize=served_mode(config.data),
                add_files=[lambda path: write_origin(path, origin, recipe)],
            )
        except ExportError as error:
            advice = f"{error}; the trained network and result.json are whole, give --export false to go without"
            raise UserError("--export", True, advice) from error


def _number(version: Path) -> int:
    return int(version.name)


def summarise(report: dict) -> dict:
    """Return what `result.json` repeats of a report; the rest lies beside its ledger."""
    return {name: report[name] for name in ("num_examples", "natural", "paper", "worst_case")}


def classify_one(exported: Path, dataset: ImageDataset) -> dict:
    """Classify one test image, as a PNG file, with the exported SavedModel."""
    loaded = tf.saved_model.load(str(exported))
    png = tf.io.encode_png(dataset.test.images[0])
    probabilities = loaded.signatures["encoded"](image_bytes=png[None])["probabilities"].numpy()[0]
    return {
        "test_image": 0,
        "label": dataset.class_names[dataset.test.labels[0]],
        "predicted": dataset.class_names[probabilities.argmax()],
        "probability": float(probabilities.max()),
    }


def results_table(reports: dict) -> Table:
    """Lay out the accuracies as the paper does: the worst over beta_atk for each attack."""
    rows = []
    for network, report in reports.items():
        cells = [f"{100 * report['natural']['accuracy']:.1f}"]
        for found in report["paper"]["attacks"].values():
            beta = f" ({found['beta']})" if len(found["by_beta"]) > 1 else ""
            cells.append(f"{100 * found['accuracy']:.1f}{beta}")
        rows.append([network, *cells])
    return Table(["network", "natural", *next(iter(reports.values()))["paper"]["attacks"]], rows)


def footnote(twin: tuple, main_network: tuple) -> str:
    """Say plainly which network is the more robust one under the strongest attack."""
    (twin_name, twin_evaluations), (name, evaluations) = twin, main_network
    checkpoint = next((name for name in evaluations if name in twin_evaluations), None)
    if checkpoint is None:
        return f"{name} and {twin_name} have no checkpoint in common to compare."
    lowest, twin_lowest = (found[checkpoint]["paper"]["robust_accuracy"] for found in (evaluations, twin_evaluations))
    gain = 100 * (lowest - twin_lowest)
    verdict = "more robust than" if gain > 0 else "as robust as" if gain == 0 else "LESS robust than"
    return (
        f"Under its strongest attack {name} is {verdict} {twin_name} ({checkpoint} epoch): {100 * lowest:.1f} against "
        f"{100 * twin_lowest:.1f}, one seed, nothing tuned on these images."
    )
