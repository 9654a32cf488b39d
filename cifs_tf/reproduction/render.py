"""A table as files: JSON with everything, Markdown, and one HTML page that needs nothing beside it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from cifs_tf.files import write_atomically
from cifs_tf.runs.workdir import write_json

TEMPLATES = Path(__file__).parent / "templates"
LINES = ("ours", "paper", "difference")


def write_result(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write a table to a folder, each file whole or not at all.

    Args:
        result: see `cifs_tf.reproduction.results.build_result`.
        folder: where to; it is made.

    Returns:
        the paths of the JSON, Markdown and HTML file.
    """
    stem = f"reproduce_table{result['table']}_{result['scale']}"
    files = [folder / f"{stem}.{suffix}" for suffix in ("json", "md", "html")]
    write_json(files[0], result)
    for file in files[1:]:
        text = _environment().get_template(f"table{file.suffix}.j2").render(result=result, lines=LINES)
        write_atomically(file, functools.partial(Path.write_text, data=text, encoding="utf-8"))
    return files


def markdown_table(result: dict[str, Any], lines: Sequence[str] = LINES) -> str:
    """Lay out a table in Markdown, a line each for what was measured, the paper's numbers and the difference.

    Args:
        result: see `cifs_tf.reproduction.results.build_result`, or the JSON file that it became.
        lines: which of `"ours"`, `"paper"` and `"difference"` each row shows.

    Returns:
        the lines of the table, without a newline at the end.
    """
    return _environment().get_template("rows.md.j2").render(result=result, lines=tuple(lines)).strip()


@functools.cache
def _environment() -> jinja2.Environment:
    from cifs_tf.evaluation.pages import template_environment  # with TensorFlow, which planning does without

    environment = template_environment(TEMPLATES)
    environment.filters["cell"] = cell_text
    return environment


def cell_text(cell: dict[str, Any], line: str) -> str:
    """What a cell of a line shows.

    Example:
        >>> cell_text({"ours": 85.5, "interval": [80.0, 89.74], "betas": ["2"]}, "ours")
        '85.5 [80.0, 89.7]'
    """
    value = cell[line]
    if value is None:
        return "-"
    if line == "difference":
        return f"{value:+.1f}"
    if line == "paper":
        return f"{value:.2f}"
    return f"{value:.1f}" + ("" if cell["interval"] is None else " [{:.1f}, {:.1f}]".format(*cell["interval"]))
