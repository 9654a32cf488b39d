"""Several processes at one search: Keras Tuner's chief and workers, and which of them are alive.

A worker holds a lock on a file of its own in the workdir for as long as its process lives: the operating system
lets go of it however the process ends, so the chief knows at once and for sure, without clocks and time limits.
"""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from cifs_tf.errors import UserError
from cifs_tf.files import hold_lock, is_locked
from cifs_tf.hardware import usable_cores
from cifs_tf.runs.workdir import Workdir
from cifs_tf.tuning.oracle import Resumable

PREFIX = "KERASTUNER_"
LAUNCHED = "CIFS_TUNE_LAUNCHED"
GRACE_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class Role:
    """The part of this process in a search, as Keras Tuner's environment variables say it.

    Args:
        kind: alone, chief or worker.
        name: id of the worker.
        address: IP:PORT of the chief.
    """

    kind: str = "alone"
    name: str = "tuner0"
    address: str = ""

    @classmethod
    def from_environment(cls) -> Self:
        """Read KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT and KERASTUNER_TUNER_ID.

        Raises:
            UserError: if only some of them are set, or one cannot be used.
        """
        names = [f"{PREFIX}ORACLE_IP", f"{PREFIX}ORACLE_PORT", f"{PREFIX}TUNER_ID"]
        ip, port, name = values = [os.environ.get(each, "") for each in names]
        if not any(values):
            return cls()
        for each, value in zip(names, values, strict=True):
            if not value:
                raise UserError(each, "nothing", f"set all of {', '.join(names)}, or none")
        if not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 2**16:
            raise UserError(names[1], port, f"give a number from 1 to {2**16 - 1}")
        if not re.fullmatch(r"[\w-]+", name):
            raise UserError(names[2], name, "give chief, or letters, digits, - and _ for a worker")
        # Keras Tuner's own rule.
        return cls("chief" if "chief" in name else "worker", name, f"{ip}:{port}")


class Workers:
    """The locks of a search's workers.

    Args:
        workdir: of the search.

    Example:
        >>> with Workers(workdir).hold("worker-1"):
        ...     tuner.search()
    """

    def __init__(self, workdir: Workdir):
        self.folder = workdir.path / "workers"

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold the lock of a worker, as which this process is known until the context ends.

        Raises:
            UserError: if another process is.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as lock:
            try:
                lock.enter_context(hold_lock(self._file(name)))
            except BlockingIOError as error:
                advice = "another process is this worker, end it or give another id"
                raise UserError(f"{PREFIX}TUNER_ID", name, advice) from error
            yield

    def is_alive(self, name: str) -> bool:
        """Return whether a process is this worker."""
        return is_locked(self._file(name))

    def alive(self) -> list[str]:
        """Return the names of the workers that are alive."""
        return [file.stem for file in sorted(self.folder.glob("*.lock")) if self.is_alive(file.stem)]

    def start(self, num_workers: int, address: str, argv: Sequence[str]) -> list[subprocess.Popen]:
        """Start processes on this machine, each with a log file beside its lock.

        They share its cores, and end with this process, however it ends.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        ip, port = address.rsplit(":", 1)
        threads = str(max(1, usable_cores() // num_workers))
        processes = []
        for number in range(1, num_workers + 1):
            name = f"worker-{number}"
            environment = {
                "TF_NUM_INTRAOP_THREADS": threads,
                **os.environ,
                f"{PREFIX}ORACLE_IP": ip,
                f"{PREFIX}ORACLE_PORT": port,
                f"{PREFIX}TUNER_ID": name,
                LAUNCHED: "1",
            }
            command = [sys.executable, "-m", "cifs_tf", "tune", *argv, "--workers=null"]
            with (self.folder / f"{name}.log").open("a") as log:
                processes.append(
                    subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
                )
        return processes

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.lock"


def end_with_launcher() -> None:
    """End this process when the one that started it has ended, if that was `Workers.start`."""
    if LAUNCHED not in os.environ:
        return

    def watch() -> None:
        sys.stdin.buffer.read()  # nothing is ever written there: it ends with the launcher
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def serving(oracle: Resumable, address: str) -> Iterator[tuple[int, Callable[[], bool]]]:
    """Answer the workers at IP:PORT with this oracle until the context ends; port 0 takes a free one.

    Keras Tuner's own loop around the same service never ends if a worker does not say goodbye.

    Yields:
        (port, function that tells whether all workers were told that the search is over).

    Raises:
        UserError: if the address cannot be listened on.
    """
    import grpc
    from keras_tuner.src.distribute.oracle_chief import OracleServicer, exit_chief
    from keras_tuner.src.protos import get_service_grpc

    servicer = OracleServicer(oracle)
    server = grpc.server(ThreadPoolExecutor(max_workers=1), options=[("grpc.so_reuseport", 0)])
    get_service_grpc().add_OracleServicer_to_server(servicer, server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise UserError(f"{PREFIX}ORACLE_PORT", address, "it cannot be listened on, give another") from error
    server.start()
    try:
        yield port, lambda: servicer.stop_triggered and exit_chief(oracle)
    finally:
        server.stop(GRACE_SECONDS).wait()
