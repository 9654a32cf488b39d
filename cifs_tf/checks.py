"""Checks of pixels and labels that enter from outside: once, where they enter."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from cifs_tf.errors import UserError

ONE_HOT_NDIM = 2
# Of resizing and of half precision.
TOLERANCE = 1e-2
# The greatest value of images that were divided by 255 twice, but for rounding.
TWICE = 1.01 / 255


def check_labels(labels: Any, num_classes: int | None = None, argument: str = "labels") -> np.ndarray:
    """Return labels as int32 (examples,); one-hot rows and a last axis of length 1 are taken for what they say.

    Args:
        labels: integers, or floats that are whole, (examples,) or (examples, 1); or one-hot rows
            (examples, classes) of zeros and a single one.
        num_classes: labels are below it; None does not look at the upper end.
        argument: name of the argument, for the error.

    Returns:
        int32 (examples,).

    Raises:
        UserError: for labels that are fractions, out of range, soft, or of another shape.

    Example:
        >>> check_labels([[0, 1], [1, 0]]).tolist()
        [1, 0]
    """
    array = np.asarray(labels)
    if array.dtype.kind not in "biuf":
        raise UserError(argument, f"dtype {array.dtype}", "give integers from 0 to the number of classes - 1")
    if array.ndim == ONE_HOT_NDIM and array.shape[1] > 1:
        array = _from_one_hot(array, num_classes, argument)
    elif array.ndim == ONE_HOT_NDIM:
        array = array[:, 0]
    if array.ndim != 1:
        advice = "give integers (examples,) or one-hot rows (examples, classes)"
        raise UserError(argument, f"shape {array.shape}", advice)
    whole = array.astype(np.int64) if array.dtype.kind != "f" or np.isfinite(array).all() else None
    if whole is None or (whole != array).any():
        odd = next(value for value in array.tolist() if value != value or value % 1 != 0)
        raise UserError(argument, odd, "labels are whole numbers from 0 to the number of classes - 1")
    if len(whole):
        low, high = int(whole.min()), int(whole.max())
        if low < 0 or (num_classes is not None and high >= num_classes):
            top = "the number of classes - 1" if num_classes is None else num_classes - 1
            wanted = f"labels are 0 to {top}; number the classes from 0"
            raise UserError(argument, f"labels from {low} to {high}", wanted)
    return whole.astype(np.int32)


def _from_one_hot(array: np.ndarray, num_classes: int | None, argument: str) -> np.ndarray:
    if num_classes is not None and array.shape[1] != num_classes:
        advice = f"one-hot rows have {num_classes} columns, one for each class; or give integers"
        raise UserError(argument, f"shape {array.shape}", advice)
    if not (((array == 0) | (array == 1)).all() and (array.sum(axis=1) == 1).all()):
        advice = "give integers, or one-hot rows of zeros and a single one; soft labels are --label_smoothing's work"
        raise UserError(argument, f"rows of shape {array.shape} that are not one-hot", advice)
    return array.argmax(axis=1)


def check_images(images: Any, argument: str = "images") -> None:
    """Refuse images that are not floats in [0, 1], with the way to bring them there.

    Args:
        images: array or tensor (examples, height, width, channels); what is not finite is another
            fault, which training names.
        argument: name of the argument, for the error.

    Raises:
        UserError: for integers, and for values below 0 or above 1 by more than rounding.

    Example:
        >>> check_images(np.zeros((1, 8, 8, 3), np.float32))
    """
    array = np.asarray(images)
    dtype = str(array.dtype)
    if array.size == 0:
        return
    low, high = float(array.min()), float(array.max())
    if not math.isfinite(high - low):
        finite = array[np.isfinite(array)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    received = f"{dtype} pixels from {low:.4g} to {high:.4g}"
    if not dtype.startswith(("float", "bfloat")):
        raise UserError(argument, received, "divide by 255: images are floats in [0, 1]")
    if low < -TOLERANCE and high <= 1 + TOLERANCE:
        raise UserError(argument, received, "add 1 and divide by 2: images are floats in [0, 1]")
    if low < -TOLERANCE:
        raise UserError(argument, received, "bring them back to floats in [0, 1]; normalise inside the network")
    if high > 1 + TOLERANCE:
        raise UserError(argument, received, "divide by 255: images are floats in [0, 1]")
    if 0 < high <= TWICE:
        raise UserError(argument, received, "multiply by 255, they seem divided twice: images are floats in [0, 1]")


def check_first_batch(x: Any, y: Any, num_classes: int) -> Any:
    """Refuse data for Keras' `fit` whose pixels are not in [0, 1] or whose labels are none.

    Args:
        x: images, all of which are looked at; or what gives batches (images, labels, ...), of which the first is: a
            `tf.data.Dataset`, a `keras.utils.PyDataset`, a generator.
        y: labels of the images; None for batches.
        num_classes: of the network.

    Returns:
        `x`, or of a generator another one that begins with the batch that was taken.

    Raises:
        UserError: naming the range or the labels that were received.
    """
    batch: Any = (x, y)
    if y is None:
        if isinstance(x, Iterator):
            # Keras knows no other iterators than generators, and has an error of its own for an empty one.
            first = list(itertools.islice(x, 1))
            x, batch = (each for each in itertools.chain(first, x)), first[0] if first else None
        elif hasattr(x, "take"):
            batch = next(iter(x.take(1)), None)
        elif hasattr(x, "__getitem__") and not hasattr(x, "shape"):
            batch = x[0]
    if isinstance(batch, tuple | list) and len(batch) > 1 and batch[1] is not None:
        check_images(batch[0])
        check_labels(batch[1], num_classes)
    return x
