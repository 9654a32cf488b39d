"""Publish a trained network: SavedModel for TF Serving, ONNX, and a card that says what it is worth.

    python serving/export.py --run runs/digits
    python serving/export.py --run runs/digits --format onnx --int8          smaller, its robustness measured anew
    python serving/export.py --run runs/digits --model_base_path models/digits --warmup_batch_sizes '[1, 8]'

A version is a folder BASE/N; it appears whole, or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from cifs_tf.command_line import names_of, parse_options, run_program
from cifs_tf.errors import UserError
from cifs_tf.files import check_version
from cifs_tf.programs.export_options import ExportOptions
from cifs_tf.serving.publishing.trained_run import TrainedRun, read_run

if TYPE_CHECKING:
    from cifs_tf.data import ImageDataset, Split
    from cifs_tf.evaluation import AttackedModel
    from cifs_tf.models import Classifier

INT8_EXAMPLES = 200
CALIBRATION_EXAMPLES = 200
# A fall of clean accuracy, in points, that is worth a warning.
WORTH_A_WARNING = 10


def main(argv: Sequence[str]) -> None:
    """Parse the command line and publish."""
    publish(parse_options(ExportOptions, "export.py", argv, __doc__ or ""))


def publish(options: ExportOptions) -> Path:
    """Publish a version of a run's network.

    Args:
        options: what, and where.

    Returns:
        the published folder.

    Raises:
        UserError: for input that does not fit, or a network that cannot be exported; nothing was published then.
    """
    run = read_run(options.run, options.defense, options.checkpoint)
    base = Path(options.model_base_path).expanduser() if options.model_base_path else run.export_base
    check_version(base, options.version)
    # After the checks: importing TensorFlow takes seconds, an error should not.
    with _uninterrupted():
        for name in ("onnx", "onnxruntime", "tf2onnx"):
            importlib.import_module(name)
        from cifs_tf.export import ExportError, export
        from cifs_tf.serving.publishing.model_card import make_card, write_card
        from cifs_tf.serving.publishing.warmup import write_warmup

    classifier = run.load()
    dataset = _load_images(options, run, classifier)
    # All that there are: the run may have taken a part of them only.
    full = _load_images(options, run, classifier, full=True) if options.int8 else dataset
    test = _test_images(options, full) if options.int8 else dataset.test
    card: dict[str, Any] = {}

    def add_warmup(path: Path) -> None:
        if "savedmodel" in options.formats:
            sizes = options.warmup_batch_sizes
            write_warmup(path, classifier.image_shape, batch_sizes=sizes, model_name=base.absolute().name)

    def add_int8(path: Path) -> None:
        if options.int8:
            progress.update(writing, description="written and compared with the trained network", total=1, completed=1)
            card["int8"] = _quantize(path, run, classifier, full, test, options.int8_queries, progress)

    def add_card(path: Path) -> None:
        card.update(make_card(path, run, classifier, dataset, card.pop("int8", None)))
        write_card(path, card)

    console = Console()
    console.rule(f"{run.path}: {run.defense}, {run.checkpoint} epoch, to {base}")
    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20), TaskProgressColumn()]
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        writing = progress.add_task("writing, and comparing with the trained network", total=None)
        try:
            published = export(
                classifier,
                base,
                class_names=dataset.class_names,
                formats=options.formats,
                version=options.version,
                resize=options.resize,
                add_files=[add_warmup, add_int8, add_card],
            )
        except ExportError as error:
            raise UserError("--run", options.run, f"{error}; nothing was published") from error
        except UserError as error:
            # The library's name for it.
            argument = "--model_base_path" if error.argument == "base" else error.argument
            raise UserError(argument, error.received, error.advice) from error
        progress.update(writing, total=1, completed=1)
    tell(console, published, card)
    return published


def _load_images(options: ExportOptions, run: TrainedRun, classifier: Classifier, full: bool = False) -> ImageDataset:
    """The images of the run, or all that there are."""
    from cifs_tf.data import load_dataset

    data = dataclasses.replace(
        run.config.data,
        dataset=options.dataset or run.config.data.dataset,
        data_dir=options.data_dir or run.config.data.data_dir,
    )
    if full:
        data = dataclasses.replace(data, train_examples=None, test_examples=None)
    dataset = load_dataset(data)
    if (dataset.image_shape, dataset.num_classes) != (classifier.image_shape, classifier.num_classes):
        advice = (
            f"its images have the shape {dataset.image_shape} and {dataset.num_classes} classes, the network takes "
            f"{classifier.image_shape} and tells {classifier.num_classes} apart; give the dataset of the run"
        )
        raise UserError("--dataset", data.dataset, advice)
    return dataset


def _quantize(
    path: Path,
    run: TrainedRun,
    classifier: Classifier,
    dataset: ImageDataset,
    test: Split,
    num_queries: int,
    progress: Progress,
) -> dict[str, Any]:
    """Write the 8-bit variant; return what was measured of it, and of the float network on the same images."""
    from cifs_tf.data import to_float
    from cifs_tf.evaluation import as_attacked
    from cifs_tf.serving.publishing import quantization

    calibration = dataset.train.class_balanced(min(CALIBRATION_EXAMPLES, len(dataset.train)), "--int8")
    file = path / "model.int8.onnx"
    quantization.quantize(path / "model.onnx", file, to_float(calibration.images).numpy())

    config, float_victim = run.config, as_attacked(classifier)
    wanted = config.evaluation.eval_mask_gradient
    mask_gradient = wanted if wanted in float_victim.mask_gradients else float_victim.mask_gradients[0]
    epsilon = float(config.attack.epsilon)
    tasks = quantization.make_tasks(float_victim, epsilon, mask_gradient=mask_gradient, num_queries=num_queries)

    def attack(name: str, victim: AttackedModel) -> dict[str, Any]:
        bar = progress.add_task(f"attacking {name}, {len(test)} images", total=1.0)
        return quantization.measure(
            victim,
            test,
            tasks,
            seed=config.train.seed,
            batch_size=config.evaluation.eval_batch_size,
            on_progress=lambda task, share, survivors: progress.update(bar, completed=share),
        )

    return {
        "file": file.name,
        "method": quantization.METHOD,
        "calibration": {"split": "train", "num_examples": len(calibration)},
        "threat_model": {
            "norm": "linf",
            "epsilon": epsilon,
            "attacks": [task.name for task in tasks[1:]],
            "beta_atk": [0],
            "mask_gradient": mask_gradient,
        },
        "num_examples": len(test),
        "test_images_there_are": dataset.num_test_images,
        "float32": attack("float32", float_victim),
        "int8": attack("int8", quantization.onnx_victim(file, float_victim)),
    }


def _test_images(options: ExportOptions, dataset: ImageDataset) -> Split:
    number = options.int8_examples or min(INT8_EXAMPLES, len(dataset.test))
    return dataset.test.class_balanced(number, "--int8_examples")


def tell(console: Console, published: Path, card: dict[str, Any]) -> None:
    """Say what was written and what it is worth; warn of an 8-bit variant that lost much.

    Args:
        console: where to say it.
        published: the version's folder.
        card: its model card.
    """
    rows = [("measured by the run", card["measured"])]
    if card["int8"]:
        rows += [(f"{name}, measured now", card["int8"][name]) for name in ("float32", "int8")]
    table = Table(
        title=f"{card['name']}: accuracy in %, 95% interval",
        caption="robust: no attack of those in model_card.json broke the image",
    )
    for column, justify in (("network", "left"), ("images", "right"), ("clean", "right"), ("robust", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for name, found in rows:
        cells = ["not measured", ""] if found is None else [_percent(found["clean"]), _percent(found["robust"])]
        table.add_row(name, "" if found is None else f"{found['clean']['of']:,}", *cells)
    console.print(table)
    if card["not_measured_because"]:
        console.print(f"note: {card['not_measured_because']}", soft_wrap=True)
    if card["int8"]:
        before, after = (card["int8"][name]["clean"] for name in ("float32", "int8"))
        fall = 100 * (before["count"] - after["count"]) / before["of"]
        if fall > WORTH_A_WARNING:
            console.print(f"warning: in 8 bits clean accuracy falls by {fall:.1f} points", soft_wrap=True)
    console.print(f"Written to {published}:", soft_wrap=True)
    for name, file in card["files"].items():
        console.print(f"  {name} ({file['size'] / 1000:,.0f} kB)", soft_wrap=True, highlight=False)
    console.print("  model_card.json", soft_wrap=True, highlight=False)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait: it would crash a process that is loading native libraries, instead of ending it in order."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _percent(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{100 * found['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def start() -> NoReturn:
    """Run the program on the command line of this process, and exit."""
    run_program(main, names_of(ExportOptions))
