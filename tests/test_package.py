"""The wheel: what it puts into an environment, and that its command works there, from an empty folder.

`uv` installs what requirements.txt pins, in seconds where its cache is warm.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cifs_tf import extras
from tests.cifs_tf.serving.running import free_port, wait_until_it_answers

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TWO_STEPS = ["--epochs=1", "--train_examples=48", "--val_examples=16", "--test_examples=16", "--batch_size=16"]
ONE_ATTACK = ["--attack_betas=0", "--attacks=fgsm", "--eval_audit=false"]
FOREIGN = """
import keras
image = keras.Input((8, 8, 1))
keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(image))).save("foreign.keras")
"""


class Installed:
    """An environment of its own, and an empty folder to run programs in."""

    def __init__(self, folder, *requirements):
        self.python, self.folder = folder / "env" / "bin" / "python", folder / "empty"
        self.folder.mkdir()
        self.uv("venv", f"--python={sys.executable}", folder / "env")
        self.uv("pip", "install", f"--python={self.python}", *requirements)

    def uv(self, *arguments):
        subprocess.run([sys.executable, "-m", "uv", "--quiet", *map(str, arguments)], check=True)

    @property
    def site_packages(self):
        (folder,) = self.python.parents[1].glob("lib/python*/site-packages")
        return folder

    def start(self, program, *arguments, **options):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [self.python.parent / program, *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=environment, text=True, **options)

    def run(self, program, *arguments):
        """Exit code, output and errors of a program."""
        process = self.start(program, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=900)
        return process.returncode, out, err


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(command, check=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    return Installed(tmp_path_factory.mktemp("installed"), f"--constraint={ROOT / 'requirements.txt'}", f"{wheel}[all]")


@pytest.fixture(scope="module")
def without_extras(installed):
    """The same environment without the extras; tests after it have no other."""
    names = [name for group in PROJECT["optional-dependencies"].values() for name in group if "cifs-tf" not in name]
    names = {re.split(r"[<>=\[]", name)[0] for name in names} - {
        "grpcio",
        "pillow",
    }  # TensorFlow and TensorBoard bring them
    installed.uv("pip", "uninstall", f"--python={installed.python}", *sorted(names))
    return installed


@pytest.mark.slow
def test_the_wheel_brings_one_package(wheel, tmp_path):
    """Beside it nothing, and in it what is not Python: recipes, templates, the paper's tables, the mark of types."""
    environment = Installed(tmp_path, "pip")
    before = set(os.listdir(environment.site_packages))
    environment.uv("pip", "install", f"--python={environment.python}", "--no-deps", wheel)
    brought = set(os.listdir(environment.site_packages)) - before
    assert brought == {"cifs_tf", f"cifs_tf-{PROJECT['version']}.dist-info"}
    package = environment.site_packages / "cifs_tf"
    recipes = {file.name: file.read_text() for file in (ROOT / "training" / "recipes").glob("*.yaml")}
    assert {file.name: file.read_text() for file in (package / "recipes").iterdir()} == recipes
    tracked = subprocess.run(["git", "ls-files", "cifs_tf"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {file for file in tracked.stdout.split() if not (environment.site_packages / file).is_file()} == set()
    assert (package / "py.typed").is_file()


@pytest.mark.slow
def test_the_source_distribution_gives_the_same_wheel(tmp_path):
    build = [sys.executable, "-m", "uv", "build", "--quiet", "--no-build-isolation", f"--python={sys.executable}"]
    subprocess.run([*build, f"--out-dir={tmp_path}", ROOT], check=True)  # the wheel is built from the sdist
    assert {file.suffix for file in tmp_path.iterdir()} >= {".gz", ".whl"}


@pytest.mark.slow
def test_command(installed):
    code, out, _ = installed.run("cifs-tf", "--help")
    assert code == 0
    assert "reproduce" in out
    assert installed.run("cifs-tf", "--version")[1] == f"cifs-tf {PROJECT['version']}\n"
    code, _, err = installed.run("cifs-tf", "evalute")
    assert (code, "did you mean evaluate" in err) == (2, True)
    code, out, _ = installed.run("cifs-tf", "evaluate", "--help")
    assert "usage: cifs-tf evaluate" in out
    assert "cifs-tf evaluate --model runs/digits" in out


@pytest.mark.slow
def test_run_serve_and_predict(installed):
    """Two steps of training, and one request to what they exported."""
    code, out, err = installed.run("cifs-tf", "run", *TWO_STEPS, *ONE_ATTACK, "--workdir=out", "--twin=null")
    assert code == 0, err
    result = json.loads((installed.folder / "out/result.json").read_text())
    assert result["revision"] is None
    assert len(result["networks"]["cifs"]["history"]) == 1
    assert (installed.folder / "out/cifs/curves.png").is_file()
    _make_image(installed)
    port, log = free_port(), installed.folder / "server.log"
    (base,) = {file.parents[1] for file in (installed.folder / "out").rglob("saved_model.pb")}
    argv = ["serve", f"--model_base_path={base}", f"--rest_api_port={port}", "--port=0"]
    with log.open("w") as output:
        server = installed.start("cifs-tf", *argv, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_it_answers(server, url, log)
        code, out, err = installed.run("cifs-tf", "predict", "zero.png", f"--url={url}")
        assert code == 0, err
        assert "zero.png" in out
    finally:
        server.terminate()
    assert server.wait(timeout=60) == 0


def _make_image(environment):
    program = "from PIL import Image; Image.new('L', (8, 8)).save('zero.png')"
    assert environment.run("python", "-c", program)[0] == 0


@pytest.mark.soak
def test_evaluate_a_foreign_model(installed):
    """One that Keras saved and this project never saw."""
    assert installed.run("python", "-c", FOREIGN)[0] == 0
    arguments = ["--model=foreign.keras", "--dataset=digits", "--suite=paper", "--attacks=fgsm", "--examples=20"]
    code, _, err = installed.run("cifs-tf", "evaluate", *arguments, "--audit=false", "--workdir=measured")
    assert code == 0, err
    assert "<svg" in (installed.folder / "measured/report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["tune", "--workdir=searched"], "tune"),
        (["run", "--dataset=tfds:mnist", "--workdir=mnist"], "data"),
        (["serve", "--model_base_path=."], "serve"),
        (["analyse", "--run=out"], "report"),
        (["reproduce", "--table=1", "--scale=smoke"], "report"),
        (["export", "--run=out"], "export"),
    ],
)
def test_a_missing_extra_is_one_sentence(without_extras, command, extra):
    code, _, err = without_extras.run("cifs-tf", *command)
    last = err.splitlines()[-1]
    assert code == 2, err
    assert last.startswith(f"cifs-tf {command[0]}: error: the package ")
    assert last.endswith(f"install it with: pip install 'cifs-tf[{extra}]'")
    assert "Traceback" not in err


@pytest.mark.soak
def test_a_run_needs_no_extra(without_extras):
    """It leaves out figures and ONNX, and says so."""
    code, out, err = without_extras.run(
        "cifs-tf", "run", *TWO_STEPS, *ONE_ATTACK, "--workdir=core", "--twin=null", "--defense=vanilla"
    )
    assert code == 0, err
    assert "note: no figures and no ONNX files, for want of an extra: pip install 'cifs-tf[report,export]'" in out
    assert list((without_extras.folder / "core").rglob("saved_model.pb"))
    assert not list((without_extras.folder / "core").rglob("*.onnx"))


@pytest.mark.soak
@pytest.mark.parametrize("others", [[], ["numpy<2.4", "pillow<13"]], ids=["empty", "older"])
def test_ranges(wheel, tmp_path, others):
    """The newest versions of today, alone or beside what another project asks for."""
    environment = Installed(tmp_path, f"{wheel}[all]", *others)
    code, _, err = environment.run("cifs-tf", "run", *TWO_STEPS, *ONE_ATTACK, "--workdir=out")
    assert code == 0, err


def test_extras_are_those_of_the_project():
    declared = PROJECT["optional-dependencies"]
    assert {*declared} == {*extras.MODULES, "all"}
    assert declared["all"] == [f"cifs-tf[{','.join(extras.MODULES)}]"]


@pytest.mark.parametrize("extra", extras.MODULES)
def test_modules_of_an_extra(extra, monkeypatch):
    extras.require(extra)
    assert extras.is_installed(extra)
    find_spec = importlib.util.find_spec
    missing = extras.MODULES[extra][-1]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    assert not extras.is_installed(extra)
    with pytest.raises(ModuleNotFoundError) as raised:
        extras.require(extra)
    assert extras.how_to_install(raised.value).endswith(f"pip install 'cifs-tf[{extra}]'")


def test_a_module_that_no_extra_brings():
    assert extras.how_to_install(ModuleNotFoundError("No module named 'cifs_ft'", name="cifs_ft")) is None
