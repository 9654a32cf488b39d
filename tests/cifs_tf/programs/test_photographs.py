"""Photographs through the public programs: many of them, and runs that are killed while they are decoded."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.photographs import make_photographs
from tests.running import run, start

NETWORK = ["--arch=resnet10", "--stem=7x7", "--width=4", "--num_steps=1", "--twin=null", "--export=false"]
MEASURED = ["--attacks=[fgsm]", "--attack_betas=[0]", "--eval_audit=false", "--checkpoints=[last]"]
GIB = 2**30


def weights(workdir):
    return keras.models.load_model(workdir / "cifs" / "last.keras", compile=False).get_weights()


@pytest.mark.soak
@pytest.mark.parametrize("num_kills", [3, 20])
def test_a_run_killed_while_it_decodes_or_trains_ends_with_the_same_weights(
    num_kills, tmp_path, kill_at_random_moments
):
    """Killed at random moments, of decoding too, and read from the cache: the weights of a run in memory."""
    make_photographs(tmp_path / "photographs", 400)
    argv = ["--dataset=folder:photographs", "--image_size=32", *NETWORK, *MEASURED, "--epochs=2", "--batch_size=40"]
    argv += ["--augmentation=resized_crop_flip", "--val_examples=20", "--test_examples=20", "--checkpoint_minutes=0.02"]
    started = time.monotonic()
    code, _, err = run(*argv, "--cache=memory", "--workdir=memory", cwd=tmp_path)
    assert code == 0, err
    duration = time.monotonic() - started
    on_disk = [*argv, "--cache=disk", "--cache_dir=cache", "--workdir=disk"]
    assert kill_at_random_moments(lambda: start(*on_disk, cwd=tmp_path), num_kills, duration) > 0
    code, out, err = run(*on_disk, cwd=tmp_path)
    assert code == 0, err
    assert "images are read from cache/photographs-" in out
    for expected, received in zip(weights(tmp_path / "memory"), weights(tmp_path / "disk"), strict=True):
        np.testing.assert_array_equal(received, expected)


def peak_while_it_trains(argv, cwd):
    """Resident memory at its peak, as the kernel counts it, until some steps of training are over."""
    process, peak = start(*argv, "--workdir=run", cwd=cwd), 0
    while process.poll() is None and not list(cwd.glob("run/cifs/checkpoints/step-*")):
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))])
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert list(cwd.glob("run/cifs/checkpoints/step-*")), err
    return peak


@pytest.mark.soak
def test_thirty_thousand_photographs_take_the_memory_of_a_hundred(tmp_path):
    """4.5 GB decoded at 224 pixels: trained on for a minute, less than 3 GiB above the same run on 100."""
    peaks = []
    for number in (100, 30_000):
        cwd = tmp_path / str(number)
        make_photographs(cwd / "photographs", number)
        argv = ["--dataset=folder:photographs", "--image_size=224", *NETWORK, *MEASURED, "--batch_size=40"]
        argv += ["--cache=disk", "--cache_dir=cache", "--val_examples=20", "--checkpoint_minutes=0.5", "--epochs=1"]
        peaks.append(peak_while_it_trains(argv, cwd))
    assert peaks[1] - peaks[0] < 3 * GIB
