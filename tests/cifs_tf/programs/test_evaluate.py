"""The program from the outside: a real network, real kills, shards, and refusals."""

from __future__ import annotations

import json
import re
import shutil
import time

import pytest

from cifs_tf.config import DataConfig
from cifs_tf.data import load_dataset
from cifs_tf.evaluation import Ledger
from cifs_tf.export import export
from cifs_tf.runs.trained import find_network
from tests import running
from tests.runs import write_run


def start(*argv, cwd):
    return running.start(*argv, cwd=cwd, program="evaluate.py")


def run(*argv, cwd):
    return running.run_here(*argv, cwd=cwd, program="evaluate.py")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, trained):
    """A run's workdir with a trained network and an export."""
    path = write_run(tmp_path_factory.mktemp("runs") / "digits", trained.classifier)
    export(trained.classifier, path / "export" / "cifs", formats=["savedmodel"], version=1)
    return path


def report_of(folder):
    """The report, without what depends on the clock."""
    report = json.loads((folder / "report.json").read_text())
    assert report.pop("wall_clock")["reported"]
    assert "revision" in report["about"]
    return report


SMALL = ["--suite=paper", "--attack_betas=[0, infinity]", "--audit=false"]


def test_held_out_images_are_measured_and_verified_as_such(workdir, tmp_path):
    options = ["--split=validation", "--suite=paper", "--attacks=fgsm", "--attack_betas=0", "--audit=false"]
    code, out, err = run("--model", workdir, *options, "--examples=20", cwd=tmp_path)
    assert code == 0, err
    assert "20 validation images," in " ".join(out.split())
    folder = workdir / "cifs" / "evaluation" / "last" / "paper-validation"
    report = report_of(folder)
    held_out = load_dataset(DataConfig(dataset="digits", test_examples=40)).validation
    assert report["num_examples"] == 20
    assert report["about"]["subset_of"] == len(held_out)
    assert "20 validation images of digits" in (folder / "report.md").read_text()
    assert folder.name not in find_network(workdir).reports()  # no number of a model card or a preset
    labels = Ledger.read(folder / "ledger.jsonl").values("natural", "labels")
    assert labels.tolist() == held_out.class_balanced(20, "").labels.tolist()
    code, out, err = run("verify", folder / "card.jsonl", "--model", workdir, cwd=tmp_path)
    assert code == 0, err
    assert "The card holds." in out
    assert "on validation images" in " ".join(out.split())


def test_held_out_images_are_those_of_the_run_alone(workdir, tmp_path):
    """Others would be images that the network was trained on."""
    for file in (workdir / "export" / "cifs" / "1", workdir / "cifs" / "last.keras"):
        code, _, err = run("--model", file, "--split=validation", cwd=tmp_path)
        assert code == 2
        assert "only a run has held images out" in err
    other = tmp_path / "run"
    shutil.copytree(workdir, other)
    config = (other / "config.yaml").read_text()
    assert "val_examples: null" in config
    assert "warm_start: null" in config
    (other / "config.yaml").write_text(config.replace("warm_start: null", "warm_start: elsewhere"))
    code, _, err = run("--model", other, "--split=validation", cwd=tmp_path)
    assert (code, "began from the weights of elsewhere" in err) == (2, True)
    (other / "config.yaml").write_text(config.replace("val_examples: null", "val_examples: 60"))
    code, _, err = run("--model", other, "--split=validation", cwd=tmp_path)
    assert code == 2
    assert "it is not known that these are the images" in err
    (other / "images.json").unlink()
    code, _, err = run("--model", other, "--split=validation", cwd=tmp_path)
    assert (code, "it is not known which images" in err) == (2, True)
    assert not (other / "images.json").exists()  # refused, nothing is written


@pytest.mark.slow
def test_a_run_and_its_export_are_evaluated_alike(workdir, tmp_path):
    """Defaults come from the run, wherever in its workdir the model lies."""
    code, out, err = run("--model", workdir, *SMALL, cwd=tmp_path)
    assert code == 0, err
    folder = workdir / "cifs" / "evaluation" / "last" / "paper"
    files = {"ledger.jsonl", "card.jsonl", "report.json", "report.md", "report.html"}
    assert {file.name for file in folder.iterdir()} == files
    assert "40 images" in out
    code, _, err = run("--model", workdir / "export" / "cifs", *SMALL, "--workdir=exported", cwd=tmp_path)
    assert code == 0, err
    live, exported = report_of(folder), report_of(tmp_path / "exported")
    assert live["about"]["epsilon"] == exported["about"]["epsilon"] == pytest.approx(8 / 255)
    different = sum(a != b for a, b in zip(live["broken_by"], exported["broken_by"], strict=True))
    assert different == 0
    assert "labels leak" in str(exported["about"]["limits"])

    # The same command again finds everything done.
    before = (folder / "ledger.jsonl").read_bytes()
    code, _, err = run("--model", workdir, *SMALL, cwd=tmp_path)
    assert code == 0, err
    assert (folder / "ledger.jsonl").read_bytes() == before
    assert report_of(folder) == live


@pytest.mark.parametrize(
    ("suite", "num_kills"),
    [
        pytest.param("paper", 1, marks=pytest.mark.slow),
        pytest.param("paper", 20, marks=pytest.mark.soak),
    ],
)
def test_a_killed_evaluation_ends_in_the_same_report(suite, num_kills, workdir, tmp_path, kill_at_random_moments):
    """Killed at random moments and started again, it ends in a report that is the same to the byte."""
    argv = ["--model", workdir, f"--suite={suite}", "--attack_betas=[0, infinity]", "--batch_size=10", "--epsilon=0.1"]
    argv.append("--audit=false")  # its checks take minutes in five starts
    started = time.monotonic()
    code, _, err = running.run(*argv, "--workdir=whole", cwd=tmp_path, program="evaluate.py")
    assert code in (0, 1), err
    duration = time.monotonic() - started
    assert kill_at_random_moments(lambda: start(*argv, "--workdir=killed", cwd=tmp_path), num_kills, duration) > 0
    again, _, err = run(*argv, "--workdir=killed", cwd=tmp_path)
    assert again == code, err
    clock = re.compile(r'"wall_clock": \{[^}]*\}')
    whole, killed = (
        clock.sub("", (tmp_path / name / "report.json").read_text()).encode() for name in ("whole", "killed")
    )
    assert killed == whole


@pytest.mark.soak
def test_several_devices_come_to_the_same_verdicts(workdir, tmp_path):
    options = ["--suite=paper", "--attack_betas=[2]", "--examples=30", "--audit=false"]
    for name, devices in (("one", ["--strategy=one"]), ("two", ["--strategy=mirrored", "--replicas=2"])):
        code, _, err = run("--model", workdir, *options, *devices, f"--workdir={name}", cwd=tmp_path)
        assert code == 0, err
    one, two = (report_of(tmp_path / name) for name in ("one", "two"))
    assert one["broken_by"] == two["broken_by"]


@pytest.mark.slow
def test_shards_of_several_machines_are_merged(workdir, tmp_path):
    for part in (1, 2):
        code, out, err = run("--model", workdir, *SMALL, f"--shard={part}/2", "--workdir=shards", cwd=tmp_path)
        assert code == 0, err
        assert f"shard {part}/2 is finished" in out
    ledgers = ["shards/ledger-1-of-2.jsonl", "shards/ledger-2-of-2.jsonl"]
    code, _, err = run("merge", "merged", ledgers[0], cwd=tmp_path)
    assert code == 2
    assert "shard 2/2 is missing" in err
    assert not (tmp_path / "merged").exists()
    code, out, err = run("merge", "merged", *ledgers, cwd=tmp_path)
    assert code == 0, err
    code, _, err = run("--model", workdir, *SMALL, "--workdir=whole", cwd=tmp_path)
    assert code == 0, err
    assert report_of(tmp_path / "merged") == report_of(tmp_path / "whole")
    code, out, err = run("verify", "merged/card.jsonl", "--model", workdir, cwd=tmp_path)
    assert (code, "The card holds." in out) == (0, True), out + err


@pytest.mark.slow
def test_an_onnx_file_is_evaluated_like_its_run_and_its_card_is_verified(workdir, tmp_path, trained):
    onnx = export(trained.classifier, tmp_path / "onnx", formats=["onnx", "gradient"]) / "model.onnx"
    options = [*SMALL, "--dataset=digits", "--examples=40", "--epsilon=0.1"]
    for name, model in (("live", workdir / "cifs" / "last.keras"), ("onnx", onnx)):
        code, _, err = run("--model", model, *options, f"--workdir={name}", cwd=tmp_path)
        assert code == 0, err
        code, out, err = run("verify", f"{name}/card.jsonl", "--model", model, "--dataset=digits", cwd=tmp_path)
        assert (code, "The card holds." in out) == (0, True), out + err
    live, other = (report_of(tmp_path / name)["broken_by"] for name in ("live", "onnx"))
    assert live == other
    code, out, _ = run("verify", "live/card.jsonl", "--model", onnx, "--dataset=digits", cwd=tmp_path)
    assert (code, "The card does NOT hold." in out) == (1, True)
    card = tmp_path / "live" / "card.jsonl"
    card.write_text(card.read_text().replace('"uint8"', '"float16"', 1))
    code, _, err = run("verify", card, "--model", onnx, "--dataset=digits", cwd=tmp_path)
    assert (code, "line 2 was edited" in err) == (2, True)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["--model", "no value"]),
        (["--model=none"], ["--model", "none", "no such run"]),
        (["--model={workdir}", "--suite=best"], ["--suite", "best", "strict"]),
        (["--model={workdir}", "--examples=9999"], ["--examples", "9999", "360"]),
        (["--model={workdir}", "--epsilon=2"], ["--epsilon", "2"]),
        (["--model={workdir}", "--shard=3/2"], ["--shard", "3/2", "1/4"]),
        (["--model={workdir}", "--replicas=2"], ["--replicas", "2", "--strategy mirrored"]),
        (["--model={workdir}", "--strategy=mirrored"], ["--strategy", "mirrored", "no GPU"]),
        (["--model={workdir}", "--defense=vanilla"], ["--model", "vanilla", "finish its training"]),
        (["--model={workdir}", "--workdir=/dev/null/a"], ["--workdir", "/dev/null"]),
        (["--model={workdir}", "--mask_gradients=[half]"], ["--mask_gradients", "half"]),
        (["--model={workdir}", "--surrogate=none"], ["--surrogate", "none"]),
        (["--model={file}"], ["--dataset", "None", "say what to measure it on"]),
        (["--modell=x"], ["--modell", "--model"]),
        (["merge"], ["merge", "ledger of every shard"]),
        (["verify", "--model={workdir}"], ["verify", "give one card.jsonl"]),
        (["--model={workdir}", "--norm=l2"], ["--norm", "l2", "standard, plus, strict, minimal"]),
    ],
)
def test_refusals_are_one_sentence_and_leave_nothing(argv, words, workdir, tmp_path, tmp_path_factory):
    file = tmp_path_factory.mktemp("elsewhere") / "last.keras"
    file.write_bytes((workdir / "cifs" / "last.keras").read_bytes())
    before = sorted(workdir.rglob("*"))
    code, out, err = run(*(word.format(workdir=workdir, file=file) for word in argv), cwd=tmp_path)
    said = [line for line in err.splitlines() if line.startswith("evaluate.py: error:")]
    assert code == 2
    assert len(said) == 1
    assert "Traceback" not in err + out
    for word in words:
        assert word in said[0]
    assert list(tmp_path.iterdir()) == []
    assert sorted(workdir.rglob("*")) == before
