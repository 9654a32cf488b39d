"""Clients of other projects, each in an environment of its own, ask the local server."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifs_tf.export import export
from tests.cifs_tf.serving.running import running_server

pytestmark = pytest.mark.soak


@pytest.fixture
def server(tmp_path, make_classifier):
    export(make_classifier((8, 8, 3), 5, defense="cifs"), tmp_path / "m")
    with running_server(tmp_path / "log", f"--model_base_path={tmp_path / 'm'}", "--model_name=m") as running:
        yield running


def environment(folder, *packages):
    """Make an environment; return its Python."""
    python = folder / "env" / "bin" / "python"
    for arguments in (("venv", f"--python={sys.executable}", folder / "env"), ("pip", "install", "-p", python)):
        more = packages if arguments[0] == "pip" else ()
        subprocess.run([sys.executable, "-m", "uv", "--quiet", *map(str, (*arguments, *more))], check=True)
    return python


def test_triton(server, tmp_path):
    Image.fromarray(np.full((8, 8, 3), 128, np.uint8)).save(tmp_path / "grey.png")
    python = environment(tmp_path, "tritonclient[http,grpc]")
    script = Path(__file__).with_name("triton_client.py")
    command = [python, script, server.url.removeprefix("http://"), server.grpc, tmp_path / "grey.png"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "asked\n"), ended.stderr


def test_ovms(server, tmp_path):
    """The client of OpenVINO's model server, over gRPC and over REST."""
    python = environment(tmp_path, "ovmsclient")
    script = f"""
import numpy as np, ovmsclient
image = np.zeros((2, 8, 8, 3), np.float32)
for package, address in (("grpc", {server.grpc!r}), ("http", {server.url.removeprefix("http://")!r})):
    client = getattr(ovmsclient, f"make_{{package}}_client")(address)
    metadata = client.get_model_metadata("m")  # over REST it gives TF Serving's own JSON
    assert (metadata["inputs"]["image"]["dtype"] == "DT_FLOAT") if package == "grpc" else metadata["model_spec"]
    assert client.get_model_status("m")[1]["state"] == "AVAILABLE"
    found = client.predict({{"image": image}}, "m")
    assert found["probabilities"].shape == (2, 5)
print("asked")
"""
    ended = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stdout) == (0, "asked\n"), ended.stderr


def test_reflection(server, tmp_path):
    """A client that has none of our messages asks the server for them, as grpcurl does."""
    python = environment(tmp_path, "grpc-requests", "setuptools<81")
    script = f"""
import grpc_requests
client = grpc_requests.Client.get_by_endpoint({server.grpc!r})
assert "tensorflow.serving.PredictionService" in client.service_names
status = client.request("tensorflow.serving.ModelService", "GetModelStatus", {{"model_spec": {{"name": "m"}}}})
assert status["model_version_status"][0]["state"] == "AVAILABLE", status
shape = {{"dim": [{{"size": size}} for size in (1, 8, 8, 3)]}}
image = {{"dtype": "DT_FLOAT", "tensor_shape": shape, "float_val": [0.5] * 192}}
asked = {{"model_spec": {{"name": "m"}}, "inputs": {{"image": image}}}}
found = client.request("tensorflow.serving.PredictionService", "Predict", asked)
assert len(found["outputs"]["probabilities"]["float_val"]) == 5
print("asked")
"""
    ended = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stdout) == (0, "asked\n"), ended.stderr


@pytest.mark.parametrize("program", ["hey", "wrk"])
def test_load(program, server, tmp_path):
    """Programs that load a server, eight connections: every answer is a 200."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (Debian: apt-get install {program})")
    url, body = f"{server.url}/v1/models/m:predict", json.dumps({"instances": np.zeros((1, 8, 8, 3)).tolist()})
    (tmp_path / "body.json").write_text(body)
    (tmp_path / "ask.lua").write_text(f"wrk.method = 'POST'\nwrk.body = '{body}'\n")
    commands = {
        "hey": ["hey", "-n", "400", "-c", "8", "-m", "POST", "-D", tmp_path / "body.json", url],
        "wrk": ["wrk", "-t1", "-c8", "-d5s", "--timeout", "30s", "-s", tmp_path / "ask.lua", url],
    }
    told = subprocess.run(commands[program], capture_output=True, text=True, timeout=120, check=True).stdout
    print(told)
    if program == "hey":
        assert re.findall(r"\[(\d+)\]\s+(\d+) responses", told) == [("200", "400")]
    else:
        assert int(re.search(r"(\d+) requests in", told)[1]) > 0
        assert "Non-2xx" not in told
        assert "Socket errors" not in told
