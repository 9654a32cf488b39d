"""Draw docs/figures/mechanism.svg, the picture of the README.

python docs/figures/mechanism.py
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from cifs_tf.figures import BLUE, GREY, NEGATIVE, POSITIVE, make_figure, save_figure, styled

INK, BACKBONE, PROBE, MASK = "#22303c", "#dfe8f1", "#fde7c8", BLUE
# Six channels of an imagined feature map: activation and relevance to the top-2 classes.
ACTIVATION = np.array([0.75, 0.55, 0.9, 0.35, 0.6, 0.8])
RELEVANCE = np.array([1.1, -0.7, 0.5, 1.6, -1.2, 0.1])


def box(axes, x, y, width, height, text, color, size=9.5):
    """Draw a rounded box around a text, centred at (x, y)."""
    patch = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.09",
        fc=color,
        ec=INK,
        lw=1,
    )
    axes.add_patch(patch)
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color=INK)


def arrow(axes, start, end, color=INK, style="-|>", curve=0.0, line="-"):
    """Draw an arrow between two points."""
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle=style, mutation_scale=11, color=color, lw=1.2, ls=line,
            connectionstyle=f"arc3,rad={curve}", shrinkA=0, shrinkB=0,
        )
    )  # fmt: skip


def bars(axes, x, y, values, colors, title, note):
    """Draw a small bar chart of one value per channel, its base line at (x, y)."""
    for index, (value, color) in enumerate(zip(values, colors, strict=True)):
        axes.add_patch(Rectangle((x + 0.22 * index, y), 0.16, value, fc=color, ec="none"))
    axes.plot([x - 0.05, x + 1.31], [y, y], color=INK, lw=0.8)
    axes.text(x + 0.63, y + 1.12, title, ha="center", fontsize=9.5, color=INK)
    axes.text(x + 0.63, y - 0.92, note, ha="center", fontsize=8, color=GREY)


def network(axes):
    """Draw the upper half: a backbone with two cuts, and the heads that come out of it."""
    y = 5.6
    parts = [
        (0.7, 1.0, "image", "white"),
        (2.35, 1.5, "backbone", BACKBONE),
        (4.35, 1.5, "block P2", BACKBONE),
        (5.95, 0.9, "CIFS", PROBE),
        (7.65, 1.5, "block P1", BACKBONE),
        (9.25, 0.9, "CIFS", PROBE),
        (10.95, 1.5, "pool, dense", BACKBONE),
    ]
    for (x, width, text, color), following in zip(parts, [*parts[1:], None], strict=True):
        box(axes, x, y, width, 0.7, text, color)
        if following:
            arrow(axes, (x + width / 2, y), (following[0] - following[1] / 2, y))
    for x, text in ((5.95, "raw prediction\n(MLP probe)"), (9.25, "raw prediction\n(linear probe)")):
        arrow(axes, (x, y + 0.35), (x, y + 0.85), color="#b5761a")
        axes.text(x, y + 0.93, text, ha="center", va="bottom", fontsize=8.5, color="#b5761a")
    arrow(axes, (10.95, y + 0.35), (10.95, y + 0.85))
    axes.text(10.95, y + 0.93, "final\nprediction", ha="center", va="bottom", fontsize=8.5, color=INK)
    axes.text(
        12.3, y + 0.1, "every head is trained,\nand every head\ncan be attacked:\nthe loss of Eq. (3)",
        ha="left", va="center", fontsize=8.5, color=INK,
    )  # fmt: skip
    for x in (5.5, 6.4):
        axes.plot([x, 0.35 if x < 6 else 13.9], [y - 0.37, 4.23], color=GREY, lw=0.8, ls=(0, (4, 3)))


def layer(axes):
    """Draw the lower half: what happens inside one CIFS layer."""
    axes.add_patch(
        FancyBboxPatch(
            (0.35, 0.5), 13.55, 3.73, boxstyle="round,pad=0,rounding_size=0.1", fc="#fffaf2", ec=GREY, lw=0.8
        )
    )
    base = 2.05
    signs = [POSITIVE if value > 0 else NEGATIVE for value in RELEVANCE]
    importance = np.exp(RELEVANCE) / np.exp(RELEVANCE).max()
    bars(axes, 0.8, base, ACTIVATION, ["#9fb3c4"] * 6, "features $z$", "mean activation\nof each channel")
    box(axes, 3.35, base + 0.4, 1.25, 0.75, "probe", PROBE)
    arrow(axes, (2.2, base + 0.4), (2.72, base + 0.4))
    axes.text(3.35, base + 1.12, "1  raw prediction", ha="center", fontsize=9.5, color=INK)
    axes.text(
        3.35,
        base - 0.92,
        "top-2 classes; in training\nthe label replaces the first",
        ha="center",
        fontsize=8,
        color=GREY,
    )
    arrow(axes, (3.98, base + 0.4), (4.85, base + 0.4))
    axes.text(4.42, base + 0.52, "gradient", ha="center", fontsize=8, color=GREY)
    bars(axes, 5.0, base, RELEVANCE * 0.45, signs, "2  relevance $g$", "of each channel to the\ntop-2 logits, Eq. (1)")
    arrow(axes, (6.4, base + 0.4), (7.3, base + 0.4))
    axes.text(6.85, base + 0.52, "softmax", ha="center", fontsize=8, color=GREY)
    bars(
        axes,
        7.45,
        base,
        importance * 0.95,
        [MASK] * 6,
        "3  importance $m$",
        "never negative, larger\nfor the more relevant",
    )
    box(axes, 9.75, base + 0.4, 0.5, 0.5, r"$\times$", "white", size=13)
    arrow(axes, (8.85, base + 0.4), (9.5, base + 0.4))
    axes.plot([1.45, 1.45, 9.75], [base + 1.5, base + 1.78, base + 1.78], color=INK, lw=1.2)
    arrow(axes, (9.75, base + 1.78), (9.75, base + 0.65))
    selected = ACTIVATION * importance
    bars(
        axes,
        10.75,
        base,
        selected / selected.max() * 0.9,
        ["#9fb3c4"] * 6,
        "selected $m \\times z$",
        "goes on to the\nnext block, Eq. (2)",
    )
    arrow(axes, (10.0, base + 0.4), (10.6, base + 0.4))
    axes.text(0.6, 0.68, "inside one CIFS layer", fontsize=8.5, color=GREY, style="italic")


@styled
def main() -> int:
    """Draw the figure beside this file."""
    figure = make_figure((12.4, 6.0), layout=None)
    axes = figure.subplots()
    axes.set(xlim=(0.1, 14.2), ylim=(0.35, 7.15))
    axes.axis("off")
    network(axes)
    layer(axes)
    figure.subplots_adjust(0, 0, 1, 1)
    target = Path(__file__).with_suffix(".svg")
    save_figure(figure, target)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
