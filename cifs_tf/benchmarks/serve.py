"""Time requests to the server beside calls of the same model in a loop: `benchmark.py serve`."""

import base64
import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_service_pb2_grpc
from tensorflow_serving.apis.predict_pb2 import PredictRequest

from cifs_tf.benchmarks.options import ServeOptions
from cifs_tf.benchmarks.timing import Say
from cifs_tf.config import ModelConfig
from cifs_tf.export import export
from cifs_tf.models import build_classifier

NAME = "cifs"
# A request that other clients should not notice: so many images as JSON, 4 MB of 32 x 32 x 3.
LARGE_IMAGES, LARGE_CLIENTS = 64, 2
START_SECONDS = 120
Client = Callable[[], object]
"""Sends one request; it returns when the answer is there, or raises."""


def run(options: ServeOptions, report: Say) -> dict[str, Any]:
    """Measure throughput and latency of the local server, without and with batching.

    Returns:
        `rounds`, by way to ask what `measure_load` returned in each; and `ratio_to_direct`, of requests per second.
    """
    shape = (options.image_size, options.image_size, 3)
    classifier = build_classifier(ModelConfig(arch=options.arch, width=options.width), shape, 10)
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    image, file = (pixels / 255).astype(np.float32), tf.io.encode_png(pixels).numpy()
    rounds: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        base = Path(folder) / NAME
        version = export(classifier, base, formats=("savedmodel",))
        clients: dict[str, list[Client]] = {"direct": [direct_client(version, image)]}
        beside: dict[str, list[Client]] = {}
        for label, arguments in (("", ()), (", batching", ("--enable_batching",))):
            rest, rpc = stack.enter_context(running_server(base, *arguments))
            clients[f"REST, encoded{label}"] = [rest_client(rest, encoded(file)) for _ in range(options.clients)]
            clients[f"gRPC, float{label}"] = [grpc_client(rpc, image) for _ in range(options.clients)]
        other, _ = stack.enter_context(running_server(base, *arguments))
        both = [rest_client(rest if number % 2 else other, encoded(file)) for number in range(options.clients)]
        clients["REST, encoded, batching, two processes"] = both
        large = json.dumps({"instances": [image.tolist()] * LARGE_IMAGES}).encode()
        way = "REST, encoded, batching, beside large"
        clients[way] = [rest_client(rest, encoded(file)) for _ in range(options.clients)]
        beside[way] = [rest_client(rest, large) for _ in range(LARGE_CLIENTS)]
        for number in range(options.rounds):
            for way, asking in clients.items():
                rounds.setdefault(way, []).append(measure_load(asking, options.seconds, beside.get(way, [])))
            latest = ", ".join(f"{way} {found[-1]['requests_per_second']:.1f}" for way, found in rounds.items())
            report(f"round {number + 1} of {options.rounds}: {latest} requests a second")
    rates = {way: np.array([found["requests_per_second"] for found in each]) for way, each in rounds.items()}
    ratios = {way: float(np.median(rate / rates["direct"])) for way, rate in rates.items()}
    return {"rounds": rounds, "ratio_to_direct": ratios}


@contextlib.contextmanager
def running_server(base: Path, *arguments: str) -> Iterator[tuple[str, str]]:
    """Serve a model in a process of its own, at HOST:PORT of REST and HOST:PORT of gRPC."""
    ports = [_free_port(), _free_port()]
    command = [sys.executable, "-m", "cifs_tf", "serve", f"--model_base_path={base.absolute()}", f"--model_name={NAME}"]
    command += [f"--rest_api_port={ports[0]}", f"--port={ports[1]}", f"--row_wise_models={NAME}", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{ports[0]}/v1/models/{NAME}/metadata", process)
        yield f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def encoded(file: bytes) -> bytes:
    """Write the request that sends an image file to the signature `encoded`."""
    return json.dumps({"signature_name": "encoded", "instances": [{"b64": base64.b64encode(file).decode()}]}).encode()


def rest_client(address: str, body: bytes) -> Client:
    """Make a client that sends a body over REST."""
    connection = http.client.HTTPConnection(address)

    def ask() -> object:
        connection.request("POST", f"/v1/models/{NAME}:predict", body)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {answer[:200]!r}")
        return answer

    return ask


def grpc_client(address: str, image: np.ndarray) -> Client:
    """Make a client that sends a float image to the signature `serving_default` over gRPC."""
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address))
    request = PredictRequest()
    request.model_spec.name = NAME
    request.inputs["image"].CopyFrom(tf.make_tensor_proto(image[None]))
    return lambda: stub.Predict(request, timeout=60)


def direct_client(version: Path, image: np.ndarray) -> Client:
    """Make a client that calls the SavedModel's own signature."""
    loaded = tf.saved_model.load(str(version))
    tensor = tf.constant(image[None])

    def ask() -> object:
        # Through the model: its signatures alone would not keep it.
        return loaded.signatures["serving_default"](image=tensor)["probabilities"].numpy()

    return ask


def measure_load(clients: list[Client], seconds: float, beside: Sequence[Client] = ()) -> dict[str, float]:
    """Let every client ask in a thread of its own, for so long.

    Args:
        clients: whose requests are counted and timed.
        seconds: > 0.
        beside: that ask meanwhile, uncounted. Default nobody.

    Returns:
        `requests_per_second`, `p50_ms`, `p99_ms`, and `requests`.

    Raises:
        RuntimeError: if one request failed.
    """

    def work(ask: Client) -> list[float]:
        taken = []
        while time.perf_counter() < end:
            started = time.perf_counter()
            ask()
            taken.append(time.perf_counter() - started)
        return taken

    for ask in (*clients, *beside):
        ask()
    started = time.perf_counter()
    end = started + seconds
    with ThreadPoolExecutor(len(clients) + len(beside)) as pool:
        others = [pool.submit(work, ask) for ask in beside]
        taken = np.array([one for part in pool.map(work, clients) for one in part])
        elapsed = time.perf_counter() - started
        for other in others:
            other.result()  # raises what it raised
    p50, p99 = np.percentile(taken * 1000, [50, 99])
    return {
        "requests_per_second": len(taken) / elapsed,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "requests": len(taken),
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _wait_for(url: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):  # refused, or too slow to answer yet
            urllib.request.urlopen(url, timeout=5)
            return
        time.sleep(0.1)
    raise RuntimeError("the server did not start; start it by hand to see why: python -m cifs_tf serve")
