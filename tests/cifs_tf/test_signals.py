"""Programs that are ended early: one sentence and one exit code, whenever the signal comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.running import ROOT

SCRIPTS = [
    *(f"training/{name}.py" for name in ("run", "evaluate", "analyse", "tune", "reproduce", "benchmark")),
    *(f"serving/{name}.py" for name in ("export", "server", "client")),
]
PREEMPTIBLE = SCRIPTS[:6]
# What every program imports first of all that takes long; this one takes as long as the test needs.
SLOW_MODULE = "import sys, time\nprint('here', file=sys.stderr, flush=True)\ntime.sleep(60)\n"
AT_WORK = """
import sys, time
from cifs_tf import signals
signals.prepare({})
from cifs_tf.command_line import run_program
def main(argv):
    try:
        print("here", file=sys.stderr, flush=True)
        time.sleep(60)
    finally:
        print("ending", file=sys.stderr, flush=True)
        time.sleep(float(argv[0]))
run_program(main)
"""


def start(*argv, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    # Below nohup, as CI may run, SIGHUP is ignored.
    options |= {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL), "text": True}
    return subprocess.Popen(
        [sys.executable, *argv], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def end(process, number):
    """Send a signal once the process says that it is there; return its exit code and what it said after that."""
    assert process.stderr.readline() == "here\n"
    process.send_signal(number)
    err = process.stderr.read()
    return process.wait(30), err.strip()


def expected(script, number):
    name = script.rpartition("/")[2]
    if script == "serving/server.py":
        return 0, f"{name}: ended before it served."
    if number == signal.SIGINT:
        return 130, f"{name}: interrupted; the same command continues."
    return 0, f"{name}: ended by {number.name}, everything so far is saved; the same command continues."


@pytest.mark.parametrize(
    ("script", "number"),
    [
        *((script, signal.SIGINT) for script in SCRIPTS),
        *((script, signal.SIGTERM) for script in (*PREEMPTIBLE, "serving/server.py")),
        ("training/run.py", signal.SIGHUP),
    ],
)
def test_while_modules_are_imported(script, number, tmp_path):
    (tmp_path / "jsonargparse.py").write_text(SLOW_MODULE)
    (tmp_path / "numpy.py").write_text(SLOW_MODULE)
    process = start(str(ROOT / script), env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert end(process, number) == expected(script, number)


@pytest.mark.parametrize("first", ["wrapt", "enum"])
@pytest.mark.parametrize("argv", [[str(ROOT / "training/run.py")], ["-m", "cifs_tf", "run"]])
def test_before_the_package_is_imported(argv, first, tmp_path):
    """A signal that comes first of all waits until the program can answer it.

    The package imports wrapt first, and `import signal` imports enum, if nothing did before.
    """
    handing_over = (
        f"import importlib, sys, time\nprint('here', file=sys.stderr, flush=True)\ntime.sleep(0.5)\n"
        f"sys.path.pop(sys.path.index(__file__.rpartition('/')[0]))\ndel sys.modules['{first}']\n"
        f"importlib.invalidate_caches()\nimportlib.import_module('{first}')\n"
    )
    (tmp_path / f"{first}.py").write_text(handing_over)
    # Without `site`, whose own imports come before the first line of any program, and with its folders.
    paths = ":".join([str(tmp_path), str(ROOT), *(path for path in sys.path if path.endswith("-packages"))])
    process = start("-S", *argv, env={"PYTHONPATH": paths})
    code, err = end(process, signal.SIGINT)
    assert (code, err.partition(": ")[2]) == (130, "interrupted; the same command continues.")


@pytest.mark.parametrize(("seconds", "interrupts"), [(0, 1), (30, 2)])
def test_at_work_and_twice(seconds, interrupts):
    process = start("-c", AT_WORK, str(seconds))
    assert process.stderr.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "ending\n"
    if interrupts > 1:
        process.send_signal(signal.SIGINT)
    err = process.stderr.read()  # with what the line above has read ahead
    assert (process.wait(20), err.strip()) == (130, "-c: interrupted; the same command continues.")


def test_a_signal_that_is_ignored_stays_so():
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from cifs_tf.programs import console; "
        "console.prepare('run'); "
        "print(signal.getsignal(signal.SIGHUP).name, signal.getsignal(signal.SIGTERM).__name__)"
    )
    out, _ = start("-c", code).communicate(timeout=30)
    assert out.split() == ["SIG_IGN", "_on_signal"]


@pytest.mark.parametrize("script", [SCRIPTS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in SCRIPTS[1:])])
def test_help_in_a_narrow_terminal_that_knows_no_letters(script):
    process = start(
        str(ROOT / script),
        "--help",
        env={"COLUMNS": "40", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "--" in out


def test_names_that_a_process_without_utf8_cannot_read():
    """The name is right, the process is not; without a word TensorFlow would end with a traceback."""
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = start(str(ROOT / "training/run.py"), "--workdir", "caf\u00e9", env=env)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    expected = "this process reads names as ascii, and 'caf\\xe9' is UTF-8; set PYTHONUTF8=1, or LC_ALL=C.UTF-8."
    assert err.strip().endswith(expected), err


PRINTING = "import sys; from cifs_tf.command_line import run_program; run_program(lambda argv: print('x' * 9999))"


@pytest.mark.parametrize("program", [["-c", PRINTING], ["training/run.py", "--help"], ["serving/client.py", "--help"]])
def test_an_output_that_is_full(program):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, *program], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "error: the output" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_output_that_was_closed():
    """Work that is done keeps its code; work that is not ends without a word, as the shell has it."""
    reader, writer = os.pipe()
    os.close(reader)
    work = (
        "import sys; from cifs_tf import signals; signals.prepare({}); from cifs_tf.command_line import run_program; "
    )
    mains = {
        "lambda argv: print('done')": 0,
        "lambda argv: print('x', flush=True)": 141,
        "lambda argv: __import__('rich.console').console.Console().print('x')": 141,
    }
    for main, code in mains.items():
        process = subprocess.run(
            [sys.executable, "-c", f"{work}run_program({main})"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert (process.returncode, process.stderr) == (code, ""), main
    os.close(writer)


def test_streams_that_are_not_there(tmp_path):
    """A file that is opened does not get the place of standard output, where libraries print."""
    code = (
        "from cifs_tf import signals; signals.prepare({}); import os; "
        f"file = open({str(tmp_path / 'file')!r}, 'w'); print('lost'); os.write(1, b'lost'); assert file.fileno() > 2"
    )
    process = subprocess.run(
        f'{sys.executable} -c "{code}" <&- >&- 2>&-',
        shell=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert process.returncode == 0
    assert (tmp_path / "file").read_text() == ""
