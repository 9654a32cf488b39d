"""Processes that read and write large bodies, so that threads which answer small requests are not held up.

Python runs one thread at a time: a minute of JSON in a thread is a minute in which nobody else is answered.
"""

import contextlib
import multiprocessing
import os
import pickle
import queue
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from cifs_tf.serving.endpoint.status import Code, StatusError

# In the units of getrusage, KiB: a process that has grown beyond is replaced.
MAX_RESIDENT = 2**20
# Small requests come first where cores are few.
NICENESS = 5


class Lane:
    """Runs functions in processes of its own, one call at a time in each.

    Args:
        processes: at a time, >= 1.

    Example:
        >>> Lane(1).run(time.monotonic() + 60, len, b"abc")  # doctest: +SKIP
        3
    """

    def __init__(self, processes: int) -> None:
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(_Worker())

    def run(self, deadline: float, function: Callable, *arguments: Any) -> Any:
        """Call a function of a module, whose arguments and result can be pickled.

        Args:
            deadline: in `time.monotonic()`, when the call is to be given up.
            function: what to call; its module must not import TensorFlow.
            arguments: of the function.

        Returns:
            what the function returns.

        Raises:
            StatusError: DEADLINE_EXCEEDED if it takes longer, UNAVAILABLE if the process dies.
            Exception: whatever the function raises.
        """
        try:
            worker = self._idle.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise _too_late() from None
        try:
            return worker.run(deadline, function, arguments)
        finally:
            self._idle.put(worker)


class _Worker:
    """A process, started anew whenever it is gone."""

    def __init__(self) -> None:
        self._process: Any = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other,), daemon=True, name="lane")
        self._process.start()
        other.close()

    def run(self, deadline: float, function: Callable, arguments: tuple) -> Any:
        if not self._process.is_alive():
            self._start()
        try:
            self._connection.send_bytes(pickle.dumps((function, arguments), pickle.HIGHEST_PROTOCOL))
            if not self._connection.poll(max(0.0, deadline - time.monotonic())):
                self._stop()
                raise _too_late()
            succeeded, result, resident = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            self._stop()
            message = "The process that reads and writes large bodies died, try again later or send less at a time"
            raise StatusError(Code.UNAVAILABLE, message) from error
        if resident > MAX_RESIDENT:
            self._stop()
        if succeeded:
            return result
        raise result

    def _stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


def _too_late() -> StatusError:
    return StatusError(Code.DEADLINE_EXCEEDED, "Reading or writing the body took longer than --rest_api_timeout_in_ms")


def _work(connection: Connection) -> None:
    """Answer calls until the server is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    with contextlib.suppress(EOFError, OSError):
        while True:
            function, arguments = pickle.loads(connection.recv_bytes())
            try:
                answer: tuple = True, function(*arguments)
            except Exception as error:
                answer = False, error
            del arguments
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            connection.send_bytes(pickle.dumps((*answer, resident), pickle.HIGHEST_PROTOCOL))
            del answer
