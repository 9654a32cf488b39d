"""README and docs: every Python block runs, every command is understood, every path and link leads somewhere.

The blocks of a page run as a reader would run them: in order, in a fresh process, in a folder with `runs/digits`, a
small network. A comment above a block, `<!-- test: skip, because ... -->`, leaves it out where it cannot run.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import keras
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from cifs_tf.export import export
from cifs_tf.layers import CIFS
from cifs_tf.models import Classifier
from tests.cifs_tf.serving.running import running_server

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in (README, *sorted((ROOT / "docs").rglob("*.md")))}
BLOCK = re.compile(r"(?:^<!-- test: (.*) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
SERVER = "127.0.0.1:8501"
# Modules with examples in docstrings: rooms of the library, the other rooms, and files of no room, a process for each.
LIBRARY = ("data", "layers", "models", "attacks", "adversarial", "evaluation", "analysis")
EXAMPLES: dict[str, list[str]] = {"library": [], "programs": [], "top": []}
for file in sorted((ROOT / "cifs_tf").rglob("*.py")):
    if ">>>" in file.read_text():
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        room = file.relative_to(ROOT / "cifs_tf").parts[0]
        EXAMPLES["top" if room.endswith(".py") else "library" if room in LIBRARY else "programs"].append(module)


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


def run_fresh(*argv, cwd):
    """Run Python in a process of its own, on the package of this clone; fail with the end of its error output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, *map(str, argv)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        pytest.fail(done.stderr[-6000:], pytrace=False)


def script_of(text):
    """The Python blocks of a page as one script, each at its own lines: tracebacks name the lines of the page."""
    lines = [""] * (text.count("\n") + 1)
    for first, code in blocks_of(text, "python"):
        block = code.splitlines()
        lines[first : first + len(block)] = block
    return "\n".join(lines)


# Pages by folder. One process runs them in turn, each in a folder of its own: starting it takes longer than most pages.
PARTS = collections.defaultdict(list)
for _name, _text in PAGES.items():
    if blocks_of(_text, "python"):
        PARTS[str(Path(_name).parent)].append(_name)
IN_TURN = """import os, runpy, sys
for file in sys.argv[1:]:
    os.chdir(os.path.dirname(file))
    runpy.run_path(file, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_python_blocks_run(part, folder, tmp_path):
    scripts = {page: script_of(PAGES[page]) for page in PARTS[part]}
    with contextlib.ExitStack() as stack:
        if SERVER in "".join(scripts.values()):
            model = f"--model_base_path={folder / 'runs/digits/export/cifs'}"
            server = stack.enter_context(running_server(tmp_path / "server.log", model, "--model_name=cifs"))
            scripts = {page: script.replace(f"http://{SERVER}", server.url) for page, script in scripts.items()}
        files = []
        for page, script in scripts.items():
            own = tmp_path / Path(page).stem
            own.mkdir()
            for name in ("runs", "digit.png"):
                (own / name).symlink_to(folder / name)
            files.append(own / f"{Path(page).stem}_page.py")
            files[-1].write_text(script)
        run_fresh("-c", IN_TURN, *files, cwd=tmp_path)


class Parsed(Exception):
    """The command line was understood; what the program does is tested where it lives."""


def parse_only(parse):
    def parse_and_stop(*args, **kwargs):
        raise Parsed(parse(*args, **kwargs))

    return parse_and_stop


def started_by(script):
    """The module of the program that a script of training/ or serving/ starts."""
    program = re.search(r'start_program\("(\w+)"\)|from cifs_tf\.(launch\.\w+) import main', script.read_text())
    return importlib.import_module(f"cifs_tf.programs.{program[1]}" if program[1] else f"cifs_tf.{program[2]}")


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
    if not program.startswith(("training/", "serving/")) or arguments[:1] in (["merge"], ["verify"]):
        return
    check_arguments(started_by(ROOT / program), arguments, monkeypatch)
    if "--" in arguments:
        check_command(arguments[arguments.index("--") + 1 :], monkeypatch)


def check_arguments(module, arguments, monkeypatch):
    """Let the parser of the program in this module read the arguments, and stop before it does anything."""
    for owner in (module, importlib.import_module("cifs_tf.launch.worker")):
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


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if commands_of(text)])
def test_commands_are_understood(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("my_recipe.yaml", "runs/tune-svhn/best.yaml", "runs/small-pgd/config.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("epochs: 1\n")
    for name in ("digits", "clothing"):
        (tmp_path / "runs" / name / "export/cifs/1").mkdir(parents=True)
    (tmp_path / "clothing").mkdir()
    seconds = dict.fromkeys(("apgd_ce", "apgd_t", "fab_t", "square"), 1.0)
    (tmp_path / "official.json").write_text(json.dumps({"seconds": seconds}))
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
        elif words[:1] == ["cifs-tf"] and words[1] != "--help":
            with monkeypatch.context() as patch:
                check_arguments(importlib.import_module(f"cifs_tf.programs.{words[1]}"), words[2:end], patch)


@pytest.mark.slow
@pytest.mark.parametrize("part", EXAMPLES)
def test_examples_in_docstrings_hold(part, tmp_path):
    run_fresh(ROOT / "tests/docstring_examples.py", *EXAMPLES[part], cwd=tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_links_lead_somewhere(page):
    prose = BLOCK.sub("", PAGES[page])
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", prose):
        assert (ROOT / page).parent.joinpath(target).exists(), target
    for path in re.findall(r"`((?:cifs_tf|docs|notebooks|serving|tests|training)/[\w./-]+)`", prose):
        assert (ROOT / path).exists(), path


def test_nothing_is_left_to_fill_in():
    assert re.findall(r"\b[A-Z]{3,}_[A-Z]{3,}\b", PAGES["README.md"]) == []
