"""Print an sbatch script; the program comes after --.

    python training/launch/slurm.py --workers 4 --gpus 1 --time 24:00:00 -- training/run.py --dataset svhn | sbatch

A worker on each of so many nodes. Submit it where the program is to run, in a folder that all nodes share. Before its
time is over, and when a worker was lost, the job goes back to the queue and continues from the last checkpoint.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cifs_tf.command_line import EXIT_USER_ERROR, names_of, run_program
from cifs_tf.launch.options import check_forms, check_least, parse_command, write
from cifs_tf.runs.preemption import PREEMPTED_CODE, START_AGAIN

WORKER = Path(__file__).with_name("worker.py").resolve()
NAME = r"[\w.-]+"
# For each option what it has to look like, and how to say so.
FORMS = {
    "name": (NAME, "letters, digits and _ . -"),
    "partition": (f"{NAME}(,{NAME})*", "names of partitions, with commas between"),
    "time": (
        r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|UNLIMITED",
        "minutes, [hours:]minutes:seconds or days-hours[:minutes[:seconds]]",
    ),
    "log": (r"[\w.%/-]+", "a path without spaces; %j is the number of the job"),
}


@dataclasses.dataclass(frozen=True)
class SlurmOptions:
    """A training on Slurm.

    Args:
        name: of the job.
        workers: how many nodes.
        gpus: of each.
        cpus: cores of each; null leaves it to Slurm.
        time: after which the job goes back to the queue, such as 24:00:00; null leaves it to the partition.
        partition: null leaves it to Slurm.
        max_restarts: how often the job goes back to the queue, because its time was over or a worker was lost.
        grace_seconds: to write a checkpoint before the time is over.
        log: file of what the workers print; %j is the number of the job; null is NAME-%j.log.
        output: file to write; null prints.
    """

    name: str = "cifs"
    workers: int = 2
    gpus: int = 0
    cpus: int | None = None
    time: str | None = None
    partition: str | None = None
    max_restarts: int = 10
    grace_seconds: int = 120
    log: str | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        check_least(self, {"workers": 1, "gpus": 0, "cpus": 1, "max_restarts": 0, "grace_seconds": 1})
        check_forms(self, FORMS)

    @property
    def directives(self) -> dict[str, str | int | None]:
        """Of sbatch; those that are None are left out."""
        return {
            "job-name": self.name,
            "nodes": self.workers,
            "ntasks-per-node": 1,
            "gpus-per-node": self.gpus or None,
            "cpus-per-task": self.cpus,
            "time": self.time,
            "partition": self.partition,
            # To the workers, not to this script, which stays to see how they end.
            "signal": f"TERM@{self.grace_seconds}",
            "requeue": "",
            "open-mode": "append",
            "output": self.log or f"{self.name}-%j.log",
        }


def main(argv: Sequence[str]) -> None:
    """Parse the command line and print or write."""
    options, program = parse_command(SlurmOptions, "slurm.py", argv, __doc__ or "")
    write(script(options, program), options.output)


def script(options: SlurmOptions, program: Sequence[str]) -> str:
    """Make the sbatch script of a training.

    Args:
        options: where, and how many.
        program: and its arguments.

    Returns:
        a bash script.
    """
    given = {name: value for name, value in options.directives.items() if value is not None}
    directives = "\n".join(f"#SBATCH --{name}={value}".removesuffix("=") for name, value in given.items())
    # Since Slurm 22.05 srun does not take it from sbatch.
    cpus = f" --cpus-per-task={options.cpus}" if options.cpus else ""
    return f"""\
#!/bin/bash
{directives}
set -euo pipefail
export {PREEMPTED_CODE}={START_AGAIN} PYTHONUNBUFFERED=1

# Of this job alone, should two share a node.
port=$((20000 + SLURM_JOB_ID % 10000))
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/.*/&:$port/" | paste -sd ,)

# Survivors may wait for a worker that was lost; one that is done waits for nobody.
code=0
srun --label --kill-on-bad-exit=1 --wait=0{cpus} \\
  {shlex.quote(sys.executable)} {shlex.quote(str(WORKER))} --hosts="$hosts" -- \\
  {shlex.join(program)} || code=$?

case $code in
  0 | {EXIT_USER_ERROR}) ;; # done; or the command is wrong, and would be again
  *) [ "${{SLURM_RESTART_COUNT:-0}}" -ge {options.max_restarts} ] || scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$code"
"""


def start() -> NoReturn:
    """Run the program on the command line of this process, and exit."""
    run_program(main, names_of(SlurmOptions))
