"""TF Serving's REST and gRPC contract, case by case; the numbers are those of the contract.

The same cases run against any server: `--base-url http://HOST:8501 --grpc-target HOST:8500`, and `--external` if it is
a real TF Serving (`python -m tests.cifs_tf.serving.models DIR` writes the models that it has to serve).
"""

import base64
import gzip
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest, SignatureDefMap
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest
from tensorflow_serving.apis.predict_pb2 import PredictRequest

SHAPE = (32, 32, 3)
IMAGE = np.random.default_rng(0).random(SHAPE).round(4).tolist()
BITS = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
PNG = base64.b64encode(tf.io.encode_png(BITS).numpy()).decode()
PREDICT = "/v1/models/plain:predict"


def error_of(response):
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    return body["error"]


def assert_refused(response, status, text):
    assert (response.status_code, text in error_of(response)) == (status, True), response.text[:500]


def floats(response):
    """The numbers of an answer as they are written."""
    return re.findall(r"-?\d[\d.e+-]*|NaN|-?Infinity", response.text)


# Answers of TF Serving's own codec, recorded: the same bodies, the same answers.

GOLDEN = Path(__file__).parent / "golden" / "tf_serving_codec"
RECORDED = [json.loads(line) for line in (GOLDEN / "responses.jsonl").read_text().splitlines()]


def masked(text):
    """An error without what another graph names otherwise."""
    return re.sub(r"\d+", "#", re.sub(r"\{\{.*?\}\}", "{{node}}", text))


def structure(value):
    if isinstance(value, dict):
        return {key: structure(item) for key, item in value.items()}
    return [structure(item) for item in value] if isinstance(value, list) else type(value)


def layout(text):
    """The lines of an answer, whichever order its keys have, whatever its numbers are and whichever class it names."""
    text = re.sub(r'"c\d"|"[A-Za-z0-9+/]{2}=="', '"class"', text)
    return sorted(re.sub(r"(?<!b)(-?\d[\d.e+-]*|NaN|-?Infinity)", "#", line).rstrip(",") for line in text.splitlines())


@pytest.mark.parametrize("recorded", RECORDED, ids=[recorded["name"] for recorded in RECORDED])
def test_recorded_pairs(endpoint, recorded):
    body = (GOLDEN / "bodies" / f"{recorded['name']}.json").read_bytes()
    response = endpoint.predict(body, recorded["name"].partition("__")[0])
    assert response.status_code == recorded["http"], response.text[:500]
    if response.status_code != 200:
        expected = json.loads(recorded["raw"])["error"]
        same = (
            error_of(response) == expected if "{{" not in expected else masked(error_of(response)) == masked(expected)
        )
        assert same, (error_of(response), expected)
        return
    assert structure(response.json()) == structure(json.loads(recorded["raw"]))
    assert layout(response.text) == layout(recorded["raw"])


# Cases 1 to 31: bodies. Each row: case, model, body, status, text of the error or check of the answer.


def rows_of(key, count, width=10):
    def check(answer):
        assert np.shape(answer[key]) == (count, width)

    return check


def named_rows(answer):
    (row,) = answer["predictions"]
    assert set(row) == {"probabilities", "class_id", "class_name", "top2", "raw_bytes"}
    assert isinstance(row["class_id"], int)
    assert row["class_name"] == f"c{row['class_id']}"
    assert base64.b64decode(row["raw_bytes"]["b64"]) == str(row["class_id"]).encode()


def named_columns(answer):
    outputs = answer["outputs"]
    assert np.shape(outputs["probabilities"]) == (2, 10)
    assert np.shape(outputs["top2"]) == (2, 2)
    assert [set(item) for item in outputs["raw_bytes"]] == [{"b64"}, {"b64"}]


def nan_answers(answer):
    assert all(np.isnan(value) for value in answer["predictions"][0])


TYPE = " is not of expected type: float"
BODIES = [
    ("1", "plain", {"instances": [IMAGE]}, 200, rows_of("predictions", 1)),
    ("2", "plain", {"instances": [{"image": IMAGE}, {"image": IMAGE}]}, 200, rows_of("predictions", 2)),
    ("3", "plain", {"inputs": [IMAGE]}, 200, rows_of("outputs", 1)),
    ("3 named", "plain", {"inputs": {"image": [IMAGE]}}, 200, rows_of("outputs", 1)),
    ("4", "plain", {"inputs": {"image": [IMAGE], "junk": 1}}, 200, rows_of("outputs", 1)),
    ("5", "plain", {"instances": [{"image": IMAGE, "junk": 1}]}, 400, "JSON object: does not have named input: junk"),
    ("6", "plain", {"inputs": {"img": [IMAGE]}}, 400, "Missing named input: image in 'inputs' object."),
    ("7", "multi", {"instances": [IMAGE]}, 200, named_rows),
    ("8", "multi", {"inputs": [IMAGE, IMAGE]}, 200, named_columns),
    ("9", "plain", {"instances": [1], "inputs": [1]}, 400, "Not formatted correctly expecting only one of"),
    ("10", "plain", {}, 400, "Missing 'inputs' or 'instances' key"),
    ("11", "plain", b"", 400, "JSON Parse error: The document is empty"),
    ("12", "plain", b"instances=[1]", 400, "JSON Parse error: Invalid value. at offset: 0"),
    ("13", "plain", [1], 400, "Is not object"),
    ("14", "plain", {"instances": []}, 400, "No values in 'instances' array"),
    ("15", "plain", {"instances": {"image": IMAGE}}, 400, "Expecting 'instances' to be an list/array"),
    ("15 null", "plain", {"instances": None}, 400, "Expecting 'instances' to be an list/array"),
    ("16 string", "plain", {"instances": ["x"]}, 400, f'JSON Value: "x" Type: String{TYPE}'),
    ("16 true", "plain", {"instances": [True]}, 400, f"JSON Value: true Type: True{TYPE}"),
    ("16 null", "plain", {"instances": [None]}, 400, f"JSON Value: null Type: Null{TYPE}"),
    (
        "16 mixed",
        "plain",
        {"instances": [1, True]},
        400,
        f"element: 1 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: true Type: True{TYPE}",
    ),
    ("17", "plain", {"instances": [[1, 2], [3]]}, 400, "Expecting tensor size: 2 but got: 1"),
    ("18", "plain", {"instances": [1, [1]]}, 400, "Expecting shape [] but got: [1]"),
    (
        "19",
        "plain",
        {"instances": [[[1, 2], [3]]]},
        400,
        "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
    ),
    (
        "20 list",
        "plain",
        {"instances": [IMAGE, {"image": IMAGE}]},
        400,
        "Expecting value/list but got object at item 1 of input list",
    ),
    (
        "20 object",
        "plain",
        {"instances": [{"image": IMAGE}, IMAGE]},
        400,
        "Expecting object but got list at item 1 of input list",
    ),
    ("21", "plain", json.dumps({"instances": [np.full(SHAPE, np.nan).tolist()]}).encode(), 200, nan_answers),
    (
        "21 infinite",
        "plain",
        b'{"instances":[[[[Infinity,-Infinity,NaN]]]]}',
        400,
        "is not compatible with expected shape",
    ),
    ("22 nan", "plain", b'{"instances":[nan]}', 400, "JSON Parse error: Invalid value."),
    ("22 plus", "plain", b'{"instances":[+1]}', 400, "JSON Parse error: Invalid value."),
    ("22 zero", "plain", b'{"instances":[01]}', 400, "Missing a comma or ']' after an array element."),
    ("22 comment", "plain", b'{"instances":[1] /*x*/}', 400, "Missing a comma or '}' after an object member."),
    ("22 comma", "plain", b'{"instances":[1,]}', 400, "JSON Parse error: Invalid value."),
    ("23 trailing", "plain", json.dumps({"instances": [IMAGE]}).encode() + b" junk", 200, rows_of("predictions", 1)),
    ("23 unknown", "plain", {"foo": 1, "instances": [IMAGE]}, 200, rows_of("predictions", 1)),
    ("23 double", "plain", b'{"instances":[],"instances":[1]}', 400, "No values in 'instances' array"),
    (
        "23 double name",
        "plain",
        json.dumps({"instances": [IMAGE]}).encode()[:-1] + b',"instances":[1]}',
        200,
        rows_of("predictions", 1),
    ),
    ("24", "plain", {"instances": [np.full(SHAPE, 1435774380).tolist()]}, 200, rows_of("predictions", 1)),
    (
        "25 number",
        "plain",
        {"signature_name": 5, "instances": [IMAGE]},
        400,
        "'signature_name' key must be a string value.",
    ),
    (
        "25 null",
        "plain",
        {"signature_name": None, "instances": [1]},
        400,
        "'signature_name' key must be a string value.",
    ),
    ("26", "plain", {"signature_name": "", "instances": [IMAGE]}, 200, rows_of("predictions", 1)),
    (
        "27",
        "plain",
        {"signature_name": "nope", "instances": [1]},
        400,
        'Serving signature name: "nope" not found in signature def',
    ),
    ("28", "multi", {"signature_name": "encoded", "instances": [{"b64": PNG}]}, 200, named_rows),
    ("28 named", "multi", {"signature_name": "encoded", "instances": [{"image_bytes": {"b64": PNG}}]}, 200, named_rows),
    (
        "28 column",
        "multi",
        {"signature_name": "encoded", "inputs": {"image_bytes": [{"b64": PNG}] * 2}},
        200,
        named_columns,
    ),
    (
        "29 urlsafe",
        "multi",
        {"signature_name": "encoded", "instances": [{"b64": "_-__"}]},
        400,
        "Unable to base64 decode",
    ),
    (
        "29 number",
        "multi",
        {"signature_name": "encoded", "instances": [{"b64": 5}]},
        400,
        "does not have named input: b64",
    ),
    (
        "29 extra",
        "multi",
        {"signature_name": "encoded", "instances": [{"b64": PNG, "x": 1}]},
        400,
        "does not have named input: b64",
    ),
    ("29 padding", "multi", {"signature_name": "encoded", "instances": [{"b64": PNG.rstrip("=")}]}, 200, named_rows),
    ("30", "plain", {"instances": [{"b64": "aGk="}]}, 400, f"Type: Object{TYPE}"),
    ("31", "multi", {"instances": [IMAGE]}, 200, named_rows),
    (
        "59 size",
        "plain",
        {"instances": [np.zeros((31, 32, 3)).tolist()]},
        400,
        "[1,31,32,3] is not compatible with expected shape [?,32,32,3]",
    ),
    ("59 rank", "plain", {"instances": [1.0]}, 400, "[1] is not compatible with expected shape [?,32,32,3]"),
    ("59 scalar", "plain", {"inputs": 1.0}, 400, "[] is not compatible with expected shape [?,32,32,3]"),
]


@pytest.mark.parametrize(
    ("model", "body", "status", "expected"), [row[1:] for row in BODIES], ids=[r[0] for r in BODIES]
)
def test_bodies(endpoint, model, body, status, expected):
    response = endpoint.predict(body, model)
    if status == 200:
        assert response.status_code == 200, response.text[:500]
        assert response.headers["content-type"] == "application/json"
        expected(response.json())
    else:
        assert_refused(response, status, expected)


def test_case_21_nan_is_written_as_nan(endpoint):
    assert "NaN" in endpoint.predict(json.dumps({"instances": [np.full(SHAPE, np.nan).tolist()]}).encode()).text


def test_case_24_integers_lose_what_a_float_cannot_hold(endpoint):
    answers = [
        floats(endpoint.predict({"instances": [np.full(SHAPE, value).tolist()]})) for value in (1435774380, 1435774336)
    ]
    assert answers[0] == answers[1]


def test_case_32_versions_and_labels(endpoint):
    for path in ("/v1/models/plain/versions/1:predict", "/v1/models/plain/labels/stable:predict"):
        assert endpoint.http.post(path, json={"instances": [IMAGE]}).status_code == 200, path


MODELS = [
    ("33 model", "/v1/models/foo:predict", 404, "Servable not found for request: Latest(foo)"),
    ("33 version", "/v1/models/plain/versions/99:predict", 404, "Servable not found for request: Specific(plain, 99)"),
    ("34", "/v1/models/plain/labels/x:predict", 400, "Unrecognized servable version label: x"),
    (
        "35 word",
        "/v1/models/plain/versions/HELLO:predict",
        400,
        "Malformed request: POST /v1/models/plain/versions/HELLO:predict",
    ),
    (
        "35 large",
        "/v1/models/plain/versions/99999999999999999999:predict",
        400,
        "Failed to convert version: 99999999999999999999 to numeric.",
    ),
    ("35 both", "/v1/models/plain/versions/1/labels/stable:predict", 400, "Malformed request: POST"),
    ("36 query", f"{PREDICT}?x=1", 400, f"Malformed request: POST {PREDICT}?x=1"),
    ("36 post status", "/v1/models/plain", 400, "Malformed request: POST /v1/models/plain"),
    ("36 post metadata", "/v1/models/plain/metadata", 400, "Malformed request: POST /v1/models/plain/metadata"),
    ("36 foo", "/v1/foo", 400, "Malformed request: POST /v1/foo"),
    (
        "44 classify",
        "/v1/models/plain:classify",
        400,
        "Expected classification signature method_name to be tensorflow/serving/classify. Was: tensorflow/serving/predict",
    ),
    (
        "44 regress",
        "/v1/models/plain:regress",
        400,
        "Expected regression signature method_name to be tensorflow/serving/regress. Was: tensorflow/serving/predict",
    ),
]


@pytest.mark.parametrize(("path", "status", "text"), [row[1:] for row in MODELS], ids=[row[0] for row in MODELS])
def test_models_and_paths(endpoint, path, status, text):
    body = {"examples": [{"x": 1.0}]} if path.endswith((":classify", ":regress")) else {"instances": [IMAGE]}
    assert_refused(endpoint.http.post(path, json=body), status, text)


def test_case_33_bad_json_comes_before_an_unknown_model(endpoint):
    assert endpoint.http.post("/v1/models/foo:predict", content=b"{").status_code == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", PREDICT),
        ("PUT", PREDICT),
        ("DELETE", "/v1/models/plain"),
        ("GET", "/v1/foo"),
        ("PUT", "/v1/models/plain"),
    ],
)
def test_case_36_other_methods(endpoint, method, path):
    assert_refused(endpoint.http.request(method, path), 400, f"Malformed request: {method} {path}")


def test_case_37_no_model_name(endpoint):
    assert_refused(endpoint.http.get("/v1/models"), 400, "Missing model name in request.")


@pytest.mark.parametrize(
    "path", ["/v1/models/plain", "/v1/models/plain/versions/1", "/v1/models/plain/labels/nonsense", "/V1/Models/plain"]
)
def test_case_38_status(endpoint, path):
    response = endpoint.http.get(path)
    status = {"error_code": "OK", "error_message": ""}
    assert response.json() == {"model_version_status": [{"version": "1", "state": "AVAILABLE", "status": status}]}
    assert response.status_code == 200


def test_case_39_status_of_nothing(endpoint):
    assert_refused(endpoint.http.get("/v1/models/x"), 404, "Could not find any versions of model x")
    assert_refused(endpoint.http.get("/v1/models/plain/versions/9"), 404, "Could not find version 9 of model plain")
    assert_refused(endpoint.http.get("/v1/models/plain?x=1"), 404, "Could not find any versions of model plain?x=1")


@pytest.mark.parametrize(
    "path",
    ["/v1/models/plain/metadata", "/v1/models/plain/versions/1/metadata", "/v1/models/plain/labels/stable/metadata"],
)
def test_case_40_metadata(endpoint, path):
    answer = endpoint.http.get(path).json()
    assert answer["model_spec"] == {"name": "plain", "signature_name": "", "version": "1"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == {"serving_default", "__saved_model_init_op"}
    image = signatures["serving_default"]["inputs"]["image"]
    assert image["dtype"] == "DT_FLOAT"
    assert [dim["size"] for dim in image["tensor_shape"]["dim"]] == ["-1", "32", "32", "3"]
    assert signatures["serving_default"]["method_name"] == "tensorflow/serving/predict"


def test_case_41_names_may_be_escaped(endpoint):
    assert endpoint.http.get("/v1/models/%70lain").status_code == 200
    assert_refused(endpoint.http.get("/v1/models/a%2Fb"), 404, "Could not find any versions of model a/b")


def test_case_42_gzip(endpoint):
    packed = gzip.compress(json.dumps({"instances": [IMAGE]}).encode())
    response = endpoint.predict(packed, headers={"content-encoding": "gzip", "accept-encoding": "gzip"})
    assert response.status_code == 200
    assert "content-encoding" not in response.headers
    assert_refused(endpoint.predict(b"junk", headers={"content-encoding": "gzip"}), 400, "The document is empty")


def test_case_43_preflight(endpoint):
    assert endpoint.http.options(PREDICT, headers={"origin": "https://example.org"}).status_code == 200
    refused = endpoint.http.options(PREDICT)
    assert (refused.status_code, refused.content) == (400, b"")


def test_case_43_with_cors(flagged_endpoint):
    response = flagged_endpoint.http.options(PREDICT, headers={"origin": "https://example.org"})
    assert response.headers["access-control-allow-origin"] == "*"
    assert flagged_endpoint.predict({"instances": [IMAGE]}).headers["access-control-allow-origin"] == "*"


def test_case_45_prometheus(endpoint):
    if endpoint.external:
        pytest.skip("needs --monitoring_config_file at the server's start")
    endpoint.predict({"instances": [IMAGE]})
    response = endpoint.http.get("/monitoring/prometheus/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    assert "# TYPE :tensorflow:serving:request_count counter" in response.text
    assert re.search(r':tensorflow:serving:request_count\{model_name="plain",status="OK"\} [1-9]', response.text)
    assert ':tensorflow:serving:request_latency_bucket{API="Predict",entrypoint="REST"' in response.text


@pytest.mark.parametrize("path", ["/", "/healthz", "/v2/models"])
def test_case_46_other_paths(endpoint, path):
    response = endpoint.http.get(path)
    assert (response.status_code, "<H1>Not Found</H1>" in response.text) == (404, True)


def test_case_47_timeout(flagged_endpoint):
    assert flagged_endpoint.predict({"instances": [[1.0]]}, "slow").status_code == 504
    assert flagged_endpoint.predict({"instances": [IMAGE]}).status_code == 200


def test_case_48_batching(flagged_endpoint):
    assert flagged_endpoint.predict({"instances": [IMAGE] * 8}).status_code == 200
    too_many = "Task size 9 is larger than maximum input batch size 8"
    assert_refused(flagged_endpoint.predict({"instances": [IMAGE] * 9}), 400, too_many)
    too_many = "Task size 100 is larger than maximum input batch size 8"
    assert_refused(flagged_endpoint.predict({"instances": [[1.0]] * 100}, "slow"), 400, too_many)
    # One request runs, one waits and fills the queue; there is no room for the others.
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: flagged_endpoint.predict({"instances": [[1.0]] * 8}, "slow"), range(4)))
    assert sorted(answer.status_code for answer in answers) == [503, 503, 504, 504]
    full = next(answer for answer in answers if answer.status_code == 503)
    assert_refused(full, 503, "The batch scheduling queue to which this task was submitted is full; ")


def test_case_58_broken_model(flagged_endpoint):
    (status,) = flagged_endpoint.http.get("/v1/models/broken").json()["model_version_status"]
    assert (status["version"], status["state"]) == ("3", "END")
    assert status["status"]["error_code"] != "OK"
    assert status["status"]["error_message"]
    expected = grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(broken)"
    assert_rpc_refused(flagged_endpoint.prediction.Predict, request_of("broken"), *expected)


def test_case_60_deep_nesting(endpoint):
    if endpoint.external:
        pytest.skip("a real TF Serving ends here (CVE-2025-0649)")
    assert endpoint.predict(b'{"instances":' + b"[" * 200_000 + b"]" * 200_000 + b"}").status_code == 400
    assert endpoint.predict({"instances": [IMAGE]}).status_code == 200


# Cases 49 to 57: gRPC.


def request_of(model="plain", **inputs):
    request = PredictRequest()
    request.model_spec.name = model
    for name, value in (inputs or {"image": np.array([IMAGE], np.float32)}).items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def assert_rpc_refused(call, request, code, text):
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=60)
    assert (caught.value.code(), text in caught.value.details()) == (code, True), caught.value.details()


def test_case_49_predict(endpoint):
    response = endpoint.prediction.Predict(request_of(), timeout=60)
    assert (response.model_spec.name, response.model_spec.version.value) == ("plain", 1)
    assert response.model_spec.signature_name == "serving_default"
    assert tf.make_ndarray(response.outputs["logits"]).shape == (1, 10)
    assert len(response.outputs["logits"].float_val) == 10
    by_rest = endpoint.predict({"instances": [IMAGE]}).json()["predictions"]
    np.testing.assert_allclose(tf.make_ndarray(response.outputs["logits"]), by_rest, atol=1e-5)


def test_case_50_no_model(endpoint):
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert_rpc_refused(endpoint.prediction.Predict, PredictRequest(), invalid, "Missing ModelSpec")
    nameless = request_of()
    nameless.model_spec.name = ""
    nameless.model_spec.signature_name = "serving_default"
    assert_rpc_refused(endpoint.prediction.Predict, nameless, invalid, "ModelSpec has no name specified.")


def test_case_51_unknown_model(endpoint):
    assert_rpc_refused(endpoint.prediction.Predict, request_of("x"), grpc.StatusCode.NOT_FOUND, "Latest(x)")


def test_case_52_unknown_signature(endpoint):
    request = request_of()
    request.model_spec.signature_name = "x"
    expected = grpc.StatusCode.FAILED_PRECONDITION, 'Serving signature key "x" not found.'
    assert_rpc_refused(endpoint.prediction.Predict, request, *expected)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"image": [1.0], "x": [1.0]}, "Sent extra: {x}. Missing but required: {}."),
        ({"a": [1.0], "b": [1.0]}, "Sent extra: {a,b}. Missing but required: {image}."),
    ],
)
def test_case_53_other_inputs(endpoint, inputs, text):
    expected = (
        grpc.StatusCode.INVALID_ARGUMENT,
        f"input size does not match signature: 2!=1 len({{{','.join(inputs)}}})",
    )
    assert_rpc_refused(endpoint.prediction.Predict, request_of(**inputs), *expected)
    assert_rpc_refused(endpoint.prediction.Predict, request_of(**inputs), expected[0], text)


def test_case_53_wrong_name(endpoint):
    assert_rpc_refused(endpoint.prediction.Predict, request_of(x=[1.0]), grpc.StatusCode.INVALID_ARGUMENT, "image")


def test_case_54_wrong_type(endpoint):
    expected = grpc.StatusCode.INVALID_ARGUMENT, "to be float but string is provided"
    assert_rpc_refused(endpoint.prediction.Predict, request_of(image=[b"x"]), *expected)


def test_case_55_output_filter(endpoint):
    request = request_of("multi")
    request.output_filter.append("top2")
    assert list(endpoint.prediction.Predict(request, timeout=60).outputs) == ["top2"]
    request.output_filter.append("nope")
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert_rpc_refused(
        endpoint.prediction.Predict, request, invalid, "output tensor alias not found in signature: nope"
    )
    request.output_filter[1] = "top2"
    assert_rpc_refused(endpoint.prediction.Predict, request, invalid, "duplicate output tensor alias: top2")


def test_case_56_metadata(endpoint):
    request = GetModelMetadataRequest()
    request.model_spec.name = "plain"
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    call = endpoint.prediction.GetModelMetadata
    assert_rpc_refused(call, request, invalid, "must specify at least one metadata_field")
    request.metadata_field.append("x")
    assert_rpc_refused(call, request, invalid, "is not supported")
    request.metadata_field[0] = "signature_def"
    signatures = SignatureDefMap()
    assert call(request, timeout=60).metadata["signature_def"].Unpack(signatures)
    assert "serving_default" in signatures.signature_def


def test_case_57_status(endpoint):
    request = GetModelStatusRequest()
    request.model_spec.name = "plain"
    (status,) = endpoint.models.GetModelStatus(request, timeout=60).model_version_status
    assert (status.version, status.State.Name(status.state), status.status.error_code) == (1, "AVAILABLE", 0)
    request.model_spec.name = "x"
    assert_rpc_refused(endpoint.models.GetModelStatus, request, grpc.StatusCode.NOT_FOUND, "model x")


def test_health_checks(endpoint):
    stub = health_pb2_grpc.HealthStub(endpoint.channel)
    for name in ("", "PredictionService", "ModelService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=60).status == 1
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=60)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_case_59_wrong_shape(endpoint):
    request = request_of(image=np.zeros((1, 31, 32, 3), np.float32))
    assert_rpc_refused(endpoint.prediction.Predict, request, grpc.StatusCode.INVALID_ARGUMENT, "[1,31,32,3]")
