"""TF Serving's JSON codec, first half: the body of a `:predict` request to tensors."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import TensorInfo

from cifs_tf.serving.endpoint.json_parser import Document, Members, parse
from cifs_tf.serving.endpoint.json_writer import quote
from cifs_tf.serving.endpoint.signatures import type_name
from cifs_tf.serving.endpoint.status import Code, StatusError, invalid_argument

SIGNATURE_KEY, ROWS_KEY, COLUMNS_KEY = "signature_name", "instances", "inputs"

# Range of the numbers that a type takes; TF Serving checks the small integers against 32 bits and wraps them.
INT32_RANGE = (-(2**31), 2**31 - 1)
INTEGER_RANGES = {
    types_pb2.DT_INT32: INT32_RANGE,
    types_pb2.DT_INT16: INT32_RANGE,
    types_pb2.DT_INT8: INT32_RANGE,
    types_pb2.DT_UINT8: INT32_RANGE,
    types_pb2.DT_INT64: (-(2**63), 2**63 - 1),
    types_pb2.DT_UINT32: (0, 2**32 - 1),
    types_pb2.DT_UINT64: (0, 2**64 - 1),
}
FLOATS = (types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE)

MAX_RANK = 64  # NumPy's
Lookup = Callable[[str], Mapping[str, TensorInfo]]
_WHITESPACE = re.compile(r"[\t-\r ]+")


@dataclasses.dataclass(frozen=True)
class PredictBody:
    """What a `:predict` request says.

    Args:
        signature_name: as sent; empty for the default.
        inputs: tensors by input name.
        by_row: whether it came, and the answer goes, row by row (`instances`) or by column (`inputs`).
    """

    signature_name: str
    inputs: dict[str, np.ndarray]
    by_row: bool


def read_predict_body(text: bytes, lookup: Lookup) -> PredictBody:
    """Read the body of a `:predict` request, and find the same faults in the same order as TF Serving.

    Args:
        text: JSON.
        lookup: from a signature's name (possibly empty) to its inputs; may raise `StatusError`.

    Returns:
        the request.

    Raises:
        StatusError: in TF Serving's words.

    Example:
        >>> body = read_predict_body(b'{"instances": [[1.0, 2.0]]}', lookup)
        >>> body.inputs["x"].shape
        (1, 2)
    """
    document = parse(text)
    root = read_object(document.root)
    signature_name = read_signature_name(root)
    infos = lookup(signature_name)
    if not infos:
        raise invalid_argument(f"Failed to get input map for signature: {signature_name or 'DEFAULT'}")
    names = root.names()
    if ROWS_KEY in names:
        if COLUMNS_KEY in names:
            raise _malformed(
                root, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
            )
        rows = root.find(ROWS_KEY)
        if not _is_array(rows):
            raise _malformed(root, "Expecting 'instances' to be an list/array")
        if not rows:
            raise _malformed(root, "No values in 'instances' array")
        inputs = _rows_at_once(rows, infos, document)
        return PredictBody(signature_name, inputs or _read_rows(rows, infos), by_row=True)
    if COLUMNS_KEY in names:
        columns = root.find(COLUMNS_KEY)
        inputs = _read_columns(columns, infos, document)
        return PredictBody(signature_name, inputs, by_row=False)
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def read_object(root: Any) -> Members:
    """Return the root of a document, which must be an object."""
    if not isinstance(root, Members):
        raise _malformed(root, "Is not object")
    return root


def read_signature_name(root: Members) -> str:
    """Return the signature that a request names, or an empty string."""
    name = root.find(SIGNATURE_KEY, "")
    if not isinstance(name, str):
        raise _malformed(root, "not formatted correctly. 'signature_name' key must be a string value.")
    return name


def _rows_at_once(rows: list, infos: Mapping[str, TensorInfo], document: Document) -> dict[str, np.ndarray] | None:
    """All rows in one go, if they are numbers without a fault; None leaves it to the careful way."""
    if not _only_numbers(document):
        return None
    if document.num_objects == 1:
        columns: dict[str, list] = dict.fromkeys(infos, rows) if len(infos) == 1 else {}
    elif document.num_objects == 1 + len(rows) and all(isinstance(row, Members) for row in rows):
        expected = sorted(infos)
        if any(sorted(row.names()) != expected for row in rows):
            return None
        columns = {name: [row.find(name) for row in rows] for name in infos}
    else:
        return None
    inputs = {name: _numbers_at_once(column, infos[name].dtype) for name, column in columns.items()}
    return None if any(tensor is None for tensor in inputs.values()) else inputs  # type: ignore[return-value]


def _only_numbers(document: Document) -> bool:
    """Whether nothing but numbers can be among the values: NumPy would make a text of everything beside one text."""
    return not document.has_words and document.num_strings == (document.root.find(SIGNATURE_KEY) is not None)


def _numbers_at_once(value: Any, dtype: int) -> np.ndarray | None:
    """A nested list of numbers as a tensor, or None if there is anything to be said about it."""
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
            return array.astype(_numpy_type(dtype))
    return None


def _read_rows(rows: list, infos: Mapping[str, TensorInfo]) -> dict[str, np.ndarray]:
    """Value by value, in TF Serving's order."""
    if not isinstance(rows[0], Members) and len(infos) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    named = _is_row_object(rows[0])
    flat: dict[str, list] = {name: [] for name in infos}
    shapes: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        where = f"Failed to process element: {index}"
        if named != _is_row_object(row):
            wanted, found = ("object", "list") if named else ("value/list", "object")
            raise invalid_argument(f"Expecting {wanted} but got {found} at item {index} of input list")
        if not named:
            _add_row(row, next(iter(infos)), infos, flat, shapes, f"{where} of 'instances' list. Error: ")
            continue
        for name, value in row:
            _add_row(value, name, infos, flat, shapes, f"{where} key: {name} of 'instances' list. Error: ")
        if set(row.names()) != set(infos):
            raise invalid_argument(
                f"{where} of 'instances' list. JSON object: {quote(row)} keys must be equal to: "
                f"{','.join(sorted(infos))}"
            )
    return {name: _tensor(values, [len(rows), *shapes[name]], infos[name].dtype, name) for name, values in flat.items()}


def _add_row(
    value: Any,
    name: str,
    infos: Mapping[str, TensorInfo],
    flat: dict[str, list],
    shapes: dict[str, list[int]],
    where: str,
) -> None:
    try:
        if name not in infos:
            raise invalid_argument(f"JSON object: does not have named input: {name}")
        values: list = []
        shape = _shape_of(value)
        _fill(value, 0, shape, infos[name].dtype, values)
        expected = shapes.setdefault(name, shape)
        if _size(expected) != len(values):
            raise invalid_argument(f"Expecting tensor size: {_size(expected)} but got: {len(values)}")
        if expected != shape:
            raise invalid_argument(f"Expecting shape {_shape_text(expected)} but got: {_shape_text(shape)}")
    except StatusError as error:
        raise invalid_argument(f"{where}{error}") from error
    flat[name] += values


def _read_columns(columns: Any, infos: Mapping[str, TensorInfo], document: Document) -> dict[str, np.ndarray]:
    if not isinstance(columns, Members) or is_base64(columns):
        if len(infos) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        values, plain = {next(iter(infos)): columns}, document.num_objects == 1
    else:
        values, plain = {}, document.num_objects == 2
        for name in infos:
            if name not in columns.names():
                raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
            values[name] = columns.find(name)
    inputs = {}
    for name, value in values.items():
        dtype = infos[name].dtype
        tensor = _numbers_at_once(value, dtype) if plain and _only_numbers(document) else None
        if tensor is None:
            flat: list = []
            shape = _shape_of(value)
            _fill(value, 0, shape, dtype, flat)
            tensor = _tensor(flat, shape, dtype, name)
        inputs[name] = tensor
    return inputs


def _fill(value: Any, level: int, shape: list[int], dtype: int, values: list) -> None:
    """Append the leaves of a nested list to `values`, each of which must be as deep and as long as the first."""
    if not _is_array(value):
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
        _fill(item, level + 1, shape, dtype, values)


def _read_leaf(value: Any, dtype: int) -> Any:
    if isinstance(value, Members):
        if dtype != types_pb2.DT_STRING:
            raise _type_error(value, dtype)
        return decode_base64(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype in FLOATS:
        fits = is_number
    elif dtype in INTEGER_RANGES:
        low, high = INTEGER_RANGES[dtype]
        fits = is_number and isinstance(value, int) and low <= value <= high
    elif dtype == types_pb2.DT_STRING:
        fits = isinstance(value, str)
    elif dtype == types_pb2.DT_BOOL:
        fits = isinstance(value, bool)
    else:
        raise StatusError(Code.UNIMPLEMENTED, f"Conversion of JSON Value: {quote(value)} to type: {type_name(dtype)}")
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


def _tensor(values: list, shape: list[int], dtype: int, name: str) -> np.ndarray:
    values = values[: _size(shape)]  # of a row that names an input twice
    if len(shape) > MAX_RANK:
        raise invalid_argument(f"tensor parsing error: {name}")
    if dtype == types_pb2.DT_STRING:
        tensor = np.empty(len(values), object)
        tensor[:] = values
    elif dtype in FLOATS:
        tensor = _as_floats(np.array(values, np.float64), dtype)
    elif dtype == types_pb2.DT_BOOL:
        tensor = np.array(values, np.bool_)
    else:
        wide = np.uint64 if dtype == types_pb2.DT_UINT64 else np.int64
        tensor = np.array(values, wide).astype(_numpy_type(dtype))
    return tensor.reshape(shape)


def _as_floats(array: np.ndarray, dtype: int) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        return array.astype(np.float64).astype(_numpy_type(dtype))  # by way of double, as RapidJSON


def _shape_of(value: Any) -> list[int]:
    shape = []
    while _is_array(value):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _shape_text(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _numpy_type(dtype: int) -> Any:
    return tf.as_dtype(dtype).as_numpy_dtype


def _is_array(value: Any) -> bool:
    return isinstance(value, list) and not isinstance(value, Members)


def is_base64(value: Any) -> bool:
    """Whether a value is an object of the form `{"b64": "..."}`."""
    return isinstance(value, Members) and len(value) == 1 and value[0][0] == "b64" and isinstance(value[0][1], str)


def _is_row_object(value: Any) -> bool:
    return isinstance(value, Members) and not is_base64(value)


def kind_of(value: Any) -> str:
    """Name of a value's kind in TF Serving's messages, such as `Number`."""
    kinds = {type(None): "Null", str: "String", list: "Array", Members: "Object", int: "Number", float: "Number"}
    return str(value) if isinstance(value, bool) else kinds[type(value)]


def _type_error(value: Any, dtype: int) -> StatusError:
    message = f"JSON Value: {quote(value)} Type: {kind_of(value)} is not of expected type: {type_name(dtype)}"
    return invalid_argument(message)


def _malformed(value: Any, message: str) -> StatusError:
    return invalid_argument(f"JSON Value: {quote(value)} {message}")
