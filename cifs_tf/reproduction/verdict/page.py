"""The study's page, made from its finished cells and nothing else: no training, no TensorFlow Datasets."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifs_tf.errors import UserError
from cifs_tf.figures import GREY, NATURAL, ROBUST, color_networks, make_figure, save_figure, styled
from cifs_tf.files import read_results, write_text
from cifs_tf.reproduction.scales import flat_config
from cifs_tf.reproduction.verdict import statistics
from cifs_tf.reproduction.verdict.cells import CELLS, CHECKPOINTS, PILOT, read_cells
from cifs_tf.reproduction.verdict.statistics import Difference, Judgement
from cifs_tf.reproduction.verdict.study import NAME, Hypothesis, Study, Term
from cifs_tf.runs.curves import WATCHED
from cifs_tf.templates import template_environment

TEMPLATES = Path(__file__).parent / "templates"
PILOT_EVERY = 4
LINES = ("-", "--", ":")
# What the paper claims something of.
CLAIMED = ("cifs", "mean_one")
# What the first screen says of it as soon as it is judged.
IN_SHORT = ("H1", "H2", "H3", "H4", "H6")
# What says whether it is the mask, in short.
CONTROLS = ("no_label", "permuted")
NOT_REACHED = "regime not reached"
FAILED_AUDITS = "the audit fails for {} of {} networks"


def write_page(study: Study, docs: Path) -> list[Path]:
    """Write the page and its pictures to a folder, each whole or not at all, and return their files."""
    cells = read_cells(docs, study)
    pilots = [_read_pilot(file) for file in sorted((docs / CELLS).glob(f"{PILOT}*.json"))]
    text, figures = render(study, cells, pilots), _draw(study, cells) if cells else {}
    for file, figure in figures.items():
        save_figure(figure, docs / "figures" / file)
    page = docs / f"{NAME}.md"
    write_text(page, text)
    return [page, *(docs / "figures" / file for file in figures)]


def _draw(study: Study, cells: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    titles = {arm.name: arm.title for arm in study.arms.values()}
    curves = _mean_curves(cells, titles)
    channels: dict[str, dict[str, Any]] = {
        title: {checkpoint: found[checkpoint]["channels"] for checkpoint in CHECKPOINTS}
        for name, title in titles.items()
        if (found := statistics.accuracies(cells, name))
    }
    return {
        f"{NAME}_curves.png": draw_robustness(curves, list(flat_config(study.recipe)["lr_milestones"])),
        f"{NAME}_channels.png": draw_channels(channels),
    }


def render(study: Study, cells: Sequence[dict[str, Any]], pilots: Sequence[dict[str, Any]]) -> str:
    """Lay the study out in Markdown, with the pilots that chose its schedule; with few cells the page says so."""
    found = _findings(study, cells)
    text = (
        _environment()
        .get_template("verdict.md.j2")
        .render(
            study=study,
            config=flat_config(study.recipe),
            pilots=[{**pilot, "rows": _pilot_rows(pilot)} for pilot in pilots],
            classes=cells[0]["class_names"] if cells else [],
            sentence=_sentence(found),
            **found,
        )
    )
    return text.rstrip() + "\n"


def summarise(study: Study, docs: Path) -> str:
    """Say in one sentence what the cells below the folder of the page have found so far."""
    return _sentence(_findings(study, read_cells(docs, study)))


def _findings(study: Study, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    # Those of the study, or more where more have been computed: the page is a function of its cells alone.
    seeds = max([study.seeds, *(cell["seed"] + 1 for cell in cells)])
    gate, judged = statistics.gate(cells, study), statistics.judge_hypotheses(cells, study)
    if gate.reached is False and gate.seeds >= study.seeds:
        judged = {
            name: Judgement(
                NOT_REACHED,
                {title: found._replace(verdict=NOT_REACHED) for title, found in each.contrasts.items()},
            )
            for name, each in judged.items()
        }
    rows = {name: statistics.accuracies(cells, name) for name in study.arms}

    def against_vanilla(checkpoint: Literal["last", "best"], *names: str) -> str:
        found = {name: row[checkpoint]["against_vanilla"] for name in names if (row := rows.get(name)) is not None}
        return ", ".join(
            f"{points(each)} ({study.arms[name].title}, {each.seeds} seed{'s' if each.seeds > 1 else ''}"
            f"{_failed_audits(cells, [statistics.against_vanilla(name, checkpoint)], '; audit failed: {} of {}')})"
            for name, each in found.items()
            if each
        )

    def judged_so_far(hypothesis: Hypothesis) -> str:
        each = {title: found.verdict for title, found in judged[hypothesis.name].contrasts.items()}
        return ", ".join(
            f"{said} ({title}{_failed_audits(cells, [hypothesis.contrasts[title]], f'; {FAILED_AUDITS}')})"
            for title, said in each.items()
            if said != statistics.WAITING
        )

    return {
        "cells": cells,
        "seeds": seeds,
        "judged_so_far": {
            each.claim: found for each in study.hypotheses if each.name in IN_SHORT and (found := judged_so_far(each))
        },
        "planned": len(study.arms) * seeds,
        "gate": gate,
        "judged": judged,
        "rows": rows,
        "audits": {each.name: _failed_audits(cells, list(each.contrasts.values())) for each in study.hypotheses},
        "against_vanilla": {checkpoint: against_vanilla(checkpoint, *CLAIMED) for checkpoint in CHECKPOINTS},
        "controls": against_vanilla("last", *CONTROLS),
        "is_waiting": any(each.verdict == statistics.WAITING for each in judged.values()),
    }


def _failed_audits(
    cells: Sequence[dict[str, Any]], contrasts: Sequence[Sequence[Term]], say: str = FAILED_AUDITS
) -> str:
    """Say in how many networks of contrasts the audit failed: what gradients have missed there is not known."""
    of_name = {(cell["arm"], cell["seed"]): cell["checkpoints"] for cell in cells}
    networks = {
        (term.arm, seed, term.checkpoint)
        for terms in contrasts
        for seed in statistics.seeds_of(cells, terms)
        for term in terms
    }
    failed = sum(not of_name[arm, seed][checkpoint]["audit_passed"] for arm, seed, checkpoint in networks)
    return say.format(failed, len(networks)) if failed else ""


def _sentence(found: dict[str, Any]) -> str:
    return " ".join(_environment().get_template("sentence.md.j2").render(**found).split())


@functools.cache
def _environment() -> jinja2.Environment:
    environment = template_environment(TEMPLATES)
    environment.filters |= {"percent": percent, "points": points}
    return environment


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


@styled
def draw_channels(channels: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Figure:
    """Draw how each arm uses its channels: on natural images, and what an attack makes of it.

    Args:
        channels: by title of the arm and checkpoint, `"last"` (filled) and `"best"` (hollow), what `measure_channels`
            found; None leaves a gap.

    Example:
        >>> found = {"natural_negative_share": 0.4, "adversarial_negative_share": 0.5}
        >>> found |= {"natural_alignment": 0.3, "adversarial_alignment": 0.1}
        >>> figure = draw_channels({"vanilla": {"last": found, "best": found}})
    """
    figure = make_figure((9, 1.6 + 0.42 * len(channels)))
    panels = figure.subplots(1, 2, sharey=True)
    quantities = {
        "negative_share": ("activation on negatively-relevant channels (%)", 100),
        "alignment": ("correlation of activation and weight", 1),
    }
    for axes, (quantity, (label, scale)) in zip(panels, quantities.items(), strict=True):
        for row, found in enumerate(channels.values()):
            for checkpoint, offset, is_filled in (("last", 0.13, True), ("best", -0.13, False)):
                ends = [found[checkpoint].get(f"{kind}_{quantity}") for kind in ("natural", "adversarial")]
                ends = [np.nan if end is None else scale * end for end in ends]
                height = row - offset
                axes.plot(ends, [height, height], color=GREY, linewidth=0.8, zorder=1)
                for end, color, name in zip(ends, (NATURAL, ROBUST), ("natural", "attacked"), strict=True):
                    face = color if is_filled else "white"
                    label_of = f"{name}, {checkpoint} epoch" if row == 0 and axes is panels[0] else None
                    axes.scatter(end, height, s=26, facecolor=face, edgecolor=color, zorder=2, label=label_of)
        axes.set_xlabel(label)
        axes.margins(x=0.08)
        axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
    panels[0].set_yticks(range(len(channels)), list(channels))
    panels[0].set_ylim(len(channels) - 0.5, -0.5)
    figure.legend(loc="outside upper center", ncols=4)
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


def _read_pilot(file: Path) -> dict[str, Any]:
    """Read a run that chose the schedule, with its checksum.

    Raises:
        UserError: if it is not one, or was edited.
    """
    try:
        pilot: dict[str, Any] = read_results(file)
        _ = [pilot[name] for name in ("name", "command", "about")], _pilot_rows(pilot)
        return pilot
    except (UserError, KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError("--study", file.stem, f"{file} is no pilot of the study; restore it") from error


def _pilot_rows(pilot: dict[str, Any]) -> list[tuple[int, float, float, float]]:
    """Return epoch, robust accuracy in training (as `fit` logs it), natural and robust validation accuracy."""
    curves = pilot["curves"]
    last = len(curves[WATCHED])
    epochs = sorted({*range(PILOT_EVERY, last + 1, PILOT_EVERY), last, statistics.peak_of(pilot)})
    names = ("robust_accuracy", "val_clean_accuracy", WATCHED)
    return [(epoch, *(curves[name][epoch - 1] for name in names)) for epoch in epochs]
