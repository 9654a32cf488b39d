"""The README: its Python runs, its commands exist, and nothing is left to fill in."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cifs_tf.command_line import parse_options
from training.cli import parse_config
from training.evaluate import EvaluateOptions

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
COMMANDS = [
    line.split("#")[0].split(">")[0].strip()
    for language, block in BLOCKS
    if not language
    for line in block.splitlines()
]


def test_nothing_is_left_to_fill_in():
    assert re.findall(r"\b[A-Z]{3,}_[A-Z]{3,}\b", TEXT) == []


def test_links_lead_somewhere():
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    for target in re.findall(r"\]\((?!http)([^)]+)\)", prose):
        assert (ROOT / target).exists(), target


def test_run_commands_parse(monkeypatch, tmp_path):
    """Every `run.py` line is understood; what it does is tested in tests/training."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_recipe.yaml").write_text("epochs: 1\n")
    (tmp_path / "runs" / "tune-svhn").mkdir(parents=True)
    (tmp_path / "runs" / "tune-svhn" / "best.yaml").write_text("epochs: 1\n")
    (tmp_path / "training").symlink_to(ROOT / "training")
    lines = [line for line in COMMANDS if "training/run.py" in line]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line)
        arguments = words[words.index("training/run.py") + 1 :]  # a launcher may stand before it
        if {"--help", "--print_config"} & set(arguments):
            with pytest.raises(SystemExit, match="0"):
                parse_config("run.py", "", arguments)
        else:
            parse_config("run.py", "", arguments)


def test_evaluate_commands_parse():
    """Every `evaluate.py` line is understood; what it does is tested in tests/training."""
    lines = [line for line in COMMANDS if "training/evaluate.py" in line]
    assert len(lines) >= 5
    for line in lines:
        arguments = shlex.split(line)[2:]
        if arguments[0] != "merge":
            parse_options(EvaluateOptions, "evaluate.py", arguments, "")


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", " ".join(COMMANDS)):
        assert f"\n{target}:" in makefile


@pytest.mark.slow
def test_your_own_model_runs():
    """The block that brings one's own model and importance function, as it stands."""
    block = next(b for language, b in BLOCKS if language == "python" and "register_importance" in b)
    names: dict = {}
    exec(block, names)
    assert names["classifier"].num_probes == 2
    assert names["trainer"].optimizer.iterations.numpy() == 2
