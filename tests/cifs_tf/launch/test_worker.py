"""worker.py: the program sees the right TF_CONFIG, whoever numbers the workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cifs_tf.errors import UserError
from cifs_tf.launch import worker

ROOT = Path(__file__).parents[3]
NAMES = ("TF_CONFIG", *worker.INDEX_VARIABLES)
HOSTS = "--hosts=a:2222,b:2222"


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text("import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('TF_CONFIG')]))\n")
    return str(path)


@pytest.fixture(autouse=True)
def _not_a_worker(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def start(*argv, **variables):
    """Exit code, standard error, and what the program saw: arguments and TF_CONFIG."""
    command = [sys.executable, str(ROOT / "training" / "launch" / "worker.py"), *argv]
    environment = {**os.environ, **variables}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return process.returncode, process.stderr, *(json.loads(process.stdout) if process.stdout else (None, None))


def test_tf_config_is_what_tensorflow_documents():
    expected = {"cluster": {"worker": ["a:1", "b:2", "c:3"]}, "task": {"type": "worker", "index": 2}}
    assert json.loads(worker.tf_config(["a:1", "b:2", "c:3"], 2)) == expected


def test_the_program_gets_its_arguments_and_its_place(program):
    arguments = ["--name", 'it\'s a "name"', "", "--", "--hosts=x", "$HOME *"]
    code, err, seen, config = start(HOSTS, "--index", "1", "--", program, *arguments, TF_CONFIG="stale")
    assert (code, err) == (0, "")
    assert seen == arguments
    assert config == worker.tf_config(["a:2222", "b:2222"], 1)


def test_the_exit_code_is_the_programs(tmp_path):
    (tmp_path / "program.py").write_text("raise SystemExit(75)")
    assert start("--hosts=a:1", "--", str(tmp_path / "program.py"))[0] == 75


@pytest.mark.parametrize("name", worker.INDEX_VARIABLES)
def test_others_may_number_the_workers(name, program):
    _, _, _, config = start(HOSTS, "--", program, **{name: "1"})
    assert json.loads(config)["task"] == {"type": "worker", "index": 1}


def test_what_is_given_comes_before_what_is_set(program):
    _, _, _, config = start(HOSTS, "--index=0", "--", program, SLURM_PROCID="1")
    assert json.loads(config)["task"]["index"] == 0


def test_one_worker_has_none_to_join(program):
    assert start("--hosts=a:2222", "--", program, TF_CONFIG="stale") == (0, "", [], None)


def test_a_users_error_is_one_sentence(program):
    code, err, seen, _ = start("--hosts=a:1,b:1", "--index=2", "--", program)
    assert (code, seen) == (2, None)
    assert err == "worker.py: error: --index: received 2; give a place in --hosts, from 0 to 1.\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([HOSTS, "--index=0"], "program: received nothing; give one after --"),
        ([HOSTS, "--index=0", "--"], "program: received nothing"),
        ([HOSTS, "--index=0", "--", "absent.py"], "program: received absent.py"),
        ([HOSTS, "--", __file__], "index: received nothing; .* from 0 to 1"),
        ([HOSTS, "--index=-1", "--", __file__], "index: received -1"),
        (["--", __file__], "hosts: received nothing; give HOST:PORT"),
        (["--hosts=", "--", __file__], "hosts: received nothing"),
        (["--hosts=a,b:1", "--index=0", "--", __file__], "hosts: received a; give HOST:PORT"),
        (["--hosts=a:1,", "--index=0", "--", __file__], "hosts: received nothing"),
        (["--hosts=a:1,b:0", "--index=0", "--", __file__], "hosts: received b:0"),
        (["--hosts=a:1,b:65536", "--index=0", "--", __file__], "hosts: received b:65536"),
        (["--hosts=a:1, b:1", "--index=0", "--", __file__], "hosts: received  b:1"),
        (["--hosts=a:1,b:1,a:1", "--index=0", "--", __file__], "hosts: received a:1; it is there more than once"),
        (["--host=a:1", "--", __file__], "--host=a:1: received an unknown option; .* did you mean --hosts"),
    ],
)
def test_bad_input_is_refused(argv, message):
    with pytest.raises(UserError, match=message):
        worker.main(argv)


@pytest.mark.parametrize("text", ["2", "-1", "one"])
def test_bad_numbers_of_others_are_refused(text, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", text)
    with pytest.raises(UserError, match=f"SLURM_PROCID: received {text}; .* from 0 to 1"):
        worker.main([HOSTS, "--", __file__])


def test_ipv6_is_an_address():
    assert worker.WorkerOptions(hosts="[::1]:2222,[fe80::2]:2222").addresses == ["[::1]:2222", "[fe80::2]:2222"]


def test_launchers_start_without_tensorflow():
    modules = ", ".join(f"cifs_tf.launch.{name}" for name in ("worker", "local"))
    command = [sys.executable, "-c", f"import sys, {modules}; sys.exit('tensorflow' in sys.modules)"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
