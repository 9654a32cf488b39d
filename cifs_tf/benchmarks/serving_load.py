"""Clients that ask an endpoint as fast as it answers, and what the same model gives when it is called directly."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_service_pb2_grpc
from tensorflow_serving.apis.predict_pb2 import PredictRequest

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120
# A client: told to ask once, it returns when the answer is there, or raises.
Ask = Callable[[], object]


@contextlib.contextmanager
def running_server(base: Path, name: str, *arguments: str) -> Iterator[tuple[str, str]]:
    """Serve a model in a process of its own.

    Args:
        base: folder of its versions.
        name: by which requests call it.
        arguments: further options of `serving/server.py`.

    Yields:
        HOST:PORT of REST and of gRPC.
    """
    ports = [_free_port(), _free_port()]
    command = [sys.executable, "serving/server.py", f"--model_base_path={base.absolute()}", f"--model_name={name}"]
    command += [f"--rest_api_port={ports[0]}", f"--port={ports[1]}", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{ports[0]}/v1/models/{name}/metadata", process)
        yield f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def rest_client(address: str, name: str, file: bytes) -> Ask:
    """A client that sends an image file to the signature `encoded` over REST."""
    connection = http.client.HTTPConnection(address)
    body = json.dumps({"signature_name": "encoded", "instances": [{"b64": base64.b64encode(file).decode()}]}).encode()

    def ask() -> object:
        connection.request("POST", f"/v1/models/{name}:predict", body)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {answer[:200]!r}")
        return answer

    return ask


def grpc_client(address: str, name: str, image: np.ndarray) -> Ask:
    """A client that sends a float image to the signature `serving_default` over gRPC."""
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address))
    request = PredictRequest()
    request.model_spec.name = name
    request.inputs["image"].CopyFrom(tf.make_tensor_proto(image[None]))
    return lambda: stub.Predict(request, timeout=60)


def direct_client(version: Path, image: np.ndarray) -> Ask:
    """Calls of the SavedModel's own signature, one after the other."""
    loaded = tf.saved_model.load(str(version))
    tensor = tf.constant(image[None])

    def ask() -> object:
        # Through the model: its signatures alone would not keep it.
        return loaded.signatures["serving_default"](image=tensor)["probabilities"].numpy()

    return ask


def measure(clients: list[Ask], seconds: float) -> dict:
    """Let every client ask in a thread of its own, for so long.

    Args:
        clients: at least one.
        seconds: > 0.

    Returns:
        `requests_per_second`, `p50_ms`, `p99_ms`, and `requests`.

    Raises:
        RuntimeError: if one request failed.
    """

    def work(ask: Ask) -> list[float]:
        taken = []
        while time.perf_counter() < end:
            started = time.perf_counter()
            ask()
            taken.append(time.perf_counter() - started)
        return taken

    for ask in clients:
        ask()
    started = time.perf_counter()
    end = started + seconds
    with ThreadPoolExecutor(len(clients)) as pool:
        taken = np.array([one for part in pool.map(work, clients) for one in part])
    elapsed = time.perf_counter() - started
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
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(url, timeout=5)
            return
        time.sleep(0.1)
    raise RuntimeError("the server did not start; start it by hand to see why: python serving/server.py")
