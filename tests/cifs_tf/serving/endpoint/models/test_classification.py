"""What TF Serving's codec says of `:classify` and `:regress` bodies, before it looks the model up."""

import json

import numpy as np
import pytest
from tensorflow.core.example.example_pb2 import Example

from cifs_tf.serving.endpoint.json.examples import read_examples_body, write_result
from cifs_tf.serving.endpoint.status import Code, StatusError


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"a": [10, None]}, "Feature: a has element with unexpected JSON type: Null"),
        ({"a": [10, 10.0]}, "Unexpected element type in feature: a expecting type: int64"),
        ({"a": [10.5, True]}, "Unexpected element type in feature: a expecting type: float"),
        ({"a": ["x", 1]}, "Unexpected element type in feature: a expecting type: bytes"),
        ({"a": [10, {"test": 10}]}, "Feature: a has element with unexpected JSON type: Object"),
        ({"a": [[10], 20]}, "Feature: a has element with unexpected JSON type: Array"),
        ({"a": {"b64": "*"}}, "Unable to base64 decode"),
        ({"a": 2**63}, "Feature: a has uint64 element. Only int64 is supported."),
        ([1], "Example must be JSON object but got JSON Array"),
    ],
)
@pytest.mark.parametrize("key", ["context", "examples"])
def test_features_of_the_wrong_kind(key, features, message):
    body = {"examples": [{"fine": 1}]} | {key: [features] if key == "examples" else features}
    with pytest.raises(StatusError) as caught:
        read_examples_body(json.dumps(body).encode())
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARGUMENT, message)


def test_good_examples_name_their_signature():
    example = {"b": [True, 1, False], "f": [1.5, 2.0], "s": ["x", {"b64": "eA=="}], "none": [], "one": -(2**63)}
    body = {"signature_name": "other", "context": example, "examples": [example, {}]}
    name, found = read_examples_body(json.dumps(body).encode())
    first, second = (Example.FromString(each).features.feature for each in found)
    assert (name, len(found)) == ("other", 2)
    assert list(first["b"].int64_list.value) == [1, 1, 0]
    assert list(first["s"].bytes_list.value) == [b"x", b"x"]
    assert list(second["f"].float_list.value) == [1.5, 2.0]  # the context's
    assert first["none"].WhichOneof("kind") is None


def test_names_that_are_no_text_are_refused():
    with pytest.raises(StatusError, match="no UTF-8"):
        read_examples_body(b'{"examples": [{"\xff": 1}]}')


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({"outputs": np.float32([[0.5], [2]])}, [0.5, 2.0]),
        ({"scores": np.float32([[0.5, 1], [2, 3]])}, [[["", 0.5], ["", 1.0]], [["", 2.0], ["", 3.0]]]),
        ({"classes": np.array([[b"a"], [b"b"]], object)}, [[["a", 0.0]], [["b", 0.0]]]),
        ({"classes": np.array([[b"a"]], object), "scores": np.array([[0.1]])}, [[["a", 0.1]]]),
        ({"scores": np.zeros((2, 0), np.float32)}, [[], []]),
    ],
)
def test_answers_of_both_methods(outputs, expected):
    assert json.loads(write_result(outputs)) == {"results": expected}
