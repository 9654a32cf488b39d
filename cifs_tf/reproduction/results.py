"""Collect the numbers of a table, beside the paper's, or of a figure, from what runs, evaluations and analyses left."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifs_tf.attack_names import attack_title
from cifs_tf.files import now, read_results
from cifs_tf.reproduction.catalogue import Figure, PaperTable
from cifs_tf.reproduction.plan import Analysis, Evaluation, PlannedRow, Training, jobs_of
from cifs_tf.reproduction.scales import Scale
from cifs_tf.statistics import interval_over_seeds, wilson_interval

SCHEMA = 1
BUDGET = (
    *("dataset", "train_examples", "val_examples", "arch", "width", "method", "beta", "epochs", "batch_size"),
    *("learning_rate", "lr_milestones", "weight_decay", "epsilon", "step_size", "num_steps", "importance_scale"),
)


def build_result(
    table: PaperTable, rows: Sequence[PlannedRow], scale: Scale, seeds: int, workdir: Path, command: str
) -> dict[str, Any]:
    """Collect a table from the reports of its evaluations, all of which must be finished.

    Returns:
        plain types only, in percent: `columns`, `rows` (each with `cells`: ours, interval, paper, difference), what the
        intervals mean, and `networks`: how each was trained and measured, by which code, on which machine.
    """
    jobs = [job.resolved(workdir) for job in jobs_of(rows)]
    trainings = [job for job in jobs if isinstance(job, Training)]
    evaluations = list(dict.fromkeys(job for job in jobs if isinstance(job, Evaluation)))
    return {
        "schema": SCHEMA,
        "table": table.number,
        "title": table.title,
        "scale": scale.name,
        "about": about(table, scale),
        "command": command,
        "seeds": seeds,
        "unit": "%",
        "interval": interval_sentence(seeds),
        "columns": list(table.columns),
        "renamed": renamed(table, scale),
        "rows": [_row(row, _setting(rows, scale) or row.row.block, workdir) for row in rows],
        "networks": {training.name: _network(training, evaluations, workdir) for training in trainings},
        "made": now(),
    }


def build_figure(figure: Figure, analysis: Analysis, scale: Scale, workdir: Path, command: str) -> dict[str, Any]:
    """Collect the numbers beside the pictures of a figure, whose analysis must be finished.

    Returns:
        plain types only: how the images were attacked, and `networks`: for each, by what the figure calls it, the means
        over all images and the command that made it.
    """
    summary = read_results(workdir / analysis.folder / "summary.json")
    # By the names in the pictures: where a scale makes the networks of two figures the same, those of the first.
    networks = zip(summary["networks"].items(), analysis.trainings, strict=True)
    kept = ("dataset", "num_examples", "subset_of", "checkpoint", "attack", "epsilon", "revision")
    return {
        "schema": SCHEMA,
        "figure": figure.number,
        "title": figure.title,
        "scale": scale.name,
        "about": scale.about,
        "command": command,
        **{name: summary[name] for name in kept},
        "analysis": analysis.command(Path("WORKDIR")),
        "networks": {
            name: {
                **{key: value for key, value in found.items() if key != "run"},
                "command": training.command(Path("WORKDIR")),
            }
            for (name, found), training in networks
        },
        "made": now(),
    }


def about(table: PaperTable, scale: Scale) -> str:
    """Describe the scale of a table and its attacks, for the reader."""
    kinds = dict.fromkeys(row.kind for row in table.rows)
    return " ".join(filter(None, [table.about or scale.about, *(scale.setups[kind].about for kind in kinds)]))


def interval_sentence(seeds: int) -> str:
    """Describe the intervals."""
    if seeds == 1:
        return "95% by Wilson's score, over the images; one seed, so the chance in training is not in them"
    return f"95% by Student's t over {seeds} seeds and Wilson's score over the images, squares added"


def renamed(table: PaperTable, scale: Scale) -> dict[str, str]:
    """Return the columns whose attack is another one at this scale, with the title of that attack."""
    if not table.rows:
        return {}
    found = {}
    for column, place in zip(table.columns, table.rows[0].places, strict=True):
        for part in place.split(":"):
            if scale.renamed.get(part, part) != part:
                found[column] = attack_title(scale.renamed[part])
    return found


def read_place(report: dict[str, Any], place: str) -> tuple[float, str | None] | None:
    """Read a share from a report, and the beta_atk that it belongs to; None if the network has no such number.

    Example:
        >>> read_place({"natural": {"accuracy": 0.9}}, "natural")
        (0.9, None)
    """
    found: Any = report
    for part in place.split(":"):
        if not isinstance(found, dict) or part not in found:
            return None
        found = found[part]
    if isinstance(found, dict):
        return found["accuracy"], found.get("beta")
    return found, None


def _setting(rows: Sequence[PlannedRow], scale: Scale) -> str | None:
    """Name what takes the place of the paper's architecture, where that is all that the blocks of a table differ in."""
    if scale.recipe is None or len({row.row.block for row in rows}) > 1:
        return None
    training = rows[0].evaluations[0].training
    return f"{training['dataset']}, {training['arch']}, width {training['width']}"


def _row(planned: PlannedRow, block: str, workdir: Path) -> dict[str, Any]:
    done = [evaluation.resolved(workdir) for evaluation in planned.evaluations]
    reports = [read_results(workdir / evaluation.report_file) for evaluation in done]
    pairs = zip(planned.places, planned.row.paper, strict=True)
    return {
        "block": block,
        "name": planned.row.name,
        "networks": [evaluation.training.name for evaluation in planned.evaluations],
        "checkpoint": planned.row.checkpoint,
        "cells": [_cell(reports, place, paper) for place, paper in pairs],
    }


def _cell(reports: Sequence[dict[str, Any]], place: str, paper: float | None) -> dict[str, Any]:
    found = [value for report in reports if (value := read_place(report, place)) is not None]
    if len(found) < len(reports):
        return {"ours": None, "interval": None, "paper": paper, "difference": None}
    shares = [share for share, _ in found]
    ours = 100 * statistics.fmean(shares)
    images = reports[0]["num_examples"]
    if len(shares) > 1:
        low, high = interval_over_seeds(shares, images)
    else:
        low, high = wilson_interval(round(shares[0] * images), images)
    return {
        "ours": round(ours, 4),
        "interval": [round(100 * low, 4), round(100 * high, 4)],
        "by_seed": [round(100 * share, 4) for share in shares],
        "betas": [beta for _, beta in found],
        "images": images,
        "paper": paper,
        "difference": None if paper is None else round(ours - paper, 4),
    }


def _network(training: Training, evaluations: Sequence[Evaluation], workdir: Path) -> dict[str, Any]:
    """Return how a network was made and measured, from its own files."""
    result = read_results(workdir / training.folder / "result.json")
    defense = training["defense"]
    return {
        "command": training.command(Path("WORKDIR")),
        "budget": {name: training[name] for name in BUDGET},
        "parameters": result["networks"][defense]["parameters"],
        **{name: result[name] for name in ("started", "finished", "revision", "machine", "versions")},
        "evaluations": [
            _evaluation(evaluation, workdir) for evaluation in evaluations if evaluation.training == training
        ],
    }


def _evaluation(evaluation: Evaluation, workdir: Path) -> dict[str, Any]:
    report = read_results(workdir / evaluation.report_file)
    return {
        "command": evaluation.command(Path("WORKDIR")),
        "images": report["num_examples"],
        "revision": report["about"]["revision"],
        "seconds": report["wall_clock"]["seconds"],
        "natural": report["natural"]["count"],
        "worst_case": report["worst_case"]["count"],
    }
