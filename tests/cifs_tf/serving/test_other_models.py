"""Models that are not this project's: rows that are no examples, texts, defaults, classes, half precision, labels."""

import gzip
import json
import socket
import zlib

import grpc
import httpx
import ml_dtypes
import numpy as np
import onnx
import pytest
import tensorflow as tf
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from onnx import TensorProto, helper
from tensorflow.core.example.example_pb2 import Example
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow_serving.apis import prediction_service_pb2_grpc
from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_log_pb2 import ClassifyLog, PredictionLog, PredictLog, SessionRunLog

from cifs_tf.serving.endpoint.grpc.v2 import MESSAGES
from tests.cifs_tf.serving.running import running_server

pytestmark = pytest.mark.slow
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


def spec(shape, dtype=tf.float32, name="x"):
    return tf.TensorSpec(shape, dtype, name=name)


def parsed(inputs):
    return tf.io.parse_example(inputs, {"a": tf.io.FixedLenFeature([], tf.float32)})["a"]


def classes(inputs):
    scores = tf.stack([parsed(inputs), 1 - parsed(inputs)], 1)
    return {"classes": tf.tile([["high", "low"]], [tf.shape(scores)[0], 1]), "scores": scores}


INT4 = tf.as_dtype("int4")
EXAMPLES = spec([None], tf.string, "inputs")
SIGNATURES = {
    "serving_default": (lambda x: {"y": tf.signal.frame(x, 400, 160, pad_end=True)[:, 0]}, spec([None])),
    "ranking": (lambda x: {"y": tf.nn.softmax(tf.reduce_sum(x, 1))}, spec([None, 4])),
    "running_sum": (lambda x: {"y": tf.cumsum(x)}, spec([None])),
    "similarities": (lambda x: {"y": tf.matmul(x, x, transpose_b=True)}, spec([None, 4])),
    "lengths": (lambda text: {"n": tf.strings.length(text)}, spec([None], tf.string, "text")),
    "ragged": (lambda x: {"y": tf.RaggedTensor.from_row_splits(x, [0, 1, tf.size(x)]), "z": x}, spec([None])),
    "sparse": (lambda x: {"y": tf.sparse.from_dense(x[None])}, spec([None])),
    "classes": (classes, EXAMPLES),
    "values": (lambda inputs: {"outputs": 2 * parsed(inputs)}, EXAMPLES),
    "ended": (lambda text: {"y": tf.strings.join([text, "\0\0"])}, spec([], tf.string, "text")),
    "turned": (lambda x: {"y": x * 1j}, spec([None], tf.complex64)),
    "listed": (
        lambda x: {"y": tf.raw_ops.TensorListFromTensor(tensor=x, element_shape=tf.zeros(0, tf.int32))},
        spec([None]),
    ),
    "constant": (lambda: {"y": tf.constant([1.0, 2.0])},),
    "scaled": (lambda x, factor: {"y": x * factor}, spec([None]), spec([], name="factor")),
    "small": (lambda x: {"y": tf.identity(x)}, spec([None], INT4)),
    "large": (lambda x: {"y": tf.identity(x)}, spec([None], tf.uint64)),
    "quantised": (lambda x: {"y": tf.identity(x)}, spec([None], tf.qint8)),
}


def save(path):
    module = tf.Module()
    functions = {
        name: tf.function(function, input_signature=inputs, autograph=False)
        for name, (function, *inputs) in SIGNATURES.items()
    }
    module.functions = list(functions.values())
    tf.saved_model.save(module, str(path), signatures=functions)
    file = path / "saved_model.pb"
    model = SavedModel.FromString(file.read_bytes())
    signatures = model.meta_graphs[0].signature_def
    signatures["classes"].method_name = CLASSIFY
    signatures["scaled"].defaults["factor"].CopyFrom(tf.make_tensor_proto(np.float32(10)))
    file.write_bytes(model.SerializeToString())
    predict = PredictRequest(model_spec={"signature_name": "running_sum"}, inputs={"x": tf.make_tensor_proto([1.0])})
    classify = ClassifyLog()
    classify.request.model_spec.signature_name = "classes"
    classify.request.input.example_list.examples.add().features.feature["a"].float_list.value.append(0.5)
    (path / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(path / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        for log in (
            PredictionLog(predict_log=PredictLog(request=predict)),
            PredictionLog(classify_log=classify),
            PredictionLog(session_run_log=SessionRunLog()),
            PredictionLog(),
        ):
            writer.write(log.SerializeToString())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("others")
    save(folder / "m" / "1")
    arguments = f"--model_base_path={folder / 'm'}", "--model_name=m", "--enable_grpc_healthcheck_service"
    with running_server(folder / "log", *arguments) as running:
        yield running


def ask(server, body, method="predict", model="m"):
    return httpx.post(f"{server.url}/v1/models/{model}:{method}", json=body, timeout=60).json()


@pytest.mark.parametrize(
    ("signature", "values", "expected"),
    [
        ("", np.arange(16000.0), np.arange(0, 16000, 160.0)),
        ("ranking", np.zeros((100, 4)), np.full(100, 0.01)),
        ("running_sum", np.ones(100), np.arange(1, 101)),
        ("similarities", np.ones((100, 4)), np.full((100, 100), 4)),
    ],
)
def test_a_free_first_dimension_is_no_batch(server, signature, values, expected):
    found = ask(server, {"signature_name": signature, "inputs": values.tolist()})["outputs"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_texts_that_begin_like_image_files(server):
    body = {"signature_name": "lengths", "instances": ["BMW makes fast cars", "RIFF raff", "GIF89a"]}
    assert ask(server, body) == {"predictions": [19, 9, 6]}


@pytest.mark.parametrize(
    ("signature", "word"),
    [("ragged", "row_splits"), ("sparse", "to_dense"), ("listed", "a variant"), ("quantised", "type qint8")],
)
def test_what_is_no_tensor_is_said(server, signature, word):
    response = httpx.post(f"{server.url}/v1/models/m:predict", json={"signature_name": signature, "instances": [1.0]})
    assert response.status_code == 501
    assert word in response.json()["error"]
    assert word in server.log.read_text()


def test_one_text_keeps_the_zero_bytes_at_its_end(server):
    assert ask(server, {"signature_name": "ended", "inputs": "a"}) == {"outputs": "a\0\0"}
    body = {"parameters": {"signature_name": "ended", "binary_data_output": True}}
    body["inputs"] = [{"name": "text", "datatype": "BYTES", "shape": [], "data": ["a"]}]
    answer = httpx.post(f"{server.url}/v2/models/m/infer", json=body, timeout=60)
    assert answer.content[int(answer.headers["inference-header-content-length"]) :] == b"\3\0\0\0a\0\0"


def test_complex_numbers_travel_over_grpc(server):
    request = PredictRequest(model_spec={"name": "m", "signature_name": "turned"})
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array([1 + 2j], np.complex64)))
    with grpc.insecure_channel(server.grpc) as channel:
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
    assert tf.make_ndarray(answer.outputs["y"]).tolist() == [-2 + 1j]
    assert ask(server, {"signature_name": "turned", "inputs": [1]})["error"].endswith("to type: complex64")


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_signature_without_inputs_and_packed_bodies(server, coding, pack):
    body = pack(json.dumps({"parameters": {"signature_name": "constant"}, "inputs": []}).encode())
    answer = httpx.post(f"{server.url}/v2/models/m/infer", content=body, headers={"Content-Encoding": coding})
    assert answer.json()["outputs"][0]["data"] == [1, 2]


def test_an_input_with_a_default_may_be_missing(server):
    body = {"signature_name": "scaled", "inputs": {"x": [1.0, 2.0]}}
    assert ask(server, body) == {"outputs": [10.0, 20.0]}
    assert ask(server, {**body, "inputs": [1.0]}) == {"outputs": [10.0]}
    assert ask(server, {**body, "inputs": {"x": [1.0], "factor": 3}}) == {"outputs": [3.0]}
    assert "Missing named input: x" in ask(server, {**body, "inputs": {"factor": 3}})["error"]


def test_classes_and_values_of_examples(server):
    examples = {"context": {"b": "x"}, "examples": [{"a": 0.25}, {"a": 1.0}]}
    found = ask(server, {"signature_name": "classes", **examples}, "classify")
    assert found == {"results": [[["high", 0.25], ["low", 0.75]], [["high", 1.0], ["low", 0.0]]]}
    assert ask(server, {"signature_name": "values", **examples}, "regress") == {"results": [0.5, 2.0]}
    assert "method_name to be" in ask(server, {"signature_name": "classes", **examples}, "regress")["error"]
    request = MultiInferenceRequest()
    example = Example()
    example.features.feature["a"].float_list.value.append(0.25)
    request.input.example_list.examples.append(example)
    for name, method in (("classes", CLASSIFY), ("values", REGRESS)):
        task = request.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = "m", name
    with grpc.insecure_channel(server.grpc) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).MultiInference(request, timeout=60)
    assert response.results[0].classification_result.classifications[0].classes[1].score == 0.75
    assert response.results[1].regression_result.regressions[0].value == 0.5
    assert response.results[1].model_spec.version.value == 1


def test_warm_up_records_of_every_kind_are_read(server):
    log = server.log.read_text()
    assert "1 warm-up records" in log
    assert "session_run_log" in log


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("unary_unary", "tensorflow.serving.PredictionService/Predict"),
        ("unary_unary", "tensorflow.serving.ModelService/GetModelStatus"),
        ("unary_unary", "inference.GRPCInferenceService/ModelInfer"),
        ("unary_unary", "grpc.health.v1.Health/Check"),
        ("unary_stream", "grpc.health.v1.Health/Watch"),
        ("stream_stream", "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
    ],
)
def test_a_message_that_is_none_is_the_clients_fault(server, kind, method):
    content = iter([b"\xff\xff"]) if kind == "stream_stream" else b"\xff\xff"
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        list(getattr(channel, kind)(f"/{method}")(content, timeout=60))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "Wire format was corrupt" in caught.value.details()


def test_health_is_answered(server):
    with grpc.insecure_channel(server.grpc) as channel:
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=60) == b"\x08\x01"
        assert next(channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=60)) == b"\x08\x01"


LONG = "a" * 2**20
ONE = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}


@pytest.mark.parametrize(
    ("path", "body", "end"),
    [
        ("v1/models/m:predict", {"instances": [LONG]}, "is not of expected type: float"),
        ("v1/models/m:predict", {"instances": [{LONG: 1}]}, "does not have named input: a"),
        ("v1/models/m:predict", {"signature_name": LONG}, "not found in signature def"),
        (f"v1/models/{LONG[:50_000]}:predict", {}, "Servable not found for request"),
        ("v2/models/m/infer", {"inputs": [{**ONE, "name": LONG}]}, "required: {x}."),
        ("v2/models/m/infer", {"inputs": [], "parameters": {"signature_name": [LONG]}}, "must be a text"),
    ],
)
def test_errors_quote_a_part_of_what_is_long(server, path, body, end):
    error = httpx.post(f"{server.url}/{path}", json=body, timeout=60).json()["error"]
    assert end in error
    assert len(error) <= 1005


def test_integers_of_four_and_of_64_bits(server):
    request = PredictRequest(model_spec={"name": "m", "signature_name": "small"})
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array([-8, 7]).astype(ml_dtypes.int4)))
    with grpc.insecure_channel(server.grpc) as channel:
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
    assert tf.make_ndarray(answer.outputs["y"]).astype(int).tolist() == [-8, 7]
    assert ask(server, {"signature_name": "small", "inputs": [1]})["error"].endswith("to type: int4")
    item = {"name": "x", "datatype": "UINT64", "shape": [2], "data": [0, 2**64 - 1]}
    body = {"parameters": {"signature_name": "large"}, "inputs": [item]}
    answer = httpx.post(f"{server.url}/v2/models/m/infer", json=body, timeout=60)
    assert answer.json()["outputs"][0]["data"] == [0, 2**64 - 1]


def test_a_signature_that_computes_nothing_is_not_run(server):
    request = PredictRequest(model_spec={"name": "m", "signature_name": "__saved_model_init_op"})
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_http_1_0_keeps_its_connection(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        for _ in range(3):
            connection.sendall(b"GET /v1/models/m HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            with connection.makefile("rb") as answer:
                assert b" 200 " in answer.readline()
                headers = {}
                while line := answer.readline().strip().lower():
                    name, _, value = line.partition(b": ")
                    headers[name] = value
                assert headers[b"connection"] == b"keep-alive"
                assert b"AVAILABLE" in answer.read(int(headers[b"content-length"]))


def test_the_open_inference_protocol_asks_the_same_models(server):
    with httpx.Client(base_url=server.url, timeout=60) as http:
        assert http.get("/v2").json()["extensions"] == ["binary_tensor_data"]
        assert http.get("/v2/health/live").status_code == http.get("/v2/health/ready").status_code == 200
        assert http.get("/v2/models/m/ready").json() == {"name": "m", "ready": True}
        assert http.get("/v2/models/nobody/ready").status_code == 404
        metadata = http.get("/v2/models/m/versions/1").json()
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1]}]
        assert (metadata["versions"], metadata["platform"]) == (["1"], "tensorflow_savedmodel")
        body = {
            "id": "7",
            "parameters": {"signature_name": "running_sum"},
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [3], "data": [1, 1, 1]}],
        }
        answer = http.post("/v2/models/m/infer", json=body)
        assert answer.json() == {
            "model_name": "m",
            "model_version": "1",
            "id": "7",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [3], "data": [1, 2, 3]}],
        }
        body["parameters"]["binary_data_output"] = True
        body["inputs"] = [{"name": "x", "datatype": "FP32", "shape": [3], "parameters": {"binary_data_size": 12}}]
        text = json.dumps(body).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        answer = http.post("/v2/models/m/infer", content=text + np.ones(3, "<f4").tobytes(), headers=headers)
        length = int(answer.headers["inference-header-content-length"])
        assert np.frombuffer(answer.content[length:], "<f4").tolist() == [1, 2, 3]
        assert json.loads(answer.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 12}
        for path, status in (("nobody/infer", 404), ("m/versions/9/infer", 404), ("m/explain", 400), ("m/what", 400)):
            response = http.post(
                f"/v2/models/{path}",
                json={
                    **body,
                    "parameters": {},
                    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}],
                },
            )
            assert (response.status_code, list(response.json())) == (status, ["error"])


def test_the_open_inference_protocol_over_grpc(server):
    """Messages are written out as bytes of the wire, by the numbers of open_inference_grpc.proto."""

    def field(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    with grpc.insecure_channel(server.grpc) as channel:

        def call(method, content):
            return channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(content, timeout=60)

        assert call("ServerLive", b"") == call("ServerReady", b"") == b"\x08\x01"
        assert call("ModelReady", field(1, b"m") + field(2, b"1")) == b"\x08\x01"
        assert call("ModelReady", field(1, b"nobody")) == b""
        assert b"tensorflow_savedmodel" in call("ModelMetadata", field(1, b"m"))
        ones = np.ones(3, "<f4").tobytes()
        parameter = field(4, field(1, b"signature_name") + field(2, field(3, b"running_sum")))
        described = field(1, b"x") + field(2, b"FP32") + field(3, b"\x03")
        head = field(1, b"m") + field(3, b"seven") + parameter
        expected = np.array([1, 2, 3], "<f4").tobytes()
        raw = call("ModelInfer", head + field(5, described) + field(7, ones))
        assert raw.endswith(field(6, expected))
        assert field(3, b"seven") in raw
        assert call("ModelInfer", head + field(5, described + field(5, field(6, ones)))) == raw
        with pytest.raises(grpc.RpcError) as caught:
            call("ModelInfer", head + field(5, described) + field(7, ones[:8]))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_clients_learn_services_and_messages_from_the_server(server):
    """As grpcurl does: by reflection, with a request that is JSON."""
    with grpc.insecure_channel(server.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = {"tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"}
        services |= {"inference.GRPCInferenceService", "grpc.reflection.v1alpha.ServerReflection"}
        services |= {"grpc.health.v1.Health"}
        assert set(database.get_services()) == services
        pool = DescriptorPool(database)
        assert "Classify" in pool.FindServiceByName("tensorflow.serving.PredictionService").methods_by_name
        method = pool.FindServiceByName("inference.GRPCInferenceService").methods_by_name["ModelInfer"]
        tensor = {"name": "x", "datatype": "FP32", "shape": [3], "contents": {"fp32_contents": [1, 1, 1]}}
        body = {"model_name": "m", "parameters": {"signature_name": {"string_param": "running_sum"}}}
        request = json_format.ParseDict({**body, "inputs": [tensor]}, GetMessageClass(method.input_type)())
        answer_class = GetMessageClass(method.output_type)
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", None, answer_class.FromString)
        answer = call(request.SerializeToString(), timeout=60)
        assert (answer.model_version, answer.outputs[0].datatype) == ("1", "FP32")
        assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [1, 2, 3]


def test_large_bodies_are_read_and_written_by_a_process(server):
    values = np.random.default_rng(0).random(100_000).round(4)
    found = ask(server, {"signature_name": "running_sum", "inputs": values.tolist()})["outputs"]
    np.testing.assert_allclose(found, np.cumsum(values), rtol=1e-3)
    texts = ["x" * 300_000]
    assert ask(server, {"signature_name": "lengths", "inputs": texts}) == {"outputs": [300_000]}
    bad = ask(server, {"signature_name": "running_sum", "inputs": [*values.tolist(), True]})
    assert "Type: True is not of expected type: float" in bad["error"]
    assert "Servable not found" in ask(server, {"inputs": values.tolist()}, model="nobody")["error"]
    examples = [{"a": value} for value in values[:30_000].tolist()]
    found = ask(server, {"signature_name": "values", "examples": examples}, "regress")["results"]
    np.testing.assert_allclose(found, 2 * values[:30_000], rtol=1e-6)
    bad = ask(server, {"signature_name": "classes", "examples": [*examples, {"a": None}]}, "classify")
    assert bad == {"error": "Feature: a has element with unexpected JSON type: Null"}
    assert "JSON Parse error" in ask_raw(server, b'{"inputs": [' + b"1, " * 200_000)["error"]
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [100_000], "data": values.tolist()}]}
    body["parameters"] = {"signature_name": "running_sum"}
    response = httpx.post(f"{server.url}/v2/models/m/infer", json=body, timeout=60).json()
    np.testing.assert_allclose(response["outputs"][0]["data"], np.cumsum(values), rtol=1e-3)


def ask_raw(server, body):
    return httpx.post(f"{server.url}/v1/models/m:predict", content=body, timeout=60).json()


value = helper.make_tensor_value_info
MAPS = helper.make_sequence_type_proto(
    helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
)
ML = {"domain": "ai.onnx.ml"}
IDENTITY = [helper.make_node("Identity", ["x"], ["y"])]
ENCODER = helper.make_node(
    "LabelEncoder", ["x"], ["y"], keys_int64s=[0, 1], values_strings=["cat", "dog"], default_string="?", **ML
)
AS_TEXTS = [helper.make_node("Cast", ["x"], ["f"], to=1), helper.make_node("Cast", ["f"], ["z"], to=TensorProto.STRING)]
FROM_TEXTS = [helper.make_node("Cast", ["x"], ["f"], to=1), helper.make_node("Cast", ["f"], ["y"], to=16)]
ONNX = {
    "labels": ([ENCODER], value("x", TensorProto.INT64, ["N"]), value("y", TensorProto.STRING, ["N"])),
    "maps": (
        [helper.make_node("ZipMap", ["x"], ["y"], classlabels_int64s=[0, 1], **ML)],
        value("x", TensorProto.FLOAT, ["N", 2]),
        helper.make_value_info("y", MAPS),
    ),
    "text_to_bfloat": (FROM_TEXTS, value("x", TensorProto.STRING, ["N"]), value("y", TensorProto.BFLOAT16, ["N"])),
    "bfloat_to_text": (
        [*IDENTITY, *AS_TEXTS],
        value("x", TensorProto.BFLOAT16, ["N"]),
        *(value(name, dtype, ["N"]) for name, dtype in (("x", 16), ("y", 16), ("z", TensorProto.STRING))),
    ),
    **{
        name: (IDENTITY, value("x", dtype, shape), value("y", dtype, shape))
        for name, dtype, shape in (
            ("shapeless", TensorProto.FLOAT, None),
            ("half", TensorProto.FLOAT16, ["N"]),
            ("bfloat", TensorProto.BFLOAT16, ["N"]),
            ("one_bfloat", TensorProto.BFLOAT16, []),
            ("float8", TensorProto.FLOAT8E4M3FN, ["N"]),
            ("uint16", TensorProto.UINT16, ["N"]),
            ("text", TensorProto.STRING, ["N"]),
        )
    },
}


@pytest.fixture(scope="module")
def onnx_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    for name, (nodes, given, *answers) in ONNX.items():
        opsets = [helper.make_opsetid("", 19), helper.make_opsetid("ai.onnx.ml", 3)]
        model = helper.make_model(helper.make_graph(nodes, name, [given], answers), opset_imports=opsets)
        model.ir_version = 9
        (folder / name / "1").mkdir(parents=True)
        onnx.save(model, folder / name / "1" / "model.onnx")
    models = "".join(
        f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" }}' for name in ONNX
    )
    (folder / "models").write_text(f"model_config_list {{ {models} }}")
    with running_server(folder / "log", f"--model_config_file={folder / 'models'}", "--backend=onnx") as running:
        yield running


@pytest.mark.parametrize(
    ("model", "values", "expected"),
    [
        ("labels", [0, 1, 5], ["cat", "dog", "?"]),
        ("shapeless", [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ("half", [1.5, 0.1], [1.5, 0.0999755859]),
        ("bfloat", [1.5, 0.1], [1.5, 0.100097656]),
        ("one_bfloat", 0.1, 0.100097656),
        ("text_to_bfloat", ["1.5", "0.1"], [1.5, 0.100097656]),
        ("bfloat_to_text", [0.5], {"x": [0.5], "y": [0.5], "z": ["0.5"]}),
        ("uint16", [0, 65535], [0, 65535]),
        ("text", ["caf\u00e9", "b"], ["caf\u00e9", "b"]),
    ],
)
def test_onnx_files_of_every_type(onnx_server, model, values, expected):
    assert ask(onnx_server, {"inputs": values}, model=model) == {"outputs": expected}


def test_bfloat16_of_onnx_over_every_protocol(onnx_server):
    values = np.array([1.5, 0.1], ml_dtypes.bfloat16)
    request = PredictRequest(model_spec={"name": "bfloat_to_text"}, inputs={"x": tf.make_tensor_proto(values)})
    infer = MESSAGES["ModelInferRequest"](model_name="bfloat_to_text", raw_input_contents=[values.tobytes()])
    infer.inputs.add(name="x", datatype="BF16", shape=[2])
    with grpc.insecure_channel(onnx_server.grpc) as channel:
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        raw = MESSAGES["ModelInferResponse"].FromString(call(infer.SerializeToString(), timeout=60))
    assert answer.outputs["y"].dtype == tf.bfloat16.as_datatype_enum
    np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["y"]), values)
    assert {output.name: output.datatype for output in raw.outputs} == {"x": "BF16", "y": "BF16", "z": "BYTES"}
    assert values.tobytes() in raw.raw_output_contents
    item = {"name": "x", "datatype": "BF16", "shape": [2], "parameters": {"binary_data_size": 4}}
    text = json.dumps({"inputs": [item], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    url = f"{onnx_server.url}/v2/models/bfloat_to_text/infer"
    found = httpx.post(url, content=text + values.tobytes(), headers=headers, timeout=60)
    assert found.content.endswith(values.tobytes())


def test_onnx_errors_are_sentences(onnx_server):
    for inputs in ([], [0.5]):
        assert "tensor(float8e4m3fn), which" in ask(onnx_server, {"inputs": inputs}, model="float8")["error"]
    assert "without ZipMap" in ask(onnx_server, {"inputs": [[0.5, 0.5]]}, model="maps")["error"]
    assert "seq(map(int64" in onnx_server.log.read_text()
    assert "not of expected type: uint16" in ask(onnx_server, {"inputs": [65536]}, model="uint16")["error"]
    assert "UTF-8" in ask(onnx_server, {"inputs": [{"b64": "/w=="}]}, model="text")["error"]
