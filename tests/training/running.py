"""run.py as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
]


def start(*argv, cwd):
    command = [sys.executable, str(ROOT / "training" / "run.py"), *argv]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*argv, cwd):
    process = start(*argv, cwd=cwd)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
