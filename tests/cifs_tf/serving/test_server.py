"""The server as a program: versions that come and go under load, its end, its options, its agreement with the model."""

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import prediction_service_pb2_grpc
from tensorflow_serving.apis.predict_pb2 import PredictRequest

from cifs_tf.export import export
from tests.cifs_tf.serving.models import save_plain
from tests.cifs_tf.serving.running import ROOT, free_port, running_server

pytestmark = pytest.mark.slow
IMAGE = np.random.default_rng(0).random((32, 32, 3)).astype(np.float32)
BODY = json.dumps({"instances": [IMAGE.tolist()]})


class Client(threading.Thread):
    """Asks over REST, or gRPC, until told to end or nobody listens any more."""

    def __init__(self, server, over_grpc):
        super().__init__(daemon=True)
        self.server, self.over_grpc = server, over_grpc
        self.ending = threading.Event()
        self.answers, self.lost = [], []

    def run(self):
        ask = self.ask_grpc() if self.over_grpc else self.ask_rest()
        while not self.ending.is_set():
            try:
                self.answers.append(next(ask))
            except StopIteration:
                return
            except Exception as error:
                self.lost.append(repr(error))

    def ask_rest(self):
        address = self.server.url.removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=60)
        while True:
            try:
                connection.connect() if connection.sock is None else None
            except ConnectionRefusedError:
                return  # asked of nobody
            connection.request("POST", "/v1/models/m:predict", BODY)
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status != 200:
                raise RuntimeError(answer)
            yield tuple(answer["predictions"][0])

    def ask_grpc(self):
        request = PredictRequest()
        request.model_spec.name = "m"
        request.inputs["image"].CopyFrom(tf.make_tensor_proto(IMAGE[None]))
        with grpc.insecure_channel(self.server.grpc) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            while True:
                try:
                    response = stub.Predict(request, timeout=60)
                except grpc.RpcError as error:
                    if error.code() == grpc.StatusCode.UNAVAILABLE and re.search("ending|refused", error.details()):
                        return  # told so before it was begun
                    raise
                yield tuple(response.outputs["logits"].float_val)


@contextlib.contextmanager
def asking(server, count=4):
    clients = [Client(server, over_grpc=index % 2 == 1) for index in range(count)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        for client in clients:
            client.ending.set()
        for client in clients:
            client.join(60)


def states(server):
    found = httpx.get(f"{server.url}/v1/models/m", timeout=60).json()["model_version_status"]
    return {int(item["version"]): item["state"] for item in found}


def wait_for(server, version, state):
    deadline = time.monotonic() + 60
    while states(server).get(version) != state:
        assert time.monotonic() < deadline, states(server)
        time.sleep(0.1)


def publish(base, number, seed):
    save_plain(base / f"tmp-{number}", seed)
    (base / f"tmp-{number}").rename(base / str(number))


def test_versions_change_and_the_server_ends_under_load_and_no_request_is_lost(tmp_path):
    base = tmp_path / "m"
    publish(base, 1, seed=1)
    arguments = [f"--model_base_path={base}", "--model_name=m", "--file_system_poll_wait_seconds=0.2"]
    with running_server(tmp_path / "log", *arguments) as server:
        with asking(server) as clients:
            publish(base, 2, seed=2)
            wait_for(server, 2, "AVAILABLE")
            wait_for(server, 1, "END")
            # A version that is broken never replaces one that works, and is tried again when it is mended.
            (base / "3").mkdir()
            (base / "3" / "saved_model.pb").write_bytes(b"half a model")
            wait_for(server, 3, "END")
            assert states(server)[2] == "AVAILABLE"
            shutil.copytree(base / "1", base / "3", dirs_exist_ok=True)
            wait_for(server, 3, "AVAILABLE")
            wait_for(server, 2, "END")
            # An older version by its number, then none at all: what works stays.
            shutil.rmtree(base / "3")
            shutil.rmtree(base / "1")
            shutil.rmtree(base / "2")
            time.sleep(1)
            assert states(server)[3] == "AVAILABLE"
            # The end: what has come is answered, and nobody hangs.
            assert server.stop(signal.SIGTERM) == 0
        log = server.log.read_text()
        assert log.splitlines()[-1].endswith("ended")
        assert "WARNING listening" not in log, "its own machine is no reason to warn"
        assert "unloaded" not in log.partition("ending:")[2], "what ends with the process is not taken apart first"
        assert [client.lost for client in clients] == [[]] * len(clients)
        assert all(client.answers for client in clients)
        answers = {tuple(np.round(answer, 4)) for client in clients for answer in client.answers}
        assert len(answers) == 2, "every answer is that of the first or of the second model"


class Large(tf.Module):
    """800 MB in two hundred variables."""

    def __init__(self):
        super().__init__()
        self.parts = [tf.Variable(tf.fill((10**6,), 0.5)) for _ in range(200)]

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, name="x")])
    def serve(self, x):
        return {"y": x + tf.add_n([part[0] for part in self.parts])}


@pytest.mark.soak
def test_memory_of_a_replaced_model_goes_back(tmp_path):
    model = Large()
    tf.saved_model.save(model, str(tmp_path / "new"), signatures=model.serve)
    shutil.copytree(tmp_path / "new", tmp_path / "m" / "1")
    arguments = [f"--model_base_path={tmp_path / 'm'}", "--model_name=m", "--file_system_poll_wait_seconds=0.2"]
    with running_server(tmp_path / "log", *arguments) as server:
        body = {"instances": [1.0]}
        assert httpx.post(f"{server.url}/v1/models/m:predict", json=body, timeout=60).json() == {"predictions": [101.0]}
        before = server.resident_bytes
        (tmp_path / "new").rename(tmp_path / "m" / "2")
        wait_for(server, 2, "AVAILABLE")
        wait_for(server, 1, "END")
        assert httpx.post(f"{server.url}/v1/models/m:predict", json=body, timeout=60).json() == {"predictions": [101.0]}
        assert server.resident_bytes < 1.2 * before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model_base_path=nowhere"], "--model_base_path: received nowhere"),
        ([], "--model_base_path: received None"),
        (["--model_base_path=.", "--port=0", "--rest_api_port=0"], "--port: received 0"),
        (["--model_base_path=.", "--port=70000"], "--port: received 70000"),
        (["--model_base_path=.", "--max_request_bytes=0"], "--max_request_bytes: received 0"),
        (["--model_config_file=nowhere"], "--model_config_file: received nowhere"),
        (["--model_base_path=.", "--prot=1"], "did you mean --port"),
    ],
)
def test_options_that_cannot_be_met(arguments, named):
    command = [sys.executable, "serving/server.py", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert named in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_other_hosts_are_said_aloud_taken_ports_refused_and_ctrl_c_ends_in_order(tmp_path, models_folder):
    arguments = [f"--model_base_path={models_folder / 'plain'}"]
    flags = ["--host=0.0.0.0", "--enable_grpc_healthcheck_service", "--drain_timeout_in_ms=600000"]
    with running_server(tmp_path / "log", *arguments, *flags) as server, grpc.insecure_channel(server.grpc) as channel:
        # Who watches the health has no request that the end could wait for.
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        assert "WARNING listening on 0.0.0.0" in server.log.read_text()
        taken = server.url.rpartition(":")[2]
        command = [sys.executable, "serving/server.py", *arguments, f"--rest_api_port={taken}", f"--port={free_port()}"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == 2
        assert f"--rest_api_port: received 127.0.0.1:{taken}" in ended.stderr
        assert server.stop(signal.SIGINT) == 0
        assert "Traceback" not in server.log.read_text()


def test_sigterm_does_not_wait_for_a_model_that_loads(tmp_path):
    publish(tmp_path / "m", 1, seed=1)
    values = tmp_path / "m" / "1" / "variables" / "variables.index"
    values.unlink()
    os.mkfifo(values)  # whoever reads it waits for ever
    log = tmp_path / "log"
    command = [sys.executable, "serving/server.py", f"--model_base_path={tmp_path / 'm'}"]
    command += [f"--rest_api_port={free_port()}", f"--port={free_port()}"]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while "version 1 is loading" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert log.read_text().splitlines()[-1].endswith("ended while the models were loading")


def test_model_saved_model_onnx_rest_and_grpc_agree(tmp_path, make_classifier):
    classifier = make_classifier((8, 8, 3), 10, defense="cifs")
    base = tmp_path / "m"
    version = export(classifier, base, formats=("savedmodel", "onnx"))
    pixels = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    images = (pixels / 255).astype(np.float32)
    live = tf.nn.softmax(classifier(images, training=False)[:, 0]).numpy()
    loaded = tf.saved_model.load(str(version))
    np.testing.assert_allclose(loaded.signatures["serving_default"](image=images)["probabilities"], live, atol=1e-5)
    files = [base64.b64encode(tf.io.encode_png(image).numpy()).decode() for image in pixels]
    encoded = {"signature_name": "encoded", "instances": [{"b64": file} for file in files]}
    bodies = {"floats": {"instances": images.tolist()}, "columns": {"inputs": {"image": images.tolist()}}}
    for backend, extra in (("tensorflow", {"files": encoded}), ("onnx", {})):
        arguments = [f"--model_base_path={base}", "--model_name=m", f"--backend={backend}"]
        with running_server(tmp_path / "log", *arguments) as server:
            for name, body in {**bodies, **extra}.items():
                answer = httpx.post(f"{server.url}/v1/models/m:predict", json=body, timeout=60).json()
                found = (
                    answer["outputs"]["probabilities"]
                    if name == "columns"
                    else [row["probabilities"] for row in answer["predictions"]]
                )
                np.testing.assert_allclose(found, live, atol=1e-5, err_msg=f"{backend} {name}")
            request = PredictRequest()
            request.model_spec.name = "m"
            request.inputs["image"].CopyFrom(tf.make_tensor_proto(images))
            with grpc.insecure_channel(server.grpc) as channel:
                response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
            np.testing.assert_allclose(tf.make_ndarray(response.outputs["probabilities"]), live, atol=1e-5)
            wrong = httpx.post(f"{server.url}/v1/models/m:predict", json={"instances": [1.0]}, timeout=60)
            assert (wrong.status_code, "not compatible with expected shape" in wrong.text) == (400, True)
