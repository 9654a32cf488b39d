"""Versions by themselves, with servables that a test can hold."""

import threading
import time
from pathlib import Path

import pytest

from cifs_tf.serving.endpoint.models.served_models import ServedModel
from cifs_tf.serving.endpoint.models.versions import Versions
from cifs_tf.serving.endpoint.status import Code, StatusError


class Servable:
    def __init__(self, path):
        self.text = (path / "model").read_text()
        if self.text == "broken":
            raise StatusError(Code.INVALID_ARGUMENT, "it is broken")
        self.closed = False

    def close(self):
        self.closed = True


@pytest.fixture
def base(tmp_path):
    return tmp_path / "m"


def publish(base, name, text="works"):
    (base / str(name)).mkdir(parents=True, exist_ok=True)
    (base / str(name) / "model").write_text(text)


def serve(base, retries=0, interval=60.0, **config):
    versions = Versions(Servable, max_load_retries=retries, retry_interval=interval)
    versions.configure([ServedModel("m", base, **config)])
    versions.poll()
    return versions


def states(versions):
    return {status.version: status.State.Name(status.state) for status in versions.states("m")}


def number_in_use(versions, **wanted):
    with versions.use("m", **wanted) as version:
        return version.number


def test_only_numbers_are_versions(base):
    for name in ("1", "00000012", "3.tmp", ".exporting-x", "latest", "²", "9" * 30):
        publish(base, name)
    versions = serve(base, all_versions=True)
    assert states(versions) == {12: "AVAILABLE", 1: "AVAILABLE"}
    assert number_in_use(versions) == 12


@pytest.mark.parametrize(
    ("policy", "expected"),
    [({}, {3}), ({"latest": 2}, {2, 3}), ({"specific": (1, 3, 7)}, {1, 3}), ({"all_versions": True}, {1, 2, 3})],
)
def test_policies(base, policy, expected):
    for number in (1, 2, 3):
        publish(base, number)
    assert set(states(serve(base, **policy))) == expected


def test_a_version_in_use_is_not_closed(base):
    publish(base, 1)
    versions = serve(base)
    with versions.use("m") as old:
        servable = old.servable
        publish(base, 2)
        poll = threading.Thread(target=versions.poll)
        poll.start()
        while states(versions).get(1) != "UNLOADING":
            time.sleep(0.01)
        assert number_in_use(versions) == 2
        assert not servable.closed
    poll.join(10)
    assert servable.closed
    assert states(versions) == {2: "AVAILABLE", 1: "END"}


def test_a_broken_version_replaces_nothing_and_is_tried_again_when_it_changes(base):
    publish(base, 1)
    versions = serve(base)
    publish(base, 2, "broken")
    versions.poll()
    assert states(versions) == {2: "END", 1: "AVAILABLE"}
    assert versions.states("m", 2)[0].status.error_message == "it is broken"
    versions.poll()
    assert number_in_use(versions) == 1
    publish(base, 2, "mended")
    versions.poll()
    assert states(versions) == {2: "AVAILABLE", 1: "END"}
    assert versions.states("m", 2)[0].status.error_message == ""


def test_a_version_is_tried_so_often(base, monkeypatch):
    publish(base, 1, "broken")
    tries = []
    monkeypatch.setattr(Servable, "__init__", lambda self, path: tries.append(path) or 1 / 0)
    monkeypatch.setattr("cifs_tf.serving.endpoint.models.versions._listing", lambda path: ())

    def load(path):
        tries.append(path)
        raise StatusError(Code.INVALID_ARGUMENT, "it is broken")

    versions = Versions(load, max_load_retries=2, retry_interval=1e-9)
    versions.configure([ServedModel("m", base)])
    for _ in range(5):
        versions.poll()
        time.sleep(0.001)
    assert len(tries) == 3


def test_folders_that_vanish_take_nothing_away(base):
    publish(base, 1)
    versions = serve(base)
    (base / "1" / "model").unlink()
    (base / "1").rmdir()
    versions.poll()
    assert number_in_use(versions) == 1


def test_a_model_that_is_no_longer_asked_for_ends(base):
    publish(base, 1)
    versions = serve(base)
    versions.configure([])
    versions.poll()
    with pytest.raises(StatusError, match=r"Servable not found for request: Latest\(m\)"), versions.use("m"):
        pass


def test_labels(base):
    for number in (1, 2):
        publish(base, number)
    versions = serve(base, latest=2, labels={"stable": 1})
    assert number_in_use(versions, label="stable") == 1
    assert number_in_use(versions) == 2
    with pytest.raises(StatusError, match="Unrecognized servable version label: x"), versions.use("m", label="x"):
        pass
    with pytest.raises(StatusError, match="not currently available for inference"):
        versions.configure([ServedModel("m", base, labels={"canary": 7})])
    assert number_in_use(versions, label="stable") == 1


def test_zero_is_the_latest_unless_it_is_there(base):
    for number in (1, 2):
        publish(base, number)
    versions = serve(base, all_versions=True)
    assert number_in_use(versions, number=0) == 2
    assert len(versions.states("m", 0)) == 2
    publish(base, 0)
    versions.poll()
    assert number_in_use(versions, number=0) == 0


def test_nothing_there_yet(tmp_path):
    versions = serve(Path(tmp_path / "nowhere"))
    with pytest.raises(StatusError, match="Could not find any versions of model m"):
        versions.states("m")
    publish(tmp_path / "nowhere", 1)
    versions.poll()
    assert number_in_use(versions) == 1
