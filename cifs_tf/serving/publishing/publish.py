"""Publish a network of a run: its files, warm-up requests, an 8-bit variant if asked for, and its model card."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import tf2onnx  # noqa: F401 -- native libraries are loaded before the work begins
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cifs_tf.config import DataConfig
from cifs_tf.data import ImageDataset
from cifs_tf.data.resizing import served_mode
from cifs_tf.errors import UserError
from cifs_tf.export import ExportError, export
from cifs_tf.models import Classifier
from cifs_tf.runs.images import load_images
from cifs_tf.runs.trained import TrainedNetwork
from cifs_tf.serving.publishing.model_card import make_card, write_card
from cifs_tf.serving.publishing.options import ExportOptions
from cifs_tf.serving.publishing.quantization import add_int8
from cifs_tf.serving.publishing.warmup import write_warmup

INT8_EXAMPLES = 200


def publish_run(
    run: TrainedNetwork, base: Path, options: ExportOptions, console: Console
) -> tuple[Path, dict[str, Any]]:
    """Publish a version of a run's network below a folder, and return its own folder and its model card.

    Raises:
        UserError: for input that does not fit, or a network that cannot be exported; nothing was published then.
    """
    moved = {name: getattr(options, name) for name in ("dataset", "data_dir") if getattr(options, name)}
    data = dataclasses.replace(run.config.data, **moved)
    run.result(), run.reports()  # what the card will tell is whole
    classifier = run.load()
    dataset = _load_images(run, data, classifier)
    if options.int8:
        # All the images: the run may have taken a part of them only.
        whole = dataclasses.replace(data, train_examples=None, test_examples=None)
        full = dataset if whole == data else _load_images(run, whole, classifier)
        number = options.int8_examples or min(INT8_EXAMPLES, len(full.test))
        test = full.test.class_balanced(number, "--int8_examples")
    card: dict[str, Any] = {}

    def write_requests(path: Path) -> None:
        if "savedmodel" in options.format:
            name = base.absolute().name
            write_warmup(path, classifier.image_shape, batch_sizes=options.warmup_batch_sizes, model_name=name)

    def write_int8(path: Path) -> None:
        if options.int8:
            progress.update(writing, description="written and compared with the trained network", total=1, completed=1)
            card["int8"] = add_int8(path, run.config, classifier, full, test, options.int8_queries, progress)

    def write_the_card(path: Path) -> None:
        card.update(make_card(path, run, classifier, dataset, card.pop("int8", None)))
        write_card(path, card)

    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20), TaskProgressColumn()]
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        writing = progress.add_task("writing, and comparing with the trained network", total=None)
        try:
            with warnings.catch_warnings(record=True) as left_out:
                warnings.simplefilter("always", UserWarning)
                published = export(
                    classifier,
                    base,
                    class_names=dataset.class_names,
                    formats=options.format,
                    version=options.version,
                    resize=served_mode(run.config.data, options.resize),
                    add_files=[write_requests, write_int8, write_the_card],
                )
        except ExportError as error:
            raise UserError("--run", run.path, f"{error}; nothing was published") from error
        except UserError as error:
            # The library calls the option by another name.
            argument = "--model_base_path" if error.argument == "base" else error.argument
            raise UserError(argument, error.received, error.advice) from error
        progress.update(writing, total=1, completed=1)
        for warning in left_out:
            if warning.category is UserWarning:
                progress.console.print(f"warning: {warning.message}", soft_wrap=True, highlight=False)
    return published, card


def _load_images(run: TrainedNetwork, data: DataConfig, classifier: Classifier) -> ImageDataset:
    dataset = load_images(data, [run.run], advice="restore them, or say with --dataset where they are now")
    if (dataset.image_shape, dataset.num_classes) != (classifier.image_shape, classifier.num_classes):
        advice = (
            f"its images have the shape {dataset.image_shape} and {dataset.num_classes} classes, the network takes "
            f"{classifier.image_shape} and tells {classifier.num_classes} apart; give the dataset of the run"
        )
        raise UserError("--dataset", data.dataset, advice)
    return dataset
