"""The images of an evaluation, in whatever form they come: a split, arrays, or batches of tf.data."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from cifs_tf.checks import ONE_HOT_NDIM, as_array, check_ends, check_images, check_labels, check_weights, explain_sizes
from cifs_tf.data import Split
from cifs_tf.data.split import IMAGES_NDIM
from cifs_tf.errors import UserError

Data: TypeAlias = Split | tf.data.Dataset | tuple[Any, Any]
# Of an image.
CHANNELS = (1, 2, 3, 4)
# Pixels that are farther from a multiple of 1/255 were not made of 8 bits.
OFF_GRID = 1e-3


class Given(NamedTuple):
    """A split, what to tell about it, and the number of columns of its labels, if they were one-hot rows."""

    split: Split
    told: list[str]
    columns: int | None


def as_split(data: Data) -> Given:
    """Bring images and labels to a split.

    Args:
        data: a `Split`; (images, labels), arrays or tensors; or a `tf.data.Dataset` of batches, or of single examples,
            (images, labels) or (images, labels, sample weights), of which those of weight 0 are left out. Images are
            uint8, or float in [0, 1]; labels int (examples,), (examples, 1) or one-hot rows.

    Returns:
        the split, what to tell about it, and of one-hot labels the number of columns.

    Raises:
        UserError: for images out of range, invalid labels, or another number of them.

    Example:
        >>> len(as_split((np.zeros((2, 8, 8, 1), np.uint8), [0, 1]))[0])
        2
    """
    if isinstance(data, Split):
        _check_scale(data.images)
        return Given(data, [], None)
    if isinstance(data, tf.data.Dataset):
        images, labels = collect(data, "split")
    elif isinstance(data, tuple | list) and len(data) == 2:
        images, labels = (as_array(each, name) for each, name in zip(data, ("images", "labels"), strict=True))
    else:
        advice = "give a cifs_tf.data.Split, (images, labels), or a tf.data.Dataset of them"
        raise UserError("split", type(data).__name__, advice)
    columns = labels.shape[1] if labels.ndim == ONE_HOT_NDIM and labels.shape[1] > 1 else None
    labels = check_labels(labels)
    if images.ndim != IMAGES_NDIM:
        raise UserError("images", f"shape {images.shape}", "give (examples, height, width, channels)")
    if len(labels) != len(images):
        raise UserError("labels", f"{len(labels)} labels", f"give one for each of the {len(images)} images")
    if images.dtype == np.uint8:
        _check_scale(images)
        return Given(Split(images, labels), _describe_repeats(images), columns)
    check_images(images)
    scaled = np.clip(images.astype(np.float64), 0, 1) * 255
    rounded = np.round(scaled)
    is_rounded = bool(np.abs(scaled - rounded).max(initial=0) > OFF_GRID * 255)
    told = ["The images were rounded to 8 bits before anything was measured."] if is_rounded else []
    images = rounded.astype(np.uint8)
    return Given(Split(images, labels), told + _describe_repeats(images), columns)


def collect(dataset: tf.data.Dataset, argument: str, num_examples: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read images and labels of a dataset to its end, or the first so many; those of sample weight 0 are left out.

    Raises:
        UserError: for a dataset without end, elements that are not images and labels, and images of several sizes.
    """
    check_ends(dataset, num_examples, argument, "leave repeat() out, or give take(n) of them")
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    found = 0
    elements = dataset.as_numpy_iterator()
    while True:
        with explain_sizes(argument):
            element = next(elements, None)
        if element is None:
            break
        if not isinstance(element, tuple | list) or len(element) not in (2, 3) or any(map(_is_several, element)):
            received = f"a dataset of {type(element).__name__}"
            raise UserError(argument, received, "it has elements without labels, or by name: give (images, labels)")
        batch = [np.asarray(each) for each in element]
        # A single example has one label, or its one-hot row; else it is a batch whose images have no channel.
        is_one = batch[1].ndim == 0 or (batch[1].ndim == 1 and batch[0].shape[-1] in CHANNELS)
        if batch[0].ndim == IMAGES_NDIM - 1 and is_one:
            batch = [each[None] for each in batch]
        if batch[0].ndim != IMAGES_NDIM or batch[1].ndim == 0 or len(batch[0]) != len(batch[1]):
            advice = "give batches of (examples, height, width, channels) and a label for each, or single examples"
            raise UserError(argument, f"images of shape {batch[0].shape}, labels of shape {batch[1].shape}", advice)
        if images and batch[0].shape[1:] != images[0].shape[1:]:
            advice = "bring all images to one size before they are batched"
            raise UserError(argument, f"images of shape {images[0].shape[1:]} and {batch[0].shape[1:]}", advice)
        if labels and batch[1].shape[1:] != labels[0].shape[1:]:
            received = f"labels of shape {labels[0].shape[1:]} and {batch[1].shape[1:]} for each image"
            raise UserError(argument, received, "give all batches the same classes, or integers")
        weights = batch[2] if len(batch) > 2 else np.ones(len(batch[1]))
        counted = check_weights(weights, len(batch[1]), f"{argument}: sample weights") > 0
        images.append(batch[0][counted])
        labels.append(batch[1][counted])
        found += len(labels[-1])
        if num_examples is not None and found >= num_examples:
            break
    if not found:
        raise UserError(argument, "no images", "give at least one image")
    return np.concatenate(images)[:num_examples], np.concatenate(labels)[:num_examples]


def _describe_repeats(images: np.ndarray) -> list[str]:
    """Say how many images are there again: each counts as often as it is there."""
    again = len(images) - len({hashlib.sha256(image.tobytes()).digest() for image in images})
    return [f"{again} of the {len(images)} images are there more than once, and count as often."] if again else []


def _is_several(part: Any) -> bool:
    """Return whether a part of an element is not one array."""
    return isinstance(part, dict | list | tuple) or not hasattr(part, "dtype")


def _check_scale(images: Any) -> None:
    """Refuse 8-bit images in memory whose greatest value is 1: all of them would be black."""
    if isinstance(images, np.ndarray) and images.size and images.max() == 1:
        advice = "times 255, if 1 is white; if they were divided by 255, give them as floats"
        raise UserError("images", "uint8 pixels of 0 and 1 only", advice)
