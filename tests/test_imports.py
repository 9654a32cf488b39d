"""The import rule of the architecture, read from the source with `ast`.

The rooms of `cifs_tf` are in one order, and each imports only those before it; the small ones in front are free for
all and import nothing but each other, and those of them that import TensorFlow are not imported by the others; attacks
take functions, never models. The scripts of `training/` and `serving/` are imported by nobody. No star imports, no
cycles.
"""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "cifs_tf"
HEAVY = ("framework_internals", "distribute")
FREE = (
    *("config", "errors", "checks", "files", "command_line", "extras", "hardware", "signals", "statistics", "figures"),
    *("tables", "templates", "attack_names", "sizes", *HEAVY),
)
LIBRARY = ("data", "layers", "losses", "models", "attacks", "adversarial", "evaluation", "analysis", "export")
PARTS = (
    "runs",
    "presets",
    "playground",
    "launch",
    "serving",
    "tuning",
    "reproduction",
    "benchmarks",
    "programs",
    "__main__",
)
ORDER = (*LIBRARY, *PARTS)
# The rooms of the server, in their order; the modules beside them are free, but `server.py`, which starts the parts.
ENDPOINT = "cifs_tf.serving.endpoint"
SERVER = ENDPOINT.replace(".", "/")
SERVER_ROOMS = ("json", "models", "prediction", "v2", "grpc", "rest", "server")
# On top of the order: an attack takes a heads_fn, never a model.
ATTACKS_MAY_IMPORT = {"attacks", "losses", *FREE}


def read_modules(root):
    """Names of the modules under the packages, and what each imports: {module: [(imported, is_star)]}."""
    files = sorted((root / PACKAGE).rglob("*.py"))
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


def part_of(module, package=PACKAGE):
    """Part of a package a module belongs to: cifs_tf.layers.cifs -> layers; '' for the package itself."""
    return module.removeprefix(package).partition(".")[2].split(".")[0]


def violations(modules):
    """Every broken rule, as a sentence."""
    for name, imports in modules.items():
        for imported, is_star in imports:
            target = imported.split(".")[0]
            if is_star:
                yield f"{name} imports * from {imported}"
            if target in ("training", "serving"):
                yield f"{name} imports {imported}: scripts are imported by nobody"
            if target == PACKAGE:
                yield from order_violations(name, imported)


def order_violations(name, imported):
    importer, part = part_of(name), part_of(imported)
    if name.startswith(ENDPOINT) and imported.startswith(ENDPOINT):
        yield from server_violations(name, imported)
    if importer == part or importer == "":
        return
    for each in (importer, part):
        if each not in (*ORDER, *FREE):
            yield f"{name} imports {imported}: {each or 'cifs_tf'} has no place in the order"
            return
    if part in HEAVY and importer in FREE and importer not in HEAVY:
        yield f"{name} imports {imported}: {importer} is read before TensorFlow is imported"
    if part in FREE:
        return
    if importer in FREE or ORDER.index(importer) <= ORDER.index(part):
        yield f"{name} imports {imported}: {importer} comes before {part}"
    elif importer == "attacks" and part not in ATTACKS_MAY_IMPORT:
        yield f"{name} imports {imported}: attacks take functions"


def server_violations(name, imported):
    importer, room = part_of(name, ENDPOINT), part_of(imported, ENDPOINT)
    if importer == room or room not in SERVER_ROOMS:
        return
    if importer not in SERVER_ROOMS or SERVER_ROOMS.index(importer) < SERVER_ROOMS.index(room):
        yield f"{name} imports {imported}: in the server, {importer} comes before {room}"


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
    assert {"cifs_tf", "cifs_tf.layers.cifs", "cifs_tf.losses", "cifs_tf.programs.run"} <= set(modules)
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
        ("cifs_tf/errors.py", "from cifs_tf.distribute import x", "errors is read before TensorFlow"),
        ("cifs_tf/models/b.py", "from cifs_tf.stray import x", "stray has no place in the order"),
        ("cifs_tf/export.py", "from cifs_tf.programs.run import main", "export comes before programs"),
        ("cifs_tf/runs/a.py", "from training.run import main", "scripts are imported by nobody"),
        (f"{SERVER}/json/a.py", "from cifs_tf.serving.endpoint.rest.api import x", "json comes before rest"),
        (f"{SERVER}/status.py", "import cifs_tf.serving.endpoint.rest.api", "status comes before rest"),
        ("cifs_tf/runs/a.py", "from cifs_tf.losses import *", "imports * from cifs_tf.losses"),
    ],
)
def test_the_rule_finds_what_breaks_it(tmp_path, file, source, expected):
    """Each line in a small copy of the layout."""
    layout = (
        "distribute",
        "models/b",
        "models/__init__",
        "losses",
        "stray",
        "programs/run",
        "serving/endpoint/rest/api",
    )
    for name in (*(f"cifs_tf/{each}" for each in layout), file.removesuffix(".py")):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert list(violations(read_modules(tmp_path))) == []
    (tmp_path / file).write_text(source)
    (found,) = violations(read_modules(tmp_path))
    assert expected in found


def test_a_cycle_is_found(tmp_path):
    (tmp_path / "cifs_tf").mkdir()
    sources = (("a", "import cifs_tf.b"), ("b", "from . import c"), ("c", "from cifs_tf.a import x"))
    for name, source in sources:
        (tmp_path / "cifs_tf" / f"{name}.py").write_text(source)
    assert set(cycle(read_modules(tmp_path))) == {"cifs_tf.a", "cifs_tf.b", "cifs_tf.c"}
