"""The curves of all arms in one picture."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifs_tf.figures import GREY, color_networks, make_figure, styled

LINES = ("-", "--", ":")


@styled
def draw_curves(curves: Mapping[str, np.ndarray], milestones: Sequence[int]) -> Figure:
    """Draw the robust validation accuracy of each arm over the epochs.

    Args:
        curves: by title of the arm, float (epochs,) in [0, 1]; NaN leaves a gap.
        milestones: epochs after which the learning rate drops, as dotted lines.

    Example:
        >>> import numpy as np
        >>> from cifs_tf.reproduction.verdict.figure import draw_curves
        >>> figure = draw_curves({"vanilla": np.array([0.2, 0.3])}, milestones=[1])
    """
    figure = make_figure((9, 4.6))
    axes = figure.subplots()
    colors, drawn = color_networks(curves), list[str]()
    for title, values in curves.items():
        line = LINES[drawn.count(colors[title]) % len(LINES)]
        drawn.append(colors[title])
        epochs = np.arange(1, len(values) + 1)
        axes.plot(epochs, 100 * values, color=colors[title], linestyle=line, linewidth=1.4, label=title)
    for milestone in milestones:
        axes.axvline(milestone + 0.5, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation images, attacked (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside right upper")
    return figure
