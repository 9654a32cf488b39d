"""Programs of training/, started as a person starts them: in a process of their own, or, faster, in this one."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("CIFS_SHARED", ROOT.parent / "shared"))
SMALL = [
    "--arch=resnet10",
    "--width=4",
    "--train-examples=64",
    "--test_examples=20",
    "--batch_size=16",
    "--num_steps=2",
    "--attacks=[fgsm, pgd3]",
    "--attack_betas=[0, 2]",
    "--eval_audit=false",
    "--checkpoints=[last]",
]


def start(*argv, cwd, program="run.py"):
    """Start a program in a process of its own."""
    command = [sys.executable, str(ROOT / "training" / program), *map(str, argv)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*argv, cwd, program="run.py"):
    """Run a program in a process of its own: (exit code, what it printed, what it complained of)."""
    process = start(*argv, cwd=cwd, program=program)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def run_here(*argv, cwd, program="run.py"):
    """Run a program as `run` does, but in this process, which has imported TensorFlow already."""
    script, out, err = str(ROOT / "training" / program), io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with (
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "argv", [script, *map(str, argv)]),
        ):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code or 0, out.getvalue(), err.getvalue()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    raise AssertionError("a program ends with sys.exit")
