"""Carrying out the study: the cells that are missing, one after the other, and its page after each of them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cifs_tf.errors import UserError
from cifs_tf.reproduction.runner import run_jobs
from cifs_tf.reproduction.scales import Scale
from cifs_tf.reproduction.verdict.cells import Cell, plan_cells, read_cells, scale_of, write_cell
from cifs_tf.reproduction.verdict.hours import hours
from cifs_tf.reproduction.verdict.page import write_page
from cifs_tf.reproduction.verdict.statistics import gate
from cifs_tf.reproduction.verdict.study import NAME, Study, load_study

# Of a checkout; an installed package has no documentation beside it.
DOCS = Path(__file__).resolve().parents[3] / "docs"


@dataclasses.dataclass(frozen=True)
class Places:
    """The folders of the study.

    Args:
        workdir: runs and evaluations.
        cells: finished cells.
        page: the Markdown file.
    """

    workdir: Path
    cells: Path
    page: Path


def places_of(scale: str, workdir: Path) -> Places:
    """Return where a scale keeps what: the study itself belongs to the documentation, a trial to its workdir."""
    docs = DOCS if scale == "full" and DOCS.is_dir() else workdir / "docs"
    return Places(workdir, docs / "results" / NAME, docs / f"{NAME}.md")


def run_study(scale_name: str, seeds: int | None, workdir: Path, data_dir: str | None, console: Console) -> None:
    """Compute what is missing, and write the page.

    Args:
        scale_name: `"full"` or `"smoke"`.
        seeds: of every arm; None for the study's own number.
        workdir: of the study.
        data_dir: where TFDS data lies; None for TFDS' own default.
        console: told of every job and cell.

    Raises:
        UserError: if a job ends with an error, a cell is of other images than the rest, or vanilla does not reach the
            regime, see `check_regime`.
        Preempted: after SIGTERM; what was done is saved, and the same command continues.
    """
    study, scale, places = _opened(scale_name, workdir)
    seeds = seeds or study.seeds
    cells = plan_cells(study, scale, seeds)
    for cell in cells:
        if not cell.file(places.cells).exists():
            console.rule(f"{cell.name}, of {len(cells)} cells", align="left")
            if scale_name == "full":
                check_regime(read_cells(places.cells, study), study)
            _compute(cell, study, scale, places, data_dir, console)
            write_page(study, seeds, places.cells, places.page)
    written = write_page(study, seeds, places.cells, places.page)
    console.print("Written:", *(f"  {path}" for path in written), sep="\n", soft_wrap=True, highlight=False)


def check_regime(cells: Sequence[dict[str, Any]], study: Study) -> None:
    """Refuse to compute other arms where vanilla, which comes first, does not overfit: that needs another schedule.

    Once there are cells of other arms the study goes on to its end, whatever they are worth.

    Args:
        cells: finished ones.
        study: with the gate.

    Raises:
        UserError: with the numbers.
    """
    found = gate(cells, study)
    if found["reached"] is False and {cell["arm"] for cell in cells} == {"vanilla"}:
        advice = (
            f"vanilla ends at {found['training']:.1%} robust accuracy on training images and declines by "
            f"{found['decline']:.1%}, the gate asks for {study.gate['training']:.0%} and {study.gate['decline']:.0%}; "
            "choose another schedule in training/recipes/verdict.yaml, and keep this cell as a pilot"
        )
        raise UserError("--study", NAME, advice)


def _compute(cell: Cell, study: Study, scale: Scale, places: Places, data_dir: str | None, console: Console) -> None:
    run_jobs(cell.jobs, places.workdir, data_dir, scale.in_one_process, console)
    from cifs_tf.reproduction.verdict.measure import measure_cell  # TensorFlow, which a finished study does without

    measured = measure_cell(cell, study, places.workdir, data_dir)
    write_cell(measured, cell.file(places.cells), read_cells(places.cells, study))


def print_plan(scale_name: str, seeds: int | None, workdir: Path, data_dir: str | None, console: Console) -> None:
    """Print the commands of every cell that is missing, then all cells, what is done and the hours left; do nothing.

    Args:
        scale_name: `"full"` or `"smoke"`.
        seeds: of every arm; None for the study's own number.
        workdir: of the study.
        data_dir: where TFDS data lies.
        console: to print on.
    """
    study, scale, places = _opened(scale_name, workdir)
    cells = plan_cells(study, scale, seeds or study.seeds)
    for cell in cells:
        if not cell.file(places.cells).exists():
            console.rule(cell.name, align="left")
            for job in cell.jobs:
                console.print(job.command(workdir, data_dir), soft_wrap=True, markup=False, highlight=False)
    console.print(plan_table(study, cells, places))


def plan_table(study: Study, cells: Sequence[Cell], places: Places) -> Table:
    """Lay out the cells: what is done, and the hours left of one quiet core."""
    table = Table(title=f"study {NAME}", caption="hours left, of one quiet core")
    table.add_column("cell")
    table.add_column("done")
    table.add_column("hours", justify="right")
    left, workdir = 0.0, places.workdir
    for cell in cells:
        if cell.file(places.cells).exists():
            table.add_row(cell.name, "finished", "")
            continue
        needed = hours(cell, study, workdir)
        done = [job.program for job in cell.jobs if job.settled(workdir).is_done(workdir)]
        table.add_row(cell.name, ", ".join(done), f"{needed:.1f}")
        left += needed
    table.add_section()
    table.add_row("together", "", f"{left:.1f}")
    return table


def _opened(scale_name: str, workdir: Path) -> tuple[Study, Scale, Places]:
    study = load_study(scale_name)
    return study, scale_of(study, scale_name), places_of(scale_name, workdir)
