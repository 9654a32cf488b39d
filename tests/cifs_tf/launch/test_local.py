"""local.py: workers find each other, fall together, start again, and never outlive the launcher.

Small programs stand in for the training program; each prints a line when it has come to the point of its test.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from cifs_tf.errors import UserError
from cifs_tf.launch import local

ROOT = Path(__file__).parents[3]
TIMEOUT = 60
# Names that every program may use. `attempt` counts from 1, one file for each worker.
PREAMBLE = """
import json, os, signal, sys, time
from pathlib import Path
index = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"]
attempts = Path(f"attempts-{index}")
attempts.write_text((attempts.read_text() if attempts.exists() else "") + "x")
attempt = len(attempts.read_text())
def say(word):  # print() fails in a handler that interrupts another print()
    os.write(1, f"{word}\\n".encode())
def wait_for_signals():  # a signal just before signal.pause() would find no handler until the next one
    while True:
        time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("TF_CONFIG", "TF_NUM_INTRAOP_THREADS"):
        monkeypatch.delenv(name, raising=False)


def write(program):
    Path("program.py").write_text(PREAMBLE + textwrap.dedent(program))
    return ["--", "program.py"]


@pytest.fixture
def run(capfdbinary):
    """Run the launcher to its end: exit code, lines of output, standard error."""

    def wait(program, *options):
        too_late = threading.Timer(TIMEOUT, os.kill, (os.getpid(), signal.SIGTERM))
        too_late.start()
        try:
            code = local.main([*options, *write(program)])
        finally:
            too_late.cancel()
        out, err = (stream.decode(errors="backslashreplace") for stream in capfdbinary.readouterr())
        return code, sorted(out.splitlines()), err

    return wait


@pytest.fixture
def start():
    """Start the launcher as a process of its own; whatever happens, nothing is left of it."""
    with contextlib.ExitStack() as stack:

        def begin(program):
            command = [sys.executable, str(ROOT / "training" / "launch" / "local.py"), *write(program)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield begin


def read_lines(process, count):
    """The next lines of output, in alphabetical order: workers do not wait for each other."""
    return sorted(process.stdout.readline() for _ in range(count))


def test_workers_find_each_other(run):
    code, lines, err = run('print(os.environ["TF_CONFIG"])', "--workers=3")
    assert (code, err) == (0, "")
    assert [line[:4] for line in lines] == ["[0] ", "[1] ", "[2] "]
    configs = [json.loads(line[4:]) for line in lines]
    assert [config["task"] for config in configs] == [{"type": "worker", "index": index} for index in range(3)]
    (addresses,) = {tuple(config["cluster"]["worker"]) for config in configs}
    assert len(set(addresses)) == 3
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+", address) for address in addresses)


def test_ports_may_be_given(run):
    _, lines, _ = run('print(json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"])', "--port=23456")
    assert lines == [f"[{index}] ['127.0.0.1:23456', '127.0.0.1:23457']" for index in range(2)]


def test_workers_share_the_cores(run, monkeypatch):
    cores = len(os.sched_getaffinity(0))
    program = 'print(os.environ["TF_NUM_INTRAOP_THREADS"])'
    assert run(program, "--workers=2")[1][0] == f"[0] {max(1, cores // 2)}"
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "7")
    assert run(program, "--workers=2")[1] == ["[0] 7", "[1] 7"]


def test_one_worker_has_none_to_join(run, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "stale")
    assert run('print(os.environ.get("TF_CONFIG"))', "--workers=1")[:2] == (0, ["[0] None"])


def test_every_line_says_whose_it_is(run):
    program = """
        sys.stdout.buffer.write(b"first\\nsecond, not UTF-8: \\xff\\n")
        sys.stderr.write("without an end of line")
        """
    code, lines, err = run(program, "--workers=1")
    assert (code, lines) == (0, ["[0] first", "[0] second, not UTF-8: \\xff"])
    assert err == "[0] without an end of line\n"


def test_a_killed_worker_is_started_again_with_all_others(run):
    program = """
        lost, waiting = Path("lost"), Path("waiting")
        if index == 0 and not lost.exists():
            waiting.touch()
            wait_for_signals()
        if index == 1 and not lost.exists():
            while not waiting.exists():
                time.sleep(0.01)
            lost.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        print("done")
        """
    code, lines, err = run(program)
    assert (code, lines) == (0, ["[0] done", "[1] done"])
    sentence = "worker 1 was ended by SIGKILL; all start again from the last checkpoint (restart 1 of 3)."
    assert err == f"local.py: {sentence}\n"


def test_a_survivor_that_hangs_is_killed(run):
    """As in a collective operation, from which SIGTERM is not heard."""
    program = """
        here = Path("survivor")
        if index == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            here.write_text(str(os.getpid()))
            time.sleep(600)
        while not here.exists() or not here.read_text():
            time.sleep(0.01)
        sys.exit(1)
        """
    code, _, err = run(program, "--max_restarts=0", "--grace_seconds=0.1")
    assert code == 1
    assert err == "local.py: worker 1 ended with code 1; all have ended.\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("survivor").read_text()), 0)


@pytest.mark.parametrize(("ending", "expected"), [("sys.exit(75)", 75), ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_restarts_come_to_an_end(ending, expected, run):
    code, _, err = run(ending, "--workers=1", "--max_restarts=1")
    assert code == expected
    assert len(Path("attempts-0").read_text()) == 2
    assert [line.split("; ")[1] for line in err.splitlines()] == [
        "all start again from the last checkpoint (restart 1 of 1).",
        "all have ended.",
    ]


def test_a_survivor_asks_to_be_started_again(run):
    """Code 75: the peer was lost, the program itself noticed it."""
    code, lines, err = run("sys.exit(75) if attempt < 3 else print('done')", "--workers=1")
    assert (code, lines) == (0, ["[0] done"])
    assert err.count("worker 0 ended with code 75; all start again") == 2


def test_a_users_error_is_not_repeated(run):
    code, _, err = run("wait_for_signals() if index else sys.exit(2)")
    assert code == 2
    assert err == "local.py: worker 0 ended with code 2; all have ended.\n"
    assert Path("attempts-0").read_text() == "x"


def test_a_users_error_is_told_even_if_another_worker_notices_first(run):
    """The chief finds the command wrong; the other sees that it goes, and is the first to end."""
    code, _, err = run("""
        if index:
            while not Path("ready").exists():
                time.sleep(0.01)
            sys.exit(75)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
        Path("ready").touch()
        wait_for_signals()
    """)
    assert code == 2
    assert err == "local.py: worker 0 ended with code 2; all have ended.\n"


SAVES = """
def save(*_):
    say("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
say("ready")
wait_for_signals()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
def test_asked_to_end_all_save(number, start):
    process = start(SAVES)
    assert read_lines(process, 2) == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT)
    assert sorted(out.splitlines()) == ["[0] saved", "[1] saved"]
    assert (process.returncode, err) == (0, "")


def test_asked_to_end_nothing_starts_again(start):
    process = start(SAVES.replace("exit(0)", "exit(75)"))
    read_lines(process, 2)
    process.terminate()
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 75
    assert err.endswith("ended with code 75; all have ended.\n")


def test_asked_twice_all_are_killed(start):
    program = """
        signal.signal(signal.SIGTERM, lambda *_: say("not yet"))
        say("ready")
        wait_for_signals()
        """
    process = start(program)
    read_lines(process, 2)
    process.send_signal(signal.SIGINT)
    assert read_lines(process, 2) == ["[0] not yet\n", "[1] not yet\n"]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 137
    assert "was ended by SIGKILL; all have ended." in err


def test_a_killed_launcher_leaves_no_worker(start):
    """A lock is let go of when its process has ended, however it ended."""
    program = """
        import fcntl
        lock = open(f"lock-{index}", "w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ready", flush=True)
        time.sleep(600)
        """
    process = start(program)
    read_lines(process, 2)
    process.kill()
    deadline = time.monotonic() + TIMEOUT
    for index in range(2):
        with open(f"lock-{index}") as lock:
            while not is_free(lock):
                assert time.monotonic() < deadline
                time.sleep(0.01)


def is_free(lock):
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workers=2"], "program: received nothing; give one after --, as in local.py -- training/run.py"),
        (["--", "absent.py"], "program: received absent.py"),
        (["--workers=0", "--", __file__], "workers: received 0; give a number of 1 or more"),
        (["--workers=two", "--", __file__], "workers: received two; give an integer"),
        (["--max_restarts=-1", "--", __file__], "max_restarts: received -1"),
        (["--port=-1", "--", __file__], "port: received -1"),
        (["--port=65535", "--", __file__], "port: received 65535; give a number up to 65534"),
        (["--grace_seconds=-1", "--", __file__], "grace_seconds: received -1"),
    ],
)
def test_bad_input_is_refused(argv, message):
    with pytest.raises(UserError, match=message):
        local.main(argv)
