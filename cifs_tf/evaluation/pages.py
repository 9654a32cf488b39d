"""A report as files: report.json, a Markdown table, and one HTML page that needs nothing beside it."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cifs_tf.figures import GREY, NATURAL, ROBUST, make_figure, styled, svg_of
from cifs_tf.files import write_atomically
from cifs_tf.templates import template_environment

FILES = ("report.json", "report.md", "report.html")
TEMPLATES = Path(__file__).parent / "templates"
MAGNIFIED_TO = 0.5

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


@styled
def _figures(report: dict[str, Any]) -> dict[str, str]:
    """Pictures of a report as SVG, by title."""
    figures = {"Robust accuracy, one attack after the other": _draw_attacks(report)}
    if len(report["per_class"]) <= 50:
        figures["Accuracy by class"] = _draw_classes(report["per_class"])
    names = {"epsilon": "epsilon", "steps": "steps of PGD", "restarts": "restarts of PGD-20"}
    for pool, points in report["curves"].items():
        figures[f"Robust accuracy against {names[pool]}"] = _draw_curve(names[pool], points, report)
    return {title: svg_of(figure) for title, figure in figures.items()}


def _draw_attacks(report: dict[str, Any]) -> Figure:
    figure = make_figure((8, 3.2))
    axes = figure.subplots()
    count = report["num_examples"]
    labels = ["natural", *(f"{row['attack']} ({row['section']})" for row in report["attacks"])]
    shares = [report["natural"]["accuracy"], *(row["standing"] / count for row in report["attacks"])]
    axes.barh(
        labels[::-1], [100 * share for share in shares[::-1]], color=[ROBUST] * len(report["attacks"]) + [NATURAL]
    )
    axes.set_xlabel("accuracy (%) after this attack and those above it")
    axes.set_xlim(0, 100)
    axes.tick_params(labelsize=8)
    return figure


def _draw_classes(classes: list[dict[str, Any]]) -> Figure:
    figure = make_figure((8, 3.2))
    axes = figure.subplots()
    places = np.arange(len(classes))
    axes.bar(places, [100 * row["natural"] for row in classes], color=NATURAL, label="natural")
    axes.bar(places, [100 * row["worst_case"] for row in classes], color=ROBUST, width=0.5, label="worst case")
    axes.set_xticks(places, [row["class"] for row in classes], rotation=45, ha="right", fontsize=8)
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 100)
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def _draw_curve(label: str, points: Sequence[tuple[float, float]], report: dict[str, Any]) -> Figure:
    figure = make_figure((4.5, 3))
    axes = figure.subplots()
    shares = [100 * share for _, share in points]
    axes.plot([x for x, _ in points], shares, marker="o", markersize=3, color=ROBUST, clip_on=False)
    if label == "epsilon" and report["about"].get("epsilon"):
        axes.axvline(report["about"]["epsilon"], color=GREY, linewidth=1, linestyle="--")
    axes.set_xlabel(label)
    axes.set_ylabel("robust accuracy (%)")
    axes.set_ylim(0, 100)
    return figure


def _example_pictures(examples: Examples) -> list[dict[str, str]]:
    """Image, x_adv, and the perturbation, magnified and around grey, side by side."""
    pictures = []
    for example in examples:
        shift = example["x_adv"] - example["image"]
        largest = float(np.abs(shift).max())
        factor = MAGNIFIED_TO / largest if largest > 0 else 1.0
        panels = {"image": example["image"], "attacked": example["x_adv"], "difference": 0.5 + factor * shift}
        svg = svg_of(_draw_strip(panels))
        pictures.append({"title": f"{example['title']}; difference magnified {factor:.0f} times", "svg": svg})
    return pictures


@styled
def _draw_strip(panels: dict[str, np.ndarray]) -> Figure:
    figure = make_figure((4.5, 1.7))
    for axes, (title, picture) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        shown = np.clip(picture, 0, 1)
        axes.imshow(shown if shown.shape[-1] == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=8)
        axes.axis("off")
    return figure
