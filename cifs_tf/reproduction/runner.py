"""Carry out a plan: what is done is left alone, what was interrupted continues."""

import contextlib
import importlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cifs_tf.errors import UserError
from cifs_tf.reproduction.plan import Job


def run_jobs(jobs: Sequence[Job], workdir: Path, data_dir: str | None, in_one_process: bool, console: Console) -> None:
    """Carry out what is left of some jobs, in order, in processes of their own or here, with a log for each.

    Raises:
        UserError: if a job ends with an error.
        Preempted: after SIGTERM, when the job has saved what it did.
    """
    for number, job in enumerate(jobs, 1):
        job = job.resolved(workdir)
        if job.is_done(workdir):
            continue
        console.rule(f"{number} of {len(jobs)}")
        console.print(job.command(workdir, data_dir), soft_wrap=True, markup=False, highlight=False)
        code = (_call if in_one_process else _start)(job, workdir.absolute(), data_dir)
        if not job.is_done(workdir):
            advice = f"it ended with code {code}, see what it wrote above; the same command continues from there"
            raise UserError("--workdir", workdir / job.folder, advice)


def _start(job: Job, workdir: Path, data_dir: str | None) -> int:
    """Run a program in a process of its own, which is told to end when this one is."""
    process = subprocess.Popen([sys.executable, "-m", "cifs_tf", job.program, *job.argv(workdir, data_dir)])
    try:
        return process.wait()
    except BaseException:  # Ctrl-C, SIGTERM: the program saves what it did
        process.terminate()
        process.wait()
        raise


def _call(job: Job, workdir: Path, data_dir: str | None) -> int:
    """Run a program in this process."""
    module: Any = importlib.import_module(f"cifs_tf.programs.{job.program}")
    with _logged(workdir / job.folder):
        return module.main(job.argv(workdir, data_dir)) or 0


@contextlib.contextmanager
def _logged(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield
