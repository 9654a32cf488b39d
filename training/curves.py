"""Training curves (the paper's Figure 4): a picture of a run's history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cifs_tf.files import write_atomically
from training.checkpoints import best_epoch

ACCURACIES = {
    "robust_accuracy": ("training images, attacked", "#c0c0c0"),
    "clean_accuracy": ("training images", "#c0c0c0"),
    "val_clean_accuracy": ("validation images", "#1f77b4"),
    "val_robust_accuracy": ("validation images, attacked", "#d62728"),
}


def draw_curves(history: list[dict[str, Any]], title: str) -> Any:
    """Draw the loss and the accuracies of every epoch, and mark the best one.

    Args:
        history: what each epoch logged.
        title: of the figure.

    Returns:
        the matplotlib figure.

    Example:
        >>> figure = draw_curves([{"loss": 2.0, "robust_accuracy": 0.3}], "cifs")
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    _plot(loss_axes, history, "loss", label="training", color="#444444")
    loss_axes.set_ylabel("loss")
    for name, (label, color) in ACCURACIES.items():
        _plot(accuracy_axes, history, name, label=label, color=color, scale=100)
    accuracy_axes.set_ylabel("accuracy (%)")
    accuracy_axes.set_ylim(0, 102)
    if best := best_epoch(history):
        accuracy_axes.axvline(best, color="#888888", linewidth=1, linestyle="--", label=f"best epoch, {best}")
    accuracy_axes.legend(frameon=False, fontsize=8, loc="lower right")
    for axes in (loss_axes, accuracy_axes):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def write_curves(history: list[dict[str, Any]], title: str, file: Path) -> None:
    """Draw the curves into a PNG file, atomically."""
    figure = draw_curves(history, title)
    write_atomically(file, lambda path: figure.savefig(path, format="png", dpi=120, metadata={"Software": None}))


def _plot(axes: Any, history: list[dict[str, Any]], name: str, *, label: str, color: str, scale: float = 1) -> None:
    points = [(epoch, scale * entry[name]) for epoch, entry in enumerate(history, 1) if entry.get(name) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, color=color, marker="o", markersize=2.5)
