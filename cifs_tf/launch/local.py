"""Train with several processes on this machine; the program comes after --.

    python training/launch/local.py --workers 2 -- training/run.py --dataset digits --strategy multiworker

Worker 0 is the chief, which writes. Every line of worker i's output begins with [i]. When a worker is lost, all of them
start again from the last checkpoint. Ctrl-C or SIGTERM saves a checkpoint and ends all of them, a second one kills.
"""

import contextlib
import dataclasses
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from cifs_tf.command_line import EXIT_USER_ERROR
from cifs_tf.config import Group, bounded
from cifs_tf.errors import UserError
from cifs_tf.hardware import usable_cores
from cifs_tf.launch.worker import check_program, environment_of, parse_command

LOOPBACK = "127.0.0.1"
# What a process started by a worker holds open is not waited for.
LAST_LINES_SECONDS = 5
# Run by a worker before it becomes the program: the kernel kills it when the launcher is gone, however that ended.
# Not a `preexec_fn`, which may block for ever in a process with threads. 1 is PR_SET_PDEATHSIG.
BOUND_TO_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@dataclasses.dataclass(frozen=True)
class LocalOptions(Group):
    """Several workers on this machine.

    Args:
        workers: how many processes; they share the processor's cores, unless TF_NUM_INTRAOP_THREADS is set.
        max_restarts: how often all of them start again after one was lost.
        port: of the first worker, the others take those that follow; 0 takes free ones.
        grace_seconds: for the others to end when one was lost; then they are killed, for they may wait for it.
    """

    workers: int = bounded(2, low=1)
    max_restarts: int = bounded(3, low=0)
    port: int = bounded(0, low=0)
    grace_seconds: float = bounded(10.0, low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.port > 2**16 - self.workers:
            raise UserError("port", self.port, f"give a number up to {2**16 - self.workers}, or 0 for free ports")


@dataclasses.dataclass(frozen=True)
class Ended:
    """The end of a worker.

    Args:
        index: of the worker.
        status: exit code; below 0 the signal that ended it, as `subprocess` has it.
    """

    index: int
    status: int

    @property
    def code(self) -> int:
        """Exit code, as a shell has it."""
        return self.status if self.status >= 0 else 128 - self.status

    def __str__(self) -> str:
        how = f"ended with code {self.status}" if self.status >= 0 else f"was ended by {_name_of(-self.status)}"
        return f"worker {self.index} {how}"


class Team:
    """The processes of one attempt, whose output becomes ours.

    Args:
        program: and its arguments.
        environments: one for each worker.
        events: gets the end of each.
    """

    def __init__(self, program: Sequence[str], environments: Sequence[dict[str, str]], events: queue.SimpleQueue[Any]):
        self._processes = [_start(program, environment) for environment in environments]
        self._writing = threading.Lock()
        self._readers = []
        for index, process in enumerate(self._processes):
            for pipe, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                self._readers.append(_in_background(self._forward, index, pipe, target.buffer))
            _in_background(lambda index, process: events.put(Ended(index, process.wait())), index, process)

    def end(self, number: signal.Signals) -> None:
        """Send a signal to the processes that are left."""
        for process in self._processes:
            process.send_signal(number)

    def finish(self) -> None:
        """Return once what the workers have written is written here."""
        deadline = time.monotonic() + LAST_LINES_SECONDS
        for reader in self._readers:
            reader.join(max(0, deadline - time.monotonic()))

    def _forward(self, index: int, pipe: IO[bytes], target: IO[bytes]) -> None:
        for line in pipe:
            # Nobody may be left who reads it; a worker must not wait for that.
            with self._writing, contextlib.suppress(BrokenPipeError):
                target.write(b"[%d] %s\n" % (index, line.rstrip(b"\n")))
                target.flush()


def main(argv: Sequence[str]) -> int:
    """Parse the command line and run the workers; returns the exit code."""
    options, program = parse_command(LocalOptions, "local.py", argv, __doc__ or "")
    check_program(program)
    return launch(options, program)


def launch(options: LocalOptions, program: Sequence[str]) -> int:
    """Run a program in several workers, again if one is lost.

    Returns:
        exit code: 0, or that of the first worker that was lost, 128 + N if signal N ended it.
    """
    restarts = 0
    with received_signals() as events:
        while True:
            hosts = [f"{LOOPBACK}:{port}" for port in _ports(options)]
            team = Team(program, [_environment(hosts, index) for index in range(options.workers)], events)
            lost, asked_to_end = supervise(team, options, events)
            team.finish()
            if lost is None:
                return 0
            if asked_to_end or lost.code == EXIT_USER_ERROR or restarts == options.max_restarts:
                _say(f"{lost}; all have ended")
                return lost.code
            restarts += 1
            _say(f"{lost}; all start again from the last checkpoint (restart {restarts} of {options.max_restarts})")


@contextlib.contextmanager
def received_signals() -> Iterator[queue.SimpleQueue[Ended | int]]:
    """Put the numbers of Ctrl-C and SIGTERM into a queue, which is yielded, until the context ends."""
    events: queue.SimpleQueue[Ended | int] = queue.SimpleQueue()  # its `put` may interrupt itself
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda received, frame: events.put(received)) for number in signals]
    try:
        yield events
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def supervise(team: Team, options: LocalOptions, events: queue.SimpleQueue[Ended | int]) -> tuple[Ended | None, bool]:
    """Return once all workers have ended: by themselves, because one was lost, or because we were asked to end.

    Returns:
        (the first worker that was lost, or None; whether we were asked to end).
    """
    running, lost, asked_to_end, deadline = options.workers, None, False, None
    while running:
        try:
            event = events.get(timeout=None if deadline is None else max(0, deadline - time.monotonic()))
        except queue.Empty:
            team.end(signal.SIGKILL)
            deadline = None
            continue
        if isinstance(event, Ended):
            running -= 1
            if event.status and lost is None:
                lost = event
                team.end(signal.SIGTERM)
            elif event.status == EXIT_USER_ERROR:
                lost = event  # that is why the others were lost
            if lost or asked_to_end:  # the others may wait for it
                deadline = deadline or time.monotonic() + options.grace_seconds
        else:
            team.end(signal.SIGKILL if asked_to_end else signal.SIGTERM)
            asked_to_end = True
    return lost, asked_to_end


def _start(program: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    # Elsewhere than on Linux, a launcher that is killed leaves its workers.
    bound = ["-I", "-S", "-c", BOUND_TO_LAUNCHER, str(os.getpid())] if sys.platform == "linux" else []
    return subprocess.Popen(
        [sys.executable, *bound, *program],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,  # Ctrl-C in a terminal is for the launcher, which passes on SIGTERM
    )


def _environment(hosts: Sequence[str], index: int) -> dict[str, str]:
    threads = max(1, usable_cores() // len(hosts))
    return {"TF_NUM_INTRAOP_THREADS": str(threads), "PYTHONUNBUFFERED": "1", **environment_of(hosts, index)}


def _ports(options: LocalOptions) -> list[int]:
    if options.port:
        return list(range(options.port, options.port + options.workers))
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(options.workers)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]


def _in_background(work: Callable[..., object], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def _say(sentence: str) -> None:
    print(f"local.py: {sentence}.", file=sys.stderr, flush=True)


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
