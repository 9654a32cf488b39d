"""The early end of a run: SIGTERM (preemption) or SIGHUP (a terminal that was closed), after which it saves and exits
with code 0, and the loss of another worker, with a code that asks for a restart."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

from cifs_tf import signals

# Exit code of a worker after the loss of another: sysexits' "try again".
START_AGAIN = os.EX_TEMPFAIL
# Environment variable with the exit code after SIGTERM, for schedulers that take 0 for the end of the whole job.
PREEMPTED_CODE = "CIFS_PREEMPTED_CODE"
SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Preempted(BaseException):
    """The process was asked to end; the same command continues. Like Ctrl-C, no handler of errors may swallow it.

    Args:
        number: the signal. Default SIGTERM.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.number = number


class WorkerLostError(Exception):
    """Another worker of the run has ended, so this one cannot go on; all of them have to start again."""


class _Request:
    """State that the signal handler and the main program share."""

    deferred = False
    received: int | None = None


def install() -> None:
    """Let SIGTERM and SIGHUP raise `Preempted`, or wait while `deferred`; a signal that is ignored, as by nohup, stays
    so."""
    _Request.received = None
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)


def ending(number: int) -> tuple[str, int]:
    """Return the sentence and the exit code with which a signal ends a program."""
    name = signal.Signals(number).name
    code = int(os.environ.get(PREEMPTED_CODE, 0))
    return f"ended by {name}, everything so far is saved; the same command continues.", code


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Hold `Preempted` back until the context ends; yields a function that tells whether SIGTERM has come.

    Example:
        >>> with deferred() as requested:
        ...     for step in range(1000):
        ...         if requested():
        ...             break
    """
    _Request.deferred = True
    try:
        yield lambda: _Request.received is not None
    finally:
        _Request.deferred = False
    if _Request.received is not None:
        raise Preempted(_Request.received)


def run_preemptible(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Run a program as `cifs_tf.command_line.run_program` does; SIGTERM and SIGHUP end it with everything saved.

    The code is 0 then, or that of the environment variable CIFS_PREEMPTED_CODE. A worker whose others are gone ends
    with code 75, sysexits' "try again".
    """
    from cifs_tf.command_line import run_program  # slow: this module is imported before signals are taken care of

    def preemptible(argv: Sequence[str]) -> int | None:
        try:
            return main(argv)
        except Preempted as end:
            sentence, code = ending(end.number)
            with contextlib.suppress(OSError):  # of a terminal that was closed
                print(f"{signals.program_name()}: {sentence}", file=sys.stderr)
            return code
        except WorkerLostError as error:
            print(
                f"{signals.program_name()}: another worker has ended ({error}); the same command on all of them "
                "continues from the last checkpoint.",
                file=sys.stderr,
            )
            return START_AGAIN

    install()
    run_program(preemptible)


def _on_signal(number: int, frame: FrameType | None) -> None:
    is_second, _Request.received = _Request.received is not None, number
    if _Request.deferred:
        return
    if is_second or signals.is_early(frame):
        signals.leave(*ending(number))
    raise Preempted(number)
