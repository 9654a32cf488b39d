"""The program from the outside: real runs on real digits, interrupted ones, and refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("CIFS_SHARED", ROOT.parent / "shared"))
SMALL = [
    "--arch=resnet10",
    "--width=4",
    "--train-examples=64",
    "--test_examples=20",
    "--batch_size=16",
    "--num_steps=2",
    "--attacks=[fgsm, pgd3]",
    "--attack_betas=[0, 2]",
]


def start(*argv, cwd):
    command = [sys.executable, str(ROOT / "training" / "run.py"), *argv]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*argv, cwd):
    process = start(*argv, cwd=cwd)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.slow
def test_run_trains_attacks_and_exports_in_its_workdir_only(tmp_path):
    argv = [*SMALL, "--epochs=2", "--val_examples=30", "--workdir=out"]
    code, out, err = run(*argv, cwd=tmp_path)
    assert code == 0, err
    assert [child.name for child in tmp_path.iterdir()] == ["out"]
    workdir = tmp_path / "out"
    assert {child.name for child in workdir.iterdir()} == {"config.yaml", "result.json", "cifs", "vanilla", "export"}
    assert (workdir / "export" / "cifs" / "1" / "saved_model.pb").exists()
    assert list((workdir / "cifs" / "tensorboard").rglob("events.out.tfevents.*"))
    result = json.loads((workdir / "result.json").read_text())
    assert result["config"]["epochs"] == 2
    assert result["versions"]["tensorflow"]
    for defense, betas in (("vanilla", {"0"}), ("cifs", {"0", "2"})):
        network = result["networks"][defense]
        assert network["evaluation"]["num_examples"] == 20
        assert set(network["evaluation"]["robust"]["pgd3"]) == betas
        assert len(network["history"]) == 2
        assert {"loss", "robust_accuracy", "val_accuracy", "val_robust_accuracy"} <= set(network["history"][0])
    for words in ("vanilla", "cifs", "natural", "fgsm", "pgd3", "exported SavedModel", "export/cifs/1"):
        assert words in out

    # The same command again finds everything done; another config is refused and changes nothing.
    before = (workdir / "result.json").read_text()
    code, again, _ = run(*argv, cwd=tmp_path)
    assert code == 0
    assert "Epoch" not in again
    assert json.loads((workdir / "result.json").read_text())["networks"] == json.loads(before)["networks"]
    code, _, err = run(*argv, "--beta=3", cwd=tmp_path)
    assert code == 2
    assert "--workdir: received out" in err


@pytest.mark.slow
def test_an_interrupted_run_continues_and_ends_as_if_it_had_not_been(tmp_path):
    """Killed after an epoch, a run ends with the weights of one that was not killed."""
    argv = [*SMALL, "--twin=null", "--epochs=6", "--export=false"]
    code, _, err = run(*argv, "--workdir=whole", cwd=tmp_path)
    assert code == 0, err
    process = start(*argv, "--workdir=killed", cwd=tmp_path)
    checkpoints = tmp_path / "killed" / "cifs" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("epoch-*.weights.h5")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "cifs" / "model.keras").exists()
    code, out, err = run(*argv, "--workdir=killed", cwd=tmp_path)
    assert code == 0, err
    assert "continuing after epoch" in out

    import keras

    whole, killed = (keras.models.load_model(tmp_path / name / "cifs" / "model.keras") for name in ("whole", "killed"))
    for expected, received in zip(whole.get_weights(), killed.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)
    results = [json.loads((tmp_path / name / "result.json").read_text())["networks"] for name in ("whole", "killed")]
    assert results[0] == results[1]


@pytest.mark.slow
def test_warm_start_from_a_naturally_trained_network(tmp_path):
    argv = [*SMALL, "--twin=null", "--epochs=1", "--export=false"]
    code, _, err = run(*argv, "--method=standard", "--workdir=natural", cwd=tmp_path)
    assert code == 0, err
    code, _, err = run(*argv, "--warm_start=natural", "--loss_scale=official", "--workdir=robust", cwd=tmp_path)
    assert code == 0, err
    code, _, err = run(*argv, "--warm_start=natural", "--width=8", "--workdir=wider", cwd=tmp_path)
    assert code == 2
    assert "--warm_start: received natural" in err
    assert not (tmp_path / "wider").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["svhn", "cifar10", "fashion_mnist"])
def test_paper_recipes_run_on_real_images(dataset, tmp_path):
    if not SHARED.is_dir():
        pytest.skip(f"needs the prepared datasets, and {SHARED} is not there")
    argv = ["--dataset", dataset, "--data-dir", str(SHARED / "data"), "--epochs", "1", "--lr_milestones", "[1]"]
    small = [*SMALL, "--train-examples=32", "--export=false", "--workdir=run"]
    code, out, err = run(*argv, *small, cwd=tmp_path)
    assert code == 0, err
    assert "pgd3" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--dataset=nope"], ["--dataset", "nope", "folder:PATH"]),
        (["--top_k=11"], ["--top_k", "11", "10"]),
        (["--num_classes=3"], ["--num_classes", "3", "10 classes"]),
        (["--workdir=/dev/null/run"], ["--workdir", "/dev/null/run", "another folder"]),
        (["--dataset=cifar100", "--data-dir=empty"], ["--dataset", "cifar100", "--data_dir", "downloaded"]),
        (["--train_examples=9999"], ["--train_examples", "9999", "1437"]),
        (["--cuts=[stage4_blok1_out, pool]"], ["--cuts", "stage4_blok1_out", "stage4_block1_out"]),
    ],
)
def test_refusals_are_one_sentence_and_leave_nothing(argv, words, tmp_path):
    code, out, err = run(*argv, cwd=tmp_path)
    said = [line for line in err.splitlines() if line.startswith("run.py: error:")]
    assert code == 2
    assert len(said) == 1
    assert "Traceback" not in err + out
    for word in words:
        assert word in said[0]
    assert list(tmp_path.iterdir()) == []
