"""The early end of a program, by a signal or because its output was closed: one sentence and one exit code.

A program is prepared before anything else is imported. Until its work begins, and whenever modules are being imported,
a signal ends the process at once: nothing is at work then that would have to be ended in order, and an exception would
come out of whatever native library is just being loaded. A second Ctrl-C ends it at once too; every file is written
whole or not at all, so there is nothing to lose.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

EXIT_INTERRUPTED = 130
# 128 + SIGPIPE, as a shell has it.
EXIT_CLOSED_OUTPUT = 141
INTERRUPTED = "interrupted; the same command continues."
SHOW_CURSOR = "\x1b[?25h"


class _State:
    """State that the handlers and the main program share."""

    at_work = False
    interrupted = False
    exit_code: int | None = None
    ending: Mapping[int, tuple[str, int]] = {}


def program_name() -> str:
    """Return the name by which the program was started: run.py, or cifs-tf run."""
    return Path(sys.argv[0]).name


def prepare(ending: Mapping[int, tuple[str, int]]) -> None:
    """Prepare the process of a program: standard streams that can be written to, and handlers of signals.

    Signals that the start of the program has blocked come now.

    Args:
        ending: for signals beside Ctrl-C, or in its place, the sentence and the exit code with which they end the
            program before its work begins; signals that are ignored, as by nohup, stay so.
    """
    # A file that is opened later would get the number of a closed stream, and what libraries print.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 -- as long as the process lives
        if hasattr(stream := getattr(sys, name), "reconfigure"):
            stream.reconfigure(errors="replace")  # what a terminal cannot show is no reason to end
    _State.at_work, _State.interrupted, _State.exit_code = False, False, None
    _State.ending = {signal.SIGINT: (INTERRUPTED, EXIT_INTERRUPTED), **ending}
    for number in _State.ending:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    sys.unraisablehook = _on_unraisable
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


def begin() -> None:
    """Let handlers of signals raise from now on, because the program catches it."""
    _State.at_work = True


def keep_exit_code(code: int) -> None:
    """Keep the exit code of work that is done: signals that come while the process ends do not change it."""
    _State.exit_code = code


def is_early(frame: FrameType | None) -> bool:
    """Return whether a signal should end the process at once: before the work, or while modules are imported.

    Args:
        frame: that the handler received.
    """
    if not _State.at_work:
        return True
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def leave(sentence: str, code: int) -> NoReturn:
    """End the process at once, with a sentence, or with the code of the work if that is done."""
    if _State.exit_code is None:
        shown = SHOW_CURSOR if os.isatty(2) else ""
        with contextlib.suppress(OSError):
            os.write(2, f"{shown}\n{program_name()}: {sentence}\n".encode(errors="replace"))
    os._exit(code if _State.exit_code is None else _State.exit_code)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if number != signal.SIGINT or is_early(frame) or _State.interrupted or _State.exit_code is not None:
        leave(*_State.ending[number])
    _State.interrupted = True
    raise KeyboardInterrupt


def _on_unraisable(unraisable: Any) -> None:
    """End the program if a Ctrl-C came where Python can raise nothing."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        leave(INTERRUPTED, EXIT_INTERRUPTED)
    sys.__unraisablehook__(unraisable)


def is_output_closed() -> bool:
    """Return whether nobody reads what this process prints any more."""
    poll = select.poll()
    poll.register(1, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def discard_output() -> None:
    """Send what is still to be printed to nowhere, so that the end of the process does not complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
