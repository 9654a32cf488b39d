"""README and docs: every Python block runs, every command is understood, every path and link leads somewhere.

The blocks of a page run in order, in one namespace, in a folder with `runs/digits`, a small network. A comment
above a block, `<!-- test: skip, because ... -->`, leaves it out where it cannot run.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import re
import shlex
import types
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits

import cifs_tf
from cifs_tf.adversarial.methods import METHODS
from cifs_tf.export import export
from cifs_tf.layers import CIFS, importance
from cifs_tf.models import Classifier
from tests.cifs_tf.serving.running import running_server

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in (README, *sorted((ROOT / "docs").rglob("*.md")))}
BLOCK = re.compile(r"(?:^<!-- test: (.*) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
SERVER = "127.0.0.1:8501"
SOURCES = [file for file in sorted((ROOT / "cifs_tf").rglob("*.py")) if ">>>" in file.read_text()]
# What an example in a docstring may take for granted; where one does, it is not run from there on.
AT_HAND = ["classifier", "dataset", "features", "header", "ledger", "model", "pandas", "profile", "vanilla", "victim"]


def blocks_of(text, *languages):
    """The blocks of these languages that are not left out: [(line, code)]."""
    return [
        (text.count("\n", 0, block.start(3)), block[3])
        for block in BLOCK.finditer(text)
        if block[2] in languages and not (block[1] or "").startswith("skip, because ")
    ]


def commands_of(text):
    """The command lines in blocks without a language, and in code within sentences that starts with `python`."""
    prose = BLOCK.sub("", text)
    lines = [line for _, code in blocks_of(text, "") for line in code.splitlines()]
    return [*lines, *(code for code in INLINE.findall(prose) if code.startswith("python "))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the pages say must be there: a network with two cuts in `runs/digits`, its export, an image.

    It is untrained: nothing on a page depends on its accuracy, and attacks end early.
    """
    folder = tmp_path_factory.mktemp("docs")
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="low")(image)
    x = keras.layers.Conv2D(8, 3, activation="relu", name="high")(x)
    logits = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    classifier = Classifier(keras.Model(image, logits), {"low": CIFS("mlp"), "high": CIFS()})
    (folder / "runs/digits/cifs").mkdir(parents=True)
    classifier.save(folder / "runs/digits/cifs/last.keras")
    export(classifier, folder / "runs/digits/export/cifs", version=1)
    Image.fromarray((load_digits().images[0] * 15).astype("uint8")).save(folder / "digit.png")
    return folder


@pytest.fixture
def as_registered():
    """Forget what a page registers."""
    with contextlib.ExitStack() as stack:
        for registry in (METHODS, importance._REGISTRY, keras.saving.get_custom_objects()):
            stack.enter_context(mock.patch.dict(registry))
        yield


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if blocks_of(text, "python")])
def test_python_blocks_run(page, folder, as_registered, tmp_path, monkeypatch):
    for name in ("runs", "digit.png"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(PAGES[page], "python")
    names = {"__name__": Path(page).stem}
    with contextlib.ExitStack() as stack:
        if any(SERVER in code for _, code in blocks):
            model = f"--model_base_path={folder / 'runs/digits/export/cifs'}"
            server = stack.enter_context(running_server(tmp_path / "server.log", model, "--model_name=cifs"))
            blocks = [(line, code.replace(f"http://{SERVER}", server.url)) for line, code in blocks]
        for line, code in blocks:
            file = tmp_path / f"{Path(page).stem}_line_{line}.py"  # for tracebacks, and for AutoGraph
            file.write_text(code)
            exec(compile(code, file, "exec", dont_inherit=True), names)


class Parsed(Exception):
    """The command line was understood; what the program does is tested where it lives."""


def parse_only(parse):
    def parse_and_stop(*args, **kwargs):
        raise Parsed(parse(*args, **kwargs))

    return parse_and_stop


def started_by(script):
    """The module of the program that a script of training/ or serving/ starts."""
    (package, name) = re.search(r"^from (\S+) import (\w+)$", script.read_text(), re.MULTILINE).groups()
    return importlib.import_module(f"{package}.{name}")


def check_command(words, monkeypatch):
    """Let the program's own parser read its arguments; a launcher's program is read too."""
    program, *arguments = words
    if program == "-m":
        assert importlib.util.find_spec(arguments[0]), arguments[0]
        return
    if program == "-c":
        compile(arguments[0], "-c", "exec")
        return
    assert (ROOT / program).is_file(), program
    if not program.startswith(("training/", "serving/")) or arguments[:1] == ["merge"]:
        return
    module = started_by(ROOT / program)
    for owner in (module, importlib.import_module("cifs_tf.launch.options")):
        for name in ("parse_options", "parse_config", "parse_flat"):
            parse = getattr(owner, name, None)
            if isinstance(parse, types.FunctionType) and parse.__name__ == name:
                monkeypatch.setattr(owner, name, parse_only(parse))
    # `--help` and `--print_config` end with SystemExit, or, in a program of several commands, print and return.
    if {"--help", "--print_config"} & set(arguments):
        with contextlib.suppress(SystemExit):
            module.main(arguments)
    else:
        with pytest.raises(Parsed):
            module.main(arguments)
    if "--" in arguments:
        check_command(arguments[arguments.index("--") + 1 :], monkeypatch)


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if commands_of(text)])
def test_commands_are_understood(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("my_recipe.yaml", "runs/tune-svhn/best.yaml", "runs/small-pgd/config.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("epochs: 1\n")
    (tmp_path / "runs/digits/export/cifs/1").mkdir(parents=True)
    for name in ("training", "serving"):
        (tmp_path / name).symlink_to(ROOT / name)
    makefile = (ROOT / "Makefile").read_text()
    for line in commands_of(PAGES[page]):
        words = shlex.split(line, comments=True)
        end = next((i for i, word in enumerate(words) if word in ("|", "&", "&&", ">")), len(words))
        if words[:1] == ["make"]:
            assert f"\n{words[1]}:" in makefile, line
        elif "python" in words[:end]:
            with monkeypatch.context() as patch:
                check_command(words[words.index("python") + 1 : end], patch)


@pytest.mark.slow
@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_examples_in_docstrings_hold(file, as_registered):
    module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    public = {name: getattr(cifs_tf, name) for name in cifs_tf.__all__}
    names = {"keras": keras, "np": np, "tf": tf, **public, **vars(module)}
    for example in doctest.DocTestFinder().find(module, globs=names):
        try:
            doctest.DebugRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example)
        except doctest.UnexpectedException as error:
            if getattr(error.exc_info[1], "name", None) not in AT_HAND:
                raise error.exc_info[1] from None


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_links_lead_somewhere(page):
    prose = BLOCK.sub("", PAGES[page])
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", prose):
        assert (ROOT / page).parent.joinpath(target).exists(), target
    for path in re.findall(r"`((?:cifs_tf|docs|notebooks|serving|tests|training)/[\w./-]+)`", prose):
        assert (ROOT / path).exists(), path


def test_nothing_is_left_to_fill_in():
    assert re.findall(r"\b[A-Z]{3,}_[A-Z]{3,}\b", PAGES["README.md"]) == []


def test_results_repeat_the_readme():
    """The tables of accuracies on the page of results that a person typed stand in the README, number by number."""
    typed = re.sub(r"<!-- measured.*?<!-- end", "", PAGES["docs/results.md"], flags=re.DOTALL)
    rows = re.findall(r"^\|.*\d\.\d.*\|$", typed, re.MULTILINE)
    assert len(rows) >= 10
    assert set(rows) <= set(PAGES["README.md"].splitlines())
