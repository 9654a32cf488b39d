"""Plan what was asked for: tables, figures and the overhead, each with its jobs and the files that it ends in."""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from cifs_tf.files import print_written, write_atomically, write_json
from cifs_tf.reproduction import overhead
from cifs_tf.reproduction.catalogue import Figure, PaperTable, figures, tables
from cifs_tf.reproduction.costs import cost, pace_of
from cifs_tf.reproduction.overhead import Overhead, build_overhead
from cifs_tf.reproduction.plan import Analysis, Job, jobs_of, plan_figure, plan_table
from cifs_tf.reproduction.render import write_result
from cifs_tf.reproduction.results import build_figure, build_result
from cifs_tf.reproduction.runner import run_jobs
from cifs_tf.reproduction.scales import Scale
from cifs_tf.tables import Table

GIGABYTE = 1e9


@dataclasses.dataclass(frozen=True)
class Part:
    """A table or a figure.

    Args:
        name: such as `"Table B.1"`.
        title: what it shows.
        jobs: that have to be done, in order.
        write: writes it when they are, and returns the files.
    """

    name: str
    title: str
    jobs: Sequence[Job]
    write: Callable[[], list[Path]]


def plan_parts(
    wanted_tables: Sequence[str], wanted_figures: Sequence[str], scale: Scale, seeds: int, workdir: Path
) -> list[Part]:
    """Plan tables, by their numbers or `overhead`, and then figures, with so many seeds of every row of a table."""
    command = functools.partial(_command, scale=scale, seeds=seeds)
    return [
        *(
            _overhead(scale, workdir, command("table", number))
            if number == overhead.NAME
            else _table(tables()[number], scale, seeds, workdir, command("table", number))
            for number in wanted_tables
        ),
        *(_figure(figures()[number], scale, workdir, command("figure", number, seeds=1)) for number in wanted_figures),
    ]


def print_costs(
    parts: Sequence[Part], scale: Scale, workdir: Path, data_dir: str | None, console: Console, with_commands: bool
) -> None:
    """Print what parts cost, below the commands of a plan, each under the first part that needs it."""
    seen = set()
    for part in parts if with_commands else ():
        console.rule(f"{part.name}: {part.title}", align="left")
        for job in part.jobs:
            if job not in seen:
                console.print(job.command(workdir, data_dir), soft_wrap=True, markup=False, highlight=False)
            seen.add(job)
    caption = f"hours of {pace_of(scale.name).name}; what is done already is not done again"
    console.print(_costs_table(parts, scale).screen(f"at most, {scale.name}", caption))


def reproduce(parts: Sequence[Part], scale: Scale, workdir: Path, data_dir: str | None, console: Console) -> None:
    """Carry out what is left of each part, and write it."""
    for part in parts:
        console.rule(part.name)
        run_jobs(part.jobs, workdir, data_dir, scale.in_one_process, console)
        print_written(part.write())


def _costs_table(parts: Sequence[Part], scale: Scale) -> Table:
    """Lay out what every part costs alone at most, and all together, in which nothing is done twice."""
    together = dict.fromkeys(job for part in parts for job in part.jobs)
    rows = []
    for name, jobs in [*((part.name, part.jobs) for part in parts), ("together", list(together))]:
        found = cost(jobs, pace_of(scale.name))
        numbers = (f"{found.networks}", f"{found.evaluations}", f"{found.hours:.1f}", f"{found.disk / GIGABYTE:.2f}")
        rows.append([name, *numbers])
    return Table(["", "networks", "evaluations", "hours", "disk (GB)"], rows)


def _command(option: str, number: str, scale: Scale, seeds: int) -> str:
    more = f" --seeds {seeds}" if seeds > 1 else ""
    return f"python training/reproduce.py --{option} {number} --scale {scale.name}{more}"


def _table(table: PaperTable, scale: Scale, seeds: int, workdir: Path, command: str) -> Part:
    rows = plan_table(table, scale, seeds)

    def write() -> list[Path]:
        return write_result(build_result(table, rows, scale, seeds, workdir, command), workdir / "tables")

    return Part(f"Table {table.number}", table.title, jobs_of(rows), write)


def _overhead(scale: Scale, workdir: Path, command: str) -> Part:
    job = Overhead(scale.name)

    def write() -> list[Path]:
        return write_result(build_overhead(job, scale, workdir, command), workdir / "tables")

    return Part("Overhead", overhead.TITLE, [job], write)


def _figure(figure: Figure, scale: Scale, workdir: Path, command: str) -> Part:
    analysis = plan_figure(figure, scale)

    def write() -> list[Path]:
        numbers = workdir / "figures" / f"reproduce_figure{figure.number}_{scale.name}.json"
        write_json(numbers, build_figure(figure, analysis, scale, workdir, command))
        return [*_collect(analysis, figure, workdir), numbers]

    return Part(f"Figure {figure.number}", figure.title, [*analysis.trainings, analysis], write)


def _collect(analysis: Analysis, figure: Figure, workdir: Path) -> list[Path]:
    """Copy the pictures that make a figure to where a person looks for it."""
    folder = workdir / "figures" / f"figure_{figure.number}"
    pictures = sorted((workdir / analysis.folder).glob(figure.files))
    for picture in pictures:
        write_atomically(folder / picture.name, functools.partial(shutil.copyfile, picture))
    return [folder / picture.name for picture in pictures]
