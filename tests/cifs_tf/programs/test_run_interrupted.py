"""Runs that are killed, told to end, diverge or fill the disk: nothing is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from tests.running import ROOT, SMALL, run, run_here, start

# The quickest to compile.
PLAIN = ["--defense=vanilla", "--method=standard", "--twin=null"]


def files_of(workdir):
    """What a run leaves; the clock names events, and the checkpoints within an epoch."""
    files = (file for file in workdir.rglob("*") if "tfevents" not in file.name and not file.name.startswith("step-"))
    return {file.relative_to(workdir) for file in files}


@pytest.mark.parametrize(
    ("num_kills", "shorter"),
    [
        pytest.param(1, ["--epochs=4", "--export=false"], marks=pytest.mark.slow, id="once"),
        pytest.param(20, ["--epochs=8"], marks=pytest.mark.soak, id="20 times"),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been(num_kills, shorter, tmp_path, kill_at_random_moments):
    """Killed at random moments of training, evaluation and export, a run ends with the same weights and accuracies."""
    argv = [*SMALL, "--twin=null", "--checkpoint_minutes=0.02", "--attacks=[fgsm]", *shorter]
    started = time.monotonic()
    code, _, err = run(*argv, "--workdir=whole", cwd=tmp_path)
    assert code == 0, err
    duration = time.monotonic() - started
    assert kill_at_random_moments(lambda: start(*argv, "--workdir=killed", cwd=tmp_path), num_kills, duration) > 0
    code, _, err = run(*argv, "--workdir=killed", cwd=tmp_path)
    assert code == 0, err

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    weights = [keras.models.load_model(path / "cifs" / "last.keras").get_weights() for path in (whole, killed)]
    for expected, received in zip(*weights, strict=True):
        np.testing.assert_array_equal(received, expected)
    networks = [json.loads((path / "result.json").read_text())["networks"] for path in (whole, killed)]
    assert networks[0] == networks[1]
    assert files_of(whole) == files_of(killed)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    argv = [*SMALL, "--twin=null", "--learning_rate=1e30", "--epochs=2", "--export=false", "--workdir=run"]
    code, out, err = run_here(*argv, cwd=tmp_path)
    assert code == 2, out
    for words in ("--on_nan: received stop", "was not finite in step", "(epoch 1)", "--on_nan skip"):
        assert words in err
    assert "Traceback" not in err
    network = tmp_path / "run" / "cifs"
    assert not (network / "last.keras").exists()
    assert {file.suffix for file in (network / "not_finite").iterdir()} == {".json", ".npz"}


@pytest.mark.soak  # in CI: the same of a trainer in tests/cifs_tf/runs/test_checkpoints.py, and the kill above
def test_sigterm_saves_and_the_run_goes_on(tmp_path):
    """Ended in the middle of training, with code 0 and a sentence; it ends as if it had not been."""
    argv = [*SMALL, *PLAIN, "--epochs=12", "--export=false", "--attacks=[fgsm]"]
    process = start(*argv, "--workdir=run", cwd=tmp_path)
    checkpoints = tmp_path / "run" / "vanilla" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "run.py: ended by SIGTERM" in err
    assert "Traceback" not in err
    newest = sorted(checkpoints.glob("step-*"))[-1].name
    code, out, err = run(*argv, "--workdir=run", cwd=tmp_path)
    assert code == 0, err
    assert f"continuing after step {int(newest[5:13])}" in out
    assert len(json.loads((tmp_path / "run" / "vanilla" / "history.json").read_text())) == 12


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path):
    """No file may grow beyond 64 KB, which a checkpoint would."""
    argv = [*SMALL, *PLAIN, "--epochs=1", "--export=false", "--attacks=[fgsm]", "--workdir=run"]
    limited = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", limited, str(ROOT / "training" / "run.py"), *argv]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 2, process.stderr
    assert "the disk is full" in process.stderr
    assert "Traceback" not in process.stderr
    assert not [file for file in tmp_path.rglob("*") if file.name.startswith(".writing")]
    code, _, err = run(*argv, cwd=tmp_path)
    assert code == 0, err
