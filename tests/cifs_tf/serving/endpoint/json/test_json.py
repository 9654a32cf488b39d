"""The JSON codec by itself: RapidJSON's grammar and layout, and one answer from its fast and its careful half."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.framework import types_pb2

from cifs_tf.serving.endpoint.json import requests as json_requests
from cifs_tf.serving.endpoint.json.parser import Members, parse
from cifs_tf.serving.endpoint.json.requests import SignatureInputs, read_predict_body
from cifs_tf.serving.endpoint.json.responses import write_predict_body
from cifs_tf.serving.endpoint.json.writer import float_texts, quote
from cifs_tf.serving.endpoint.status import Code, StatusError

NUMBERS = st.one_of(
    st.integers(-(2**40), 2**64 - 1), st.floats(allow_nan=False), st.booleans(), st.none(), st.text(max_size=2)
)
NESTED = st.recursive(NUMBERS, lambda items: st.lists(items, max_size=3), max_leaves=8)
DTYPES = [types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE, types_pb2.DT_INT32, types_pb2.DT_UINT8, types_pb2.DT_INT64]


def answer(body, **dtypes):
    """What reading a body gives: tensors, or the error."""
    try:
        return read_predict_body(body, lambda signature_name: SignatureInputs(dtypes)).inputs
    except StatusError as error:
        return str(error)


@given(
    rows=st.lists(NESTED, min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    key=st.sampled_from(["instances", "inputs"]),
)
def test_fast_and_careful_halves_agree(rows, dtype, key):
    body = json.dumps({key: rows}).encode()
    fast = answer(body, x=dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_requests, "numbers_at_once", lambda value, dtype: None)
        careful = answer(body, x=dtype)
    assert type(fast) is type(careful), (fast, careful)
    if isinstance(fast, str):
        assert fast == careful
    else:
        np.testing.assert_array_equal(fast["x"], careful["x"])
        assert fast["x"].dtype == careful["x"].dtype


def plain(found):
    """What was parsed, as Python's own parser gives it; RapidJSON's doubles may be off by a unit in the last place."""
    if isinstance(found, Members):
        return {name: plain(member) for name, member in found}
    if isinstance(found, list):
        return [plain(item) for item in found]
    return pytest.approx(found, rel=1e-15, abs=1e-320) if isinstance(found, float) else found


@given(st.recursive(NUMBERS, lambda items: st.lists(items) | st.dictionaries(st.text(max_size=3), items)))
def test_what_is_parsed_is_what_python_parses(value):
    assert json.loads(json.dumps(value)) == plain(parse(json.dumps(value, ensure_ascii=False).encode()).root)


@given(st.floats(width=32))
def test_floats_survive_in_few_characters(value):
    (text,) = float_texts(np.array([value], np.float32))
    assert np.array_equal(np.float32(float(text)), np.float32(value), equal_nan=True)
    assert "." in text or "e" in text or not math.isfinite(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.2, "0.2"), (1.0, "1.0"), (9e6, "9e+06"), (3e-5, "3e-05"), (1 / 3, "0.333333343"), (1e-45, "1.4013e-45")],
)
def test_floats_as_tf_serving_writes_them(value, text):
    assert float_texts(np.array([value], np.float32)) == [text]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The document is empty"),
        (b" ", "The document is empty. at offset: 1"),
        (b"\xef\xbb\xbf[1,]", "Invalid value. at offset: 6"),
        (b'{"a":"\xff\xff",}', "Missing a name for object member. at offset: 10"),
        (b"[" * 2000, "Nested deeper than 1000 levels. at offset: 1000"),
        (b"[1e400]", "Number too big to be stored in double. at offset: 1"),
        (b'["\\ud83d"]', "The surrogate pair in string is invalid. at offset: 2"),
    ],
)
def test_parse_errors(body, message):
    with pytest.raises(StatusError) as caught:
        parse(body)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARGUMENT, f"JSON Parse error: {message}")


def test_brackets_in_strings_are_no_depth():
    assert parse(json.dumps(["[" * 5000]).encode()).root == ["[" * 5000]


def test_bytes_that_are_no_text_pass_through():
    assert answer(b'{"inputs": "\xff\xc3\xa9"}', x=types_pb2.DT_STRING)["x"][()] == b"\xff\xc3\xa9"
    escaped = answer(b'{"inputs": "\xff\\u00e9\\u20ac"}', x=types_pb2.DT_STRING)["x"][()]
    assert escaped == b"\xff" + "é€".encode()
    assert parse(b'["\xff\xff\xc3\xa9"] "\xff"').root == ["\udcff\udcffé"]


@pytest.mark.parametrize("text", ["eA==", "eA", "eA..", "eA=.", "e A\n=="])
def test_base64_as_tf_serving_reads_it(text):
    body = json.dumps({"inputs": {"b64": text}}).encode()
    assert answer(body, x=types_pb2.DT_STRING)["x"][()] == b"x"


@pytest.mark.parametrize("text", ["eA=", "eA===", "eA.", "=eA=", "e.A=", "e", "eA_="])
def test_what_is_no_base64(text):
    body = json.dumps({"inputs": {"b64": text}}).encode()
    assert answer(body, x=types_pb2.DT_STRING) == "INVALID_ARGUMENT: Unable to base64 decode"


def test_quotes_are_cut_where_a_value_ends():
    quoted = quote([Members([("x", ["abc"] * 100)])])
    assert 256 <= len(quoted) < 270
    assert quoted.endswith('"abc"')


def test_a_quote_stops_at_what_json_cannot_say():
    assert quote(Members([("a", [1, math.nan, 2])])) == '{\n    "a": [1, '
    assert quote(math.nan) == "NaN"


def test_half_precision_is_refused_as_tf_serving_refuses_it():
    half = types_pb2.DT_HALF
    assert answer(b'{"inputs": [0.5]}', x=half) == "UNIMPLEMENTED: Conversion of JSON Value: 0.5 to type: half"
    assert answer(b'{"instances": [0.5]}', x=half).startswith("INVALID_ARGUMENT: Failed to process element: 0")


def test_integers_wrap_within_32_bits():
    assert answer(b'{"inputs": [300, -1]}', x=types_pb2.DT_UINT8)["x"].tolist() == [44, 255]
    assert "is not of expected type: uint8" in answer(b'{"inputs": [4294967296]}', x=types_pb2.DT_UINT8)


def test_several_inputs():
    both = {"a": types_pb2.DT_FLOAT, "b": types_pb2.DT_INT32}
    inputs = answer(b'{"instances": [{"a": 1, "b": [1, 2]}, {"b": [3, 4], "a": 2.5}]}', **both)
    assert inputs["a"].tolist() == [1, 2.5]
    assert inputs["b"].tolist() == [[1, 2], [3, 4]]
    assert "expecting list of objects as multiple input tensors" in answer(b'{"instances": [1]}', **both)
    assert "keys must be equal to: a,b" in answer(b'{"instances": [{"a": 1}]}', **both)
    assert "expecting an object as multiple input tensors" in answer(b'{"inputs": [1]}', **both)


def test_answers_of_every_type():
    outputs = {
        "flags": np.array([[True, False]]),
        "label": np.array([b"caf\xc3\xa9 \x01"], object),
        "raw_bytes": np.array([b"\xff"], object),
        "empty": np.zeros((1, 0), np.float32),
        "double": np.array([[0.1, math.inf]]),
    }
    text = write_predict_body(outputs, by_row=True)
    (row,) = json.loads(text)["predictions"]
    assert row == {
        "flags": [True, False],
        "label": "café \x01",
        "raw_bytes": {"b64": "/w=="},
        "empty": [],
        "double": [0.1, math.inf],
    }
    assert '"double": [0.1, Infinity]' in text
    assert json.loads(write_predict_body(outputs, by_row=False))["outputs"]["flags"] == [[True, False]]


def test_rows_of_different_numbers_cannot_be_written():
    with pytest.raises(StatusError, match="has inconsistent batch size: 1 expecting: 2"):
        write_predict_body({"a": np.zeros(2), "b": np.zeros(1)}, by_row=True)
