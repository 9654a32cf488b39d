"""What enters from outside as pixels or labels is what it is taken for: checked once, where it enters."""

from __future__ import annotations

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


def check_float_pixels(low: float, high: float, dtype: str, argument: str = "images") -> None:
    """Refuse images that are not floats in [0, 1], with the way to bring them there.

    Args:
        low: least value of some images; NaN passes, for it is another fault, which training names.
        high: greatest value.
        dtype: of the images, such as `"float32"`.
        argument: name of the argument, for the error.

    Raises:
        UserError: for integers, and for values below 0 or above 1 by more than rounding.

    Example:
        >>> check_float_pixels(0.0, 1.0, "float32")
    """
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
