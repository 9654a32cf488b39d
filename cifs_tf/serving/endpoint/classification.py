"""`:classify` and `:regress`: TF Serving's refusals for models that can only predict, as all of Keras' do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from cifs_tf.serving.endpoint.json_parser import Members, parse
from cifs_tf.serving.endpoint.json_requests import read_object, read_signature_name
from cifs_tf.serving.endpoint.json_values import decode_base64, is_array, is_base64, kind_of
from cifs_tf.serving.endpoint.json_writer import quote
from cifs_tf.serving.endpoint.signatures import DEFAULT_SIGNATURE
from cifs_tf.serving.endpoint.status import Code, StatusError, invalid_argument

MAX_INT64 = 2**63 - 1
WORDS = {"classify": "classification", "regress": "regression"}


def check_examples_body(text: bytes) -> str:
    """Check the body of a `:classify` or `:regress` request.

    Args:
        text: JSON.

    Returns:
        the signature that it names, empty for the default.

    Raises:
        StatusError: INVALID_ARGUMENT for what is no list of examples.
    """
    root = read_object(parse(text).root)
    signature_name = read_signature_name(root)
    if "context" in root.names():
        _check_example(root.find("context"))
    if "examples" not in root.names():
        raise invalid_argument(
            f"JSON Value: {quote(root)} When method is classify, key 'examples' is expected and was not found"
        )
    examples = root.find("examples")
    if not is_array(examples):
        raise invalid_argument(f"JSON Value: {quote(root)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid_argument(f"JSON Value: {quote(root)} 'examples' value is an empty array")
    for example in examples:
        _check_example(example)
    return signature_name


def _check_example(example: Any) -> None:
    """Check features, which are a value or a list of values of one kind each."""
    if not isinstance(example, Members):
        raise invalid_argument(f"Example must be JSON object but got JSON {kind_of(example)}")
    for name, content in example:
        values = content if is_array(content) else [content]
        kinds = (_feature_kind(name, value) for value in values)
        first = next(kinds, "")
        if any(kind != first for kind in kinds):
            raise invalid_argument(f"Unexpected element type in feature: {name} expecting type: {first}")


def _feature_kind(name: str, value: Any) -> str:
    """Return the list of tf.train.Feature that holds a value; true and false are integers there."""
    if isinstance(value, float):
        return "float"
    if isinstance(value, int):
        if value > MAX_INT64:
            raise invalid_argument(f"Feature: {name} has uint64 element. Only int64 is supported.")
        return "int64"
    if isinstance(value, str):
        return "bytes"
    if not is_base64(value):
        raise invalid_argument(f"Feature: {name} has element with unexpected JSON type: {kind_of(value)}")
    decode_base64(value)
    return "bytes"


def check_method(signatures: Mapping[str, SignatureDef], signature_name: str, method: str) -> StatusError:
    """Return the reason why a model cannot classify or regress.

    Args:
        signatures: of the model.
        signature_name: empty for `serving_default`.
        method: `"classify"` or `"regress"`.

    Returns:
        the error to raise: the signature is unknown, or made for another method, or one that only TensorFlow 1 could
        export, which this server does not run.
    """
    name = signature_name or DEFAULT_SIGNATURE
    if name not in signatures:
        return invalid_argument(f"No signature was found with the name: {name}")
    wanted, found = f"tensorflow/serving/{method}", signatures[name].method_name
    if found != wanted:
        return invalid_argument(f"Expected {WORDS[method]} signature method_name to be {wanted}. Was: {found}")
    return StatusError(Code.UNIMPLEMENTED, f"This server runs predict signatures only; {name} is made for {wanted}")
