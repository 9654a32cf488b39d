"""The results of a search: a table, a figure, and a recipe of the best trial."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_tuner.engine.trial import TrialStatus

from cifs_tf.command_line import command
from cifs_tf.figures import NATURAL, ROBUST, make_figure, save_figure, styled
from cifs_tf.files import write_text
from cifs_tf.runs.recipes import dump_yaml
from cifs_tf.tables import Table
from cifs_tf.tuning.options import OBJECTIVE, SearchConfig
from cifs_tf.tuning.oracle import Resumable
from cifs_tf.tuning.space import as_text, describe, trial_values
from cifs_tf.tuning.trials import METRICS, metric_by_epoch

# Beside each other below a figure of this width.
MAX_TICKS = 8


def collect(oracle: Resumable) -> list[dict[str, Any]]:
    """List the trials, the best first and the failed last.

    Returns:
        for each: `trial` (its id), `values`, `status`, the metrics at its best epoch, `epoch` (that one, counted from
        1) and `epochs` (all of them); the metrics and epoch of a failed trial are None.
    """
    rows: list[dict[str, Any]] = []
    for trial in oracle.trials.values():
        metrics = {name: metric_by_epoch(trial, name) for name in METRICS}
        epoch = trial.best_step if trial.status == TrialStatus.COMPLETED else None
        rows.append(
            {
                "trial": trial.trial_id,
                "values": trial_values(trial.hyperparameters),
                "status": trial.status.lower(),
                **{name: None if epoch is None else metrics[name][epoch] for name in METRICS},
                "epoch": epoch,
                "epochs": max(metrics[OBJECTIVE], default=0),
            }
        )
    return sorted(rows, key=lambda row: (row["epoch"] is None, *(-(row[name] or 0) for name in METRICS), row["trial"]))


def table(rows: list[dict[str, Any]], searched: Sequence[str]) -> Table:
    """Lay out the trials."""
    cells = []
    for row in rows:
        values = [as_text(row["values"].get(name, "")) for name in searched]
        metrics = ["" if row[name] is None else f"{100 * row[name]:.2f}" for name in METRICS]
        epoch = "" if row["epoch"] is None else f"{row['epoch']} of {row['epochs']}"
        cells.append([row["trial"], *values, *metrics, epoch, row["status"]])
    return Table(["trial", *searched, *METRICS, "epoch", "status"], cells)


@styled
def write_picture(rows: list[dict[str, Any]], config: SearchConfig, file: Path) -> None:
    """Draw robust and natural validation accuracy against beta, or against what is searched first (Table E.1).

    A line joins trials that differ in it alone; of trials that are the same the best counts.
    """
    name = "beta" if "beta" in config.search.search else config.search.search[0]
    lines: dict[str, dict[Any, dict[str, Any]]] = {}
    for row in reversed(rows):  # the best last
        if row["epoch"] is not None and name in row["values"]:
            others = {key: value for key, value in row["values"].items() if key != name}
            lines.setdefault(describe(dict(sorted(others.items()))), {})[row["values"][name]] = row
    along = sorted({x for points in lines.values() for x in points})
    figure = make_figure((5, 3.5))
    axes = figure.subplots()
    for points in lines.values():
        places = sorted(points)
        for metric, label, color in zip(METRICS, ("robust", "natural"), (ROBUST, NATURAL), strict=True):
            accuracy = [100 * points[x][metric] for x in places]
            at = [along.index(x) for x in places] if name == "cuts" else places
            axes.plot(at, accuracy, marker="o", color=color, label=label, clip_on=False)
    if all(isinstance(x, float) for x in along):
        axes.set_xscale("log" if min(along) > 0 else "symlog")
    # The values that were tried, not powers of ten; of many every other one, and so on.
    shown = along[:: -(-len(along) // MAX_TICKS)]
    axes.set_xticks([along.index(x) for x in shown] if name == "cuts" else shown, map(as_text, shown))
    axes.minorticks_off()
    axes.set_xlabel(name)
    axes.set_ylabel("validation accuracy (%)")
    axes.set_title(f"{config.data.dataset}, {config.model.defense}")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique)
    save_figure(figure, file)


def write_recipe(best: dict[str, Any], num_trials: int, config: SearchConfig, argv: Sequence[str], file: Path) -> None:
    """Write the best trial as a recipe of `run.py`; its first lines say where it comes from."""
    accuracies = ", ".join(f"{name} {100 * best[name]:.2f}" for name in METRICS)
    lines = [
        f"# Best of {num_trials} trials on {config.data.dataset}, {describe(best['values'])}: {accuracies}",
        f"# {command('run')} --recipe {shlex.quote(str(file))}",
        "#",
        f"# Found by {command('tune')} {shlex.join(argv)}".rstrip(),
        dump_yaml(config.with_values(best["values"])),
    ]
    write_text(file, "\n".join(lines))
