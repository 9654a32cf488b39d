"""TF Serving's JSON codec, second half: tensors to the body of the answer to a `:predict` request."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cifs_tf.serving.endpoint.json.writer import Writer, float_texts, string_text
from cifs_tf.serving.endpoint.status import invalid_argument
from cifs_tf.serving.endpoint.tensor_types import type_name, type_number

BYTES_SUFFIX = "_bytes"


def write_predict_body(outputs: Mapping[str, np.ndarray], by_row: bool) -> str:
    """Write the answer to a `:predict` request.

    Args:
        outputs: tensors by output name, at least one.
        by_row: `{"predictions": [...]}`, an item per row, or `{"outputs": ...}`, a tensor per output.

    Returns:
        JSON, laid out as TF Serving does.

    Raises:
        StatusError: if a tensor cannot be written, or not row by row.

    Example:
        >>> print(write_predict_body({"y": np.array([[0.5, 2]], np.float32)}, by_row=True))
        {
            "predictions": [[0.5, 2.0]
            ]
        }
    """
    if not outputs:
        raise invalid_argument("Cannot convert empty tensor map to JSON")
    return _write_rows(outputs) if by_row else _write_columns(outputs)


def _write_rows(outputs: Mapping[str, np.ndarray]) -> str:
    num_rows = -1
    for name, tensor in outputs.items():
        if not tensor.ndim:
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        if num_rows not in (-1, len(tensor)):
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: {len(tensor)} expecting: {num_rows}"
            )
        num_rows = len(tensor)
    texts = {name: _leaf_texts(name, tensor) for name, tensor in outputs.items()}
    writer = Writer()
    writer.start(array=False)
    writer.key("predictions")
    writer.start(array=True)
    for row in range(num_rows):
        if len(outputs) > 1:
            writer.start(array=False)
        writer.single_line = True
        for name, text in texts.items():
            if len(outputs) > 1:
                writer.key(name)
            _write_nested(writer, text[row])
        writer.single_line = False
        if len(outputs) > 1:
            writer.end()
    writer.end()
    writer.end()
    return writer.text()


def _write_columns(outputs: Mapping[str, np.ndarray]) -> str:
    writer = Writer()
    writer.start(array=False)
    writer.key("outputs")
    if len(outputs) > 1:
        writer.start(array=False)
    for name, tensor in outputs.items():
        if len(outputs) > 1:
            writer.key(name)
        _write_nested(writer, _leaf_texts(name, tensor))
    if len(outputs) > 1:
        writer.end()
    writer.end()
    return writer.text()


def _write_nested(writer: Writer, texts: Any) -> None:
    """Write leaves whose texts are known; bytes become an object."""
    if isinstance(texts, bytes):
        writer.start(array=False)
        writer.key("b64")
        writer.raw(string_text(base64.b64encode(texts).decode()))
        writer.end()
    elif isinstance(texts, str):
        writer.raw(texts)
    elif texts and isinstance(texts[0], str):
        writer.array(texts)
    else:
        writer.start(array=True)
        for item in texts:
            _write_nested(writer, item)
        writer.end()


def _leaf_texts(name: str, tensor: np.ndarray) -> Any:
    """Return nested lists of the texts of a tensor's values; bytes stay bytes if the name ends in `_bytes`."""
    kind, flat = tensor.dtype.kind, tensor.reshape(-1)
    leaves: Sequence
    if tensor.dtype in (np.float32, np.float64):
        leaves = float_texts(flat)
    elif kind in "iu":
        leaves = list(map(str, flat.tolist()))
    elif kind == "b":
        leaves = ["true" if value else "false" for value in flat.tolist()]
    elif kind in "OS":
        # Bytes that are no UTF-8 pass through, in a string, as they do in TF Serving.
        leaves = [
            bytes(value) if name.endswith(BYTES_SUFFIX) else string_text(value.decode(errors="surrogateescape"))
            for value in flat.tolist()
        ]
    else:
        raise invalid_argument(f"Failed to write JSON value for tensor type: {type_name(type_number(tensor.dtype))}")
    texts = np.empty(len(leaves), object)
    texts[:] = leaves
    return texts.reshape(tensor.shape).tolist()
