"""A report as files: report.json, a Markdown table, and one HTML page that needs nothing beside it."""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cifs_tf.files import write_atomically
from cifs_tf.templates import template_environment

FILES = ("report.json", "report.md", "report.html")
TEMPLATES = Path(__file__).parent / "templates"
MAGNIFIED_TO = 0.5
BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#718096"

Examples = list[dict[str, Any]]
"""Images to show: `title`, `image` and `x_adv`, float arrays (height, width, channels) in [0, 1]."""


def write_report(
    report: dict[str, Any], folder: str | os.PathLike[str], examples: Examples | None = None
) -> list[Path]:
    """Write a report to a folder, each file whole or not at all.

    Args:
        report: see `cifs_tf.evaluation.build_report`.
        folder: where to; it is made.
        examples: images to show in the HTML page.

    Returns:
        the paths of `report.json`, `report.md` and `report.html`.
    """
    folder = Path(folder)
    texts = (
        json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        _render("report.md.j2", report),
        _render("report.html.j2", report, figures=_figures(report), examples=_example_pictures(examples or [])),
    )
    for name, text in zip(FILES, texts, strict=True):
        write_atomically(folder / name, functools.partial(Path.write_text, data=text, encoding="utf-8"))
    return [folder / name for name in FILES]


def _render(template: str, report: dict[str, Any], **more: Any) -> str:
    environment = template_environment(TEMPLATES)
    environment.filters["percent"] = lambda share: "-" if share is None else f"{100 * share:.2f}"
    environment.filters["interval"] = lambda bounds: (
        "" if not bounds else "{:.2f} to {:.2f}".format(*(100 * bound for bound in bounds))
    )
    return environment.get_template(template).render(report=report, **more)


def _figures(report: dict[str, Any]) -> dict[str, str]:
    """Pictures of a report as SVG, by title."""
    figures = {"Images standing after each attack": _svg(lambda axes: _draw_attacks(axes, report), (8, 3.2))}
    if len(report["per_class"]) <= 50:
        figures["Accuracy by class"] = _svg(lambda axes: _draw_classes(axes, report["per_class"]), (8, 3.2))
    names = {"epsilon": "epsilon", "steps": "steps of PGD", "restarts": "restarts of PGD-20"}
    for pool, points in report["curves"].items():
        draw = functools.partial(_draw_curve, label=names[pool], points=points, report=report)
        figures[f"Accuracy against {names[pool]}"] = _svg(draw, (4.5, 3))
    return figures


def _svg(draw: Callable[[Any], None], size: tuple[float, float]) -> str:
    # The object-oriented interface: no global state, no display.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _draw_attacks(axes: Any, report: dict[str, Any]) -> None:
    count = report["num_examples"]
    labels = ["natural", *(f"{row['attack']} ({row['section']})" for row in report["attacks"])]
    shares = [report["natural"]["accuracy"], *(row["standing"] / count for row in report["attacks"])]
    axes.barh(labels[::-1], [100 * share for share in shares[::-1]], color=[BLUE] * len(report["attacks"]) + [GREY])
    axes.set_xlabel("images standing (%), one attack after the other")
    axes.set_xlim(0, 100)
    axes.tick_params(labelsize=8)


def _draw_classes(axes: Any, classes: list[dict[str, Any]]) -> None:
    places = np.arange(len(classes))
    axes.bar(places, [100 * row["natural"] for row in classes], color=GREY, alpha=0.5, label="natural")
    axes.bar(places, [100 * row["worst_case"] for row in classes], color=BLUE, width=0.5, label="worst case")
    axes.set_xticks(places, [row["class"] for row in classes], rotation=45, ha="right", fontsize=8)
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 102)
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)


def _draw_curve(axes: Any, label: str, points: list[tuple[float, float]], report: dict[str, Any]) -> None:
    axes.plot([x for x, _ in points], [100 * share for _, share in points], marker="o", markersize=3, color=BLUE)
    if label == "epsilon" and report["about"].get("epsilon"):
        axes.axvline(report["about"]["epsilon"], color=ORANGE, linewidth=1, linestyle="--")
    axes.set_xlabel(label)
    axes.set_ylabel("images standing (%)")
    axes.set_ylim(0, 102)


def _example_pictures(examples: Examples) -> list[dict[str, str]]:
    """Image, x_adv, and the perturbation, magnified and around grey, side by side."""
    pictures = []
    for example in examples:
        shift = example["x_adv"] - example["image"]
        largest = float(np.abs(shift).max())
        factor = MAGNIFIED_TO / largest if largest > 0 else 1.0
        panels = {"image": example["image"], "attacked": example["x_adv"], "difference": 0.5 + factor * shift}
        svg = _strip(panels)
        pictures.append({"title": f"{example['title']}; difference magnified {factor:.0f} times", "svg": svg})
    return pictures


def _strip(panels: dict[str, np.ndarray]) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 1.7), layout="constrained")
    FigureCanvasSVG(figure)
    for axes, (title, picture) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        shown = np.clip(picture, 0, 1)
        axes.imshow(shown if shown.shape[-1] == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=8)
        axes.axis("off")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
