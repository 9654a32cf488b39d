"""The program on a small run: files, numbers, continuing, comparing, refusing."""

from __future__ import annotations

import csv
import dataclasses
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

from cifs_tf.analysis import Measurement
from cifs_tf.command_line import parse_options
from cifs_tf.config import AttackConfig, DataConfig, OutputConfig, RunConfig
from cifs_tf.errors import UserError
from cifs_tf.evaluation import Ledger
from cifs_tf.files import read_results, write_json
from cifs_tf.layers import CIFS
from cifs_tf.models import Classifier
from cifs_tf.programs.analyse import AnalyseOptions, analyse
from cifs_tf.runs.comparison import Comparison
from cifs_tf.runs.inspection import choose_beta
from cifs_tf.runs.recipes import dump_yaml
from cifs_tf.runs.trained import TrainedNetwork
from cifs_tf.runs.workdir import Workdir
from tests.running import ROOT

QUICK = {"attack": "pgd2", "examples": 20, "batch_size": 16}
CHANNELS = 6
HISTORY = [
    {"loss": 2.0, "robust_accuracy": 0.2, "val_robust_accuracy": 0.3, "val_clean_accuracy": 0.5},
    {"loss": 1.5, "robust_accuracy": 0.3, "val_robust_accuracy": 0.2, "val_clean_accuracy": 0.6},
]


def make_network(cuts, seed):
    """Random weights: one convolution and a dense layer."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(CHANNELS, 3, strides=2, activation="relu", name="features")(image)
    return Classifier(keras.Model(image, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))), cuts)


def make_run(path, seed=0, **data):
    """A run's workdir, as run.py leaves it."""
    config = RunConfig(
        data=DataConfig(dataset="digits", **data),
        attack=AttackConfig(epsilon=0.1),
        output=OutputConfig(workdir=str(path), twin="vanilla"),
    )
    run = Workdir(path)
    for defense, cuts in (("vanilla", {}), ("cifs", {"features": CIFS()})):
        run.model_file(defense).parent.mkdir(parents=True)
        make_network(cuts, seed).save(run.model_file(defense))
        write_json(run.history_file(defense), HISTORY)
    run.config_file.write_text(dump_yaml(config))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def summary(run):
    return analyse(AnalyseOptions(run=(str(run),), **QUICK))


def read_csv(file):
    with file.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_everything_is_written_beside_the_run(run, summary):
    folder = run / "analysis"
    files = {file.name for file in folder.iterdir() if file.is_file()}
    assert files == {*summary["files"], "summary.json"}
    assert {"channels.csv", "classes.csv", "curves.png", "class_robustness.png"} <= files
    assert 1 <= sum(name.startswith("channels_") for name in files) <= 2
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in files if name.endswith(".png"))
    assert read_results(folder / "summary.json") == summary
    assert (summary["num_examples"], summary["subset_of"], summary["epsilon"]) == (20, 360, 0.1)
    # Without an evaluation the attacker takes the run's beta; vanilla has one head.
    assert {name: network["attack_beta"] for name, network in summary["networks"].items()} == {"vanilla": 0, "cifs": 2}


@pytest.mark.slow
def test_numbers_agree_with_each_other(run, summary):
    """Two images of each of ten classes, so the mean over classes is that over images."""
    classes = read_csv(run / "analysis" / "classes.csv")
    channels = read_csv(run / "analysis" / "channels.csv")
    assert len(channels) == 2 * 10 * CHANNELS
    for name, network in summary["networks"].items():
        rows = [row for row in classes if row["network"] == name]
        assert [row["class"] for row in rows] == [str(digit) for digit in range(10)]
        assert {row["num_examples"] for row in rows} == {"2"}
        for key in ("natural_accuracy", "adversarial_accuracy", "adversarial_negative_share"):
            assert np.mean([float(row[key]) for row in rows]) == pytest.approx(network[key])
        threes = [row for row in channels if row["network"] == name and row["class"] == "3"]
        weights = [float(row["weights"]) for row in threes]
        assert weights == sorted(weights, reverse=True)
        assert sorted(int(row["order"]) for row in threes) == list(range(CHANNELS))
        assert max(float(row["adversarial_magnitude"]) for row in threes) == pytest.approx(1)


@pytest.mark.slow
def test_the_same_again_measures_nothing_and_writes_the_same(run, summary):
    folder = run / "analysis"
    measured = {file: file.stat().st_mtime_ns for file in folder.rglob("*.npz")}
    # Each of two networks: 16 images and 4.
    assert len(measured) == 4
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    assert analyse(AnalyseOptions(run=(str(run),), **QUICK)) == summary
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.npz")} == measured
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before


@pytest.mark.slow
def test_two_runs_stand_side_by_side(run, summary, tmp_path, monkeypatch, capsys):
    """What was measured of the first is not measured again; pictures of other options go."""
    monkeypatch.chdir(tmp_path)
    other = make_run(tmp_path / "other", seed=1)
    folder = tmp_path / "runs" / "analysis" / "digits-other"
    folder.mkdir(parents=True)
    (folder / "channels_0_0.png").touch()
    measured = {file: file.stat().st_mtime_ns for file in run.rglob("*.npz")}
    both = analyse(AnalyseOptions(run=(str(run), str(other)), classes=("7",), **QUICK))
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*.npz")} == measured
    assert list(both["networks"]) == ["digits, vanilla", "digits, cifs", "other, vanilla", "other, cifs"]
    assert both["networks"]["digits, cifs"]["natural_alignment"] == summary["networks"]["cifs"]["natural_alignment"]
    assert [file.name for file in folder.glob("channels_*.png")] == ["channels_7_7.png"]
    out = capsys.readouterr().out
    renamed = analyse(AnalyseOptions(run=(str(run), str(other)), names=("a", "b", "c", "d"), **QUICK))
    assert list(renamed["networks"].values()) == list(both["networks"].values())
    assert list(renamed["networks"]) == ["a", "b", "c", "d"]
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*.npz")} == measured
    for words in ("NR share", "alignment", "20 of 360 test images", "seed 0", "summary.json"):
        assert words in out


def test_the_attack_takes_the_worst_beta_of_the_runs_evaluation(tmp_path):
    """Of two settings, 10 leaves no image standing. One that was asked for goes before; vanilla has no choice."""
    run = Workdir(tmp_path)
    run.config_file.write_text(dump_yaml(RunConfig()))
    task = {"kind": "Crafted", "on": "all", "pool": "main", "counts": True, "section": "paper", "family": "pgd2"}
    task |= {"beta": 0, "mask_gradient": "exact", "target_rank": 2, "x": None}
    tasks = [
        task | {"name": "natural", "section": "natural", "family": ""},
        task | {"name": "a"},
        task | {"name": "b", "beta": 10},
    ]
    header = {"key": {"weights": "others"}, "shard": "1/1", "about": {"tasks": tasks}}
    with Ledger.open(run.evaluation("cifs", "last", "paper") / "ledger.jsonl", header) as ledger:
        ledger.append("natural", np.arange(2), {"ranks": np.zeros((2, 2)), "labels": np.array([0, 1])})
        ledger.append("a", np.arange(2), {"ranks": np.zeros((2, 2))})
        ledger.append("b", np.arange(2), {"ranks": np.ones((2, 2))})
        ledger.finish()
    network = TrainedNetwork(run, RunConfig(), "cifs")
    two, none = make_network({"features": CIFS()}, 0), make_network({}, 0)
    assert choose_beta(network, "pgd2", None, two) == 10
    assert choose_beta(network, "pgd2", None, none) == 0
    assert choose_beta(network, "pgd2", "infinity", two) == "infinity"
    assert choose_beta(network, "fgsm", None, two) == RunConfig().train.beta
    # A run that knows its own network takes no beta of another one.
    run.config_file.unlink()
    shutil.move(tmp_path / "cifs", tmp_path / "aside")
    with run.open(RunConfig()):
        shutil.move(tmp_path / "aside", tmp_path / "cifs")
    with pytest.raises(UserError, match=r"ledger\.jsonl is of another network than last\.keras"):
        choose_beta(network, "pgd2", None, two)


def test_what_is_not_known_is_left_out(tmp_path):
    """A network that activates nothing has no share and no rank; a class without images no accuracy."""
    silent = np.zeros((2, 3))
    right = np.array([True, False])
    comparison = Comparison(
        {"net": Measurement(np.array([0, 0]), np.ones((3, 2)), silent, silent, right, right)}, "ab", "FGSM"
    )
    assert comparison.means["net"]["natural_accuracy"] == 0.5
    assert comparison.means["net"]["natural_negative_share"] is None
    assert comparison.most_and_least_robust() == [0]
    comparison.write_numbers(tmp_path)
    first, second = read_csv(tmp_path / "classes.csv")
    assert (first["natural_accuracy"], first["natural_alignment"]) == ("0.5", "")
    assert (second["num_examples"], second["natural_accuracy"]) == ("0", "")
    assert len(comparison.tables("title", {"net": 0})) == 2
    assert set(comparison.draw([0])) == {"channels_0_a.png", "class_robustness.png"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--run: received no value"),
        (["--run=nowhere"], "--run: received nowhere; there is no such folder"),
        (["--run=RUN", "--checkpoint=best"], "it has no vanilla/best.keras, finish its training"),
        (["--run=RUN", "--attack=pgd"], "--attack: received pgd; give fgsm, pgdN or cwN"),
        (["--run=RUN", "--examples=0"], "--examples: received 0"),
        (["--run=RUN", "--workdir=RUN/config.yaml/x"], "RUN/config.yaml cannot be written to"),
        (["--run=RUN,RUN"], "several different ones"),
        (["--run=RUN,OTHER"], "test_examples is None in RUN and 30 there"),
        (["--run=RUN", "--examples=361"], "--examples: received 361; give at most 360"),
        (["--run=RUN", "--classes=3,eleven"], "--classes: received eleven; give some of 0, 1"),
        (["--run=RUN", "--examples=5", "--classes=[0,1,2,3,4,5,6,7,8,9]"], "none of the 5 images has this class"),
        (["--run=RUN", "--names=only"], "--names: received ['only']; give one for each of the 2 networks: vanilla"),
        (["--run=RUN", "--names=one,one"], "--names: received ['one', 'one']; two are the same, give 2"),
        (["--run=RUN", "--attack_beta=infinity-2"], "--attack_beta: received infinity-2"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_writes_nothing(argv, message, tmp_path, monkeypatch):
    if "RUN" in str(argv):
        make_run(tmp_path / "RUN")
    if "OTHER" in str(argv):
        make_run(tmp_path / "OTHER", test_examples=30)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        analyse(parse_options(AnalyseOptions, "analyse.py", argv, ""))
    assert message in str(error.value)
    assert not (tmp_path / "runs").exists()
    assert not list(tmp_path.rglob("analysis"))


def test_the_command_line_refuses_before_tensorflow(tmp_path):
    command = [sys.executable, str(ROOT / "training" / "analyse.py"), "--run", "nowhere"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert process.returncode == 2
    assert process.stderr.startswith("analyse.py: error: --run: received nowhere;")
    assert process.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_options_are_documented(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse_options(AnalyseOptions, "analyse.py", ["--help"], "what it does")
    out = capsys.readouterr().out
    for field in dataclasses.fields(AnalyseOptions):
        assert f"--{field.name}" in out
