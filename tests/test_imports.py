"""The import rule of the architecture, read from the source with `ast`.

The folders of `cifs_tf` are numbered, and each imports only those with a lower number; `config`, `errors`, `files`,
`command_line` and `distribute` are free for all and import nothing but each other; attacks take functions, never
models; `cifs_tf` imports neither `training` nor `serving`, and `serving` not `training`. No star imports, no cycles.
"""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cifs_tf", "training", "serving")
ORDER = (
    "data",
    "layers",
    "models",
    "losses",
    "attacks",
    "adversarial",
    "evaluation",
    "analysis",
    "export",
)
FREE = ("config", "errors", "files", "command_line", "distribute")
# On top of the order: an attack takes a heads_fn, never a model.
ATTACKS_MAY_IMPORT = {"attacks", "losses", *FREE}


def read_modules(root):
    """Names of the modules under the packages, and what each imports: {module: [(imported, is_star)]}."""
    files = [file for package in PACKAGES for file in sorted((root / package).rglob("*.py"))]
    modules = {}
    for file in files:
        parts = file.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return {name: list(read_imports(name, file, modules)) for name, file in modules.items()}


def read_imports(name, file, modules):
    """Modules of ours that one file imports; `from package import module` means the module."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in modules else base), alias.name == "*"


def part_of(module):
    """Top-level part of cifs_tf a module belongs to: cifs_tf.layers.cifs -> layers; '' for cifs_tf itself."""
    return [*module.split("."), ""][1]


def violations(modules):
    """Every broken rule, as a sentence."""
    for name, imports in modules.items():
        package = name.split(".")[0]
        for imported, is_star in imports:
            target = imported.split(".")[0]
            if is_star:
                yield f"{name} imports * from {imported}"
            if package == "cifs_tf" and target in ("training", "serving"):
                yield f"{name} imports {imported}: the library knows no programs"
            if package == "serving" and target == "training":
                yield f"{name} imports {imported}"
            if package == target == "cifs_tf":
                yield from order_violations(name, imported)


def order_violations(name, imported):
    importer, part = part_of(name), part_of(imported)
    if importer == part or importer == "":
        return
    for each in (importer, part):
        if each not in (*ORDER, *FREE):
            yield f"{name} imports {imported}: {each or 'cifs_tf'} has no place in the order"
            return
    if part in FREE:
        return
    if importer in FREE or ORDER.index(importer) <= ORDER.index(part):
        yield f"{name} imports {imported}: {importer} comes before {part}"
    elif importer == "attacks" and part not in ATTACKS_MAY_IMPORT:
        yield f"{name} imports {imported}: attacks take functions"


def cycle(modules):
    """A cycle of imports, or None."""
    graph = {name: {each for each, _ in imports if each in modules} - {name} for name, imports in modules.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


@pytest.fixture(scope="module")
def modules():
    return read_modules(ROOT)


def test_everything_is_read(modules):
    assert {"cifs_tf", "cifs_tf.layers.cifs", "cifs_tf.losses", "training.run"} <= set(modules)
    assert ("cifs_tf.losses", False) in modules["cifs_tf.attacks.pgd"]


def test_import_rule(modules):
    assert list(violations(modules)) == []


def test_no_cycles(modules):
    assert cycle(modules) is None


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("cifs_tf/layers/a.py", "from cifs_tf.models import x", "layers comes before models"),
        ("cifs_tf/layers/a.py", "def f():\n    from ..models import x", "layers comes before models"),
        ("cifs_tf/layers/a.py", "from cifs_tf import models", "layers comes before models"),
        ("cifs_tf/attacks/a.py", "import cifs_tf.models.b", "attacks take functions"),
        ("cifs_tf/errors.py", "from cifs_tf.losses import x", "errors comes before losses"),
        ("cifs_tf/models/b.py", "from cifs_tf.stray import x", "stray has no place in the order"),
        ("cifs_tf/export.py", "from training.run import main", "the library knows no programs"),
        ("serving/server.py", "import training", "imports training"),
        ("training/a.py", "from cifs_tf.losses import *", "imports * from cifs_tf.losses"),
    ],
)
def test_the_rule_finds_what_breaks_it(tmp_path, file, source, expected):
    """Each line in a small copy of the layout."""
    layout = ("cifs_tf/models/b", "cifs_tf/models/__init__", "cifs_tf/losses", "cifs_tf/stray", "training/run")
    for name in (*layout, file.removesuffix(".py")):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert list(violations(read_modules(tmp_path))) == []
    (tmp_path / file).write_text(source)
    (found,) = violations(read_modules(tmp_path))
    assert expected in found


def test_a_cycle_is_found(tmp_path):
    (tmp_path / "training").mkdir()
    for name, source in (("a", "import training.b"), ("b", "from . import c"), ("c", "from training.a import x")):
        (tmp_path / "training" / f"{name}.py").write_text(source)
    assert set(cycle(read_modules(tmp_path))) == {"training.a", "training.b", "training.c"}
