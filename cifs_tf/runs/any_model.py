"""The robust accuracy of any model: attack it, and write and show the report."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from cifs_tf.command_line import command, import_plugins
from cifs_tf.config import RunConfig
from cifs_tf.data import load_dataset
from cifs_tf.data.source import SPLITS
from cifs_tf.errors import UserError
from cifs_tf.evaluation import AttackedModel, as_attacked, build_report, load_attacked, merge, write_report
from cifs_tf.evaluation.examples import pick_examples
from cifs_tf.evaluation.records import Example, Report
from cifs_tf.evaluation.verdicts import next_step
from cifs_tf.files import print_written
from cifs_tf.runs.cluster import make_local_cluster
from cifs_tf.runs.images import MEASURED, OTHERWISE, load_images, read_record
from cifs_tf.runs.measurement import attack, ledger_name
from cifs_tf.runs.origin import Origin, match_origin, read_origin
from cifs_tf.runs.precision import tf32_disabled
from cifs_tf.runs.trained import TrainedNetwork
from cifs_tf.runs.workdir import Workdir
from cifs_tf.tables import Table


def evaluate_model(
    model: TrainedNetwork | str,
    config: RunConfig,
    folder: Path,
    run: Workdir | None = None,
    *,
    suite: str,
    other_images: bool = False,
    examples: int | None = None,
    at_most: int | None = None,
    mask_gradients: Sequence[str] | None = None,
    audit: bool | None = None,
    surrogate: TrainedNetwork | str | None = None,
    shard: str = "1/1",
    trust: bool = False,
) -> int:
    """Attack a model with a suite, or with what is left of it, and write the report.

    Args:
        model: a run's network, or the path of a .keras file or SavedModel.
        config: the images, the attacks, their epsilon, batch size and seed, and the devices.
        folder: for ledger and report.
        run: the workdir of the run that the model lies in, whose images are compared. Default None: there is none.
        suite: see `cifs_tf.evaluation.make_suite`.
        other_images: measure on images that are not the run's; the report says so. Default False.
        examples: attack a class-balanced subset of so many test images. Default None: of `at_most`.
        at_most: attack so many, if there are as many. Default None: all.
        mask_gradients: attack through these. Default None: all there are, first that of the config.
        audit: whether to look for gradient masking. Default None: as the suite does.
        surrogate: as `model`, for a transfer attack in the audit. Default None.
        shard: attack the part `i/n` of the images, and write no report. Default all of them.
        trust: load SavedModels that do more than compute too, see `load_attacked`. Default False.

    Returns:
        0, or 1 if the audit failed.

    Raises:
        UserError: for input that does not fit; nothing has been written then.
    """
    import_plugins(config.model)
    cluster = make_local_cluster(config.machine)
    strategy = cluster.strategy if cluster.num_replicas > 1 else None
    with strategy.scope() if strategy else contextlib.nullcontext():
        victim = _load(model, trust)
        other = None if surrogate is None else _load_surrogate(surrogate, trust)
    origin = read_origin(Path(model)) if isinstance(model, str) else Origin()
    dataset = (
        # A file that tells of its images is compared with the hash of all of them.
        load_dataset(config.data, MEASURED if origin.images is None else SPLITS)
        if run is None
        else load_images(config.data, [run], "--model", other_images=other_images, advice=OTHERWISE, splits=MEASURED)
    )
    if isinstance(model, str):
        dataset = match_origin(dataset, origin, Path(model), other_images=other_images)
    if (names := _class_names(surrogate)) not in (None, dataset.class_names):
        advice = f"its classes are {', '.join(names)}; give one with those of the model, in the same order"
        raise UserError("--surrogate", other.name if other else None, advice)
    split = dataset.test
    if examples is not None or at_most is not None:
        split = split.class_balanced(examples or min(at_most or 0, len(split)), "--examples")
    console = Console()
    if dataset.home:
        console.print(f"images are {dataset.home}", soft_wrap=True, markup=False, highlight=False)
    console.rule(f"{victim.name}: {suite}, {len(split):,} images, epsilon {config.attack.epsilon}")
    tasks, report = attack(
        config,
        victim,
        dataset,
        split,
        folder,
        suite=suite,
        mask_gradients=mask_gradients or _mask_gradients(config, victim),
        audit=audit,
        surrogate=other,
        shard=shard,
        strategy=strategy,
    )
    if shard != "1/1":
        console.print(f"shard {shard} is finished: {folder / ledger_name(shard)}", soft_wrap=True)
        console.print(f"When all are: {command('evaluate')} merge FOLDER LEDGER LEDGER ...")
        return 0
    write_report(report, folder)  # whatever the pictures come to
    with tf32_disabled(), console.status("making a few of the broken images again, to look at"):
        pictures = pick_examples(victim, split, tasks, report, dataset.class_names)
    return _publish(report, folder, console, pictures)


def merge_shards(ledgers: Sequence[Path], folder: Path) -> int:
    """Join the ledgers of all shards, and write the report of the whole.

    Returns:
        0, or 1 if the audit failed.

    Raises:
        UserError: if shards are missing, overlap, are not finished or belong to different evaluations.
    """
    report = build_report(merge(ledgers, folder / ledger_name("1/1")))
    console = Console()
    code = _publish(report, folder, console)
    console.print(f"The evaluation's command with --workdir {folder}, without --shard, adds pictures of broken images.")
    return code


def _publish(report: Report, folder: Path, console: Console, pictures: Sequence[Example] = ()) -> int:
    written = write_report(report, folder, pictures)
    console.print(summary(report))
    for check in report["audit"]:
        if check["verdict"] in ("warn", "fail"):
            console.print(f"audit: {check['verdict']}: {check['name']}: {check['sentence']}", soft_wrap=True)
    if step := next_step(check["name"] for check in report["audit"] if check["verdict"] == "fail"):
        console.print(f"The robust accuracies cannot be trusted. What to do next: {step}.", soft_wrap=True)
    about = report["about"]
    others = f"these are not the images of the run: {'; '.join(about['unlike_run'])}" if about.get("unlike_run") else ""
    for note in filter(None, (others, *about["limits"])):
        console.print(f"note: {note}", soft_wrap=True)
    print_written(written)
    return 1 if report["believable"] is False else 0


def summary(report: Report) -> RichTable:
    """Lay out a report's main numbers."""
    about, natural = report["about"], report["natural"]
    rows = [["natural", "", "", f"{natural['count']:,}", f"{100 * natural['accuracy']:.2f}"]]
    for row in report["attacks"]:
        share = f"{100 * row['standing'] / report['num_examples']:.2f}"
        name = f"{row['attack']} ({row['section']})"
        rows.append([name, f"{row['runs']}", f"{row['broke_first']:,}", f"{row['standing']:,}", share])
    worst = report["worst_case"]
    interval = "" if not worst["interval"] else " ({:.2f} to {:.2f})".format(*(100 * b for b in worst["interval"]))
    rows.append(["worst case of each image", "", "", f"{worst['count']:,}", f"{100 * worst['accuracy']:.2f}{interval}"])
    if report["paper"]:
        paper = report["paper"]
        label = f"the paper's convention ({paper['attack']}, beta {paper['beta']})"
        rows.append([label, "", "", "", f"{100 * paper['robust_accuracy']:.2f}"])
        rows.append(["gap between the two", "", "", "", f"{100 * (report['gap'] or 0):.2f}"])
    suite = about["suite"]
    if suite != "rand" and any(task.get("votes") for task in report["tasks"]):
        suite = f"rand in place of {suite}"
    return Table(["after", "runs", "broke", "survivors", "accuracy %"], rows).screen(
        f"{about['network']}: {suite}\n{report['num_examples']:,} images, epsilon {about['epsilon']:.4g}",
        "audit: " + {None: "not done", True: "no check failed", False: "FAILED"}[report["believable"]],
    )


def _load(model: TrainedNetwork | str, trust: bool) -> AttackedModel:
    if isinstance(model, TrainedNetwork):
        return as_attacked(model.load(), name=model.title)
    return load_attacked(model, trust=trust)


def _load_surrogate(model: TrainedNetwork | str, trust: bool) -> AttackedModel:
    try:
        return _load(model, trust)
    except UserError as error:
        raise UserError("--surrogate", error.received, error.advice) from error


def _class_names(model: TrainedNetwork | str | None) -> tuple[str, ...] | None:
    """Return the classes of a surrogate; None if there is none, or it does not tell."""
    if isinstance(model, TrainedNetwork):
        record = read_record(model.run, "--surrogate")
        return None if record is None else record.identity.class_names
    return None if model is None else read_origin(Path(model), "--surrogate").class_names


def _mask_gradients(config: RunConfig, victim: AttackedModel) -> tuple[str, ...] | None:
    """Return that of the config first, for the paper's protocol; then the others the network has."""
    first = config.evaluation.eval_mask_gradient
    if first not in victim.mask_gradients:
        return None
    return first, *(mask for mask in victim.mask_gradients if mask != first)
