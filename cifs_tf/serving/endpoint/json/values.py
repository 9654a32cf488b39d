"""TF Serving's JSON codec: values of JSON to tensors of a type, and the faults that it finds in them."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from cifs_tf.serving.endpoint import tensor_types as types
from cifs_tf.serving.endpoint.json.parser import Members
from cifs_tf.serving.endpoint.json.writer import quote
from cifs_tf.serving.endpoint.status import Code, StatusError, invalid_argument

# Range of the numbers that a type takes; TF Serving checks the small integers against 32 bits and wraps them.
INT32_RANGE = (-(2**31), 2**31 - 1)
INTEGER_RANGES = {
    types.INT32: INT32_RANGE,
    types.INT16: INT32_RANGE,
    types.INT8: INT32_RANGE,
    types.UINT8: INT32_RANGE,
    types.INT64: (-(2**63), 2**63 - 1),
    types.UINT16: (0, 2**16 - 1),
    types.UINT32: (0, 2**32 - 1),
    types.UINT64: (0, 2**64 - 1),
}
FLOATS = (types.FLOAT, types.DOUBLE)

MAX_RANK = 64  # NumPy's
_WHITESPACE = re.compile(r"[\t-\r ]+")


def numbers_at_once(value: Any, dtype: int) -> np.ndarray | None:
    """Return a nested list of numbers as a tensor, or None if it is not one without a fault."""
    if dtype not in FLOATS and dtype not in INTEGER_RANGES:
        return None
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        return None
    if dtype in FLOATS and array.dtype.kind in "iuf":
        return _as_floats(array, dtype)
    if dtype in INTEGER_RANGES and array.dtype.kind in "iu" and array.size:
        low, high = INTEGER_RANGES[dtype]
        if low <= int(array.min()) and int(array.max()) <= high:
            return array.astype(types.NUMPY_TYPES[dtype])
    return None


def append_leaves(value: Any, level: int, shape: list[int], dtype: int, values: list) -> None:
    """Append the leaves of a nested list to `values`; every list must be as deep and as long as the first.

    Args:
        value: a leaf, or lists of them.
        level: how deep it lies, from 0.
        shape: lengths of the first list of each level, see `shape_of`.
        dtype: type of the tensor.
        values: where the leaves go.

    Raises:
        StatusError: in TF Serving's words.
    """
    if not is_array(value):
        if level != len(shape):
            raise invalid_argument(
                f"JSON Value: {quote(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        values.append(_read_leaf(value, dtype))
        return
    if level >= len(shape):
        raise invalid_argument(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid_argument(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for item in value:
        append_leaves(item, level + 1, shape, dtype, values)


def _read_leaf(value: Any, dtype: int) -> Any:
    if isinstance(value, Members):
        if dtype != types.STRING:
            raise _type_error(value, dtype)
        return decode_base64(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype in FLOATS:
        fits = is_number
    elif dtype in INTEGER_RANGES:
        low, high = INTEGER_RANGES[dtype]
        fits = is_number and isinstance(value, int) and low <= value <= high
    elif dtype == types.STRING:
        fits = isinstance(value, str)
    elif dtype == types.BOOL:
        fits = isinstance(value, bool)
    else:
        raise StatusError(
            Code.UNIMPLEMENTED, f"Conversion of JSON Value: {quote(value)} to type: {types.type_name(dtype)}"
        )
    if not fits:
        raise _type_error(value, dtype)
    return value.encode(errors="surrogateescape") if isinstance(value, str) else value


def decode_base64(value: Members) -> bytes:
    """Return the bytes of `{"b64": "..."}`.

    Raises:
        StatusError: INVALID_ARGUMENT if it is another object, or no base64.
    """
    if not is_base64(value):
        raise invalid_argument(f"JSON Value: {quote(value)} not formatted correctly for base64 data")
    text = _WHITESPACE.sub("", value.find("b64")).replace(".", "=")  # TF Serving takes either as padding
    unpadded = text.rstrip("=")
    padding = "=" * (-len(unpadded) % 4)
    try:
        if text not in (unpadded, unpadded + padding):
            raise binascii.Error
        return base64.b64decode(unpadded + padding, validate=True)
    except ValueError as error:
        raise invalid_argument("Unable to base64 decode") from error


def make_tensor(values: list, shape: list[int], dtype: int, name: str) -> np.ndarray:
    """Make a tensor of leaves.

    Args:
        values: leaves, see `append_leaves`.
        shape: of the tensor.
        dtype: type of the tensor.
        name: of the input, for the message.

    Raises:
        StatusError: INVALID_ARGUMENT if it has too many dimensions.
    """
    values = values[: size_of(shape)]  # of a row that names an input twice
    if len(shape) > MAX_RANK:
        raise invalid_argument(f"tensor parsing error: {name}")
    if dtype == types.STRING:
        tensor = np.empty(len(values), object)
        tensor[:] = values
    elif dtype in FLOATS:
        tensor = _as_floats(np.array(values, np.float64), dtype)
    elif dtype == types.BOOL:
        tensor = np.array(values, np.bool_)
    else:
        wide = np.uint64 if dtype == types.UINT64 else np.int64
        tensor = np.array(values, wide).astype(types.NUMPY_TYPES[dtype])
    return tensor.reshape(shape)


def _as_floats(array: np.ndarray, dtype: int) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        return array.astype(np.float64).astype(types.NUMPY_TYPES[dtype])  # by way of double, as RapidJSON


def shape_of(value: Any) -> list[int]:
    """Return the lengths of the first list of each level."""
    shape = []
    while is_array(value):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def size_of(shape: Sequence[int]) -> int:
    """Return the number of values of a shape."""
    return math.prod(shape)


def is_array(value: Any) -> bool:
    """Return whether a value is an array of JSON."""
    return isinstance(value, list) and not isinstance(value, Members)


def is_base64(value: Any) -> bool:
    """Return whether a value is an object of the form `{"b64": "..."}`."""
    return isinstance(value, Members) and len(value) == 1 and value[0][0] == "b64" and isinstance(value[0][1], str)


def kind_of(value: Any) -> str:
    """Return the name of a value's kind in TF Serving's messages, such as `Number`."""
    kinds = {type(None): "Null", str: "String", list: "Array", Members: "Object", int: "Number", float: "Number"}
    return str(value) if isinstance(value, bool) else kinds[type(value)]


def _type_error(value: Any, dtype: int) -> StatusError:
    message = f"JSON Value: {quote(value)} Type: {kind_of(value)} is not of expected type: {types.type_name(dtype)}"
    return invalid_argument(message)
