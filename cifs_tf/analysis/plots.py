"""Figures 1, 3, 4, A.1 and A.2 of the paper, as matplotlib figures, in the style of `cifs_tf.figures`.

`figure.savefig("channels.png")` writes one, and a notebook, after `%matplotlib inline`, shows what a cell returns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cifs_tf.analysis.profile import ChannelProfile
from cifs_tf.errors import UserError
from cifs_tf.figures import BLACK, GREY, NATURAL, ROBUST, SHADE, color_networks, make_figure, styled

# Accuracies of a history that are drawn: logged name, name in the legend, line.
ACCURACIES: tuple[tuple[str, str, Any], ...] = (
    ("val_clean_accuracy", "validation images", "--"),
    ("val_robust_accuracy", "validation images, attacked", "-"),
    ("clean_accuracy", "training images", "-."),
    ("robust_accuracy", "training images, attacked", ":"),
)
# With more epochs, markers would hide the line.
MARKED_EPOCHS = 15
# With more bars, numbers above them would run into each other.
NUMBERED_BARS = 40
# A figure does not grow beyond this, in inches.
WIDEST = 24.0

History = Sequence[Mapping[str, Any]]
"""Logged values of each epoch: a list of dicts, as in `history.json` of a run."""


@styled
def plot_profiles(profiles: Mapping[str, ChannelProfile], attack: str = "Adversarial") -> Figure:
    """Draw Figures 1, 3 and A.2: a column for each profile, over the channels in the order of their weights.

    On top the activation magnitudes, in the middle the weights of the last linear layer, at the bottom the activated
    frequencies. Negatively-relevant channels, those of weight <= 0, are shaded.

    Args:
        profiles: by title, such as `"AT/cat"`; see `channel_profile`.
        attack: name of the adversarial images in the legend, such as `"PGD-20"`. Default `"Adversarial"`.

    Returns:
        the figure.

    Raises:
        UserError: if there is no profile.

    Example:
        >>> plot_profiles({"AT/cat": profile}, attack="PGD-20").savefig("channels.png")
    """
    _check_any("profiles", profiles)
    figure = make_figure((min(WIDEST, 0.7 + 3.2 * len(profiles)), 5.8))
    grid = figure.subplots(3, len(profiles), sharey="row", squeeze=False)
    for (top, middle, bottom), (title, profile) in zip(grid.T, profiles.items(), strict=True):
        channels = np.arange(len(profile.weights))
        num_positive = int(np.sum(profile.weights > 0))
        for axes, natural, adversarial in (
            (top, profile.natural_magnitude, profile.adversarial_magnitude),
            (bottom, profile.natural_frequency, profile.adversarial_frequency),
        ):
            axes.plot(channels, natural, color=NATURAL, linewidth=1, label="Natural")
            axes.plot(channels, adversarial, color=ROBUST, linewidth=1, label=attack)
            axes.set_ylim(0, 1)
        middle.plot(channels, profile.weights, color=BLACK, linewidth=1.2)
        middle.axhline(0, color=GREY, linewidth=0.8)
        for axes in (top, middle, bottom):
            axes.axvspan(
                num_positive - 0.5, len(channels) - 0.5, color=SHADE, zorder=0, linewidth=0, label="NR channels"
            )
            axes.set_xlim(-0.5, len(channels) - 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        top.set_title(title)
        bottom.set_xlabel("Channel index, by weight")
    for axes, label in zip(grid[:, 0], ("Magnitude", "Weight", "Frequency"), strict=True):
        axes.set_ylabel(label)
    figure.align_ylabels(grid[:, 0])
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


@styled
def plot_curves(
    histories: Mapping[str, History], best_epochs: Mapping[str, int | None] | None = None, title: str = ""
) -> Figure:
    """Draw Figure 4: training loss, and accuracies on natural and attacked images, over the epochs of each network.

    Args:
        histories: by name of the network, what each epoch logged; missing values are left out.
        best_epochs: epochs, counted from 1, to mark by a star on the robust accuracy. Default none.
        title: of the figure. Default none.

    Returns:
        the figure.

    Raises:
        UserError: if there is no history.

    Example:
        >>> figure = plot_curves({"CIFS": [{"loss": 2.0, "val_robust_accuracy": 0.3}]})
    """
    _check_any("histories", histories)
    figure = make_figure((9, 4.2))
    figure.suptitle(title, fontsize=11)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    colors = color_networks(histories)
    for name, history in histories.items():
        marker = "o" if len(history) <= MARKED_EPOCHS else ""
        style: dict[str, Any] = {"color": colors[name], "marker": marker, "markersize": 3, "clip_on": False}
        _plot_logged(loss_axes, history, "loss", **style)
        for key, _, line in ACCURACIES:
            _plot_logged(accuracy_axes, history, key, scale=100, linestyle=line, **style)
        best = (best_epochs or {}).get(name)
        if best is not None:
            robust = 100 * history[best - 1]["val_robust_accuracy"]
            star = {"marker": "*", "markersize": 12, "linestyle": "none", "clip_on": False}
            accuracy_axes.plot([best], [robust], color=colors[name], **star)
    loss_axes.set_ylabel("training loss")
    accuracy_axes.set_ylabel("accuracy (%)")
    accuracy_axes.set_ylim(0, 100)
    for axes in (loss_axes, accuracy_axes):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _curves_legend(figure, histories, colors, has_best=any((best_epochs or {}).values()))
    return figure


@styled
def plot_class_robustness(
    accuracies: Mapping[str, np.ndarray], class_names: Sequence[str], attack: str = "robust"
) -> Figure:
    """Draw Figure A.1: robust accuracy of each class, a bar for each network.

    Args:
        accuracies: by name of the network, float (classes,) in [0, 1], see `class_wise_accuracy`; NaN leaves a gap.
        class_names: one per class.
        attack: name of the attack on the axis, such as `"PGD-20"`. Default `"robust"`.

    Returns:
        the figure.

    Raises:
        UserError: if there is no network, or the numbers of classes differ.

    Example:
        >>> plot_class_robustness({"vanilla": vanilla, "CIFS": cifs}, dataset.class_names)
    """
    _check_any("accuracies", accuracies)
    for name, values in accuracies.items():
        if np.shape(values) != (len(class_names),):
            advice = f"give one number for each of the {len(class_names)} classes"
            raise UserError("accuracies", f"{name} of shape {np.shape(values)}", advice)
    num_bars = len(class_names) * len(accuracies)
    figure = make_figure((min(WIDEST, max(6.0, 2.0 + 0.28 * num_bars)), 3.8))
    axes = figure.subplots()
    width = 0.8 / len(accuracies)
    places = np.arange(len(class_names))
    colors = color_networks(accuracies)
    for index, (name, values) in enumerate(accuracies.items()):
        shift = (index - (len(accuracies) - 1) / 2) * width
        bars = axes.bar(places + shift, 100 * np.asarray(values), width, color=colors[name], label=name)
        if num_bars <= NUMBERED_BARS:
            axes.bar_label(bars, fmt=lambda value: "" if np.isnan(value) else f"{value:.0f}", fontsize=8, padding=1)
    axes.set_xticks(places, class_names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_ylabel(f"{attack} accuracy (%)")
    axes.set_ylim(0, 100)
    axes.set_xlim(-0.5, len(class_names) - 0.5)
    figure.legend(loc="outside upper center", ncols=min(4, len(accuracies)))
    return figure


@styled
def plot_importances(natural: np.ndarray, adversarial: np.ndarray, title: str = "") -> Figure:
    """Draw the importance of each channel of a selection layer, in the order of those of natural images.

    Args:
        natural: mean importance over natural images, (channels,).
        adversarial: the same over adversarial images.
        title: of the figure. Default none.

    Returns:
        the figure.

    Example:
        >>> plot_importances(np.array([1.2, 0.8]), np.array([0.9, 1.1]), "conv1").savefig("importances.png")
    """
    figure = make_figure((5, 3))
    axes = figure.subplots()
    order = np.argsort(-natural, kind="stable")
    axes.plot(natural[order], color=NATURAL, linewidth=1.5, label="Natural")
    axes.plot(adversarial[order], color=ROBUST, linewidth=1, label="Adversarial")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Channels, by importance for natural images")
    axes.set_ylabel("Mean importance")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_title(title)
    axes.legend()
    return figure


def _check_any(argument: str, given: Mapping[str, Any]) -> None:
    if not given:
        raise UserError(argument, "nothing", "give one at least")


def _plot_logged(axes: Axes, history: History, key: str, scale: float = 1.0, **style: Any) -> None:
    points = [(epoch, scale * entry[key]) for epoch, entry in enumerate(history, 1) if entry.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def _curves_legend(
    figure: Figure, histories: Mapping[str, History], colors: Mapping[str, str], *, has_best: bool
) -> None:
    """Explain what is drawn: colours are networks, lines are accuracies."""
    handles = [Line2D([], [], color=colors[name], label=name, linewidth=3) for name in histories]
    for key, label, line in ACCURACIES:
        if any(entry.get(key) is not None for history in histories.values() for entry in history):
            handles.append(Line2D([], [], color=GREY, linestyle=line, label=label))
    if has_best:
        handles.append(Line2D([], [], color=GREY, marker="*", markersize=10, linestyle="none", label="best epoch"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
