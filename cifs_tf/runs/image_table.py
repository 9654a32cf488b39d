"""The images of a run before its training: a table by class and split, and what a person should know of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console

from cifs_tf.data import ImageDataset
from cifs_tf.tables import Table

# Of more classes only those with the fewest training images are shown.
SHOWN_CLASSES = 30
SHOWN_FILES = 5


def describe_images(dataset: ImageDataset) -> dict[str, Any]:
    """Describe the images of a run as `result.json` has them.

    Returns:
        `hash` (see `Identity`), `classes` (number of images by class and split), `not_taken` (how many images options
        leave out), `left_out` (files that are not used, by reason), `notes` (sentences), and `duplicates`
        (`train_and_test`, `two_labels`), see `identify`.
    """
    counts = {
        name: np.bincount(split.labels, minlength=dataset.num_classes).tolist()
        for name, split in dataset.splits.items()
    }
    left_out: dict[str, list[str]] = {}
    for left in dataset.left_out:
        left_out.setdefault(left.reason, []).append(left.file)
    return {
        "hash": dataset.identity.hash,
        "classes": {
            name: {split: of_classes[label] for split, of_classes in counts.items()}
            for label, name in enumerate(dataset.class_names)
        },
        "not_taken": sum(dataset.identity.counts.values()) - sum(map(sum, counts.values())),
        "left_out": left_out,
        "notes": list(dataset.notes),
        "duplicates": dict(dataset.duplicates),
    }


def show_images(dataset: ImageDataset, console: Console) -> dict[str, Any]:
    """Print the table and the sentences.

    Returns:
        what `describe_images` does.
    """
    described = describe_images(dataset)
    classes, splits = described["classes"], list(dataset.splits)
    shown, title = list(classes), f"{dataset.name}: images by class and split"
    if len(classes) > SHOWN_CLASSES:
        shown = sorted(classes, key=lambda name: classes[name]["train"])[:SHOWN_CLASSES]
        title += f", the {SHOWN_CLASSES} of {len(classes):,} classes with the fewest training images"
    rows = [[name, *(f"{classes[name][split]:,}" for split in splits)] for name in shown]
    rows.append(["all", *(f"{len(split):,}" for split in dataset.splits.values())])
    console.print(title, soft_wrap=True, markup=False, highlight=False)
    console.print(Table(["class", *splits], rows).screen())
    home = [f"images are {dataset.home}"] if dataset.home else []
    for sentence in (*_sentences(described), *home):
        console.print(sentence, soft_wrap=True, markup=False, highlight=False)
    return described


def _sentences(described: dict[str, Any]) -> Iterator[str]:
    for reason, files in described["left_out"].items():
        names = ", ".join(files[:SHOWN_FILES]) + (", ..." if len(files) > SHOWN_FILES else "")
        yield f"left out, {reason}: {_count(len(files), 'file')}: {names}"
    if described["not_taken"]:
        yield f"not taken, by --train_examples, --val_examples or --test_examples: {_count(described['not_taken'])}"
    yield from (f"note: {note}" for note in described["notes"])
    duplicates = described["duplicates"]
    if duplicates["train_and_test"]:
        number = _count(duplicates["train_and_test"])
        yield f"warning: {number} trained on and tested on, pixel by pixel the same: accuracy is too high by these"
    if duplicates["two_labels"]:
        yield f"warning: {_count(duplicates['two_labels'])} with two labels, pixel by pixel the same"


def _count(number: int, noun: str = "image") -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
