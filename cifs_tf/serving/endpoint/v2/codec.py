"""The Open Inference Protocol (v2) over REST: bodies of requests and answers, with the binary tensor extension."""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cifs_tf.serving.endpoint import tensor_types as types
from cifs_tf.serving.endpoint.json.parser import Members, parse
from cifs_tf.serving.endpoint.json.values import MAX_RANK, is_array
from cifs_tf.serving.endpoint.json.writer import float_texts, string_text
from cifs_tf.serving.endpoint.status import invalid_argument
from cifs_tf.serving.endpoint.tensor_types import NUMPY_TYPES, type_number

# Names of the protocol by TensorFlow's numbers of types.
DATATYPES = {
    types.BOOL: "BOOL",
    types.UINT8: "UINT8",
    types.UINT16: "UINT16",
    types.UINT32: "UINT32",
    types.UINT64: "UINT64",
    types.INT8: "INT8",
    types.INT16: "INT16",
    types.INT32: "INT32",
    types.INT64: "INT64",
    types.HALF: "FP16",
    types.BFLOAT16: "BF16",
    types.FLOAT: "FP32",
    types.DOUBLE: "FP64",
    types.STRING: "BYTES",
}
_NUMBERS = {name: number for number, name in DATATYPES.items()}
HEADER_LENGTH = "inference-header-content-length"
EXTENSIONS = ["binary_tensor_data"]
MAX_VALUES = 2**58


class InferRequest(NamedTuple):
    """A request for inference.

    Args:
        id: given back with the answer; empty if there is none.
        signature_name: the parameter of that name; empty for the default.
        inputs: tensors by input name.
        outputs: names of the outputs asked for; none for all.
        binary: whether an output that is not named in `binary_of` is answered in binary form.
        binary_of: whether an output is, by name.
    """

    id: str
    signature_name: str
    inputs: dict[str, np.ndarray]
    outputs: tuple[str, ...]
    binary: bool
    binary_of: dict[str, bool]


def read_infer_request(body: bytes, header_length: int | None) -> InferRequest:
    """Read the body of a request.

    Args:
        body: JSON, then the tensors that came in binary form, in order.
        header_length: bytes of the JSON; None if it is all.

    Raises:
        StatusError: INVALID_ARGUMENT, naming what is wrong.

    Example:
        >>> body = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2.5]}]}'
        >>> read_infer_request(body, None).inputs["x"]
        array([1. , 2.5], dtype=float32)
    """
    if header_length is not None and not 0 <= header_length <= len(body):
        raise invalid_argument(f"{HEADER_LENGTH} is {header_length}, the body has {len(body)} bytes")
    root = parse(body if header_length is None else body[:header_length]).root
    rest = memoryview(b"" if header_length is None else body)[header_length or 0 :]
    if not isinstance(root, Members):
        raise invalid_argument("The request must be a JSON object")
    parameters = _parameters(root, "the request")
    inputs: dict[str, np.ndarray] = {}
    if "inputs" not in root.names():
        raise invalid_argument("The request has no inputs")
    for item in _items(root, "inputs"):
        name = _member(item, "name", str, "an input")
        where = f"input {name}"
        size = _parameters(item, where).get("binary_data_size")
        number = find_type(_member(item, "datatype", str, where), where)
        shape = check_shape(_member(item, "shape", list, where), where)
        if name in inputs:
            raise invalid_argument(f"There are two of {where}")
        if size is None:
            inputs[name] = _from_json(item.find("data"), number, shape, where)
        else:
            if not isinstance(size, int) or not 0 <= size <= len(rest):
                raise invalid_argument(f"binary_data_size of {where} is {size}, {len(rest)} bytes are left of the body")
            inputs[name] = read_bytes(rest[:size], number, shape, where)
            rest = rest[size:]
    if len(rest):
        raise invalid_argument(f"{len(rest)} bytes of the body belong to no input")
    binary_of = {}
    for item in _items(root, "outputs"):
        name = _member(item, "name", str, "an output")
        wanted = _parameters(item, f"output {name}")
        if wanted.get("classification"):
            raise invalid_argument(f"output {name}: the classification extension is not offered")
        binary_of[name] = bool(wanted.get("binary_data", parameters.get("binary_data_output", False)))
    identity, signature_name = root.find("id", ""), parameters.get("signature_name", "")
    if not isinstance(signature_name, str):
        raise invalid_argument(f"The parameter signature_name must be a text, received {signature_name}")
    return InferRequest(
        identity if isinstance(identity, str) else "",
        signature_name,
        inputs,
        tuple(binary_of),
        bool(parameters.get("binary_data_output", False)),
        binary_of,
    )


def write_infer_response(
    head: Mapping[str, Any], outputs: Mapping[str, np.ndarray], binary: bool, binary_of: Mapping[str, bool]
) -> tuple[bytes, int | None]:
    """Write the body of an answer.

    Args:
        head: members that come first, such as `model_name`.
        outputs: tensors by output name.
        binary: see `InferRequest`.
        binary_of: see `InferRequest`.

    Returns:
        (the body, bytes of its JSON, or None if that is all).
    """
    described, blobs = [], []
    for name, tensor in outputs.items():
        number = type_of(name, tensor)
        item: dict[str, Any] = {"name": name, "datatype": DATATYPES[number], "shape": list(tensor.shape)}
        if binary_of.get(name, binary):
            blobs.append(write_bytes(tensor))
            item["parameters"] = {"binary_data_size": len(blobs[-1])}
            described.append(json.dumps(item))
        else:
            data = ", ".join(_texts(name, tensor, number))
            described.append(f'{json.dumps(item)[:-1]}, "data": [{data}]}}')
    text = f'{json.dumps(head)[:-1]}, "outputs": [{", ".join(described)}]}}'.encode()
    return (b"".join([text, *blobs]), len(text)) if blobs else (text, None)


def _member(item: Any, name: str, kind: type, where: str) -> Any:
    found = item.find(name) if isinstance(item, Members) else None
    if not isinstance(found, kind) or isinstance(found, Members):
        raise invalid_argument(f"{where[0].upper()}{where[1:]} must be an object with a {kind.__name__} {name}")
    return found


def _items(root: Members, name: str) -> list:
    found = root.find(name, [])
    if not is_array(found):
        raise invalid_argument(f"{name} must be a list")
    return found


def _parameters(item: Any, where: str) -> dict[str, Any]:
    found = item.find("parameters", Members()) if isinstance(item, Members) else Members()
    if not isinstance(found, Members):
        raise invalid_argument(f"The parameters of {where} must be an object")
    if any(name.startswith("shared_memory") for name, _ in found):
        raise invalid_argument(f"{where}: shared memory is not offered, send the data in the body")
    return dict(found)


def type_of(name: str, tensor: np.ndarray) -> int:
    """Return the number of an output's type, which the protocol must have."""
    if (number := type_number(tensor.dtype)) not in DATATYPES:
        raise invalid_argument(f"Output {name} is of type {tensor.dtype}, which the protocol does not have")
    return number


def find_type(datatype: str, where: str) -> int:
    """Return TensorFlow's number of a type of the protocol.

    Raises:
        StatusError: INVALID_ARGUMENT if there is no such type.
    """
    if datatype not in _NUMBERS:
        raise invalid_argument(f"The datatype of {where} is none of {', '.join(_NUMBERS)}")
    return _NUMBERS[datatype]


def check_shape(sizes: Sequence[Any], where: str) -> tuple[int, ...]:
    """Return a shape that has no negative and not too many dimensions."""
    if len(sizes) > MAX_RANK or any(not isinstance(size, int) or size < 0 or size is True for size in sizes):
        raise invalid_argument(f"The shape of {where} must be a list of whole numbers of 0 or more")
    if math.prod(size or 1 for size in sizes) > MAX_VALUES:  # beside a 0 too: NumPy cannot hold it
        raise invalid_argument(f"The shape of {where} is too large")
    return tuple(sizes)


def _from_json(data: Any, number: int, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Read a list of values, flat or nested."""
    if not is_array(data):
        raise invalid_argument(f"{where} has neither data nor the parameter binary_data_size")
    dtype = NUMPY_TYPES[number]
    flat: list = []
    if number in (types.STRING, types.BOOL):
        kind = str if number == types.STRING else bool
        _flatten(data, flat)
        if not all(isinstance(value, kind) for value in flat):
            raise invalid_argument(f"The data of {where} are not all of type {DATATYPES[number]}")
        values = np.empty(len(flat), dtype)
        values[:] = [value.encode(errors="surrogateescape") for value in flat] if kind is str else flat
        return reshape(values, shape, where)
    try:
        values = np.array(data)
        if number == types.UINT64 and values.dtype.kind == "f":  # NumPy's for integers of which some need 64 bits
            _flatten(data, flat)
            values = np.array(data, dtype) if set(map(type, flat)) == {int} else values
    except (ValueError, OverflowError):
        values = np.array(None)
    is_float = number in (types.FLOAT, types.DOUBLE, types.HALF, types.BFLOAT16)
    if values.size and (values.dtype.kind not in ("iuf" if is_float else "iu") or _holds_words(data)):
        raise invalid_argument(f"The data of {where} are not all of type {DATATYPES[number]}, or not evenly nested")
    if not is_float and values.size:
        limits = np.iinfo(dtype)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            raise invalid_argument(f"The data of {where} are beyond {DATATYPES[number]}")
    with np.errstate(over="ignore"):  # beyond the type is infinite
        return reshape(values.astype(dtype).reshape(-1), shape, where)


def _flatten(value: Any, flat: list) -> None:
    if is_array(value):
        for item in value:
            _flatten(item, flat)
    else:
        flat.append(value)


def _holds_words(value: Any) -> bool:
    """Return whether true or false stands among numbers, which NumPy takes for 1 and 0."""
    if not is_array(value):
        return isinstance(value, bool)
    if value and is_array(value[0]):
        return any(map(_holds_words, value))
    return bool in set(map(type, value))


def read_bytes(content: memoryview, number: int, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Read a tensor in binary form: values one after the other, texts with four bytes of their length in front."""
    dtype = NUMPY_TYPES[number]
    if number != types.STRING:
        if len(content) != math.prod(shape) * dtype.itemsize:
            raise invalid_argument(f"{where} has {len(content)} bytes, its shape and datatype need other ones")
        return np.frombuffer(content, dtype).reshape(shape)
    texts, at = [], 0
    while at < len(content):
        end = at + 4 + int.from_bytes(content[at : at + 4], "little")
        if end > len(content) or at + 4 > len(content):
            raise invalid_argument(f"{where} ends within a text: each is four bytes of length, least first, and itself")
        texts.append(bytes(content[at + 4 : end]))
        at = end
    values = np.empty(len(texts), object)
    values[:] = texts
    return reshape(values, shape, where)


def reshape(values: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Return values in a shape that takes as many."""
    if math.prod(shape) != values.size:
        raise invalid_argument(f"{where} has {values.size} values, its shape {list(shape)} needs {math.prod(shape)}")
    return values.reshape(shape)


def write_bytes(tensor: np.ndarray) -> bytes:
    """Write a tensor in binary form, see `read_bytes`."""
    if tensor.dtype != object:
        return np.ascontiguousarray(tensor).tobytes()
    return b"".join(struct.pack("<I", len(text)) + text for text in tensor.reshape(-1).tolist())


def _texts(name: str, tensor: np.ndarray, number: int) -> list[str]:
    flat = tensor.reshape(-1)
    if number == types.STRING:
        try:
            return [string_text(text.decode()) for text in flat.tolist()]
        except UnicodeDecodeError as error:
            raise invalid_argument(f"Output {name} holds bytes that are no UTF-8, ask for binary_data") from error
    if number == types.BOOL:
        return ["true" if value else "false" for value in flat.tolist()]
    if flat.dtype.kind in "iu":
        return list(map(str, flat.tolist()))
    return float_texts(flat if number == types.DOUBLE else flat.astype(np.float32))


def header_length(value: bytes | None) -> int | None:
    """Read the header that says how long the JSON is.

    Raises:
        StatusError: INVALID_ARGUMENT if it is no number.
    """
    if value is None:
        return None
    if not value.isdigit():
        raise invalid_argument(f"{HEADER_LENGTH} must be a number")
    return int(value[:20])
