"""SIGTERM, by which a cluster takes a machine back: finish the step, save, exit with code 0."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator


class Preempted(BaseException):
    """The process was asked to end; the same command continues. Like Ctrl-C, no handler of errors may swallow it."""


class _Request:
    """What the signal handler and the main program tell each other."""

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
        ...         train(step)
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
