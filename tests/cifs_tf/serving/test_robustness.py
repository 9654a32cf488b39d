"""No request can kill or wedge the server.

Every answer is a prediction, the status and body of the contract, or a closed connection. `make soak` sends many more.
"""

import base64
import contextlib
import gzip
import io
import json
import random
import signal
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import prediction_service_pb2_grpc
from tensorflow_serving.apis.predict_pb2 import PredictRequest

from cifs_tf.serving.endpoint.grpc.v2 import MESSAGES
from tests.cifs_tf.serving.models import models_config
from tests.cifs_tf.serving.running import running_server

REQUESTS = 4_000
SOAK_REQUESTS = 100_000
CLIENTS = 8
LIMIT = 4 * 2**20
pytestmark = pytest.mark.slow
GROWTH = 150 * 2**20
SHAPE = (32, 32, 3)
IMAGE = np.random.default_rng(0).random(SHAPE).round(3).tolist()
GOOD = json.dumps({"instances": [IMAGE]}).encode()
PNG = tf.io.encode_png(np.zeros(SHAPE, np.uint8)).numpy()
STATUSES = {200, 400, 404, 408, 413, 501, 503, 504}


@pytest.fixture(scope="module")
def server(models_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("robust")
    (folder / "models.config").write_text(models_config(models_folder))
    arguments = [
        f"--model_config_file={folder / 'models.config'}",
        "--allow_version_labels_for_unavailable_models",
        f"--max_request_bytes={LIMIT}",
        f"--max_buffered_bytes={8 * LIMIT}",
        "--receive_timeout_in_ms=1500",
        "--max_connections=64",
        "--enable_grpc_healthcheck_service",
    ]
    with running_server(folder / "log", *arguments) as running:
        yield running


@pytest.fixture(autouse=True)
def _still_well(server):
    """After whatever a test does, a good request is answered, in a time that is not a multiple of what it was."""
    with httpx.Client(base_url=server.url, timeout=60) as http:
        before = median_seconds(http)
        yield
        assert server.process.poll() is None, server.log.read_text()[-2000:]
        assert median_seconds(http) < 20 * before + 2  # others may be at work on the machine


def median_seconds(http):
    seconds = []
    for _ in range(9):
        started = time.perf_counter()
        assert http.post("/v1/models/plain:predict", content=GOOD).status_code == 200
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def raw_connection(server):
    connection = socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=20)
    connection.settimeout(20)
    return connection


def read_all(connection):
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


def head(length, extra=""):
    return f"POST /v1/models/plain:predict HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n{extra}\r\n".encode()


def test_deep_nesting(server):
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        body = b'{"instances":' + opening * 200_000 + b"1" + closing * 200_000 + b"}"
        assert httpx.post(f"{server.url}/v1/models/plain:predict", content=body, timeout=60).status_code == 400
    body = b'{"instances":' + b"[" * 900 + b"1" + b"]" * 900 + b"}"
    assert httpx.post(f"{server.url}/v1/models/plain:predict", content=body, timeout=60).status_code == 400


def test_gzip_bomb(server):
    before = server.resident_bytes
    bomb = gzip.compress(bytes(512 * 2**20))
    assert len(bomb) < LIMIT
    headers = {"content-encoding": "gzip"}
    response = httpx.post(f"{server.url}/v1/models/plain:predict", content=bomb, headers=headers, timeout=60)
    assert response.status_code == 400
    assert "The document is empty" in response.text
    assert server.resident_bytes < before + GROWTH


def test_large_body_is_refused_before_it_is_sent(server):
    with raw_connection(server) as connection:
        connection.sendall(head(2**30))
        assert b" 413 " in read_all(connection).split(b"\r\n")[0]


def test_large_body_without_a_length(server):
    chunk = b"%x\r\n%s\r\n" % (2**16, b"1" * 2**16)
    with raw_connection(server) as connection, contextlib.suppress(ConnectionError, socket.timeout):
        connection.sendall(b"POST /v1/models/plain:predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(4 * LIMIT // 2**16):
            connection.sendall(chunk)
        pytest.fail("the server read it all")


def test_slow_clients_are_cut_off(server):
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(raw_connection(server)) for _ in range(20)]
        for index, connection in enumerate(slow):
            connection.sendall([b"POST /v1/mod", head(100) + b"{", b""][index % 3])
        for index, connection in enumerate(slow):
            answer = read_all(connection)
            assert answer == b"" or b" 408 " in answer.split(b"\r\n")[0], (index, answer)


def test_too_many_connections_leave_the_others_alone(server):
    with contextlib.ExitStack() as stack:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            assert http.post("/v1/models/plain:predict", content=GOOD).status_code == 200
            for _ in range(200):
                stack.enter_context(raw_connection(server))
            # Those that never asked go first, for a client that is there and for one that comes.
            assert http.post("/v1/models/plain:predict", content=GOOD).status_code == 200
            assert httpx.post(f"{server.url}/v1/models/plain:predict", content=GOOD, timeout=60).status_code == 200
        time.sleep(2)  # the receive timeout frees the places


def test_half_closed_connection_is_answered(server):
    with raw_connection(server) as connection:
        connection.sendall(head(len(GOOD)) + GOOD)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"predictions" in answer
    with raw_connection(server) as connection:
        connection.sendall(head(len(GOOD)) + GOOD[:100])
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""


def test_clients_that_leave_at_once(server):
    for _ in range(50):
        with raw_connection(server) as connection:
            connection.sendall(head(len(GOOD)) + GOOD)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset


def test_endless_head(server):
    with raw_connection(server) as connection, contextlib.suppress(ConnectionError, socket.timeout):
        connection.sendall(b"GET / HTTP/1.1\r\n")
        for index in range(10_000):
            connection.sendall(f"x{index}: {'y' * 1000}\r\n".encode())
        pytest.fail("the server read it all")


def bomb_png(side):
    """A PNG file of a few bytes that says it is `side` x `side`."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def bomb_gif(side):
    buffer = io.BytesIO()
    Image.new("P", (8, 8)).save(buffer, "GIF")
    return buffer.getvalue()[:6] + struct.pack("<HH", side, side) + buffer.getvalue()[10:]


@pytest.mark.parametrize(
    "file", [bomb_png(2**15), bomb_png(2**31 - 1), bomb_gif(2**16 - 1)], ids=["png", "huge", "gif"]
)
def test_decompression_bomb_images(server, file):
    before = server.resident_bytes
    body = {"signature_name": "encoded", "instances": [{"b64": base64.b64encode(file).decode()}]}
    response = httpx.post(f"{server.url}/v1/models/multi:predict", json=body, timeout=60)
    assert response.status_code == 400
    assert "--max_image_pixels" in response.json()["error"]
    assert server.resident_bytes < before + GROWTH


def test_one_value_that_stands_for_gigabytes(server):
    request = PredictRequest()
    request.model_spec.name = "plain"
    proto = request.inputs["image"]
    proto.dtype = 1
    proto.float_val.append(0.5)
    for size in (2**20, *SHAPE):
        proto.tensor_shape.dim.add(size=size)
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_grpc_calls_that_never_send_their_message_hold_nobody_up(server):
    channel = grpc.insecure_channel(server.grpc)
    silent = threading.Event()
    call = channel.stream_unary("/tensorflow.serving.PredictionService/Predict")
    calls = [call.future(iter(silent.wait, True), timeout=60) for _ in range(100)]
    time.sleep(1)
    with grpc.insecure_channel(server.grpc) as other:
        request = PredictRequest()
        request.model_spec.name = "plain"
        request.inputs["image"].CopyFrom(tf.make_tensor_proto(np.array([IMAGE], np.float32)))
        assert prediction_service_pb2_grpc.PredictionServiceStub(other).Predict(request, timeout=20).outputs
    for waiting in calls:
        waiting.cancel()
    silent.set()
    channel.close()


def test_headers_that_only_a_decoder_can_read_are_not_decoded(server):
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 3000)).save(buffer, "JPEG")
    file = buffer.getvalue()[:2] + b"\xff\x01" + buffer.getvalue()[2:]
    body = {"signature_name": "encoded", "instances": [{"b64": base64.b64encode(file).decode()}]}
    assert httpx.post(f"{server.url}/v1/models/multi:predict", json=body, timeout=60).status_code == 400


def test_a_long_text_among_numbers_takes_no_memory(server):
    before = server.resident_bytes
    body = json.dumps({"instances": ["a" * 400_000, *[1] * 1000]}).encode()
    assert httpx.post(f"{server.url}/v1/models/plain:predict", content=body, timeout=60).status_code == 400
    body = json.dumps({"instances": ["[" * 3_000_000]}).encode()
    assert httpx.post(f"{server.url}/v1/models/plain:predict", content=body, timeout=60).status_code == 400
    assert server.resident_bytes < before + GROWTH


def test_clients_that_never_read_lose_their_places(server):
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            connection = stack.enter_context(raw_connection(server))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setblocking(False)
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /v1/models/multi/metadata HTTP/1.1\r\nhost: x\r\n\r\n" * 500)
        deadline = time.monotonic() + 180  # without the clock on unread answers it would be never
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{server.url}/v1/models/plain", timeout=5).status_code == 200:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_machine_that_stands_still_is_not_the_clients_fault(server):
    """What a client sent in time is read, though the server did not run until the limit was past."""
    head = f"POST /v1/models/plain:predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(GOOD)}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        parts = (head[:20], head[20:] + GOOD), (head, GOOD), (head + GOOD[:100], GOOD[100:])
        connections = [stack.enter_context(raw_connection(server)) for _ in parts]
        for connection, (first, _) in zip(connections, parts, strict=True):
            connection.sendall(first)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGSTOP)
        try:
            for connection, (_, rest) in zip(connections, parts, strict=True):
                connection.sendall(rest)
            time.sleep(2)
        finally:
            server.process.send_signal(signal.SIGCONT)
        for connection in connections:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


class Fuzzer:
    """Requests of every kind between a good one and noise, the same for the same seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def request(self):
        """Method, path, headers and body."""
        kinds = [self.good, self.random_json, self.near_json, self.random_bytes, self.image, self.path, self.zipped]
        return self.random.choice([*kinds, self.inference])()

    def inference(self):
        item = {
            "name": self.random.choice(["image", "x", 1]),
            "datatype": self.random.choice(["FP32", "BYTES", "FP16", "INT8", ""]),
            "shape": self.random.choice([[1, *SHAPE], [2], [-1], [2**62, 4], "a", self.value(2)]),
            "data": self.random.choice([[IMAGE], self.value(4), None]),
            "parameters": self.random.choice([{}, {"binary_data_size": self.value(0)}]),
        }
        body = json.dumps({"inputs": [item], "outputs": self.random.choice([[], self.value(2)])}).encode()
        length = {"inference-header-content-length": str(self.random.randrange(2 * len(body)))}
        return "POST", "/v2/models/plain/infer", self.random.choice([{}, {}, length]), body

    def good(self):
        return "POST", "/v1/models/plain:predict", {}, GOOD

    def random_json(self):
        root = {self.word(): self.value(4) for _ in range(self.random.randrange(4))}
        key = self.random.choice(["instances", "inputs", "signature_name", "x"])
        return "POST", self.model_path(), {}, json.dumps({**root, key: self.value(5)}).encode()

    def near_json(self):
        body = bytearray(GOOD if self.random.random() < 0.1 else json.dumps({"instances": self.value(4)}).encode())
        for _ in range(self.random.randrange(1, 4)):
            position = self.random.randrange(len(body))
            body[position : position + self.random.randrange(3)] = self.random.randbytes(self.random.randrange(3))
        return "POST", self.model_path(), {}, bytes(body)

    def random_bytes(self):
        return "POST", self.model_path(), {}, self.random.randbytes(self.random.randrange(200))

    def image(self):
        file = bytearray(PNG)
        for _ in range(self.random.randrange(4)):
            file[self.random.randrange(len(file))] = self.random.randrange(256)
        files = [bytes(file), PNG, b"", self.random.randbytes(30), PNG[: self.random.randrange(len(PNG))]]
        chosen = self.random.choices(files, k=self.random.randrange(1, 4))
        instances = [{"b64": base64.b64encode(item).decode()} for item in chosen]
        body = {"signature_name": "encoded", self.random.choice(["instances", "inputs"]): instances}
        return "POST", "/v1/models/multi:predict", {}, json.dumps(body).encode()

    def path(self):
        parts = ["v1", "models", "plain", "versions", "1", "labels", "stable", "metadata", ":predict", "%2F", "..", ""]
        path = "/" + "/".join(self.random.choices(parts, k=self.random.randrange(6)))
        return self.random.choice(["GET", "POST", "PUT", "OPTIONS", "HEAD", "DELETE"]), path, {}, b""

    def zipped(self):
        packed = bytearray(gzip.compress(GOOD))
        if self.random.random() < 0.7:
            packed[self.random.randrange(len(packed))] ^= 1 << self.random.randrange(8)
        return "POST", "/v1/models/plain:predict", {"content-encoding": "gzip"}, bytes(packed)

    def model_path(self):
        model, method = self.random.choice(["plain", "multi", "nobody"]), self.random.choice(["predict", "classify"])
        return f"/v1/models/{model}:{method}"

    def word(self):
        return self.random.choice(["instances", "inputs", "image", "b64", "examples", "signature_name", "é", ""])

    def value(self, depth):
        leaves = [0, 1.5, -3, 2**70, 1e300, True, None, "aGk=", "serving_default", "encoded", float("nan"), "\ud800"]
        kind = self.random.random()
        if not depth or kind < 0.4:
            return self.random.choice(leaves)
        if kind < 0.8:
            return [self.value(depth - 1) for _ in range(self.random.randrange(4))]
        return {self.word(): self.value(depth - 1) for _ in range(self.random.randrange(3))}


NAMES = ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED")
GRPC_STATUSES = {grpc.StatusCode[name] for name in (*NAMES, "RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE")}


class GrpcFuzzer:
    """Messages of both gRPC APIs between a good one and noise, the same for the same seed."""

    # Reload is left out: it would take away, rightly, the models that are asked.
    METHODS = (
        *(f"tensorflow.serving.PredictionService/{name}" for name in ("Predict", "Classify", "Regress")),
        *(f"tensorflow.serving.PredictionService/{name}" for name in ("MultiInference", "GetModelMetadata")),
        "tensorflow.serving.ModelService/GetModelStatus",
        "grpc.health.v1.Health/Check",
        *(
            f"inference.GRPCInferenceService/{name}"
            for name in ("ModelInfer", "ModelMetadata", "ModelReady", "Nothing")
        ),
    )

    def __init__(self, seed):
        self.random = random.Random(seed)
        request = PredictRequest()
        request.model_spec.name = "plain"
        request.inputs["image"].CopyFrom(tf.make_tensor_proto(np.array([IMAGE], np.float32)))
        infer = MESSAGES["ModelInferRequest"](model_name="plain", raw_input_contents=[bytes(4 * 3072)])
        infer.inputs.add(name="image", datatype="FP32", shape=[1, *SHAPE])
        self.good = {self.METHODS[0]: request, "inference.GRPCInferenceService/ModelInfer": infer}

    def request(self):
        """Method and message."""
        kind = self.random.random()
        if kind < 0.3:
            return self.random.choice(self.METHODS), self.random.randbytes(self.random.randrange(60))
        method, message = self.random.choice(list(self.good.items()))
        if kind < 0.6:
            content = bytearray(message.SerializeToString())
            for _ in range(self.random.randrange(4)):
                # Near its ends, where names, shapes and lengths stand.
                position = self.random.choice([1, -1]) * self.random.randrange(1, 60)
                content[position] = self.random.randrange(256)
            return method, bytes(content)
        return method, self.other_values(type(message).FromString(message.SerializeToString()))

    def other_values(self, message):
        """Change a shape, a type or a name to one that does not fit."""
        is_infer = hasattr(message, "raw_input_contents")
        tensor = message.inputs[0] if is_infer else message.inputs["image"]
        sizes = self.random.choice([[1, *SHAPE], [], [-1], [2**40, 3], [0], [1, 32, 32, 4], [2] * 300])
        if is_infer:
            tensor.shape[:] = sizes
            tensor.datatype = self.random.choice(["FP32", "BYTES", "INT8", "BF16", "", "\u00e9"])
            tensor.contents.fp32_contents.extend([1.0] * self.random.randrange(3))
            message.model_version = self.random.choice(["", "1", "9", "x", "-1"])
        else:
            del tensor.tensor_shape.dim[:]
            for size in sizes:
                tensor.tensor_shape.dim.add(size=size)
            tensor.dtype = self.random.choice([1, 7, 3, 0, 21, 99])
            message.model_spec.signature_name = self.random.choice(["", "nope", "serving_default"])
            message.output_filter.extend(self.random.choice([[], ["logits"], ["x"], ["logits", "logits"]]))
        return message.SerializeToString()


def send_many_over_grpc(server, seed, count):
    """Send messages, and return those that were answered in no way of the contract."""
    fuzzer, faults = GrpcFuzzer(seed), []
    with grpc.insecure_channel(server.grpc) as channel:
        for _ in range(count):
            method, content = fuzzer.request()
            try:
                channel.unary_unary(f"/{method}")(content, timeout=60)
            except grpc.RpcError as error:
                if error.code() not in GRPC_STATUSES:
                    faults.append((method, content[:500], error.code(), error.details()[:500]))
    return faults


def send_many(server, seed, count):
    """Send requests, and return those that were answered in no way of the contract."""
    fuzzer, faults = Fuzzer(seed), []
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for _ in range(count):
            method, path, headers, body = fuzzer.request()
            url = httpx.URL(server.url).copy_with(raw_path=path.encode())
            response = http.request(method, url, headers=headers, content=body)
            bodiless = response.status_code in (200, 404) or method in ("HEAD", "OPTIONS")
            if response.status_code not in STATUSES or not (bodiless or list(response.json()) == ["error"]):
                faults.append((method, path, body[:500], response.status_code, response.text[:500]))
    return faults


def ask_well(server, ending):
    """Ask for the same until the end; return the answers that differ from the first, and how many there were."""
    answers = []
    with httpx.Client(base_url=server.url, timeout=120) as http:
        while not ending.wait(0.05):
            response = http.post("/v1/models/plain:predict", content=GOOD)
            if response.status_code != 200:
                return [(len(answers), response.status_code, response.text)], len(answers)
            answers.append(response.json()["predictions"])
    return [answer for answer in answers if not np.allclose(answer, answers[0], atol=1e-5)], len(answers)


def fuzz(server, count):
    """Send requests, a quarter of them over gRPC, beside a client that asks well; return how many answers it got."""
    ending = threading.Event()
    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        asking = pool.submit(ask_well, server, ending)
        senders = [send_many_over_grpc if seed % 4 == 3 else send_many for seed in range(CLIENTS)]
        sent = [pool.submit(send, server, seed, count // CLIENTS) for seed, send in enumerate(senders)]
        try:
            faults = [fault for one in sent for fault in one.result()]
        finally:
            ending.set()
        wrong, answered = asking.result()
    assert not faults, faults[:3]
    assert not wrong
    return answered


def test_fuzz(server):
    fuzz(server, REQUESTS // 8)  # until memory is as full as it gets
    before = server.resident_bytes
    assert fuzz(server, REQUESTS) > 0
    assert server.resident_bytes < before + GROWTH


def test_noise_on_the_sockets(server):
    noise = random.Random(0)
    for _ in range(200):
        for target in (server.url.removeprefix("http://"), server.grpc):
            with (
                contextlib.suppress(ConnectionError, socket.timeout),
                socket.create_connection(target.split(":")) as raw,
            ):
                raw.settimeout(5)
                raw.sendall(noise.randbytes(noise.randrange(1, 500)) + b"\r\n\r\n")
                raw.shutdown(socket.SHUT_WR)
                answer = raw.recv(65536)
                assert not answer or answer.startswith((b"HTTP/1.1 4", b"\x00")), answer[:100]


@pytest.mark.soak
def test_long_fuzz(server):
    fuzz(server, SOAK_REQUESTS // 10)
    before, started = server.resident_bytes, time.monotonic()
    answered = fuzz(server, SOAK_REQUESTS)
    grown = (server.resident_bytes - before) / 2**20
    seconds = time.monotonic() - started
    print(f"{SOAK_REQUESTS} fuzzed requests in {seconds:.0f} s, {answered} good answers, {grown:+.0f} MiB")
    assert grown < GROWTH / 2**20
