"""One style, one palette, and one way to make and save a figure.

Colours are those of Okabe and Ito, which colour-blind people can tell apart, named by what they stand for. Nothing here
touches pyplot, so there is no global state and no display.

Example:
    >>> from cifs_tf.figures import NATURAL, make_figure, save_figure, styled
    >>> @styled
    ... def draw(values):
    ...     figure = make_figure((4, 3))
    ...     figure.subplots().plot(values, color=NATURAL)
    ...     return figure
    >>> save_figure(draw([0.2, 0.5]), "accuracy.png")
"""

import io
import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cifs_tf.files import write_atomically

BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY, BLACK = "#e69f00", "#56b4e9", "#000000"
GREY, SHADE = "#888888", "#eeeeee"

NATURAL, ROBUST = BLUE, VERMILION
"""Natural images and accuracy; adversarial images and robust accuracy."""
POSITIVE, NEGATIVE = GREEN, VERMILION
"""Positively and negatively relevant channels."""
DEFENSES = {"vanilla": BLUE, "cifs": VERMILION, "cas": GREEN}
"""Networks that are drawn in the same colour everywhere, by the name of their defense."""
OTHERS = (PURPLE, ORANGE, SKY, BLACK)

styled = matplotlib.rc_context(
    {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.xmargin": 0,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "savefig.dpi": 100,
        "svg.hashsalt": "cifs_tf",
    }
)
"""Decorator of every function that draws: sets the style while it runs."""
# Without what differs from one day or version to the next: the same figure gives the same bytes.
METADATA = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def make_figure(size: tuple[float, float], layout: Literal["constrained"] | None = "constrained") -> Figure:
    """Make an empty figure.

    Args:
        size: width and height, in inches.
        layout: `"constrained"` (default) fits axes, labels and legends into the figure; None leaves that to the caller.

    Returns:
        the figure, drawn by Agg.
    """
    figure = Figure(figsize=size, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def color_networks(names: Iterable[str]) -> dict[str, str]:
    """Choose a colour for each network: `vanilla`, `cas` and `cifs` have their own.

    Args:
        names: of the networks, different from each other.

    Returns:
        colours by name.

    Example:
        >>> from cifs_tf.figures import color_networks
        >>> color_networks(["vanilla", "CIFS"])
        {'vanilla': '#0072b2', 'CIFS': '#d55e00'}
    """
    names = list(names)
    known = {name: DEFENSES[name.lower()] for name in names if name.lower() in DEFENSES}
    free = [color for color in (*DEFENSES.values(), *OTHERS) if color not in known.values()]
    others = itertools.cycle(free)
    return {name: known.get(name) or next(others) for name in names}


@styled
def save_figure(figure: Figure, file: str | os.PathLike[str]) -> None:
    """Write a figure atomically; the same figure gives the same bytes.

    Args:
        figure: to be written.
        file: its suffix decides on the format, such as `.png` (default), `.svg` or `.pdf`; its folder is made.

    Raises:
        ValueError: if there is no such format.
        OSError: if the file cannot be written.
    """
    kind = Path(file).suffix.lower().lstrip(".") or "png"
    write_atomically(Path(file), lambda path: figure.savefig(path, format=kind, metadata=METADATA.get(kind)))


@styled
def svg_of(figure: Figure) -> str:
    """Return a figure as an `<svg>` element, to stand in an HTML page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=METADATA["svg"])
    return text.getvalue()[text.getvalue().index("<svg") :]


@styled
def pixels_of(figure: Figure) -> np.ndarray:
    """Return a figure as pixels, uint8 (height, width, 4), for TensorBoard."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())
