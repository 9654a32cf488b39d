"""Checks of pixels and labels that enter from outside: once, where they enter."""

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from cifs_tf.errors import UserError

ONE_HOT_NDIM = 2
# Of resizing and of half precision.
TOLERANCE = 1e-2
# Begins what `cifs_tf.models.checked_model.watch_batch` says in graphs; `explain_later_batches` makes a sentence of it.
LATER = "later batch:"
NOT_FINITE = "leave these images out, or mend them"
# What `tf.data.INFINITE_CARDINALITY` is.
ENDLESS = -1
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
    array = as_array(labels, argument)
    if array.dtype.kind not in "biuf":
        raise UserError(argument, f"dtype {array.dtype}", "give integers from 0 to the number of classes - 1")
    if array.dtype.kind == "b" and array.ndim == 1 and num_classes not in (None, 2):
        raise UserError(argument, "dtype bool", f"there are {num_classes} classes, give integers")
    if array.ndim == ONE_HOT_NDIM and array.shape[1] > 1:
        array = _from_one_hot(array, num_classes, argument)
    elif array.ndim == ONE_HOT_NDIM and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        advice = "give integers (examples,) or one-hot rows (examples, classes)"
        raise UserError(argument, f"shape {array.shape}", advice)
    whole = array.astype(np.int64) if array.dtype.kind != "f" or np.isfinite(array).all() else None
    if whole is None or (whole != array).any():
        odd = next((value for value in array.tolist() if value != value or value % 1 != 0), array.max())
        raise UserError(argument, odd, "labels are whole numbers from 0 to the number of classes - 1")
    if len(whole):
        low, high = int(whole.min()), int(whole.max())
        if low < 0 or high > np.iinfo(np.int32).max or (num_classes is not None and high >= num_classes):
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


def check_images(
    images: Any, argument: str = "images", *, shape: tuple[int | None, ...] | None = None, allow_nan: bool = False
) -> None:
    """Refuse images that are not floats in [0, 1], with the way to bring them there.

    Args:
        images: array or tensor (examples, height, width, channels).
        argument: name of the argument, for the error.
        shape: (height, width, channels) that they must have, None where that is open. Default None: any.
        allow_nan: leave what is not finite to whoever names it later, as training does. Default False.

    Raises:
        UserError: for integers, for values below 0 or above 1 by more than rounding, and for another shape.

    Example:
        >>> check_images(np.zeros((1, 8, 8, 3), np.float32), shape=(8, 8, 3))
    """
    array = as_array(images, argument)
    dtype = str(array.dtype)
    if array.dtype.kind in "OUSTcmM":
        received = f"dtype {dtype}" if isinstance(images, np.ndarray | list) else type(images).__name__
        raise UserError(argument, received, "give an array of floats in [0, 1], such as np.float32")
    if shape is not None and not _fits(array.shape[1:], shape):
        raise UserError(argument, f"shape {array.shape}", _advice_on_shape(array.shape, shape))
    if array.size == 0:
        return
    low, high = float(array.min()), float(array.max())
    if not math.isfinite(high - low):
        finite = array[np.isfinite(array)]
        if not allow_nan:
            count = array.size - finite.size
            raise UserError(argument, f"{count} pixels that are not finite", NOT_FINITE)
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    received = f"{dtype} pixels from {low:.4g} to {high:.4g}"
    if not dtype.startswith(("float", "bfloat")):
        if high <= 1:  # booleans, a mask, or floats in [0, 1] that were cut off to integers
            advice = "convert them to floats, if 1 is white; if they were divided by 255, convert them before that"
            raise UserError(argument, received, advice)
        raise UserError(argument, received, "divide by 255: images are floats in [0, 1]")
    if -1 - TOLERANCE <= low < -0.6 and high <= 1 + TOLERANCE:
        raise UserError(argument, received, "add 1 and divide by 2: images are floats in [0, 1]")
    if low < -TOLERANCE:
        raise UserError(argument, received, "bring them back to floats in [0, 1]; normalise inside the network")
    if high > 1 + TOLERANCE:
        raise UserError(argument, received, "divide by 255: images are floats in [0, 1]")
    if 0 < high <= TWICE:
        raise UserError(argument, received, "multiply by 255, they seem divided twice: images are floats in [0, 1]")


def _advice_on_shape(found: tuple[int, ...], shape: tuple[int | None, ...]) -> str:
    if _fits(found, shape):
        return "give a batch, images[None]"
    if _fits((*found[1:], 1), shape):
        return "give grey images an axis for their channel, images[..., None]"
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    return f"the network takes (examples, {wanted}), resize them"


def check_weights(weights: Any, num_examples: int | None, argument: str = "sample_weight") -> np.ndarray:
    """Return sample weights as floats (examples,).

    Args:
        weights: numbers of 0 or more, (examples,) or (examples, 1).
        num_examples: how many there must be; None for any number.
        argument: name of the argument, for the error.

    Raises:
        UserError: for weights of another shape, below 0, or not finite.

    Example:
        >>> check_weights([[1], [0]], 2).tolist()
        [1.0, 0.0]
    """
    array = as_array(weights, argument)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind not in "biuf" or array.ndim != 1 or num_examples not in (None, len(array)):
        wanted = "each image" if num_examples is None else f"each of the {num_examples} images"
        raise UserError(argument, f"shape {array.shape}", f"give one number for {wanted}")
    if not (array >= 0).all() or not np.isfinite(array).all():  # NaN is none of these
        raise UserError(argument, array[~((array >= 0) & np.isfinite(array))][0], "give numbers of 0 or more")
    return array.astype(np.float64)


def check_class_weight(weights: Any, num_classes: int, argument: str = "class_weight") -> None:
    """Refuse weights of classes that there are not.

    Args:
        weights: of classes, by their number; None for none.
        num_classes: numbers are below it.
        argument: name of the argument, for the error.

    Raises:
        UserError: for other numbers, and for weights that `check_weights` refuses.

    Example:
        >>> check_class_weight({0: 1.0, 2: 3.0}, 3)
    """
    if weights is None:
        return
    if not isinstance(weights, dict) or not set(weights) <= set(range(num_classes)):
        received = sorted(set(weights) - set(range(num_classes)), key=str) if isinstance(weights, dict) else weights
        raise UserError(argument, received, f"give numbers of classes, 0 to {num_classes - 1}, with their weights")
    check_weights(list(weights.values()), None, argument)


def check_ends(
    data: Any,
    steps: Any,
    argument: str = "steps_per_epoch",
    advice: str = "give the number of steps, or leave repeat() out",
) -> None:
    """Refuse batches without end, unless the number of steps is given: they would be taken for ever.

    Args:
        data: a `tf.data.Dataset`, a `keras.utils.PyDataset`, or anything else, which passes.
        steps: how many batches are taken; None for all.
        argument: what the number of steps is called, for the error.
        advice: what to do, for the error.

    Raises:
        UserError: if so.
    """
    cardinality = getattr(data, "cardinality", None)  # a number of what a strategy distributes
    endless = (cardinality() if callable(cardinality) else cardinality) == ENDLESS
    if hasattr(data, "__getitem__") and hasattr(data, "num_batches"):
        endless = data.num_batches is None
    if endless and steps is None:
        raise UserError(argument, None, f"the data have no end, {advice}")


def as_array(values: Any, argument: str) -> np.ndarray:
    """Return values as an array.

    Raises:
        UserError: for what is no array, such as rows of several lengths.
    """
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:  # rows of several lengths
        raise UserError(argument, type(values).__name__, "give an array, all of whose rows have one shape") from error


def _fits(sizes: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    return len(sizes) == len(shape) and all(mine in (None, size) for size, mine in zip(sizes, shape, strict=True))


def check_first_batch(
    x: Any,
    y: Any,
    shape: tuple[int | None, ...],
    check: Callable[[Any], object] | None,
    *,
    allow_nan: bool = False,
    argument: str = "",
) -> Any:
    """Refuse data for Keras' `fit`, `evaluate` or `predict` whose pixels are not in [0, 1] or whose labels are invalid.

    Args:
        x: images, all of which are looked at; or what gives batches (images, labels, ...), of which the first is: a
            `tf.data.Dataset`, a `keras.utils.PyDataset`, a generator.
        y: labels of the images; None for batches.
        shape: (height, width, channels) of the images.
        check: of labels, which raises; None where there are none.
        allow_nan: as for `check_images`.
        argument: what the data are for, before the name of what is wrong. Default `""`.

    Returns:
        `x`, or of a generator another one that begins with the batch that was taken.

    Raises:
        UserError: naming the range or the labels that were received.
    """
    batch: Any = (x, y)
    if isinstance(x, dict | list | tuple) or isinstance(y, dict | list):
        name, value = ("images", x) if isinstance(x, dict | list | tuple) else ("labels", y)
        raise UserError(f"{argument}{name}", type(value).__name__, "give one array or tensor")
    if y is None and isinstance(x, Iterator):
        # Keras knows no other iterators than generators, and has an error of its own for an empty one.
        first = list(itertools.islice(x, 1))
        x, batch = (each for each in itertools.chain(first, x)), first[0] if first else None
    elif y is None and hasattr(x, "take") and hasattr(x, "element_spec"):
        with explain_sizes(f"{argument}images"):
            batch = next(iter(x.take(1)), None)
        if batch is None:
            raise UserError(f"{argument}images", "no batches", "give at least one")
    elif y is None and hasattr(x, "__getitem__") and not hasattr(x, "shape"):
        batch = x[0]
    elif not hasattr(x, "shape"):
        return x  # nothing, or of a kind that only Keras knows
    images, labels, weights, *_ = (*batch, None, None) if isinstance(batch, tuple | list) else (batch, None, None)
    if images is None:
        return x
    if isinstance(images, dict | list | tuple) or None in tuple(getattr(images, "shape", ())):
        advice = "give batches (images, labels), each one array or tensor, of images of one size"
        raise UserError(f"{argument}images", type(images).__name__, advice)
    check_images(images, f"{argument}images", shape=shape, allow_nan=allow_nan)
    if check is None:
        return x
    if labels is None:
        raise UserError(f"{argument}labels", None, "give one for each image: images and labels, or batches of both")
    if len(images) != len(labels):
        raise UserError(f"{argument}labels", f"{len(labels)} labels", f"give one for each of the {len(images)} images")
    if not len(images):
        raise UserError(f"{argument}images", "no images", "give at least one")
    check(labels)
    if weights is not None:
        check_weights(weights, len(images), f"{argument}sample_weight")
    return x


@contextlib.contextmanager
def explain_later_batches(num_classes: int) -> Iterator[None]:
    """Say in a sentence what TensorFlow finds in a batch that nobody looked at before.

    Args:
        num_classes: of the network.

    Raises:
        UserError: for a label that is no class, or what `cifs_tf.models.checked_model.watch_batch` found.
    """
    try:
        with explain_sizes("images"):
            yield
    except UserError:
        raise
    except Exception as error:
        if found := re.search(rf"{LATER} (images|pixels|size|labels|weights)\]((?: \[[^\]]*\])+)", str(error)):
            values = [float(value) for value in re.split(r"\] \[| ", found[2].strip(" []"))]
            refuse_batch(found[1], values, num_classes)
        found = re.search(r"label value of (-?\d+) which is outside the valid range", str(error))
        if found is None:
            raise
        advice = f"labels are 0 to {num_classes - 1}; number the classes from 0"
        raise UserError("labels", int(found[1]), advice) from None


def refuse_batch(what: str, values: Sequence[float], num_classes: int) -> NoReturn:
    """Say in a sentence what is wrong with a batch.

    Args:
        what: `"images"`, `"pixels"`, `"size"`, `"labels"` or `"weights"`.
        values: of these, those that are wrong: the least and the greatest pixel, or the sizes of the batch.
        num_classes: of the network.

    Raises:
        UserError: always.
    """
    array = np.array(values)
    if what == "images":
        check_images(array.astype(np.float32))
    elif what == "pixels":
        raise UserError("images", "pixels that are not finite", NOT_FINITE) from None
    elif what == "weights":
        check_weights(array, None)
    elif what == "labels":
        check_labels(array, num_classes)
        raise UserError("labels", "rows that are not one-hot", "give rows of zeros and a single one") from None
    received = f"a batch of shape ({', '.join(map(str, array.astype(int)))})"
    raise UserError("images", received, "all must have the size that the network takes") from None


@contextlib.contextmanager
def explain_sizes(argument: str) -> Iterator[None]:
    """Say in a sentence that `tf.data` met images of several sizes.

    Raises:
        UserError: if it did.
    """
    try:
        yield
    except Exception as error:
        if re.search(r"batch tensors with different shapes|yielded an element of shape .* was expected", str(error)):
            advice = "bring all images to one size before they are batched"
            raise UserError(argument, "images of several sizes", advice) from None
        raise
