"""Lists on a command line: commas, which no shell expands, or YAML's brackets; and flags."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cifs_tf.command_line import command, normalise, parse_options, run_program
from cifs_tf.config import OutputConfig
from cifs_tf.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every kind.

    Args:
        names: texts.
        numbers: integers.
        betas: numbers or texts.
        groups: lists of texts.
        perhaps: texts or null.
        flag: true or false.
    """

    names: tuple[str, ...] = ("a",)
    numbers: tuple[int, ...] = (1,)
    betas: tuple[int | float | str, ...] = (0, "infinity")
    groups: tuple[tuple[str, ...], ...] = ()
    perhaps: tuple[str, ...] | None = None
    flag: bool = False


def parse(*argv):
    return parse_options(Options, "program.py", argv, "")


# Whatever a person may name a file, a layer or a class; YAML's words and numbers among them.
WORDS = st.text(st.characters(exclude_characters=",+", exclude_categories=["C", "Zs", "Zl", "Zp"]), min_size=1)
WORDS = (WORDS | st.sampled_from(["no", "null", "1", "1e3", "~", "a: b", "{x}", "#"])).filter(
    lambda w: w[0] not in "[-"
)


@settings(max_examples=30, deadline=None)
@given(st.lists(WORDS, min_size=2))
def test_texts_between_commas_arrive_as_they_are(words):
    assert parse(f"--names={','.join(words)}").names == tuple(words)
    assert parse("--names", ", ".join(words)).names == tuple(words)


@settings(max_examples=30, deadline=None)
@given(st.lists(WORDS))
def test_brackets_are_the_same(words):
    assert parse(f"--names={json.dumps(words, ensure_ascii=False)}").names == tuple(words)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(WORDS, min_size=1), min_size=1).filter(lambda groups: groups != [["null"]]))
def test_lists_of_lists(groups):
    found = parse(f"--groups={','.join('+'.join(group) for group in groups)}").groups
    assert [tuple(group) for group in found] == [tuple(group) for group in groups]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-(10**9), 10**9), min_size=1))
def test_numbers(numbers):
    text = ",".join(map(str, numbers))
    assert parse("--numbers", text).numbers == parse(f"--numbers=[{text}]").numbers == tuple(numbers)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.just("infinity-1"), min_size=1))
def test_numbers_among_texts(values):
    found = parse(f"--betas={','.join(map(str, values))}").betas
    assert found == tuple(values)
    assert [type(value) for value in found] == [type(value) for value in values]


def test_empty_lists_null_and_flags():
    assert parse("--numbers", "").numbers == parse("--numbers=").numbers == parse("--numbers=[]").numbers == ()
    assert parse("--perhaps", "null").perhaps is None
    assert parse("--perhaps=a").perhaps == ("a",)
    assert parse("--perhaps=[1, B.2, no]").perhaps == parse("--perhaps=1,B.2,no").perhaps == ("1", "B.2", "no")
    assert parse("--flag", "--names", "a").flag
    assert not parse("--flag=false").flag
    assert normalise(["--eval-size", "1,2", "a,b"], [Options]) == ["--eval_size", "1,2", "a,b"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--names=a,,b"], "--names: received a,,b; give a list such as a,b,c, each item text."),
        (["--numbers", "1,two"], "--numbers: received 1,two; give a list such as a,b,c, each item an integer."),
        (["--numbers"], "--numbers: received no value; give a list such as a,b,c, each item an integer."),
        (["--groups=a+,b"], "--groups: received a+,b; give lists such as a+b,b+c."),
    ],
)
def test_errors_are_one_sentence(argv, message):
    with pytest.raises(UserError) as error:
        parse(*argv)
    assert str(error.value) == message


def test_help_shows_the_form_and_the_command(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cifs-tf evaluate"])
    with pytest.raises(SystemExit):
        parse_options(Options, "evaluate.py", ["--help"], "")
    out = capsys.readouterr().out
    assert "--names A,B,C" in out
    assert "usage: cifs-tf evaluate" in out
    assert command("run") == "cifs-tf run"
    monkeypatch.setattr("sys.argv", ["training/tune.py"])
    assert command("run") == "python training/run.py"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--recipe", "x" * 300], "--recipe: x+ cannot be used .File name too long., give another file or folder"),
        (["--dataset=folder:file/below"], "--dataset: file/below/a cannot be used .Not a directory."),
        (["--out-dir", "folder"], "--out_dir: folder cannot be used .Is a directory."),
        (["folder"], "error: folder cannot be used .Is a directory."),
    ],
)
def test_a_path_that_the_system_refuses_is_one_sentence(argv, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["run.py", *argv])
    value = argv[-1].partition("folder:")[2] + "/a" if ":" in argv[-1] else argv[-1]
    with pytest.raises(SystemExit, match="2"):
        run_program(lambda argv: Path(value).read_text())
    assert re.fullmatch(rf"run\.py: error: {words.removeprefix('error: ')}.*\.\n", capsys.readouterr().err)


def test_a_text_with_the_character_nul_is_refused():
    with pytest.raises(UserError, match=r"--workdir: received 'a.*NUL"):
        OutputConfig(workdir="a\0b")
