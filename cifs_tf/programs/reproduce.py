"""Reproduce the paper's tables and figures: train what is missing, measure it, and write it beside the paper's numbers.

    python training/reproduce.py --dry-run                      every table and figure: what there would be to do
    python training/reproduce.py --table 1 --scale small        hours on two CPU cores, on Fashion-MNIST
    python training/reproduce.py --table 1,B.1,B.2 --figure 4   the paper's setting, on a GPU
    python training/reproduce.py --table all --figure all --scale smoke
    python training/reproduce.py --study verdict                does the mask do anything? a day and a half of one core,
                                                                shared by as many processes as are started so,
                                                                as soon as vanilla has its first cell

Everything is written to --workdir; the same command again continues there.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from cifs_tf.command_line import parse_options
from cifs_tf.config import Group, bounded
from cifs_tf.errors import UserError
from cifs_tf.extras import require
from cifs_tf.reproduction import overhead
from cifs_tf.reproduction.catalogue import figures, tables
from cifs_tf.reproduction.scales import SCALES
from cifs_tf.runs.workdir import check_folder

ALL = "all"


@dataclasses.dataclass(frozen=True)
class ReproduceOptions(Group):
    """Reproduce the paper's tables and figures.

    Args:
        table: numbers separated by commas, such as 1,B.2,E.1, or overhead (the costs of Section 4.1.1), or, with
            --scale small, microscope (other selection layers), recipes_digits, recipes_fashion_mnist, recipes_cifar10
            (what helps, by validation images) and nfgsm (the cheap method); or all.
        figure: numbers separated by commas, such as 1,A.2, or all.
        study: verdict (docs/verdict.md), by itself; its finished cells and its page are written to docs.
        arms: of the study, such as vanilla,mean_one; null is all. The page has all that are finished.
        scale: full (the paper's setting), small (Fashion-MNIST, hours on two CPU cores) or smoke (two steps, to see
            that everything runs).
        seeds: networks of every row, with the seeds 0, 1, ...; null is 1, for the study 3.
        workdir: the only folder that is written to, but for a study; null is runs/reproduce-SCALE or runs/STUDY-SCALE.
        data_dir: where TFDS data lies or is downloaded to; null is TFDS' own default.
        dry_run: print what there is to do, with commands, hours and disk, and do nothing.
    """

    table: tuple[str, ...] | None = None
    figure: tuple[str, ...] | None = None
    study: Literal["verdict"] | None = None
    arms: tuple[str, ...] | None = None
    scale: Literal["full", "small", "smoke"] = "full"
    seeds: int | None = bounded(None, low=1)
    workdir: str | None = None
    data_dir: str | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.study is not None and (self.table, self.figure) != (None, None):
            raise UserError("--study", self.study, "it goes by itself, leave --table and --figure out")
        if self.study is None and self.arms is not None:
            raise UserError("--arms", ",".join(self.arms), "tables and figures have none, give it with --study")
        if self.arms == ():
            raise UserError("--arms", "[]", "name one at least, such as vanilla, or leave it out for all")


def main(argv: Sequence[str]) -> None:
    """Parse the command line, and plan or reproduce."""
    options = parse_options(ReproduceOptions, "reproduce.py", argv, __doc__ or "")
    scale = SCALES[options.scale]
    workdir = Path(options.workdir or f"runs/{options.study or 'reproduce'}-{scale.name}")
    check_folder(workdir)
    console = Console()
    if options.study is not None:
        from cifs_tf.reproduction.verdict.runner import run_study

        asked_for = options.scale, options.arms, options.seeds
        run_study(*asked_for, workdir, options.data_dir, console, dry_run=options.dry_run)
        return
    asked = (options.table, options.figure)
    if options.dry_run and asked == (None, None):
        asked = ((ALL,), (ALL,))
    if not any(asked):
        raise UserError("--table", None, "say what to reproduce: --table 1, --figure 3, --table all")
    here = [number for number, table in tables().items() if any(scale.name in row.scales for row in table.rows)]
    wanted_tables = _chosen("--table", asked[0], [*here, overhead.NAME])
    wanted_figures = _chosen("--figure", asked[1], list(figures()))
    if not options.dry_run:
        require("report")  # now, and not when the first figure is drawn, hours later
    # After the check: importing SciPy and what draws takes seconds, an error should not.
    from cifs_tf.reproduction.parts import plan_parts, print_costs, reproduce

    parts = plan_parts(wanted_tables, wanted_figures, scale, options.seeds or 1, workdir)
    print_costs(parts, scale, workdir, options.data_dir, console, with_commands=options.dry_run)
    if not options.dry_run:
        reproduce(parts, scale, workdir, options.data_dir, console)


def _chosen(option: str, asked: Sequence[str] | None, known: list[str]) -> list[str]:
    """Return the numbers that were asked for, in the paper's order.

    Raises:
        UserError: for one that there is not at this scale.
    """
    asked = asked or ()
    if ALL in asked:
        return known
    for number in asked:
        if number not in known:
            raise UserError(option, number, f"give some of {', '.join(known)}, separated by commas, or all")
    return [number for number in known if number in asked]
