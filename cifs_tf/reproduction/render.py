"""A table as files: JSON with everything, Markdown, and one HTML page that needs nothing beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifs_tf.attack_names import attack_title
from cifs_tf.files import write_json, write_text
from cifs_tf.tables import Table
from cifs_tf.templates import template_environment

TEMPLATES = Path(__file__).parent / "templates"
LINES = ("ours", "paper", "difference")


def write_result(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write a table that `build_result` made as JSON, Markdown and HTML, each file whole or not at all."""
    stem = f"reproduce_table{result['table']}_{result['scale']}"
    files = [folder / f"{stem}.{suffix}" for suffix in ("json", "md", "html")]
    write_json(files[0], result)
    environment = template_environment(TEMPLATES)
    environment.filters["cell"] = cell_text
    for file in files[1:]:
        template = environment.get_template(f"table{file.suffix}.j2")
        write_text(file, template.render(result=result, lines=LINES, table=result_table(result)))
    return files


def result_table(result: dict[str, Any], lines: Sequence[str] = LINES) -> Table:
    """Lay out a table of the paper, a line each for what was measured, the paper's numbers and the difference.

    Args:
        result: see `cifs_tf.reproduction.results.build_result`, or the JSON file that it became.
        lines: which of `"ours"`, `"paper"` and `"difference"` each row shows. Default all, of a table that the paper
            does not have `"ours"`.
    """
    if all(cell["paper"] is None for row in result["rows"] for cell in row["cells"]):
        lines = LINES[:1]
    blocks = list(dict.fromkeys(row["block"] for row in result["rows"]))
    is_named = len(lines) > 1
    rows = []
    for row in result["rows"]:
        name = row["name"] if len(blocks) == 1 else f"{row['block']}, {row['name']}"
        for index, line in enumerate(lines):
            names = ["" if index else name, *([line] if is_named else [])]
            rows.append([*names, *(cell_text(cell, line) for cell in row["cells"])])
    header = [blocks[0] if len(blocks) == 1 else "", *([""] if is_named else []), *result["columns"]]
    return Table(header, rows, num_names=1 + is_named)


def cell_text(cell: dict[str, Any], line: str) -> str:
    """Return what a cell of a line shows.

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


def figure_table(result: dict[str, Any]) -> Table:
    """Lay out the numbers beside the pictures of a figure, natural and adversarial."""

    def both(found: dict[str, Any], name: str, scale: float, digits: int) -> str:
        return " / ".join(f"{scale * found[f'{kind}_{name}']:.{digits}f}" for kind in ("natural", "adversarial"))

    rows = [
        [
            name,
            beta if isinstance(beta := found["attack_beta"], str) else f"{beta:g}",
            both(found, "accuracy", 100, 1),
            both(found, "negative_share", 100, 1),
            both(found, "alignment", 1, 2),
        ]
        for name, found in result["networks"].items()
    ]
    header = [f"natural / {attack_title(result['attack'])}", "beta_atk", "accuracy (%)", "NR share (%)", "alignment"]
    return Table(header, rows)
