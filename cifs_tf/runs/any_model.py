"""The robust accuracy of any model: attack it, and write and show the report."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from cifs_tf.command_line import command, import_plugins
from cifs_tf.config import RunConfig
from cifs_tf.data import Split, load_dataset
from cifs_tf.errors import UserError
from cifs_tf.evaluation import AttackedModel, as_attacked, build_report, load_attacked, merge, write_report
from cifs_tf.evaluation.cards.card import Card, merge_cards
from cifs_tf.evaluation.cards.verification import verify
from cifs_tf.evaluation.checks.judging import FAIL, next_step
from cifs_tf.evaluation.engine import hash_split
from cifs_tf.evaluation.radii import default_epsilon
from cifs_tf.evaluation.records import Example, Report
from cifs_tf.evaluation.reports.examples import pick_examples
from cifs_tf.evaluation.reports.pages import describe_ball, describe_length
from cifs_tf.export import GRADIENT_FILE, ORIGIN_FILE, find_fault
from cifs_tf.files import print_written
from cifs_tf.runs.cluster import make_local_cluster
from cifs_tf.runs.images import OTHERWISE, check_held_out, held_out_by, load_images, read_record
from cifs_tf.runs.measurement import AttackPlan, attack, card_name, ledger_name
from cifs_tf.runs.origin import Origin, load_for_origin, match_origin, read_origin
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
    plan: AttackPlan,
    surrogate: TrainedNetwork | str | None = None,
    other_images: bool = False,
    split: str = "test",
    examples: int | None = None,
    at_most: int | None = None,
    trust: bool = False,
) -> int:
    """Attack a model with a suite, or with what is left of it, and write the report.

    Args:
        model: a run's network, or the path of a .keras file, SavedModel or .onnx file.
        config: the images, the attacks, their epsilon, batch size and seed, and the devices.
        folder: for ledger and report.
        run: the workdir of the run that the model lies in, whose images are compared. Default None: there is none.
        plan: what to attack with. Default of its mask gradients: all there are, first that of the config; of its
            epsilon in other norms than linf: `default_epsilon`. A shard is attacked without a report.
        surrogate: that of the plan, as `model`. Default None.
        other_images: measure on images that are not the run's; the report says so. Default False.
        split: `"test"` (default), or `"validation"`: the images that the run held out.
        examples: attack a class-balanced subset of so many images. Default None: of `at_most`.
        at_most: attack so many, if there are as many. Default None: all.
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
        attacked = _load(model, trust)
        other = None if surrogate is None else _load_surrogate(surrogate, trust)
    origin = read_origin(Path(model)) if isinstance(model, str) else Origin()

    def part(images: Split) -> Split:
        number = examples or min(at_most or len(images), len(images))
        return images.class_balanced(number, "--examples") if examples or at_most else images

    if split != "test" and (run is None or isinstance(model, str)):
        # A file may be of another run than the one in whose folder it lies.
        raise UserError("--split", split, "only a run has held images out; give the workdir of one, or --split test")
    # Before anything is loaded: a run without a record of its images gets one then, of which no division is known.
    expected = None if split == "test" or run is None else held_out_by(run)
    dataset = (
        load_for_origin(config.data, origin, part, other_images=other_images)
        if run is None
        else load_images(
            config.data,
            [run],
            "--model",
            other_images=other_images,
            advice=OTHERWISE,
            splits=(split,),
            test_part=part if split == "test" else None,
        )
    )
    if run is not None and expected is not None:
        check_held_out(dataset, run, expected)
    if isinstance(model, str):
        dataset = match_origin(dataset, origin, Path(model), other_images=other_images)
    if (names := _class_names(surrogate)) not in (None, dataset.class_names):
        advice = f"its classes are {', '.join(names)}; give one with those of the model, in the same order"
        raise UserError("--surrogate", other.name if other else None, advice)
    images = dataset.test if split == "test" else part(dataset.validation)
    console = Console()
    if dataset.home:
        console.print(f"images are {dataset.home}", soft_wrap=True, markup=False, highlight=False)
    epsilon, shard = plan.epsilon, plan.shard
    if epsilon is None and plan.norm != "linf":
        epsilon = default_epsilon(plan.norm, attacked.image_shape)
    given = getattr(config.attack.epsilon, "text", config.attack.epsilon) if epsilon is None else f"{epsilon:.4g}"
    which = "images" if split == "test" else f"{split} images"
    console.rule(f"{attacked.name}: {plan.suite}, {len(images):,} {which}, {plan.norm} epsilon {given}")
    mask_gradients = plan.mask_gradients or _mask_gradients(config, attacked)
    plan = dataclasses.replace(plan, mask_gradients=mask_gradients, surrogate=other, epsilon=epsilon)
    report = attack(
        config, attacked, dataset, images, folder, plan, split_name=split, strategy=strategy, with_card=True
    )
    if shard != "1/1":
        console.print(f"shard {shard} is finished: {folder / ledger_name(shard)}", soft_wrap=True)
        console.print(f"When all are: {command('evaluate')} merge FOLDER LEDGER LEDGER ...")
        return 0
    with tf32_disabled():
        pictures = pick_examples(attacked, images, Card.read(folder / card_name(shard)), dataset.class_names)
    return _publish(report, folder, console, pictures)


def merge_shards(ledgers: Sequence[Path], folder: Path) -> int:
    """Join the ledgers of all shards, and write the report of the whole.

    Returns:
        0, or 1 if the audit failed.

    Raises:
        UserError: if shards are missing, overlap, are not finished or belong to different evaluations.
    """
    ledger = merge(ledgers, folder / ledger_name("1/1"))
    report = build_report(ledger)
    cards = [path.with_name(path.name.replace("ledger", "card")) for path in ledgers]
    merge_cards(cards, folder / card_name("1/1"), ledger.header, report)
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


def verify_card(
    path: Path, model: TrainedNetwork | str, config: RunConfig, *, batch_size: int = 250, trust: bool = False
) -> int:
    """Check a robustness card against a network and a dataset, without an attack.

    Args:
        path: the card.
        model: see `evaluate_model`.
        config: the dataset; which of its images the card is of, their hash says.
        batch_size: images per batch. Default 250.
        trust: see `evaluate_model`. Default False.

    Returns:
        0, or 1 if the card does not hold.

    Raises:
        UserError: for a card that is damaged or was edited, or a model that cannot be loaded.
    """
    card, console = Card.read(path), Console()
    import_plugins(config.model)
    attacked = _load(model, trust)
    with tf32_disabled():
        checks = verify(card, attacked, _find_images(card, config), batch_size)
    about: Any = card.report["about"] if card.report else {}
    rows = [[check.name, check.verdict, check.sentence] for check in checks]
    held_out = ", on validation images" if about.get("split") == "validation" else ""
    title = f"{path}: {about.get('network')}, {about.get('suite')}, {describe_ball(about)}{held_out}"
    console.print(Table(["check", "verdict", "what was found"], rows, 3).screen(title))
    holds = all(check.verdict != FAIL for check in checks)
    console.print("The card holds." if holds else "The card does NOT hold.")
    return 0 if holds else 1


def _find_images(card: Card, config: RunConfig) -> Split:
    """Return the images that a card is of, test or held out, by their hash; all test images if none have that hash."""
    everything = dataclasses.replace(config.data, train_examples=None, test_examples=None)
    number = card.report["num_examples"] if card.report else 0
    for data in (config.data, everything):
        dataset = load_dataset(data)
        for split in (dataset.test, dataset.validation):
            parts = [split, split.class_balanced(number, "card")] if 0 < number < len(split) else [split]
            for part in parts:
                if hash_split(part) == card.header["key"]["data"]:
                    return part
    return dataset.test


def summary(report: Report) -> RenderableType:
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
    if corruptions := report.get("corruptions"):
        for kind, shares in corruptions["kinds"].items():
            rows.append([kind, "", "", "", " ".join(f"{100 * share:.1f}" for share in shares)])
        rows.append(["mean corruption error, no reference", "", "", "", f"{100 * corruptions['mce']:.2f}"])
    if distances := report.get("distances"):
        told = map(describe_length, (distances["median"], *distances["interval"]))
        rows.append(["median of smallest distances, at most", "", "", "", "{} ({} to {})".format(*told)])
    suite = about["suite"]
    if suite != "rand" and any(task.get("votes") for task in report["tasks"]):
        suite = f"rand in place of {suite}"
    which = "validation images" if about.get("split") == "validation" else "images"
    return Table(["after", "runs", "broke", "survivors", "accuracy %"], rows).screen(
        f"{about['network']}: {suite}\n{report['num_examples']:,} {which}, {describe_ball(about)}",
        "audit: " + {None: "not done", True: "no check failed", False: "FAILED"}[report["believable"]],
    )


def _load(model: TrainedNetwork | str, trust: bool) -> AttackedModel:
    if isinstance(model, TrainedNetwork):
        return as_attacked(model.load(), name=model.title)
    path = Path(model)
    if path.suffix == ".onnx" and (path.parent / ORIGIN_FILE).is_file():
        names = [name for name in (path.name, GRADIENT_FILE) if (path.parent / name).exists()]
        if fault := find_fault(path.parent, {}, names):
            raise UserError("--model", model, f"{fault}, export it again")
    return load_attacked(path, trust=trust)


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


def _mask_gradients(config: RunConfig, attacked: AttackedModel) -> tuple[str, ...] | None:
    """Return that of the config first, for the paper's protocol; then the others the network has."""
    first = config.evaluation.eval_mask_gradient
    if first not in attacked.mask_gradients:
        return None
    return first, *(mask for mask in attacked.mask_gradients if mask != first)
