"""A report as files: report.json, a Markdown table, and one HTML page that needs nothing beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cifs_tf.evaluation.records import Example, Report
from cifs_tf.extras import is_installed
from cifs_tf.files import write_results, write_text
from cifs_tf.templates import template_environment

FILES = ("report.json", "report.md", "report.html")
NORMS = {"linf": "L-infinity", "l2": "L2", "l1": "L1"}
TEMPLATES = Path(__file__).parent / "templates"


def write_report(report: Report, folder: str | os.PathLike[str], examples: Sequence[Example] = ()) -> list[Path]:
    """Write a report to a folder, each file whole or not at all.

    The page has figures if matplotlib is installed (the extra `report`).

    Args:
        report: see `cifs_tf.evaluation.build_report`.
        folder: where to; it is made.
        examples: adversarial images to show in the HTML page. Default none.

    Returns:
        the paths of `report.json`, `report.md` and `report.html`.
    """
    folder = Path(folder)
    figures: dict[str, str] = {}
    pictures: list[dict[str, str]] = []
    if is_installed("report"):
        from cifs_tf.evaluation.reports.drawings import draw_examples, draw_report

        figures, pictures = draw_report(report), draw_examples(examples)
    texts = {
        "report.md": _render("report.md.j2", report),
        "report.html": _render("report.html.j2", report, figures=figures, examples=pictures),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    write_results(folder / "report.json", report)  # last of all: where it is, the others are
    return [folder / name for name in FILES]


def describe_ball(about: Mapping[str, Any]) -> str:
    """Return norm and radius as they were given.

    Example:
        >>> describe_ball({"norm": "linf", "epsilon": 8 / 255, "epsilon_given": "8/255"})
        'L-infinity epsilon 8/255'
    """
    if about.get("suite") == "corruptions":
        return "no attack"
    return f"{NORMS[about.get('norm') or 'linf']} epsilon {about.get('epsilon_given') or about['epsilon']}"


def describe_length(distance: float | None) -> str:
    """Return a distance; what was not found is farther than any."""
    return "unknown" if distance is None else f"{distance:.4g}"


def _render(template: str, report: Report, **more: Any) -> str:
    environment = template_environment(TEMPLATES)
    environment.filters["percent"] = lambda share: "-" if share is None else f"{100 * share:.2f}"
    environment.filters["interval"] = lambda bounds: (
        "" if not bounds else "{:.2f} to {:.2f}".format(*(100 * bound for bound in bounds))
    )
    environment.filters["between"] = lambda bounds: (
        " (95%: {:.1f} to {:.1f})".format(*(100 * bound for bound in bounds)) if bounds else ""
    )
    environment.filters["ball"] = describe_ball
    environment.filters["length_of"] = describe_length
    return environment.get_template(template).render(report=report, **more)
