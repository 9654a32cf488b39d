"""The history of a training run: its best epoch, and its curves (the paper's Figure 4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In the history, the accuracy on the validation images under PGD of so many steps.
WATCHED, VALIDATION_STEPS = "val_robust_accuracy", 10


def best_epoch(history: list[dict[str, Any]]) -> int | None:
    """Return the epoch, counted from 1, of the highest validation accuracy under attack, the first of several.

    Args:
        history: what each epoch logged.

    Returns:
        the epoch; None if none was validated.

    Example:
        >>> best_epoch([{"val_robust_accuracy": 0.5}, {}, {"val_robust_accuracy": 0.4}])
        1
    """
    watched = {epoch: entry[WATCHED] for epoch, entry in enumerate(history, 1) if entry.get(WATCHED) is not None}
    return max(watched, key=lambda epoch: (watched[epoch], -epoch)) if watched else None


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
