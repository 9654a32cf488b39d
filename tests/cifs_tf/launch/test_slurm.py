"""training/launch/slurm/train.sbatch: run here with an srun and an scontrol of our own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cifs_tf.runs.preemption import PREEMPTED_CODE, START_AGAIN

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "training" / "launch" / "slurm" / "train.sbatch"
# Writes its options down, and runs its command once for each node, or ends with a code at once.
SRUN = """#!/bin/bash
[ -z "${SRUN_ENDS:-}" ] || exit "$SRUN_ENDS"
while [[ $1 == --* ]]; do echo "$1" >> options; shift; done
for index in 0 1; do SLURM_PROCID=$index "$@" || exit; done
"""
SCONTROL = """#!/bin/bash
case "$1 $2 $3" in
  "show hostnames node[1-2]") printf 'node1\\nnode2\\n' ;;
  "requeue 12345 ") touch requeued ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture
def submit(tmp_path):
    """Run the script as Slurm would, on two nodes: exit code, output, and whether the job went back to the queue."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "training").symlink_to(ROOT / "training")

    def run(source, *arguments, **variables):
        (tmp_path / "a program.py").write_text(source)
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        slurms = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "12345", "PYTHON": sys.executable}
        process = subprocess.run(
            ["bash", SCRIPT, "a program.py", *arguments],
            env={**os.environ, "PATH": path, **slurms, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return process.returncode, process.stdout, (tmp_path / "requeued").exists()

    return run


def test_directives():
    """All before the first command, where sbatch stops to read."""
    script = SCRIPT.read_text()
    assert script.startswith("#!/bin/bash\n")
    assert script.rindex("#SBATCH --") < script.index("set -euo pipefail")
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))
    assert directives == {
        "job-name": "cifs",
        "nodes": "4",
        "ntasks-per-node": "1",
        "gpus-per-node": "1",
        "cpus-per-task": "8",
        "time": "24:00:00",
        "signal": "TERM@120",
        "requeue": "",
        "open-mode": "append",
        "output": "cifs-%j.log",
    }


def test_each_task_gets_its_place_and_every_argument(submit):
    arguments = ["--name", 'it\'s "quoted"', "$HOME `id` *", "", "back\\slash", "two\nlines", "--", "{x}"]
    names = PREEMPTED_CODE, "TF_CONFIG"
    source = f"import json, os, sys; print(json.dumps([sys.argv[1:], *map(os.environ.get, {names})]))"
    code, out, requeued = submit(source, *arguments)
    assert (code, requeued) == (0, False)
    seen = [json.loads(line) for line in out.splitlines()]
    assert [each for each, _, _ in seen] == [arguments] * 2
    # Or the job would be done when its time is over.
    assert [code for _, code, _ in seen] == [str(START_AGAIN)] * 2
    for index, (_, _, config) in enumerate(seen):
        workers = ["node1:22345", "node2:22345"]
        assert json.loads(config) == {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}


@pytest.mark.parametrize("cores", [{}, {"SLURM_CPUS_PER_TASK": "8"}])
def test_each_task_gets_its_cores(cores, submit, tmp_path):
    assert submit("", **cores)[0] == 0
    options = (tmp_path / "options").read_text().split()
    assert options == ["--label", "--kill-on-bad-exit=1", "--wait=0", *["--cpus-per-task=8"] * len(cores)]


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [("75", "0", True), ("137", "9", True), ("137", "10", False), ("2", "0", False), ("0", "0", False)],
)
def test_the_job_goes_back_to_the_queue(code, restarts, requeued, submit):
    """After a lost worker, and before the end of its time; not when it is done, and not if the command is wrong."""
    ends = {"SRUN_ENDS": code, "SLURM_RESTART_COUNT": restarts}
    assert submit("", **ends) == (int(code), "", requeued)


def test_the_number_of_restarts_may_be_given(submit):
    assert submit("", SRUN_ENDS="137", SLURM_RESTART_COUNT="2", MAX_RESTARTS="2") == (137, "", False)


def test_a_job_that_was_never_requeued_may_be(submit):
    """Slurm sets the number of restarts from the first one on."""
    assert submit("", SRUN_ENDS="75") == (75, "", True)


def test_a_wrong_command_ends_with_the_code_of_one(submit):
    assert submit("raise SystemExit(2)") == (2, "", False)
