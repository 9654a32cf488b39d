"""The playground's page on the REST port: what of the served versions it shows, and what not."""

import contextlib
import gzip
from pathlib import Path

import pytest

from cifs_tf.errors import UserError
from cifs_tf.export import GRADIENT_FILE
from cifs_tf.serving.endpoint.models.served_models import ServedModel
from cifs_tf.serving.endpoint.models.versions import Versions
from cifs_tf.serving.endpoint.options import ServerOptions
from cifs_tf.serving.endpoint.rest import playground_page
from cifs_tf.serving.endpoint.rest.playground_page import PLAYGROUND_PATH, PlaygroundPage


@pytest.fixture
def page(tmp_path):
    """Three models: `cifs` and `other one` can be attacked, `plain` cannot."""
    for name, files in (("cifs", ["3"]), ("other one", ["1"]), ("plain", [])):
        version = tmp_path / name / "3"
        version.mkdir(parents=True)
        (version / "saved_model.pb").write_text("secret")
        for text in files:
            (version / GRADIENT_FILE).write_text(text * 1000)
            (version / "labels.json").write_text('["a", "b"]')
    (tmp_path / "cifs" / "3" / "playground.json").write_text('{"name": "CIFS"}')
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "ort.wasm.min.mjs").write_text("// runtime")
    versions = Versions(lambda path: contextlib.nullcontext())
    versions.configure([ServedModel(name, tmp_path / name) for name in ("plain", "cifs", "other one")])
    versions.poll()
    return PlaygroundPage(versions, tmp_path / "runtime")


def ask(page, path, **headers):
    assert PLAYGROUND_PATH.fullmatch(path)
    return page.answer(path, {name.encode(): value.encode() for name, value in headers.items()})


def test_the_page_opens_with_the_networks_that_can_be_attacked(page):
    expected = "/playground/?model=served%2Fcifs%2F3&model=served%2Fother%2520one%2F3"
    for path in ("/playground", "/playground/"):
        response = ask(page, path)
        assert (response.status_code, response.headers["location"]) == (307, expected)
    response = ask(page, expected)
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"Playground" in response.body


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("served/cifs/3/heads_and_gradient.onnx", b"3" * 1000),
        ("served/cifs/3/labels.json", b'["a", "b"]'),
        ("served/cifs/3/playground.json", b'{"name": "CIFS"}'),
        ("served/other%20one/3/playground.json", b'{"name": "other one"}'),
        ("vendor/ort.wasm.min.mjs", b"// runtime"),
        ("served/cifs/3/saved_model.pb", None),
        ("served/cifs/4/labels.json", None),
        ("served/cifs/99999999999999999999/labels.json", None),
        ("served/nobody/3/labels.json", None),
        ("served/plain/3/heads_and_gradient.onnx", None),
        ("served/..%2Fcifs/3/labels.json", None),
        ("../rest.py", None),
        ("%2e%2e/%2e%2e/pyproject.toml", None),
    ],
)
def test_of_a_version_the_page_reads_three_files(page, path, content):
    response = ask(page, f"/playground/{path}")
    assert response.status_code == (404 if content is None else 200)
    assert content is None or response.body == content


def test_files_travel_packed(page):
    packed = ask(page, "/playground/served/cifs/3/heads_and_gradient.onnx", **{"accept-encoding": "br, gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == b"3" * 1000
    assert len(packed.body) == int(packed.headers["content-length"]) < 100


def test_without_such_models_it_shows_the_presets(page, tmp_path):
    (tmp_path / "cifs" / "3" / GRADIENT_FILE).unlink()
    (tmp_path / "other one" / "3" / GRADIENT_FILE).unlink()
    assert ask(page, "/playground").headers["location"] == "/playground/"
    assert ask(page, "/playground/").status_code == 200


def test_names():
    assert playground_page.GRADIENT_FILE == GRADIENT_FILE
    assert not PLAYGROUND_PATH.fullmatch("/playgrounds")
    with pytest.raises(UserError, match="--enable_playground: received True; it is shown at --rest_api_port"):
        ServerOptions(model_base_path=str(Path.cwd()), rest_api_port=0, enable_playground=True)
