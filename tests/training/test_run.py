"""The program from the outside: real runs on real digits, interrupted ones, and refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
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
    visible = {child.name for child in workdir.iterdir() if not child.name.startswith(".")}
    assert visible == {"config.yaml", "result.json", "cifs", "vanilla", "export"}
    assert (workdir / "export" / "cifs" / "1" / "saved_model.pb").exists()
    assert list((workdir / "cifs" / "tensorboard").rglob("events.out.tfevents.*"))
    result = json.loads((workdir / "result.json").read_text())
    assert result["config"]["epochs"] == 2
    assert result["versions"]["tensorflow"]
    for defense, betas in (("vanilla", {"0"}), ("cifs", {"0", "2"})):
        network = result["networks"][defense]
        assert set(network["evaluation"]) == {"last", "best"}
        assert network["evaluation"]["last"]["epoch"] == 2
        for evaluation in network["evaluation"].values():
            assert evaluation["num_examples"] == 20
            assert set(evaluation["paper"]["attacks"]["pgd3"]["by_beta"]) == betas
        assert (workdir / defense / "evaluation" / "last" / "paper" / "report.html").exists()
        for name in ("last.keras", "best.keras", "curves.png"):
            assert (workdir / defense / name).exists()
        assert len(network["history"]) == 2
        assert {"loss", "robust_accuracy", "val_clean_accuracy", "val_robust_accuracy"} <= set(network["history"][0])
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


@pytest.mark.parametrize(
    "num_kills", [pytest.param(3, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.soak)]
)
def test_a_killed_run_ends_as_if_it_had_not_been(num_kills, tmp_path, kill_at_random_moments):
    """Killed at random moments of training, evaluation and export, a run ends with the same weights and accuracies."""
    argv = [*SMALL, "--twin=null", "--epochs=8", "--checkpoint_minutes=0.02"]
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
    assert {file.relative_to(whole) for file in whole.rglob("*") if "tfevents" not in file.name} == {
        file.relative_to(killed) for file in killed.rglob("*") if "tfevents" not in file.name
    }


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    argv = [*SMALL, "--twin=null", "--learning_rate=1e30", "--epochs=2", "--export=false", "--workdir=run"]
    code, out, err = run(*argv, cwd=tmp_path)
    assert code == 2, out
    for words in ("--on_nan: received stop", "was not finite in step", "(epoch 1)", "--on_nan skip"):
        assert words in err
    assert "Traceback" not in err
    network = tmp_path / "run" / "cifs"
    assert not (network / "last.keras").exists()
    assert {file.suffix for file in (network / "not_finite").iterdir()} == {".json", ".npz"}
    steps = sorted((network / "checkpoints").iterdir())

    # The same command finds the same step again; skipping goes on and counts.
    code, _, again = run(*argv, cwd=tmp_path)
    assert (code, again.splitlines()[-1]) == (2, err.splitlines()[-1])
    assert sorted((network / "checkpoints").iterdir()) == steps
    code, _, err = run(*argv, "--on_nan=skip", cwd=tmp_path)
    assert code == 0, err
    history = json.loads((network / "history.json").read_text())
    assert history[-1]["skipped_steps"] > 0


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on(tmp_path):
    """Ended in the middle of training, with code 0 and a sentence; it ends as if it had not been."""
    argv = [*SMALL, "--twin=null", "--epochs=20", "--export=false", "--attacks=[fgsm]"]
    process = start(*argv, "--workdir=run", cwd=tmp_path)
    checkpoints = tmp_path / "run" / "cifs" / "checkpoints"
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
    assert len(json.loads((tmp_path / "run" / "cifs" / "history.json").read_text())) == 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv",
    [
        ["--method=fat", "--fat_tau_milestones=[1]", "--ema_decay=0.9", "--label_smoothing=0.1"],
        ["--method=trades", "--defense=cas", "--awp_gamma=0.005", "--beta_warmup=1", "--epsilon_warmup=1.5"],
        ["--method=mart", "--defense=vanilla", "--deterministic=true", "--val_examples=0"],
    ],
    ids=["fat", "trades", "mart"],
)
def test_every_method_trains_what_goes_on_top_too(argv, tmp_path):
    code, out, err = run(*SMALL, "--twin=null", "--epochs=2", "--export=false", *argv, "--workdir=run", cwd=tmp_path)
    assert code == 0, err
    assert "last epoch (2)" in out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    (network,) = result["networks"].values()
    assert network["history"][-1]["loss"] > 0
    assert ("best" in network["evaluation"]) == ("--val_examples=0" not in argv)


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path):
    """No file may grow beyond 64 KB, which a checkpoint would."""
    argv = [*SMALL, "--twin=null", "--epochs=1", "--export=false", "--workdir=run"]
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


@pytest.mark.slow
def test_plugins_of_this_folder_make_the_mask_and_the_readmes_method(tmp_path):
    (tmp_path / "my_plugin.py").write_text(
        "import tensorflow as tf\nfrom cifs_tf import register_importance\n\n\n"
        "@register_importance('my_relu')\ndef my_relu(relevance):\n    return tf.nn.relu(relevance)\n"
    )
    readme = (ROOT / "README.md").read_text()
    block = next(b for b in re.findall(r"^```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE) if "my_method" in b)
    (tmp_path / "my_method.py").write_text(block)
    argv = [*SMALL, "--twin=null", "--epochs=1", "--export=false", "--plugins=[my_plugin, my_method]"]
    argv += ["--importance=my_relu", "--method=hinge"]
    for _ in range(2):  # the second time, the saved network is loaded
        code, _, err = run(*argv, "--workdir=run", cwd=tmp_path)
        assert code == 0, err


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
@pytest.mark.parametrize(
    ("dataset", "shorter"),
    [("cifar10", []), *((dataset, ["--twin=null", "--checkpoints=[last]"]) for dataset in ("svhn", "fashion_mnist"))],
)
def test_paper_recipes_run_on_real_images(dataset, shorter, tmp_path):
    if not SHARED.is_dir():
        pytest.skip(f"needs the prepared datasets, and {SHARED} is not there")
    argv = ["--dataset", dataset, "--data-dir", str(SHARED / "data"), "--train-examples", "24", "--epochs", "1"]
    code, out, err = run(*argv, "--width", "4", "--workdir", "run", *shorter, cwd=tmp_path)
    assert code == 0, err
    assert "pgd100" in out
    assert "16 test images" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--dataset=nope"], ["--dataset", "nope", "folder:PATH"]),
        (["--top_k=11"], ["--top_k", "11", "10"]),
        (["--num_classes=3"], ["--num_classes", "3", "10 classes"]),
        (["--workdir=/dev/null/run"], ["--workdir", "/dev/null/run", "another folder"]),
        (["--dataset=cifar100", "--data-dir=a/b"], ["--dataset", "cifar100", "--data_dir", "downloaded"]),
        (["--dataset=tfds:imdb_reviews", "--data-dir=a"], ["--dataset", "imdb_reviews", "no image classification"]),
        (["--attack_betas=[foo]"], ["--attack_betas", "foo", "infinity"]),
        (["--lr_milestones=[90, 75]"], ["--lr_milestones", "[90, 75]", "ascending"]),
        (["--plugins=[no_such_module]"], ["--plugins", "no_such_module", "PYTHONPATH"]),
        (["--method=nope"], ["--method", "nope", "standard, pgd", "--plugins"]),
        (["--method=mart", "--label_smoothing=0.1"], ["label_smoothing", "0.1", "another method"]),
        (["--val_examples=0", "--checkpoints=[best]"], ["--checkpoints", "best", "--val_examples"]),
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
