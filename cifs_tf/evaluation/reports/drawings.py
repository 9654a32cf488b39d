"""The figures of a report, as SVG for its HTML page."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cifs_tf.evaluation.records import ClassRow, Example, Report
from cifs_tf.figures import GREY, NATURAL, ROBUST, make_figure, styled, svg_of

# Largest perturbation that is drawn, of pixels in [0, 1] around grey.
MAGNIFIED_TO = 0.5
# With more classes, bars and names would run into each other.
MOST_CLASSES = 50
# Radii that the curve over epsilon shows.
SHOWN_RADII = 4.5


@styled
def draw_report(report: Report) -> dict[str, str]:
    """Draw robust accuracy attack by attack and class by class, and the curves of the audit.

    Args:
        report: see `cifs_tf.evaluation.build_report`.

    Returns:
        `<svg>` elements by title.
    """
    figures = {"Robust accuracy, one attack after the other": _draw_attacks(report)}
    if len(report["per_class"]) <= MOST_CLASSES:
        figures["Accuracy by class"] = _draw_classes(report["per_class"])
    names = {"epsilon": "epsilon", "steps": "steps of PGD", "restarts": "restarts of PGD-20"}
    names["distances"] = "epsilon, at most, by the smallest distances"
    for pool, points in report["curves"].items():
        figures[f"Robust accuracy against {names[pool]}"] = _draw_curve(names[pool], points, report)
    return {title: svg_of(figure) for title, figure in figures.items()}


def _draw_attacks(report: Report) -> Figure:
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


def _draw_classes(classes: list[ClassRow]) -> Figure:
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


def _draw_curve(label: str, points: Sequence[tuple[float, float]], report: Report) -> Figure:
    figure = make_figure((4.5, 3))
    axes = figure.subplots()
    radius = report["about"].get("epsilon") if label.startswith("epsilon") else None
    if radius and label != "epsilon":
        axes.axvline(radius, color=GREY, linewidth=1, linestyle="--")
    elif radius:
        # Up to a few radii, which is where something happens; what is far beyond is told.
        near = [(x, share) for x, share in points if x <= SHOWN_RADII * radius]
        far = ", ".join(f"at {x:g}: {100 * share:.1f} %" for x, share in points if x > SHOWN_RADII * radius)
        points, label = near, f"epsilon ({far})" if far else label
        axes.axvline(radius, color=GREY, linewidth=1, linestyle="--")
        axes.set_xticks([x for x, _ in points], [_written(x, report) for x, _ in points], fontsize=8)
    shares = [100 * share for _, share in points]
    axes.plot([x for x, _ in points], shares, marker="o", markersize=3, color=ROBUST, clip_on=False)
    axes.set_xlabel(label)
    axes.set_ylabel("robust accuracy (%)")
    axes.set_ylim(0, 100)
    return figure


def _written(radius: float, report: Report) -> str:
    """Return a radius in the unit in which epsilon was given: 255ths, or as a decimal."""
    return f"{255 * radius:.3g}/255" if "/255" in str(report["about"].get("epsilon_given")) else f"{radius:.3g}"


def draw_examples(examples: Sequence[Example]) -> list[dict[str, str]]:
    """Draw images, adversarial images and magnified perturbations side by side.

    Args:
        examples: to be drawn.

    Returns:
        for each its `title` and an `<svg>` element, `svg`.
    """
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
