"""Notebooks as they are kept: without outputs, for any Python 3 kernel, with a smoke setting.

`make test-all` runs the first two in that setting, with nbmake; `make soak` all of them at full size.
"""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
MAX_LINES = 35  # a cell is seen as a whole


@pytest.fixture(params=NOTEBOOKS, ids=lambda file: file.stem)
def notebook(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def code_of(notebook):
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_all_are_there():
    assert [file.stem[:2] for file in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


def test_is_kept_as_written_not_as_run(notebook):
    assert notebook["metadata"] == METADATA
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert [cell["id"] for cell in notebook["cells"]] == [f"cell-{i:02d}" for i in range(1, len(notebook["cells"]) + 1)]
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_begins_with_its_title_and_the_smoke_setting(notebook):
    first, second = notebook["cells"][:2]
    assert first["cell_type"] == "markdown"
    assert first["source"][0].startswith("# ")
    assert 'SMOKE = os.environ.get("CIFS_SMOKE") == "1"' in "".join(second["source"])
    assert any("SMOKE" in code for code in code_of(notebook)[1:])


def test_is_thin(notebook):
    """It calls the library; what is longer than a screen belongs there."""
    for code in code_of(notebook):
        assert len(code.splitlines()) <= MAX_LINES
    python = [re.sub(r"^%.*$", "", code, flags=re.MULTILINE) for code in code_of(notebook)]
    imported = [node for code in python for node in ast.walk(ast.parse(code))]
    modules = [node.module for node in imported if isinstance(node, ast.ImportFrom)]
    assert any(module.startswith("cifs_tf") for module in modules)


@pytest.mark.slow
def test_runs_from_any_folder(notebook):
    """Nothing is read or written beside the notebook; temporary folders take what is written."""
    for code in code_of(notebook):
        assert not re.search(r"os\.chdir|sys\.path|\.\./|[\"']/(?:home|root|tmp|work)\b", code)
