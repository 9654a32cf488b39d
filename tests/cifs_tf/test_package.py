"""What `import cifs_tf` gives, and what it leaves alone."""

import ast
import importlib
import subprocess
import sys

import keras
import pytest

import cifs_tf
from cifs_tf.errors import UserError
from tests.test_imports import ROOT, read_modules

WATCHED = [name for name in cifs_tf._WATCHED if name.startswith("cifs_tf.")]


def fresh(code, *, check=True):
    """Run code in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=check)


def test_nothing_heavy_is_imported():
    heavy = ("tensorflow", "keras", "numpy", "cifs_tf.layers")
    fresh(f"import sys, cifs_tf; assert not set({heavy}) & set(sys.modules)")


def test_names_are_typed_and_there():
    """What a type checker reads under TYPE_CHECKING is what `__getattr__` finds."""
    tree = ast.parse((ROOT / "cifs_tf/__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    typed = {alias.asname: node.module for node in block.body for alias in node.names}
    assert typed == {name: f"cifs_tf.{home}" for name, home in cifs_tf._HOME.items()}
    for name in cifs_tf.__all__:
        assert getattr(cifs_tf, name) is getattr(importlib.import_module(typed[name]), name)
    assert dir(cifs_tf) == sorted(typed)


def test_no_name_hides_a_module():
    modules = read_modules(ROOT)
    for package in {name.rpartition(".")[0] for name in modules} - {""}:
        tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
        imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module != package
            for alias in node.names
        }
        hidden = {f"{package}.{name}" for name in imported} & set(modules)
        assert not hidden


def test_what_registers_is_watched():
    """A part that `adversarial` imports, and that imports Keras or TensorFlow, must not be found half imported."""
    modules = read_modules(ROOT)
    reached, ahead = set(), ["cifs_tf.adversarial"]
    while ahead:
        name = ahead.pop()
        if name not in reached and name in modules:
            reached.add(name)
            ahead += [imported for imported, _ in modules[name]]
    light = {f"cifs_tf.{name}" for name in ("checks", "config", "errors", "files", "hardware", "sizes", "tables")}
    parts = {".".join(name.split(".")[:2]) for name in reached} - light
    assert parts == set(WATCHED)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "classifier.keras"
    classifier = cifs_tf.Classifier(
        cifs_tf.resnet("resnet10", (8, 8, 1), 3, width=2), {"stage4_block1_out": cifs_tf.CIFS()}
    )
    classifier.compile(cifs_tf.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    classifier.save(path)
    return path


@pytest.mark.parametrize(
    "first",
    [
        *(pytest.param(first, marks=pytest.mark.slow) for first in ("import cifs_tf, keras", "import keras, cifs_tf")),
        *(
            pytest.param(first, marks=pytest.mark.soak)
            for first in (
                "import cifs_tf, tensorflow, keras",
                "import tensorflow, cifs_tf, keras",
                "import cifs_tf.data, keras",
                "import cifs_tf.layers, keras",
                "import cifs_tf.attacks, keras",
                "import cifs_tf.distribute, keras",
            )
        ),
    ],
)
def test_keras_loads_a_classifier_in_a_fresh_process(first, saved):
    out = fresh(f"{first}; print(type(keras.models.load_model({str(saved)!r}).optimizer).__module__)").stdout
    assert out.splitlines()[-1] == "cifs_tf.adversarial.sgd"


def test_load_model(saved, tmp_path):
    assert isinstance(cifs_tf.load_model(saved), cifs_tf.Classifier)
    with pytest.raises(UserError, match="no such file"):
        cifs_tf.load_model(tmp_path / "missing.keras")
    with pytest.raises(UserError, match=r"this is a folder, give one of its files: classifier\.keras"):
        cifs_tf.load_model(saved.parent)
    (tmp_path / "broken.keras").write_text("nothing")
    with pytest.raises(UserError, match="Keras cannot load it"):
        cifs_tf.load_model(tmp_path / "broken.keras")
