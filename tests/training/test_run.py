"""The program from the outside: real runs on real digits, interrupted ones, and refusals."""

from __future__ import annotations

import json
import os
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
        assert network["evaluation"]["num_examples"] == 20
        assert set(network["evaluation"]["paper"]["attacks"]["pgd3"]["by_beta"]) == betas
        assert (workdir / defense / "evaluation" / "paper" / "report.html").exists()
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
    argv = [*SMALL, "--twin=null", "--epochs=8"]
    started = time.monotonic()
    code, _, err = run(*argv, "--workdir=whole", cwd=tmp_path)
    assert code == 0, err
    duration = time.monotonic() - started
    assert kill_at_random_moments(lambda: start(*argv, "--workdir=killed", cwd=tmp_path), num_kills, duration) > 0
    code, _, err = run(*argv, "--workdir=killed", cwd=tmp_path)
    assert code == 0, err

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    weights = [keras.models.load_model(path / "cifs" / "model.keras").get_weights() for path in (whole, killed)]
    for expected, received in zip(*weights, strict=True):
        np.testing.assert_array_equal(received, expected)
    networks = [json.loads((path / "result.json").read_text())["networks"] for path in (whole, killed)]
    assert networks[0] == networks[1]
    assert {file.relative_to(whole) for file in whole.rglob("*") if "tfevents" not in file.name} == {
        file.relative_to(killed) for file in killed.rglob("*") if "tfevents" not in file.name
    }


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    code, out, err = run(*SMALL, "--twin=null", "--learning_rate=1e30", "--epochs=2", "--workdir=run", cwd=tmp_path)
    assert code == 2, out
    assert "--learning_rate" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "cifs" / "model.keras").exists()
    assert not list((tmp_path / "run").rglob("*.weights.h5"))


@pytest.mark.slow
def test_a_plugin_of_this_folder_makes_the_mask(tmp_path):
    (tmp_path / "my_plugin.py").write_text(
        "import tensorflow as tf\nfrom cifs_tf import register_importance\n\n\n"
        "@register_importance('my_relu')\ndef my_relu(relevance):\n    return tf.nn.relu(relevance)\n"
    )
    argv = [*SMALL, "--twin=null", "--epochs=1", "--export=false", "--plugins=[my_plugin]", "--importance=my_relu"]
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
@pytest.mark.parametrize("dataset", ["svhn", "cifar10", "fashion_mnist"])
def test_paper_recipes_run_on_real_images(dataset, tmp_path):
    if not SHARED.is_dir():
        pytest.skip(f"needs the prepared datasets, and {SHARED} is not there")
    argv = ["--dataset", dataset, "--data-dir", str(SHARED / "data"), "--train-examples", "24", "--epochs", "1"]
    code, out, err = run(*argv, "--width", "4", "--workdir", "run", cwd=tmp_path)
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
