"""The curves of a run's training (the paper's Figure 4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifs_tf.runs.checkpoints import best_epoch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_curves(histories: Mapping[str, list[dict[str, Any]]], title: str) -> Figure:
    """Draw loss and accuracies of every epoch of some networks, and mark the best ones.

    Args:
        histories: by name of the network, what each epoch logged.
        title: of the figure.

    Returns:
        the matplotlib figure.

    Example:
        >>> figure = draw_curves({"cifs": [{"loss": 2.0, "robust_accuracy": 0.3}]}, "digits")
    """
    from cifs_tf.analysis.plots import plot_curves

    best = {name: best_epoch(history) for name, history in histories.items()}
    return plot_curves(histories, best, title)


def write_curves(history: list[dict[str, Any]], title: str, file: Path) -> None:
    """Draw the curves of one network into a PNG file, atomically."""
    from cifs_tf.figures import save_figure

    save_figure(draw_curves({title: history}, ""), file)
