"""The study's page, made from its finished cells and nothing else: no training, no TensorFlow Datasets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifs_tf.figures import GREY, color_networks, make_figure, save_figure, styled
from cifs_tf.files import read_json, write_text
from cifs_tf.reproduction.scales import flat_config
from cifs_tf.reproduction.verdict import statistics
from cifs_tf.reproduction.verdict.cells import CELLS, read_cells
from cifs_tf.reproduction.verdict.statistics import Difference
from cifs_tf.reproduction.verdict.study import NAME, Study
from cifs_tf.runs.curves import WATCHED
from cifs_tf.templates import template_environment

TEMPLATES = Path(__file__).parent / "templates"
PILOT_EVERY = 4
LINES = ("-", "--", ":")
NOT_REACHED = "regime not reached"


def write_page(study: Study, seeds: int, docs: Path) -> list[Path]:
    """Write the page and the picture of its curves to a folder, each whole or not at all, and return their files."""
    cells = read_cells(docs, study)
    pilots = [read_json(file) for file in sorted((docs / CELLS).glob("pilot-*.json"))]
    written = []
    picture = docs / "figures" / f"{NAME}_curves.png"
    if cells:
        titles = {arm.name: arm.title for arm in study.arms.values()}
        figure = draw_robustness(_mean_curves(cells, titles), list(flat_config(study.recipe)["lr_milestones"]))
        save_figure(figure, picture)
        written.append(picture)
    page = docs / f"{NAME}.md"
    write_text(page, render(study, seeds, cells, pilots))
    return [page, *written]


def render(study: Study, seeds: int, cells: Sequence[dict[str, Any]], pilots: Sequence[dict[str, Any]]) -> str:
    """Lay the study out in Markdown, with the pilots that chose its schedule; with few cells the page says so."""
    environment = template_environment(TEMPLATES)
    environment.filters |= {"percent": percent, "points": points}
    gate, judged = statistics.gate(cells, study), statistics.judge_hypotheses(cells, study)
    if gate.reached is False:
        judged = {name: each._replace(verdict=NOT_REACHED) for name, each in judged.items()}
    rows = {name: statistics.accuracies(cells, name) for name in study.arms}
    text = environment.get_template("verdict.md.j2").render(
        study=study,
        config=flat_config(study.recipe),
        planned=len(study.arms) * seeds,
        seeds=seeds,
        cells=cells,
        pilots=[{**pilot, "rows": _pilot_rows(pilot)} for pilot in pilots],
        gate=gate,
        judged=judged,
        rows=rows,
        is_waiting=any(each.verdict == statistics.WAITING for each in judged.values()),
        classes=cells[0]["class_names"] if cells else [],
    )
    return text.rstrip() + "\n"


@styled
def draw_robustness(curves: Mapping[str, np.ndarray], milestones: Sequence[int]) -> Figure:
    """Draw the robust validation accuracy of each arm over the epochs.

    Args:
        curves: by title of the arm, float (epochs,) in [0, 1]; NaN leaves a gap.
        milestones: epochs after which the learning rate drops, as dotted lines.

    Example:
        >>> import numpy as np
        >>> figure = draw_robustness({"vanilla": np.array([0.2, 0.3])}, milestones=[1])
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


def _mean_curves(cells: Sequence[dict[str, Any]], titles: dict[str, str]) -> dict[str, np.ndarray]:
    """Return the robust validation accuracy of each arm by epoch, a mean over its seeds, by title."""
    found: dict[str, list[list[float]]] = {}
    for cell in cells:
        found.setdefault(titles[cell["arm"]], []).append(cell["curves"][WATCHED])
    return {title: np.mean(np.array(curves, float), axis=0) for title, curves in found.items()}


def percent(share: float | None) -> str:
    """Write a share in percent; a dash for None.

    Example:
        >>> percent(0.1234)
        '12.3'
    """
    return "-" if share is None or np.isnan(share) else f"{100 * share:.1f}"


def points(difference: Difference | None) -> str:
    """Write a difference in points with its interval; a dash for None.

    Example:
        >>> points(Difference(0.05, 0.01, 0.09, 3))
        '+5.0 [+1.0, +9.0]'
    """
    if difference is None:
        return "-"
    mean, low, high = (f"{100 * share:+.1f}" for share in (difference.mean, difference.low, difference.high))
    return f"{mean} [{low}, {high}]"


def _pilot_rows(pilot: dict[str, Any]) -> list[tuple[int, float, float, float]]:
    """Return epoch, robust accuracy in training (as `fit` logs it), natural and robust validation accuracy."""
    curves = pilot["curves"]
    last = len(curves[WATCHED])
    epochs = sorted({*range(PILOT_EVERY, last + 1, PILOT_EVERY), last, statistics.peak_of(pilot)})
    names = ("robust_accuracy", "val_clean_accuracy", WATCHED)
    return [(epoch, *(curves[name][epoch - 1] for name in names)) for epoch in epochs]
