"""The curves of all arms in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifs_tf.analysis.plots import NETWORKS

LINES = ("-", "--")


def draw_curves(curves: Mapping[str, np.ndarray], milestones: Sequence[int]) -> Figure:
    """Draw the robust validation accuracy of each arm over the epochs.

    Args:
        curves: by title of the arm, float (epochs,) in [0, 1]; NaN leaves a gap.
        milestones: epochs after which the learning rate drops, as dotted lines.

    Returns:
        the figure.

    Example:
        >>> draw_curves({"vanilla": np.array([0.2, 0.3])}, milestones=[1]).savefig("curves.png")
    """
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for index, (title, values) in enumerate(curves.items()):
        color, line = NETWORKS[index % len(NETWORKS)], LINES[index // len(NETWORKS) % len(LINES)]
        axes.plot(np.arange(1, len(values) + 1), 100 * values, color=color, linestyle=line, linewidth=1.4, label=title)
    for milestone in milestones:
        axes.axvline(milestone + 0.5, color="#888888", linewidth=0.8, linestyle=":")
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation images, attacked (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside right upper")
    return figure
