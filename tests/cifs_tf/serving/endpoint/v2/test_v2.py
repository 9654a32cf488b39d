"""The Open Inference Protocol's bodies: JSON and binary tensors, and what is refused with a sentence."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from cifs_tf.serving.endpoint.status import StatusError
from cifs_tf.serving.endpoint.v2.codec import read_infer_request, write_infer_response
from cifs_tf.serving.endpoint.v2.models import choose_signature


def body_of(*items, **members):
    return json.dumps({**members, "inputs": list(items)}).encode()


def item(datatype, shape, data, **more):
    return {"name": "x", "datatype": datatype, "shape": shape, "data": data, **more}


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "expected"),
    [
        ("FP32", [2, 2], [[1, 2], [3, 4.5]], np.array([[1, 2], [3, 4.5]], np.float32)),
        ("FP32", [2, 2], [1, 2, 3, 4.5], np.array([[1, 2], [3, 4.5]], np.float32)),
        ("FP64", [0], [], np.zeros(0)),
        ("FP16", [1], [0.1], np.array([0.1], np.float16)),
        ("UINT16", [2], [0, 65535], np.array([0, 65535], np.uint16)),
        ("INT64", [1], [-(2**63)], np.array([-(2**63)], np.int64)),
        ("UINT64", [1], [2**64 - 1], np.array([2**64 - 1], np.uint64)),
        ("BOOL", [2], [True, False], np.array([True, False])),
        ("BYTES", [2], ["caf\u00e9", ""], np.array([b"caf\xc3\xa9", b""], object)),
    ],
)
def test_numbers_and_texts_in_json(datatype, shape, data, expected):
    found = read_infer_request(body_of(item(datatype, shape, data)), None).inputs["x"]
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


def test_parameters_and_outputs():
    outputs = [{"name": "a", "parameters": {"binary_data": False}}, {"name": "b"}]
    parameters = {"binary_data_output": True, "signature_name": "explain"}
    request = read_infer_request(body_of(item("FP32", [1], [1]), id="7", outputs=outputs, parameters=parameters), None)
    assert (request.id, request.signature_name, request.outputs) == ("7", "explain", ("a", "b"))
    assert request.binary_of == {"a": False, "b": True}


TENSORS = {
    "half": np.array([[1.5, -2]], np.float16),
    "brain": np.array([0.5], ml_dtypes.bfloat16),
    "texts": np.array([b"\xff\x00", b""], object),
    "flags": np.array([True]),
    "scalar": np.array(7, np.int64),
}


def test_binary_tensors_there_and_back():
    body, length = write_infer_response({"model_name": "m"}, TENSORS, True, {})
    answer = json.loads(body[:length])
    items = [{**tensor, "shape": tensor["shape"]} for tensor in answer["outputs"]]
    text = json.dumps({"inputs": items}).encode()
    found = read_infer_request(text + body[length:], len(text)).inputs
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


def test_answers_in_json():
    outputs = {"a": np.array([[0.2, np.inf]], np.float32), "b": np.array([b"x"], object), "c": np.array([True])}
    body, length = write_infer_response({"model_name": "m"}, outputs, True, dict.fromkeys(outputs, False))
    assert length is None
    assert [tensor["data"] for tensor in json.loads(body)["outputs"]] == [[0.2, np.inf], ["x"], [True]]


@pytest.mark.parametrize(
    ("body", "length", "message"),
    [
        (b"[]", None, "must be a JSON object"),
        (b"{}", None, "no inputs"),
        (b"{", None, "JSON Parse error"),
        (b'{"inputs": ' + b"[" * 5000, None, "Nested deeper"),
        (b"{}", 3, "the body has 2 bytes"),
        (body_of({"name": "x"}), None, "datatype"),
        (body_of(item("FP8", [1], [1])), None, "none of BOOL"),
        (body_of(item("FP32", [-1], [1])), None, "whole numbers"),
        (body_of(item("FP32", [0, 2**62], [])), None, "too large"),
        (body_of(item("FP32", [1], [1]), parameters={"signature_name": 5}), None, "must be a text, received 5"),
        (body_of(item("FP32", [2], [1])), None, "has 1 values"),
        (body_of(item("FP32", [2], [[1], [2, 3]])), None, "evenly nested"),
        (body_of(item("FP32", [2], [1, True])), None, "not all of type FP32"),
        (body_of(item("INT8", [1], [128])), None, "beyond INT8"),
        (body_of(item("INT8", [1], [1.0])), None, "not all of type INT8"),
        (body_of(item("BYTES", [1], [1])), None, "not all of type BYTES"),
        (body_of(item("FP32", [1], None)), None, "neither data"),
        (body_of(item("FP32", [1], [1]), item("FP32", [1], [1])), None, "two of"),
        (body_of(item("FP32", [1], None, parameters={"shared_memory_region": "r"})), None, "shared memory"),
        (body_of(item("FP32", [1], None, parameters={"binary_data_size": 4})), None, "bytes are left"),
    ],
)
def test_what_is_refused(body, length, message):
    with pytest.raises(StatusError, match=message):
        read_infer_request(body, length)


@pytest.mark.parametrize(
    ("datatype", "shape", "content"),
    [
        ("FP32", [2], b"1234"),
        ("BYTES", [1], struct.pack("<I", 5) + b"abc"),
        ("BYTES", [1], b"\0\0"),
        ("FP32", [1], b""),
    ],
)
def test_binary_contents_that_do_not_fit(datatype, shape, content):
    text = body_of(item(datatype, shape, None, parameters={"binary_data_size": len(content)}))
    with pytest.raises(StatusError):
        read_infer_request(text + content, len(text))


@pytest.mark.parametrize(
    ("signatures", "name", "expected"),
    [
        (("a", "serving_default"), "", "serving_default"),
        (("__saved_model_init_op", "only"), "", "only"),
        (("a", "b"), "b", "b"),
        (("a", "b"), "", "serving_default"),
        (("only",), "other", "other"),
    ],
)
def test_without_a_name_the_only_signature_is_meant(signatures, name, expected):
    found = {each: SignatureDef() for each in signatures}
    if expected in signatures:
        assert choose_signature(found, name)[0] == expected
    else:
        with pytest.raises(StatusError, match=f'"{expected}" not found'):
            choose_signature(found, name)
