"""Several workers on this machine train as one process does; one of them dies, the job ends all the same."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.running import ROOT, SMALL, run, run_here

pytestmark = [pytest.mark.slow, pytest.mark.multi_worker]
LAUNCH = [sys.executable, str(ROOT / "training" / "launch" / "local.py")]
PROGRAM = ["--", str(ROOT / "training" / "run.py"), "--strategy", "multiworker"]
DIGITS = [*SMALL, "--precision=float32", "--learning_rate=0.01", "--export=false", "--attack_betas=[0]", "--twin=null"]
DIGITS += ["--attacks=[fgsm]"]


def launch(*argv, cwd, workers=2):
    """Start the workers, whose process group is their own."""
    command = [*LAUNCH, f"--workers={workers}", *PROGRAM, *argv]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def weights(workdir):
    return keras.models.load_model(workdir / "cifs" / "last.keras", compile=False).get_weights()


def largest_difference(first, second):
    """Of two lists of weights, relative to the largest of each variable."""
    return max(
        np.abs(one - other).max() / max(np.abs(one).max(), 1e-12) for one, other in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_workers_make_the_step_of_one_process_and_share_the_attacks(workers, tmp_path):
    arguments = [*DIGITS, "--train_examples=16", "--val_examples=6", "--epochs=1"]
    job = launch(*arguments, "--workdir=several", cwd=tmp_path, workers=workers)
    returned, _, errors = run_here(*arguments, "--workdir=one", cwd=tmp_path)
    assert returned == 0, errors
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "several")) <= 1e-5
    one, several = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "several"))
    for name, value in one["networks"]["cifs"]["history"][-1].items():
        assert several["networks"]["cifs"]["history"][-1][name] == pytest.approx(value, abs=2e-3), name
    evaluation = several["networks"]["cifs"]["evaluation"]["last"]
    assert evaluation["num_examples"] == one["networks"]["cifs"]["evaluation"]["last"]["num_examples"]
    ledgers = {path.name for path in (tmp_path / "several").rglob("ledger*.jsonl")}
    assert ledgers == {"ledger.jsonl", *(f"ledger-{worker + 1}-of-{workers}.jsonl" for worker in range(workers))}


def workers_of(launcher):
    """Process ids of the launcher's workers."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(child) for child in children]


@pytest.mark.soak
@pytest.mark.parametrize("killed", [-1, 0], ids=["worker", "chief"])
def test_a_killed_worker_is_started_again_and_the_run_is_that_of_one_process(killed, tmp_path):
    arguments = [*DIGITS, "--epochs=3", "--val_examples=6", "--checkpoint_minutes=0.001"]
    job = launch(*arguments, "--workdir=job", cwd=tmp_path)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "job").glob("cifs/checkpoints/step-*.npz")):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(workers_of(job)[killed], signal.SIGKILL)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    assert "continuing after step" in output
    returned, _, errors = run(*arguments, "--workdir=one", cwd=tmp_path)
    assert returned == 0, errors
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "job")) <= 1e-3
    assert (tmp_path / "job" / "result.json").exists()
    one, several = (json.loads((tmp_path / name / "cifs" / "history.json").read_text()) for name in ("one", "job"))
    assert len(several) == 3
    for expected, logged in zip(one, several, strict=True):
        assert logged == pytest.approx(expected, abs=2e-3)


@pytest.mark.soak
def test_workers_that_cannot_share_a_batch_are_told(tmp_path):
    job = launch(*DIGITS, "--batch_size=15", "--workdir=job", cwd=tmp_path)
    output, _ = job.communicate(timeout=240)
    assert job.returncode == 2
    assert "--batch_size: received 15; give a multiple of 2" in output
    assert not (tmp_path / "job").exists()
