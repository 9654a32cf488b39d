"""The JSON of `:classify` and `:regress`: examples to what a model parses, classes and values to an answer.

TensorFlow is not imported to read it: large bodies are read and written by a process of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cifs_tf.serving.endpoint.json.parser import Members, parse
from cifs_tf.serving.endpoint.json.requests import read_object, read_signature_name
from cifs_tf.serving.endpoint.json.values import decode_base64, is_array, is_base64, kind_of
from cifs_tf.serving.endpoint.json.writer import Writer, float_texts, quote, string_text
from cifs_tf.serving.endpoint.protos import make_messages
from cifs_tf.serving.endpoint.status import invalid_argument

MAX_INT64 = 2**63 - 1
CLASSES, SCORES, VALUES = "classes", "scores", "outputs"
# Names, numbers and types are those of tensorflow/core/example/example.proto and feature.proto.
_MESSAGES = make_messages(
    "tensorflow",
    {
        "BytesList": ((1, "value", "repeated bytes"),),
        "FloatList": ((1, "value", "repeated float"),),
        "Int64List": ((1, "value", "repeated int64"),),
        "Feature": (
            (1, "bytes_list", "oneof kind BytesList"),
            (2, "float_list", "oneof kind FloatList"),
            (3, "int64_list", "oneof kind Int64List"),
        ),
        "Features": ((1, "feature", "map Feature"),),
        "Example": ((1, "features", "Features"),),
    },
)


def read_examples_body(text: bytes) -> tuple[str, list[bytes]]:
    """Read the body of a `:classify` or `:regress` request.

    Args:
        text: JSON.

    Returns:
        (the signature that it names, empty for the default; its examples, each a `tf.train.Example` as bytes, with the
        features of the context first).

    Raises:
        StatusError: INVALID_ARGUMENT for what is no list of examples.

    Example:
        >>> read_examples_body(b'{"examples": [{}]}')
        ('', [b''])
    """
    root = read_object(parse(text).root)
    signature_name = read_signature_name(root)
    context = _example(root.find("context")) if "context" in root.names() else b""
    if "examples" not in root.names():
        raise invalid_argument(
            f"JSON Value: {quote(root)} When method is classify, key 'examples' is expected and was not found"
        )
    examples = root.find("examples")
    if not is_array(examples):
        raise invalid_argument(f"JSON Value: {quote(root)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid_argument(f"JSON Value: {quote(root)} 'examples' value is an empty array")
    return signature_name, [context + _example(example) for example in examples]


def _example(content: Any) -> bytes:
    """Read features, which are a value or a list of values of one kind each."""
    if not isinstance(content, Members):
        raise invalid_argument(f"Example must be JSON object but got JSON {kind_of(content)}")
    example = _MESSAGES["Example"]()
    for name, feature in content:
        try:
            filled = example.features.feature[name]
        except ValueError as error:  # of which UnicodeEncodeError is one
            raise invalid_argument(f"The name of a feature is no UTF-8: {quote(name)}") from error
        filled.Clear()  # the last one of a name counts
        _fill_feature(name, feature if is_array(feature) else [feature], filled)
    return example.SerializeToString()


def _fill_feature(name: str, values: list, feature: Any) -> None:
    if set(map(type, values)) == {float}:
        feature.float_list.value.extend(values)
        return
    for value in values:
        kind, converted = _feature_value(name, value)
        first = feature.WhichOneof("kind") or kind
        if kind != first:
            raise invalid_argument(
                f"Unexpected element type in feature: {name} expecting type: {first.removesuffix('_list')}"
            )
        getattr(feature, kind).value.append(converted)


def _feature_value(name: str, value: Any) -> tuple[str, Any]:
    """Return the list of a feature that holds a value, and what it holds; true and false are integers there."""
    if isinstance(value, float):
        return "float_list", value
    if isinstance(value, int):
        if value > MAX_INT64:
            raise invalid_argument(f"Feature: {name} has uint64 element. Only int64 is supported.")
        return "int64_list", int(value)
    if isinstance(value, str):
        return "bytes_list", value.encode(errors="surrogateescape")
    if not is_base64(value):
        raise invalid_argument(f"Feature: {name} has element with unexpected JSON type: {kind_of(value)}")
    return "bytes_list", decode_base64(value)


def write_result(outputs: Mapping[str, np.ndarray]) -> str:
    """Write the body of an answer to `:classify` or `:regress`.

    Args:
        outputs: one value of `outputs` for each example, or rows of `classes`, of `scores` or of both.

    Example:
        >>> print(write_result({"outputs": np.float32([0.5])}))
        {
            "results": [0.5]
        }
    """
    writer = Writer()
    writer.start(array=False)
    writer.key("results")
    if VALUES in outputs:
        writer.single_line = True
        writer.array(float_texts(outputs[VALUES].reshape(-1)))
        writer.single_line = False
    else:
        count, width = next(iter(outputs.values())).shape
        labels, scores = ['""'] * (count * width), ["0.0"] * (count * width)
        if CLASSES in outputs:
            labels = [string_text(label_text(label)) for label in outputs[CLASSES].reshape(-1)]
        if SCORES in outputs:
            scores = float_texts(outputs[SCORES].reshape(-1).astype(np.float32))
        pairs = list(zip(labels, scores, strict=True))
        writer.start(array=True)
        for row in range(count):
            writer.single_line = True
            writer.start(array=True)
            for pair in pairs[row * width : (row + 1) * width]:
                writer.array(list(pair))
            writer.end()
            writer.single_line = False
        writer.end()
    writer.end()
    return writer.text()


def label_text(label: bytes) -> str:
    """Return the name of a class as text."""
    return label.decode(errors="replace")
