"""The client: images, answers and errors, against the project's own server over REST and gRPC."""

import base64
import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from cifs_tf.errors import UserError
from cifs_tf.export import export
from cifs_tf.serving.client.client import Client
from cifs_tf.serving.client.images import find_images, to_array, to_bytes
from cifs_tf.serving.client.view import draw, explanation, most_important, prediction_table, read_labels

ROOT = Path(__file__).parents[4]
NAMES = ["ant", "bee", "cat", "dog", "eel"]


def free_ports(number):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for bound in sockets:
            bound.bind(("127.0.0.1", 0))
        return [bound.getsockname()[1] for bound in sockets]


def post(url, body):
    with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=60) as response:
        return json.load(response)


def picture(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Five PNG files of the model's size, a JPEG file of another, and a text."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "good").mkdir()
    for seed in range(5):
        Image.fromarray(picture((8, 8, 3), seed)).save(folder / "good" / f"{seed}.png")
    Image.fromarray(picture((20, 16, 3))).save(folder / "big.jpg")
    (folder / "text.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory, make_classifier):
    """The project's server with a small model of no name: its addresses, and the model as it was before the export."""
    folder = tmp_path_factory.mktemp("server")
    classifier = make_classifier()
    version = export(classifier, folder / "cifs", class_names=NAMES, formats=("savedmodel",))
    grpc_port, rest_port = free_ports(2)
    options = [f"--port={grpc_port}", f"--rest_api_port={rest_port}"]
    command = [sys.executable, "serving/server.py", f"--model_base_path={folder / 'cifs'}", *options]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    url = f"http://127.0.0.1:{rest_port}"
    try:
        wait_until_ready(f"{url}/v1/models/default/metadata", process, log)
        yield types.SimpleNamespace(
            url=url, grpc=f"127.0.0.1:{grpc_port}", classifier=classifier, labels=version / "labels.json"
        )
    finally:
        process.terminate()
        process.wait(60)


def wait_until_ready(url, process, log, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"the server is not ready:\n{log.read_text()[-3000:]}")


def run_client(*arguments):
    environment = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "serving/client.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def error_of(*arguments):
    """Run the client, and return its one sentence."""
    result = run_client(*arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("client.py: error: ")
    return line.removeprefix("client.py: error: ")


# Without a server: images.


def test_folders_and_files_are_found_in_order(files):
    found = find_images([files / "big.jpg", files / "good"])
    assert [path.name for path in found] == ["big.jpg", "0.png", "1.png", "2.png", "3.png", "4.png"]


def test_what_is_no_image_file_is_refused(files, tmp_path):
    with pytest.raises(UserError, match=r"images: received .*missing.png; there is no such file"):
        find_images([tmp_path / "missing.png"])
    with pytest.raises(UserError, match=r"the folder has no \.png, \.jpg, \.jpeg file"):
        find_images([tmp_path])
    with pytest.raises(UserError, match="images: received none"):
        find_images([])
    with pytest.raises(UserError, match=r"text\.png; it cannot be read as an image"):
        to_bytes(files / "text.png")
    truncated = (files / "good" / "0.png").read_bytes()[:60]
    with pytest.raises(UserError, match="received 60 bytes; it cannot be read as an image"):
        to_bytes(truncated)


def test_files_are_sent_as_they_are(files):
    content = (files / "big.jpg").read_bytes()
    assert to_bytes(files / "big.jpg") == content
    assert to_bytes(content) == content
    assert to_bytes(str(files / "big.jpg"), resize_to=(20, 16, 3)) == content


def test_a_uint8_array_is_sent_as_png():
    array = picture((8, 8, 3))
    sent = Image.open(io.BytesIO(to_bytes(array)))
    assert sent.format == "PNG"
    np.testing.assert_array_equal(np.asarray(sent), array)


def test_a_float_array_is_not_rounded_in_secret():
    with pytest.raises(UserError, match=r"received an array of float32; .*serving_default"):
        to_bytes(np.zeros((8, 8, 3), np.float32))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays_are_those_the_server_would_decode(channels):
    """A file decoded here equals `tf.io.decode_image` there, to a rounding of grey."""
    for shape in ((8, 6), (8, 6, 3), (8, 6, 4)):
        content = to_bytes_of(Image.fromarray(picture(shape)))
        expected = tf.io.decode_image(content, channels=channels).numpy() / 255.0
        array = to_array(content, (8, 6, channels))
        assert array.shape == (8, 6, channels)
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected, atol=1.01 / 255 if channels == 1 else 1e-7)


def test_of_16_bits_the_upper_eight_count():
    values = np.array([[0, 255, 256, 65535]], np.uint16)
    content = to_bytes_of(Image.fromarray(values))
    np.testing.assert_allclose(to_array(content, (1, 4, 1))[..., 0], [[0, 0, 1 / 255, 1]])


def to_bytes_of(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_another_size_needs_resize(files):
    with pytest.raises(UserError, match=r"big\.jpg, 16 by 20 pixels; the network takes 8 by 8 pixels.*--resize"):
        to_array(files / "big.jpg", (8, 8, 3))
    assert to_array(files / "big.jpg", (8, 8, 3), resize=True).shape == (8, 8, 3)
    assert Image.open(io.BytesIO(to_bytes(files / "big.jpg", resize_to=(8, 8, 1)))).size == (8, 8)
    with pytest.raises(UserError, match=r"array of shape \(4, 4, 3\); the network takes \(8, 8, 3\)"):
        to_array(np.zeros((4, 4, 3), np.float32), (8, 8, 3))
    with pytest.raises(UserError, match="one image at a time"):
        to_array(np.zeros((2, 8, 8, 3), np.uint8), (8, 8, 3))


# Without a server: what is shown.


def test_labels_are_a_list_or_an_object(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text('["ant", "bee"]')
    assert read_labels(path) == ["ant", "bee"]
    path.write_text('{"1": "bee", "0": "ant"}')
    assert read_labels(path) == ["ant", "bee"]
    assert read_labels(None) is None
    for wrong in ("[1, 2]", "[]", '{"0": "ant", "2": "cat"}', '"ant"', "not json", '{"a": "ant"}'):
        path.write_text(wrong)
        with pytest.raises(UserError, match=r"labels: received .*labels\.json"):
            read_labels(path)
    with pytest.raises(UserError, match="No such file"):
        read_labels(tmp_path / "missing.json")


@pytest.mark.parametrize("names", [["ant", "bee"], ["ant", "bee", "cat", "dog"]])
def test_labels_of_another_model_are_refused(names, tmp_path):
    outputs = {"probabilities": np.eye(3), "heads": np.zeros((3, 1, 3))}
    for show in (
        lambda: prediction_table(["a"] * 3, outputs["probabilities"], labels=names),
        lambda: list(explanation(["a"] * 3, outputs, labels=names)),
        lambda: draw(tmp_path / "a.png", ["a"] * 3, np.zeros((3, 2, 2, 1)), outputs, labels=names),
    ):
        with pytest.raises(UserError, match=f"labels: received {len(names)} names; the model has 3 classes"):
            show()


def test_the_likeliest_classes_come_first():
    table = prediction_table(["a[1].png"], np.array([[0.2, 0.7, 0.1]]), top=2, labels=["ant", "bee", "cat"])
    assert [str(cell) for cell in table.columns[0].cells] == ["a[1].png", ""]
    assert [str(cell) for cell in table.columns[1].cells] == ["bee", "ant"]
    assert list(table.columns[2].cells) == ["70.00 %", "20.00 %"]
    assert most_important(np.array([0.1, 0.4, 0.2, 0.4]), 3).tolist() == [1, 3, 2]


# Without a server that is TensorFlow Serving.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "ftp://127.0.0.1"}, "url: received ftp://127.0.0.1"),
        ({"target": "http://"}, "url: received http://"),
        ({"target": "http://127.0.0.1:port"}, "url: received http://127.0.0.1:port"),
        ({"model": ""}, "model: received ''"),
        ({"version": 1, "label": "stable"}, "not both"),
        ({"version": -1}, "version: received -1"),
        ({"batch_size": 0}, "batch_size: received 0"),
        ({"timeout": 0}, "timeout: received 0"),
        ({"target": "https://127.0.0.1", "tls_ca": "missing.pem"}, "tls_ca: received missing.pem"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Client(**arguments)


def test_no_server(files):
    (port,) = free_ports(1)
    message = error_of(files / "good" / "0.png", "--url", f"http://127.0.0.1:{port}")
    assert message.startswith(f"--url: received http://127.0.0.1:{port}; no server answers there (")
    assert "python serving/server.py --model_base_path DIR" in message


def test_a_server_that_says_nothing(files):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(UserError, match=r"timeout: received 0\.2 seconds; .* did not answer in that time"):
            Client(url, timeout=0.2).predict([files / "good" / "0.png"])


@pytest.fixture(scope="module")
def web_server(tmp_path_factory):
    """An ordinary web server that has a page where TensorFlow Serving would have metadata."""
    folder = tmp_path_factory.mktemp("web")
    for name, text in (("page", "<html>"), ("other", '{"metadata": 1}')):
        (folder / "v1" / "models" / name).mkdir(parents=True)
        (folder / "v1" / "models" / name / "metadata").write_text(text)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.mark.parametrize("model", ["page", "other", "nothing"])
def test_a_server_of_another_kind(web_server, model):
    with pytest.raises(UserError, match=r"is not TensorFlow Serving's REST interface"):
        Client(web_server, model).metadata()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png"], "--images: received missing.png; there is no such file"),
        ([], "--images: received none"),
        (["--top", "0"], "--top: received 0"),
        (["--picture", "why.png"], "--picture: received why.png; it draws what --explain finds"),
        (["--colour", "red"], "--colour: received an unknown option"),
        (["--version", "one"], "--version: received one; give an integer"),
    ],
)
def test_command_lines_that_do_not_fit(arguments, message):
    assert message in error_of(*arguments)


# With the project's server.


@pytest.mark.slow
class TestWithServer:
    @pytest.fixture(params=["url", "grpc"])
    def target(self, server, request):
        return getattr(server, request.param)

    def test_predictions_are_those_of_the_model(self, server, target, files):
        paths = find_images([files / "good"])
        images = np.stack([to_array(path, (8, 8, 3)) for path in paths])
        expected = tf.nn.softmax(server.classifier(images, training=False)[:, 0])
        outputs = Client(target).predict(paths)
        assert set(outputs) == {"probabilities", "logits", "probe_logits"}
        np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-5)
        # Batches of two, and floats in place of files, change nothing.
        other = Client(f"grpc://{target}" if "://" not in target else target, signature="serving_default", batch_size=2)
        np.testing.assert_allclose(other.predict(images)["probabilities"], expected, atol=1e-5)
        np.testing.assert_allclose(other.predict(paths)["logits"], outputs["logits"], atol=1e-5)

    def test_explanations_are_those_of_the_model(self, server, target, files):
        paths = find_images([files / "good"])
        found = server.classifier.explain(np.stack([to_array(path, (8, 8, 3)) for path in paths]))
        outputs = Client(target).explain(paths)
        np.testing.assert_allclose(outputs["heads"], found["heads"], atol=1e-4)
        assert outputs["disagreement"].shape == (5,)
        assert ((outputs["disagreement"] >= 0) & (outputs["disagreement"] <= 1)).all()
        for name in found["importance"]:
            np.testing.assert_allclose(outputs[f"importance_{name}"], found["importance"][name], atol=1e-5)
            assert f"relevance_{name}" in outputs

    def test_dashboards_ask_for_explanations_by_a_path(self, server, files):
        """`:explain` in TF Serving's form, and v2's `/explain`, are the signature `explain`."""
        image = to_array(files / "good" / "0.png", (8, 8, 3))
        expected = Client(server.url).explain([files / "good" / "0.png"])
        (row,) = post(f"{server.url}/v1/models/default:explain", {"instances": [image.tolist()]})["predictions"]
        tensor = {"name": "image", "datatype": "FP32", "shape": [1, 8, 8, 3], "data": image.reshape(-1).tolist()}
        for path in ("/v2/models/default/explain", "/v2/models/default/versions/1/explain"):
            found = post(server.url + path, {"inputs": [tensor]})["outputs"]
            assert {item["name"] for item in found} == set(row) == set(expected)
            for item in found:
                values = np.reshape(item["data"], item["shape"])
                np.testing.assert_allclose(values, expected[item["name"]], atol=1e-5)
                np.testing.assert_allclose(row[item["name"]], expected[item["name"]][0], atol=1e-5)

    def test_metadata(self, target):
        signatures = Client(target, version=1).metadata()
        encoded = signatures["encoded"]
        assert {name: (tensor.dtype, tensor.shape) for name, tensor in encoded.inputs.items()} == {
            "image_bytes": ("DT_STRING", (None,))
        }
        assert encoded.outputs["probabilities"].shape == (None, 5)
        assert signatures["explain"].inputs["image"].shape == (None, 8, 8, 3)

    def test_another_size(self, target, files):
        for ask in (Client(target).predict, Client(target).explain):
            with pytest.raises(UserError, match=r"big\.jpg, 16 by 20 pixels; the network takes 8 by 8.*--resize"):
                ask([files / "good" / "0.png", files / "big.jpg"])
        client = Client(target, resize=True)
        resized = client.predict([files / "big.jpg"])["probabilities"]
        np.testing.assert_allclose(resized, client.explain([files / "big.jpg"])["probabilities"], atol=1e-5)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"model": "nope"}, r"model: received nope; .* answered (404 Not Found|NOT_FOUND): Servable not found for"),
            ({"version": 9}, r"version: received 9 of default; .*Specific\(default, 9\)"),
            ({"label": "x"}, r"label: received x; .*Unrecognized servable version label: x"),
            ({"signature": "nope"}, r"signature: received nope; .* it has encoded, explain, .*serving_default"),
        ],
    )
    def test_the_server_says_what_is_wrong(self, target, files, arguments, message):
        with pytest.raises(UserError, match=message):
            Client(target, **arguments).predict([files / "good" / "0.png"])

    def test_a_server_behind_a_path_is_not_there(self, server):
        with pytest.raises(UserError, match="not TensorFlow Serving's REST interface"):
            Client(f"{server.url}/prefix").metadata()

    def test_the_wrong_port(self, server, files):
        with pytest.raises(UserError, match=r"^url: "):
            Client(f"http://{server.grpc}", timeout=5).predict([files / "good" / "0.png"])
        with pytest.raises(UserError, match=r"^url: .*TLS failed .*--tls_ca"):
            Client(server.url.replace("http:", "https:"), timeout=5).predict([files / "good" / "0.png"])
        with pytest.raises(UserError, match=r"^grpc: .*no server answers there"):
            Client(server.url.removeprefix("http://"), timeout=5).predict([files / "good" / "0.png"])

    @pytest.mark.parametrize("interface", ["url", "grpc"])
    def test_the_program_shows_classes_and_channels(self, server, files, tmp_path, interface):
        drawn = tmp_path / "why.png"
        result = run_client(
            *(files / "good", f"--{interface}", getattr(server, interface), "--labels", server.labels, "--top", "2"),
            *("--explain", "--channels", "4", "--picture", drawn),
        )
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        outputs = Client(server.url).explain(find_images([files / "good"]))
        first = NAMES[int(outputs["probabilities"][0].argmax())]
        assert re.search(rf"0\.png +{first} +{100 * outputs['probabilities'][0].max():.2f} %", result.stdout)
        assert f"disagreement {outputs['disagreement'][0]:.3f}" in result.stdout
        layers = [name.removeprefix("importance_") for name in outputs if name.startswith("importance_")]
        for layer in layers:
            assert f"{layer}: 4 of {outputs[f'importance_{layer}'].shape[1]} channels" in result.stdout
            assert re.search(rf"^ +{outputs[f'importance_{layer}'][0].argmax()} +0?\.?\d", result.stdout, re.MULTILINE)
        with Image.open(drawn) as image:
            assert image.format == "PNG"
            assert np.asarray(image.convert("L")).std() > 5

    def test_the_program_passes_errors_on(self, server, files):
        assert "--model: received nope; the server" in error_of(files / "good", "--url", server.url, "--model", "nope")
        message = error_of(files / "good", "--url", server.url, "--signature", "heads_full")
        assert "--signature: received heads_full; give one with an output probabilities" in message
        assert "cannot be read as an image" in error_of(files / "text.png", "--url", server.url)
        message = error_of(files / "good", "--url", server.url, "--explain", "--picture", files / "missing" / "why.png")
        assert "--picture" in message

    def test_what_is_sent_is_what_curl_would_send(self, server, files):
        """The README's curl and this client ask the same."""
        content = base64.b64encode((files / "good" / "0.png").read_bytes()).decode()
        body = json.dumps({"signature_name": "encoded", "instances": [{"b64": content}]}).encode()
        with urllib.request.urlopen(f"{server.url}/v1/models/default:predict", body) as response:
            (row,) = json.load(response)["predictions"]
        answer = Client(server.url).predict([files / "good" / "0.png"])
        np.testing.assert_allclose(answer["probabilities"][0], row["probabilities"], atol=1e-6)
