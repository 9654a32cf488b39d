"""The playground's program: what it serves, what it refuses, and how it ends."""

import gzip
import http.client
import re
import signal
import subprocess
import sys
import threading

import pytest

from cifs_tf.errors import UserError
from cifs_tf.playground import vendor
from cifs_tf.playground.server import PAGE, find_file, make_server
from cifs_tf.programs.playground import main


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/", "index.html"),
        ("/index.html", "index.html"),
        ("/models/digits_cifs/labels.json", "labels.json"),
        ("/../server.py", None),
        ("/%2e%2e/%2e%2e/pyproject.toml", None),
        ("/models", None),
        ("/models/", None),
        ("/no.html", None),
        ("/a%00.html", None),
    ],
)
def test_only_files_of_the_page_are_found(path, found):
    file = find_file(path, {"/": PAGE})
    assert (file and file.name) == found


def test_a_link_that_leads_outside_is_not_followed(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "inside" / "link.json").symlink_to(tmp_path / "secret.json")
    assert find_file("/link.json", {"/": tmp_path / "inside"}) is None


def test_types_and_lengths(tmp_path):
    (tmp_path / "runtime.wasm").write_bytes(b"\0asm")
    server = make_server({"/": PAGE, "/vendor/": tmp_path}, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    for path, kind in (
        ("/", "text/html"),
        ("/main.js", "text/javascript"),
        ("/vendor/runtime.wasm", "application/wasm"),
    ):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Content-Type"].split(";")[0]) == (200, kind)
        plain = answer.read()
        assert len(plain) == int(answer.headers["Content-Length"])
        for accepted, packed in (("gzip, br", True), ("gzip;q=0, br", False), ("br;q=0, gzip; q=0.5", True)):
            connection.request("GET", path, headers={"Accept-Encoding": accepted})
            answer = connection.getresponse()
            assert (answer.headers.get("Content-Encoding") == "gzip") is packed
            assert (gzip.decompress(answer.read()) if packed else answer.read()) == plain
    connection.request("HEAD", "/vendor/none.wasm")
    assert connection.getresponse().status == 404
    server.shutdown()
    server.server_close()


@pytest.fixture
def with_runtime(tmp_path, monkeypatch):
    """A cache that holds the files of onnxruntime-web, or stands for them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vendor.cache_folder().mkdir(parents=True)
    for name in (*vendor.FILES, "NOTICE.txt"):
        (vendor.cache_folder() / name).write_text("")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--port=70000"], "--port: received 70000"),
        (["--run=none"], "--run: received none"),
        (["--prot=1"], "did you mean --port"),
    ],
)
def test_bad_options_are_refused(argv, named):
    with pytest.raises(UserError, match=named):
        main(argv)


def test_ctrl_c_ends_it_cleanly(with_runtime, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "cifs_tf", "playground", "--open=false"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", line)[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/")
    assert b"Playground" in connection.getresponse().read()
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")


def test_another_package_than_the_tested_one_is_not_used(tmp_path, monkeypatch):
    """An npm that delivers something else."""
    npm = tmp_path / "npm"
    npm.write_text('#!/bin/sh\nfor last; do :; done\necho other > "$last/other.tgz"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="hash"):
        vendor.vendor_runtime()
    assert not vendor.cache_folder().exists()


def test_without_npm_it_is_said_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"install Node\.js"):
        vendor.vendor_runtime()
