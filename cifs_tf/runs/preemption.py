"""The early end of a run: SIGTERM (preemption), after which it saves and exits with code 0, and the loss of another
worker, with a code that asks for a restart."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

# Exit code of a worker after the loss of another: sysexits' "try again".
START_AGAIN = os.EX_TEMPFAIL
# Environment variable with the exit code after SIGTERM, for schedulers that take 0 for the end of the whole job.
PREEMPTED_CODE = "CIFS_PREEMPTED_CODE"


class Preempted(BaseException):
    """The process was asked to end; the same command continues. Like Ctrl-C, no handler of errors may swallow it."""


class WorkerLostError(Exception):
    """Another worker of the run has ended, so this one cannot go on; all of them have to start again."""


class _Request:
    """State that the signal handler and the main program share."""

    deferred = False
    received = False


def install() -> None:
    """Let SIGTERM raise `Preempted`, or wait while `deferred`; every program does this first."""
    signal.signal(signal.SIGTERM, _on_sigterm)


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
        yield lambda: _Request.received
    finally:
        _Request.deferred = False
    if _Request.received:
        raise Preempted


def _on_sigterm(signal_number: int, frame: object) -> None:
    _Request.received = True
    if not _Request.deferred:
        raise Preempted
