"""slurm.py: scripts that bash takes, run here with an srun and an scontrol of our own."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

from cifs_tf.errors import UserError
from cifs_tf.launch import slurm

PROGRAM = ["training/run.py", "--dataset=digits"]
# Runs its command once for each node, or ends with a code at once.
SRUN = """#!/bin/bash
[ -z "${SRUN_ENDS:-}" ] || exit "$SRUN_ENDS"
while [[ $1 == --* ]]; do shift; done
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
def make(capsys):
    def run(*options, program=PROGRAM):
        slurm.main([*options, "--", *program])
        return capsys.readouterr().out

    return run


@pytest.fixture
def submit(make, tmp_path):
    """Run a script as Slurm would, on two nodes: exit code, output, and whether the job went back to the queue."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(source, *arguments, options=(), **variables):
        (tmp_path / "a program.py").write_text(source)
        script = make(*options, program=["a program.py", *arguments])
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        slurms = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "12345"}
        process = subprocess.run(
            ["bash", "-s"],
            input=script,
            env={**os.environ, "PATH": path, **slurms, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return process.returncode, process.stdout, (tmp_path / "requeued").exists()

    return run


def directives(script):
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))


def test_bash_takes_it(make):
    script = make("--gpus=1", "--cpus=8", "--time=1-12", "--partition=a,b", program=["it's.py", "$(x)", "`", '"'])
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert script.startswith("#!/bin/bash\n#SBATCH ")


def test_directives(make):
    assert directives(make()) == {
        "job-name": "cifs",
        "nodes": "2",
        "ntasks-per-node": "1",
        "signal": "TERM@120",
        "requeue": "",
        "open-mode": "append",
        "output": "cifs-%j.log",
    }
    options = ["--name=svhn", "--workers=4", "--gpus=2", "--cpus=8", "--time=24:00:00", "--partition=gpu"]
    script = make(*options, "--grace_seconds=300", "--log=logs/%j.txt")
    assert directives(script) == {
        "job-name": "svhn",
        "nodes": "4",
        "ntasks-per-node": "1",
        "gpus-per-node": "2",
        "cpus-per-task": "8",
        "time": "24:00:00",
        "partition": "gpu",
        "signal": "TERM@300",
        "requeue": "",
        "open-mode": "append",
        "output": "logs/%j.txt",
    }
    assert re.search(r"^srun .*--cpus-per-task=8\b", script, re.MULTILINE)


def test_each_task_gets_its_place_and_every_argument(submit):
    arguments = ["--name", 'it\'s "quoted"', "$HOME `id` *", "", "back\\slash", "two\nlines", "--", "{x}"]
    names = "CIFS_PREEMPTED_CODE", "TF_CONFIG"
    source = f"import json, os, sys; print(json.dumps([sys.argv[1:], *map(os.environ.get, {names})]))"
    code, out, requeued = submit(source, *arguments)
    assert (code, requeued) == (0, False)
    seen = [json.loads(line) for line in out.splitlines()]
    assert [each for each, _, _ in seen] == [arguments] * 2
    # Or the job would be done when its time is over.
    assert [code for _, code, _ in seen] == ["75"] * 2
    for index, (_, _, config) in enumerate(seen):
        workers = ["node1:22345", "node2:22345"]
        assert json.loads(config) == {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [("75", "0", True), ("137", "9", True), ("137", "10", False), ("2", "0", False), ("0", "0", False)],
)
def test_the_job_goes_back_to_the_queue(code, restarts, requeued, submit):
    """After a lost worker, and before the end of its time; not when it is done, and not if the command is wrong."""
    ends = {"SRUN_ENDS": code, "SLURM_RESTART_COUNT": restarts}
    assert submit("", **ends) == (int(code), "", requeued)


def test_a_job_that_was_never_requeued_may_be(submit):
    """Slurm sets the number of restarts from the first one on."""
    assert submit("", SRUN_ENDS="75") == (75, "", True)


def test_a_file_is_written(tmp_path, capsys):
    slurm.main(["--output", str(tmp_path / "job.sh"), "--", *PROGRAM])
    assert capsys.readouterr().out == ""
    assert (tmp_path / "job.sh").read_text().startswith("#!/bin/bash\n")


@pytest.mark.parametrize("time", ["30", "30:00", "24:00:00", "2-0", "2-12:30", "2-12:30:00", "UNLIMITED"])
def test_times_of_slurm(time, make):
    assert directives(make(f"--time={time}"))["time"] == time


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--time=1h"], "time: received 1h; give minutes, "),
        (["--time=1:2:3:4"], "time: received 1:2:3:4"),
        (["--time="], "time: received nothing"),
        (["--workers=0"], "workers: received 0"),
        (["--gpus=-1"], "gpus: received -1"),
        (["--cpus=0"], "cpus: received 0"),
        (["--name=a b"], "name: received a b"),
        (["--name=a\n#SBATCH --exclusive"], "name: received a\n#SBATCH"),
        (["--partition=a,,b"], "partition: received a,,b"),
        (["--log=a b"], "log: received a b"),
        (["--max_restarts=-1"], "max_restarts: received -1"),
        (["--grace_seconds=0"], "grace_seconds: received 0"),
        (["--output=absent/job.sh"], "output: received absent/job.sh; it cannot be written"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        slurm.main([*options, "--", *PROGRAM])


def test_a_program_is_needed():
    with pytest.raises(UserError, match=r"program: received nothing; give one after --, as in slurm\.py"):
        slurm.main(["--workers=2"])
