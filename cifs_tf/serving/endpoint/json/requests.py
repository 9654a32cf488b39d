"""TF Serving's JSON codec, first half: the body of a `:predict` request to tensors, by rows or by columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cifs_tf.serving.endpoint.json.parser import Document, Members, parse
from cifs_tf.serving.endpoint.json.values import (
    append_leaves,
    is_array,
    is_base64,
    make_tensor,
    numbers_at_once,
    shape_of,
    size_of,
)
from cifs_tf.serving.endpoint.json.writer import quote
from cifs_tf.serving.endpoint.status import StatusError, invalid_argument

SIGNATURE_KEY, ROWS_KEY, COLUMNS_KEY = "signature_name", "instances", "inputs"


class SignatureInputs(NamedTuple):
    """What a signature takes.

    Args:
        types: of its inputs by name, as numbers of `tensor_types`.
        optional: names of inputs that have a default.
    """

    types: Mapping[str, int]
    optional: frozenset[str] = frozenset()


Lookup = Callable[[str], SignatureInputs]


def find_inputs(
    found: Mapping[str, SignatureInputs | StatusError] | StatusError, default: str, signature_name: str
) -> SignatureInputs:
    """Look a signature up as REST does; `functools.partial(find_inputs, found, default)` is a `Lookup`.

    Args:
        found: the signatures of a model, or why one cannot be asked, or why there is no model.
        default: the signature that is meant without a name.
        signature_name: as sent; empty for the default.

    Raises:
        StatusError: the given one, or INVALID_ARGUMENT if there is no signature of that name.
    """
    if isinstance(found, StatusError):
        raise found
    name = signature_name or default
    if name not in found:
        raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
    inputs = found[name]
    if isinstance(inputs, StatusError):
        raise inputs
    return inputs


@dataclasses.dataclass(frozen=True)
class PredictBody:
    """The content of a `:predict` request.

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
        >>> inputs = SignatureInputs({"x": 1})
        >>> read_predict_body(b'{"instances": [[1.0, 2.0]]}', lambda name: inputs).inputs["x"].shape
        (1, 2)
    """
    document = parse(text)
    root = read_object(document.root)
    signature_name = read_signature_name(root)
    types, optional = lookup(signature_name)
    if not types:
        raise invalid_argument(f"Failed to get input map for signature: {signature_name or 'DEFAULT'}")
    names = root.names()
    if ROWS_KEY in names:
        if COLUMNS_KEY in names:
            raise _malformed(
                root, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
            )
        rows = root.find(ROWS_KEY)
        if not is_array(rows):
            raise _malformed(root, "Expecting 'instances' to be an list/array")
        if not rows:
            raise _malformed(root, "No values in 'instances' array")
        types = _asked_for(rows[0], types, optional)
        inputs = _rows_at_once(rows, types, document)
        return PredictBody(signature_name, inputs or _read_rows(rows, types), by_row=True)
    if COLUMNS_KEY in names:
        columns = root.find(COLUMNS_KEY)
        inputs = _read_columns(columns, _asked_for(columns, types, optional), document)
        return PredictBody(signature_name, inputs, by_row=False)
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def _asked_for(value: Any, types: Mapping[str, int], optional: frozenset[str]) -> Mapping[str, int]:
    """Leave out the inputs that have a default and are not given."""
    given = value.names() if _is_row_object(value) else ()
    kept = {name: dtype for name, dtype in types.items() if name not in optional or name in given}
    return kept if kept or _is_row_object(value) else types


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


def _rows_at_once(rows: list, types: Mapping[str, int], document: Document) -> dict[str, np.ndarray] | None:
    """Return all rows in one go if they are numbers without a fault, else None, which leaves it to `_read_rows`."""
    if not _only_numbers(document):
        return None
    if document.num_objects == 1:
        columns: dict[str, list] = dict.fromkeys(types, rows) if len(types) == 1 else {}
    elif document.num_objects == 1 + len(rows) and all(isinstance(row, Members) for row in rows):
        expected = sorted(types)
        if any(sorted(row.names()) != expected for row in rows):
            return None
        columns = {name: [row.find(name) for row in rows] for name in types}
    else:
        return None
    inputs = {name: numbers_at_once(column, types[name]) for name, column in columns.items()}
    return None if any(tensor is None for tensor in inputs.values()) else inputs  # type: ignore[return-value]


def _only_numbers(document: Document) -> bool:
    """Return whether all values are numbers: beside one text NumPy would make texts of all."""
    return not document.has_words and document.num_strings == (document.root.find(SIGNATURE_KEY) is not None)


def _read_rows(rows: list, types: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Read value by value, in TF Serving's order."""
    if not isinstance(rows[0], Members) and len(types) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    named = _is_row_object(rows[0])
    flat: dict[str, list] = {name: [] for name in types}
    shapes: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        where = f"Failed to process element: {index}"
        if named != _is_row_object(row):
            wanted, found = ("object", "list") if named else ("value/list", "object")
            raise invalid_argument(f"Expecting {wanted} but got {found} at item {index} of input list")
        if not named:
            _add_row(row, next(iter(types)), types, flat, shapes, f"{where} of 'instances' list. Error: ")
            continue
        for name, value in row:
            _add_row(value, name, types, flat, shapes, f"{where} key: {name} of 'instances' list. Error: ")
        if set(row.names()) != set(types):
            raise invalid_argument(
                f"{where} of 'instances' list. JSON object: {quote(row)} keys must be equal to: "
                f"{','.join(sorted(types))}"
            )
    return {name: make_tensor(values, [len(rows), *shapes[name]], types[name], name) for name, values in flat.items()}


def _add_row(
    value: Any,
    name: str,
    types: Mapping[str, int],
    flat: dict[str, list],
    shapes: dict[str, list[int]],
    where: str,
) -> None:
    try:
        if name not in types:
            raise invalid_argument(f"JSON object: does not have named input: {name}")
        values: list = []
        shape = shape_of(value)
        append_leaves(value, 0, shape, types[name], values)
        expected = shapes.setdefault(name, shape)
        if size_of(expected) != len(values):
            raise invalid_argument(f"Expecting tensor size: {size_of(expected)} but got: {len(values)}")
        if expected != shape:
            raise invalid_argument(f"Expecting shape {_shape_text(expected)} but got: {_shape_text(shape)}")
    except StatusError as error:
        raise invalid_argument(f"{where}{error}") from error
    flat[name] += values


def _read_columns(columns: Any, types: Mapping[str, int], document: Document) -> dict[str, np.ndarray]:
    if not isinstance(columns, Members) or is_base64(columns):
        if len(types) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        values, plain = {next(iter(types)): columns}, document.num_objects == 1
    else:
        values, plain = {}, document.num_objects == 2
        for name in types:
            if name not in columns.names():
                raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
            values[name] = columns.find(name)
    inputs = {}
    for name, value in values.items():
        dtype = types[name]
        tensor = numbers_at_once(value, dtype) if plain and _only_numbers(document) else None
        if tensor is None:
            flat: list = []
            shape = shape_of(value)
            append_leaves(value, 0, shape, dtype, flat)
            tensor = make_tensor(flat, shape, dtype, name)
        inputs[name] = tensor
    return inputs


def _shape_text(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _is_row_object(value: Any) -> bool:
    return isinstance(value, Members) and not is_base64(value)


def _malformed(value: Any, message: str) -> StatusError:
    return invalid_argument(f"JSON Value: {quote(value)} {message}")
