"""Plan, cost and a tiny study from the command line to its page."""

import dataclasses
import json

import pytest
from rich.console import Console

from cifs_tf.config import ModelConfig
from cifs_tf.errors import UserError
from cifs_tf.files import hold_lock
from cifs_tf.models import build_classifier
from cifs_tf.models.flops import count_flops
from cifs_tf.reproduction.verdict import runner
from cifs_tf.reproduction.verdict.cells import plan_cells, scale_of, unpack_bits, write_cell
from cifs_tf.reproduction.verdict.hours import FLOPS, hours
from cifs_tf.reproduction.verdict.study import load_study
from tests import running
from tests.cifs_tf.reproduction.verdict.synthetic import make_cell

STUDY = load_study()


def test_every_arm_with_seed_0_comes_first():
    cells = plan_cells(STUDY, scale_of(STUDY, "full"), STUDY.seeds)
    assert [cell.name for cell in cells[:3]] == ["vanilla-seed0", "mean_one-seed0", "no_label-seed0"]
    assert len({cell.training.name for cell in cells}) == len(cells) == 33
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)


def test_cells_differ_from_the_recipe_in_the_arms_options_only():
    for cell in plan_cells(STUDY, scale_of(STUDY, "full"), 1):
        told = {option.removeprefix("--").split("=")[0] for option in cell.training.options}
        assert told <= {*cell.arm.run, "seed"}, cell.name
        for option, value in cell.arm.run.items():
            assert cell.training[option] == value


def test_hypotheses_name_arms_of_the_study():
    for hypothesis in STUDY.hypotheses:
        for terms in hypothesis.contrasts.values():
            assert {term.arm for term in terms} <= set(STUDY.arms)
            assert {term.checkpoint for term in terms} <= {"last", "best"}
            assert {term.protocol for term in terms} <= {"natural", "paper", "worst_case"}
    assert [hypothesis.name for hypothesis in STUDY.hypotheses] == ["H1", "H2", "H3", "H4", "H5", "H6"]


def test_hours_are_those_of_the_network(tmp_path):
    config = ModelConfig(arch="resnet10", width=16, defense="vanilla")
    assert count_flops(build_classifier(config, (32, 32, 3), 10)).forward == FLOPS
    cells = plan_cells(STUDY, scale_of(STUDY, "full"), 1)
    assert 0.5 < hours(cells[0], STUDY, tmp_path) < hours(cells[1], STUDY, tmp_path) < 2


def test_other_arms_wait_for_the_regime():
    """Vanilla at 50% on its training images stops the study, unless other arms have been computed."""
    vanilla, other = make_cell("vanilla", 0, training=0.5), make_cell("cifs", 0)
    with pytest.raises(UserError, match=r"--study: received verdict; vanilla ends at 50\.0% .* another schedule"):
        runner.check_regime("cifs", [vanilla], STUDY)
    runner.check_regime("cifs", [vanilla, other], STUDY)
    runner.check_regime("cifs", [make_cell("vanilla", 0)], STUDY)
    runner.check_regime("vanilla", [], STUDY)
    with pytest.raises(UserError, match=r"verdict; cifs waits for vanilla's first cell: .*--arms vanilla"):
        runner.check_regime("cifs", [], STUDY)


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="--scale: received small; the study has one size"):
        scale_of(STUDY, "small")
    code, _, err = running.run_here("--study=verdict", "--table=1", cwd=tmp_path, program="reproduce.py")
    assert code != 0
    assert "--study: received verdict; it goes by itself" in err


def test_arms_can_be_chosen(tmp_path):
    assert [cell.name for cell in plan_cells(STUDY, scale_of(STUDY, "full"), 2, ["mean_one", "vanilla"])] == [
        *("vanilla-seed0", "mean_one-seed0", "vanilla-seed1", "mean_one-seed1"),
    ]
    for argv, words in (
        (["--study=verdict", "--arms=mine"], "--arms: received mine; give some of vanilla, "),
        (["--study=verdict", "--arms=[]"], "--arms: received []; name one at least"),
        (["--table=1", "--arms=vanilla"], "--arms: received vanilla; tables and figures have none"),
    ):
        code, _, err = running.run_here(*argv, "--dry-run", cwd=tmp_path, program="reproduce.py")
        assert (code, words in err) == (2, True), err


def test_dry_run_tells_cells_and_hours(tmp_path):
    code, out, err = running.run_here("--study=verdict", "--dry-run", "--seeds=1", cwd=tmp_path, program="reproduce.py")
    assert code == 0, err
    assert "permuted-seed0" in out
    assert "hours left, of one quiet core" in out
    assert list(tmp_path.iterdir()) == []


def test_processes_share_the_cells(tmp_path, monkeypatch):
    """A cell that another process holds is left to it; the next one is computed."""
    arms = {name: STUDY.arms[name] for name in ("vanilla", "cifs")}
    small = dataclasses.replace(load_study("smoke"), arms=arms, seeds=1)
    monkeypatch.setattr(runner, "load_study", lambda scale: small)
    computed = []

    def compute(cell, study, scale, workdir, docs, data_dir, console):
        computed.append(cell.name)
        write_cell(make_cell(cell.arm.name, cell.seed, scale="smoke"), cell.file(docs), study)

    monkeypatch.setattr(runner, "_compute", compute)
    (tmp_path / "cells").mkdir()
    console = Console(record=True, width=100)
    with hold_lock(tmp_path / "cells" / "vanilla-seed0.lock"):
        runner.run_study("smoke", None, 1, tmp_path, None, console)
    assert computed == ["cifs-seed0"]
    assert "vanilla-seed0: another process is at it" in console.export_text()
    assert "1 of 2 cells" in (tmp_path / "docs" / "verdict.md").read_text()
    runner.run_study("smoke", None, 1, tmp_path, None, console)
    assert computed == ["cifs-seed0", "vanilla-seed0"]


@pytest.mark.slow
def test_a_tiny_study_from_training_to_its_page(tmp_path, monkeypatch):
    """An arm at the scale `smoke`; the second time nothing is trained, and the page is the same."""
    small = load_study("smoke")
    small = dataclasses.replace(small, arms={"permuted": small.arms["permuted"]}, hypotheses=(), seeds=1)
    monkeypatch.setattr(runner, "load_study", lambda scale: small)
    console = Console(quiet=True)
    runner.run_study("smoke", None, 1, tmp_path, None, console)
    page = (tmp_path / "docs" / "verdict.md").read_text()
    assert "1 of 1 cells" in page
    cell = json.loads((tmp_path / "docs/results/verdict/permuted-seed0.json").read_text())
    assert str(tmp_path) not in json.dumps(cell)
    for found in cell["checkpoints"].values():
        natural = unpack_bits(found["natural"], len(cell["labels"]))
        worst = unpack_bits(found["worst_case"], len(cell["labels"]))
        assert len(natural) == small.examples
        assert not (worst & ~natural).any()
        assert 0 <= found["training"]["robust"] <= found["training"]["natural"] <= 1
        assert set(found["paper"]) == set(small.attacks)
        assert len(found["paper"]["fgsm"]) == 9
    assert len(cell["curves"]["val_robust_accuracy"]) == cell["config"]["epochs"]
    assert len(json.dumps(cell)) < 100_000

    def refuse(*arguments):
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(runner, "_compute", refuse)
    runner.run_study("smoke", None, 1, tmp_path, None, console)
    assert (tmp_path / "docs" / "verdict.md").read_text() == page
