"""The images of an evaluation, in whatever form they come: a split, arrays, or batches of tf.data."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from cifs_tf.checks import check_images, check_labels
from cifs_tf.data import Split
from cifs_tf.errors import UserError

Data: TypeAlias = Split | tf.data.Dataset | tuple[Any, Any]
IMAGES_NDIM = 4
# Pixels that are farther from a multiple of 1/255 were not made of 8 bits.
OFF_GRID = 1e-3


def as_split(data: Data) -> tuple[Split, list[str]]:
    """Bring images and labels to a split.

    Args:
        data: a `Split`; (images, labels), arrays or tensors; or a `tf.data.Dataset` of batches, or of single examples,
            (images, labels) or (images, labels, sample weights), of which those of weight 0 are left out. Images are
            uint8, or float in [0, 1]; labels int (examples,), (examples, 1) or one-hot rows.

    Returns:
        the split, and what to tell about it.

    Raises:
        UserError: for images out of range, labels that are none, or another number of them.

    Example:
        >>> len(as_split((np.zeros((2, 8, 8, 1), np.uint8), [0, 1]))[0])
        2
    """
    if isinstance(data, Split):
        return data, []
    if isinstance(data, tf.data.Dataset):
        images, labels = collect(data, "split")
    elif isinstance(data, tuple | list) and len(data) == 2:
        images, labels = (np.asarray(each) for each in data)
    else:
        advice = "give a cifs_tf.data.Split, (images, labels), or a tf.data.Dataset of them"
        raise UserError("split", type(data).__name__, advice)
    labels = check_labels(labels)
    if images.ndim != IMAGES_NDIM:
        raise UserError("images", f"shape {images.shape}", "give (examples, height, width, channels)")
    if len(labels) != len(images):
        raise UserError("labels", f"{len(labels)} labels", f"give one for each of the {len(images)} images")
    if images.dtype == np.uint8:
        return Split(images, labels), []
    check_images(images)
    scaled = np.clip(images.astype(np.float64), 0, 1) * 255
    rounded = np.round(scaled)
    is_rounded = bool(np.abs(scaled - rounded).max(initial=0) > OFF_GRID * 255)
    told = ["The images were rounded to 8 bits before anything was measured."] if is_rounded else []
    return Split(rounded.astype(np.uint8), labels), told


def collect(dataset: tf.data.Dataset, argument: str, num_examples: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read images and labels of a dataset to its end, or the first so many; those of sample weight 0 are left out."""
    images, labels, found = [], [], 0
    for element in dataset.as_numpy_iterator():
        if not isinstance(element, tuple | list) or len(element) not in (2, 3):
            raise UserError(argument, "a dataset without labels", "give one of (images, labels)")
        batch = [np.asarray(each) for each in element]
        if batch[0].ndim == IMAGES_NDIM - 1:
            batch = [each[None] for each in batch]
        counted = batch[2].reshape(-1) > 0 if len(batch) > 2 else np.ones(len(batch[1]), bool)
        images.append(batch[0][counted])
        labels.append(batch[1][counted])
        found += len(labels[-1])
        if num_examples is not None and found >= num_examples:
            break
    if not found:
        raise UserError(argument, "no images", "give at least one image")
    return np.concatenate(images)[:num_examples], np.concatenate(labels)[:num_examples]
