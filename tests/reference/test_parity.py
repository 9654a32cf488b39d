"""Parity with the official code, on every recording that is in the repository."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

HERE = Path(__file__).parent
RECORDINGS = sorted((HERE / "golden").glob("resnet18_*.npz"))

spec = importlib.util.spec_from_file_location("check", HERE / "check.py")
assert spec is not None
assert spec.loader is not None
check = importlib.util.module_from_spec(spec)
sys.modules["check"] = check
spec.loader.exec_module(check)


@pytest.fixture(autouse=True)
def _restore_floatx():
    yield
    keras.config.set_floatx("float32")


def recordings():
    """CIFS in float64, the sharper comparison, in every `make test`; one more in CI, all others in the soak."""
    marks = {"resnet18_cifs-float64": [], "resnet18_cifs_sharp-float64": pytest.mark.slow}
    for path in RECORDINGS:
        for precision in ("float64", "float32"):
            name = f"{path.stem}-{precision}"
            yield pytest.param(path, precision, id=name, marks=marks.get(name, pytest.mark.soak))


@pytest.mark.parametrize(("path", "precision"), recordings())
def test_recording_is_reproduced(path, precision):
    deviations = check.check_recording(path, precision)
    recorded = set(np.load(path).files) - {"images", "labels"}
    assert {deviation.array.split(",")[0] for deviation in deviations} == recorded
    assert [deviation for deviation in deviations if not deviation.passed] == []


@pytest.mark.parametrize(
    "limit", [pytest.param(30, marks=pytest.mark.slow), pytest.param(None, marks=pytest.mark.soak)]
)
def test_autoattack_is_as_strong_as_the_official_one(limit):
    """The four attacks of the standard version and APGD-DLR, each alone on 30 images, or on all 500."""
    deviations = check.check_autoattack(HERE / "golden" / "autoattack_fashion_mnist.npz", limit)
    columns = {deviation.array.split(",")[0] for deviation in deviations}
    assert columns == {"clean_logits", "apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square", "standard"}
    assert [deviation for deviation in deviations if not deviation.passed] == []


@pytest.mark.soak
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_autoattack_is_as_strong_in_other_balls(norm):
    """The standing sets of the official code in L2 (500 images) and L1 (100), see `official_seconds.py`."""
    deviations = check.check_autoattack(HERE / "golden" / f"autoattack_fashion_mnist_{norm}.json")
    assert [deviation for deviation in deviations if not deviation.passed] == []


def test_recordings_of_other_balls():
    """A `.json` names the network beside it, its ball and its images; AutoAttack's budgets differ in L1."""
    for norm, epsilon, number, ce, t in (("l2", 0.8, 500, 1, 9), ("l1", 4.0, 100, 5, 5)):
        recording = check.Recording.load(HERE / "golden" / f"autoattack_fashion_mnist_{norm}.json")
        assert (recording.norm, recording.epsilon, len(recording.split)) == (norm, epsilon, number)
        assert recording.clean_deviation < 1e-4
        assert set(recording.robust) == {"apgd_ce", "apgd_t", "fab_t", "square", "standard"}
        assert {len(robust) for robust in recording.robust.values()} == {number}
        expected = np.logical_and.reduce([recording.robust[name] for name in ("apgd_ce", "apgd_t", "fab_t", "square")])
        np.testing.assert_array_equal(recording.robust["standard"], expected)
        tasks = {column: recording.tasks(column) for column in ("apgd_ce", "apgd_t", "fab_t", "square")}
        assert [len(each) for each in tasks.values()] == [ce, t, 9, 1]
        assert {(task.attack.norm, task.attack.epsilon) for each in tasks.values() for task in each} == {
            (norm, epsilon)
        }
        assert len({task.name for each in tasks.values() for task in each}) == ce + t + 9 + 1
        assert len(check.Recording.load(HERE / "golden" / f"autoattack_fashion_mnist_{norm}.json", 7).split) == 7


def test_weaker_attacks_fail_and_stronger_ones_do_not(monkeypatch, tmp_path):
    """500 images: 3 more standing in a column are allowed, 4 are not; any number less is."""
    arrays = dict(np.load(HERE / "golden" / "autoattack_fashion_mnist.npz"))
    kept = {name: value for name, value in arrays.items() if not name.startswith(("robust", "seconds"))}
    expected = arrays["robust_apgd_ce"]
    np.savez(tmp_path / "autoattack_few.npz", **kept, robust_apgd_ce=expected)
    for more, passes in ((-50, True), (0, True), (3, True), (4, False)):
        found = expected.copy()
        where = np.flatnonzero(expected if more < 0 else ~expected)[: abs(more)]
        found[where] = more > 0
        monkeypatch.setattr(check.Recording, "run", lambda self, columns, found=found: ({"apgd_ce": found}, {}))
        deviations = check.check_autoattack(tmp_path / "autoattack_few.npz")
        assert all(deviation.passed for deviation in deviations) == passes, more


def test_a_deviation_is_found():
    recorded = {"eval_logits": np.array([[1.0, 2.0]])}
    assert check.compare(recorded, {"eval_logits": np.array([[1.0, 2.0 + 1e-8]])}, "float64")[0].passed
    assert not check.compare(recorded, {"eval_logits": np.array([[1.0, 2.0 + 1e-5]])}, "float64")[0].passed
    assert not check.compare(recorded, {"eval_logits": np.array([[1.0, math.nan]])}, "float64")[0].passed
    assert not check.compare(recorded, {}, "float64")[0].passed


def test_parameter_rules():
    """The rules of the recordings, written out with NumPy."""
    normal = np.random.default_rng([3, 5]).standard_normal((4, 2, 3, 3))
    spec = {"index": 5, "name": "w", "shape": [4, 2, 3, 3], "rule": "standard_normal*sqrt(2/fan_in) * 15.0"}
    expected = (normal * math.sqrt(2 / 18) * 15).astype(np.float32)
    np.testing.assert_array_equal(check.parameter(3, spec), expected)


@pytest.mark.slow
def test_program_refuses_an_empty_folder(tmp_path):
    result = subprocess.run(
        [sys.executable, str(HERE / "check.py"), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert str(tmp_path) in result.stderr


@pytest.mark.slow
def test_program_fails_on_a_changed_recording(tmp_path):
    """A recording whose numbers are not ours makes the program exit with 1."""
    source = HERE / "golden" / "resnet18_vanilla.npz"
    arrays = dict(np.load(source))
    arrays["eval_logits"] = arrays["eval_logits"] * 1.01
    kept = {name: arrays[name] for name in ("images", "labels", "eval_logits")}
    np.savez(tmp_path / source.name, **kept)
    (tmp_path / source.with_suffix(".json").name).write_text(source.with_suffix(".json").read_text())
    deviations = check.check_recording(tmp_path / source.name, "float32")
    assert [deviation.passed for deviation in deviations] == [False]
