"""Carrying out the study: the cells that are missing, one after the other, and its page after each of them.

Several processes may share the work, on cores of their own: each takes the next cell that no other one is at.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cifs_tf.errors import UserError
from cifs_tf.files import hold_lock, print_written
from cifs_tf.reproduction.runner import run_jobs
from cifs_tf.reproduction.scales import Scale
from cifs_tf.reproduction.verdict.cells import Cell, plan_cells, read_cells, scale_of, write_cell
from cifs_tf.reproduction.verdict.hours import hours
from cifs_tf.reproduction.verdict.page import write_page
from cifs_tf.reproduction.verdict.statistics import REFERENCE, gate
from cifs_tf.reproduction.verdict.study import NAME, Study, load_study
from cifs_tf.tables import Table

# Of a checkout; an installed package has no documentation beside it.
DOCS = Path(__file__).resolve().parents[3] / "docs"


def run_study(
    scale_name: str,
    arms: Sequence[str] | None,
    seeds: int | None,
    workdir: Path,
    data_dir: str | None,
    console: Console,
    dry_run: bool = False,
) -> None:
    """Compute what is missing of some arms, or all, with so many seeds, or the study's own number; write the page.

    Args:
        scale_name: `"full"` or `"smoke"`.
        arms: names; None for all.
        seeds: 0, 1, ... of every arm; None for the study's own number.
        workdir: of runs and evaluations.
        data_dir: of TFDS; None for its own default.
        console: to print on.
        dry_run: print what there is to do, and do nothing. Default False.

    Raises:
        UserError: if a job ends with an error, a cell is of other images than the rest, or vanilla does not reach the
            regime, see `check_regime`.
        Preempted: after SIGTERM; what was done is saved, and the same command continues.
    """
    study, scale, docs = _opened(scale_name, workdir)
    cells = plan_cells(study, scale, seeds or study.seeds, arms)
    if dry_run:
        _print_plan(study, cells, workdir, docs, data_dir, console)
        return
    locks = workdir / "cells"
    for cell in cells:
        if cell.file(docs).exists():
            continue
        locks.mkdir(parents=True, exist_ok=True)
        try:
            with hold_lock(locks / f"{cell.name}.lock"):
                if cell.file(docs).exists():  # by now
                    continue
                console.rule(f"{cell.name}, of {len(cells)} cells", align="left")
                if scale_name == "full":
                    check_regime(cell.arm.name, read_cells(docs, study), study)
                _compute(cell, study, scale, workdir, docs, data_dir, console)
                write_page(study, docs)
        except BlockingIOError:
            console.print(f"{cell.name}: another process is at it")
    print_written(write_page(study, docs))


def check_regime(arm: str, cells: Sequence[dict[str, Any]], study: Study) -> None:
    """Refuse to compute an arm before vanilla is known to overfit; where it does not, that needs another schedule.

    Once there are cells of other arms the study goes on to its end, whatever they are worth.
    """
    found = gate(cells, study)
    if arm != REFERENCE and found.reached is None:
        advice = f"{arm} waits for vanilla's first cell: compute it (--arms vanilla), or wait for who does"
        raise UserError("--study", NAME, advice)
    if found.reached is False and {cell["arm"] for cell in cells} == {REFERENCE}:
        advice = (
            f"vanilla ends at {found.training:.1%} robust accuracy on training images and declines by "
            f"{found.decline:.1%}, the gate asks for {study.gate['training']:.0%} and {study.gate['decline']:.0%}; "
            "choose another schedule in training/recipes/verdict.yaml, and keep this cell as a pilot"
        )
        raise UserError("--study", NAME, advice)


def _compute(
    cell: Cell, study: Study, scale: Scale, workdir: Path, docs: Path, data_dir: str | None, console: Console
) -> None:
    run_jobs(cell.jobs, workdir, data_dir, scale.in_one_process, console)
    from cifs_tf.reproduction.verdict.measure import measure_cell  # TensorFlow, which a finished study does without

    measured = measure_cell(cell, study, workdir, data_dir)
    write_cell(measured, cell.file(docs), study, read_cells(docs, study))


def _print_plan(
    study: Study, cells: Sequence[Cell], workdir: Path, docs: Path, data_dir: str | None, console: Console
) -> None:
    """Print the commands of every cell that is missing, then all cells, what is done and the hours left."""
    for cell in cells:
        if not cell.file(docs).exists():
            console.rule(cell.name, align="left")
            for job in cell.jobs:
                console.print(job.command(workdir, data_dir), soft_wrap=True, markup=False, highlight=False)
    console.print(cells_table(study, cells, workdir, docs).screen(f"study {NAME}", "hours left, of one quiet core"))


def cells_table(study: Study, cells: Sequence[Cell], workdir: Path, docs: Path) -> Table:
    """Lay out the cells: what is done, and the hours left of one quiet core."""
    rows, left = [], 0.0
    for cell in cells:
        if cell.file(docs).exists():
            rows.append([cell.name, "finished", ""])
            continue
        needed = hours(cell, study, workdir)
        done = [job.program for job in cell.jobs if job.resolved(workdir).is_done(workdir)]
        rows.append([cell.name, ", ".join(done), f"{needed:.1f}"])
        left += needed
    return Table(["cell", "done", "hours"], [*rows, ["together", "", f"{left:.1f}"]], num_names=2)


def _opened(scale_name: str, workdir: Path) -> tuple[Study, Scale, Path]:
    """Return the study, how much is done, and the folder of its pages: a trial keeps them in its workdir."""
    study, docs = load_study(scale_name), DOCS if scale_name == "full" and DOCS.is_dir() else workdir / "docs"
    scale = scale_of(study, scale_name)
    read_cells(docs, study)  # a file that is no cell is told before anything is computed
    return study, scale, docs
