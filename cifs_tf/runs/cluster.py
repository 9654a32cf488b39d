"""The devices and processes that share a run, and how the processes agree."""

import contextlib
import functools
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from cifs_tf.config import MachineConfig
from cifs_tf.distribute import mirrored_strategy, spans_workers
from cifs_tf.errors import UserError, first_line
from cifs_tf.runs.preemption import WorkerLostError

# Errors of an operation whose other worker has ended, or has been started again.
LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.DeadlineExceededError,
    tf.errors.CancelledError,
    tf.errors.FailedPreconditionError,
)
# Internal errors may be faults of a GPU, which a restart would not fix, unless they name the other workers.
LOST_WORDS = re.compile(r"collective|coordination|nccl", re.IGNORECASE)

ADDRESS = re.compile(r".+:\d+")

# How long a file of the chief may take to be seen by the other workers.
SHARING_SECONDS = 60


class Cluster:
    """A strategy, and this process' place among those that share it.

    Args:
        strategy: of `tf.distribute`.

    Example:
        >>> cluster = make_cluster(MachineConfig(strategy="one"))
        >>> with cluster.strategy.scope():
        ...     model = keras.Sequential([keras.layers.Dense(10)])
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        resolver = strategy.cluster_resolver
        spec = resolver.cluster_spec().as_dict() if spans_workers(strategy) else {}
        self.strategy = strategy
        self.num_workers = max(1, len(spec.get("worker", ())) + len(spec.get("chief", ())))
        chiefs = len(spec.get("chief", ()))
        self.index = 0
        if self.num_workers > 1:
            self.index = resolver.task_id + (chiefs if resolver.task_type == "worker" else 0)

    @property
    def is_chief(self) -> bool:
        """True if this process is the one that writes."""
        return self.index == 0

    @property
    def shards(self) -> list[str]:
        """The workers' parts of what is divided among them, i/n; this process' is `shards[index]`."""
        return [f"{index + 1}/{self.num_workers}" for index in range(self.num_workers)]

    @property
    def num_replicas(self) -> int:
        """Devices that share a batch."""
        return self.strategy.num_replicas_in_sync

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Return whether a flag is set on any worker; all of them ask at the same time.

        Args:
            flags: of this worker.

        Returns:
            a bool for each.

        Raises:
            WorkerLostError: if another worker has ended.
        """
        if self.num_workers == 1:
            return list(flags)
        with self.translate_worker_errors():
            return [bool(count) for count in self._total(tf.constant(flags, tf.float32)).numpy()]

    def chief_says(self, question: Callable[[], bool]) -> bool:
        """Return the chief's answer to a question that it alone is asked; all workers ask at the same time.

        Questions about files are asked so: on a shared filesystem another worker may see them later.
        """
        return self.any_of([self.is_chief and question()])[0]

    def from_chief(self, number: int) -> int:
        """Return the chief's number; all workers ask at the same time."""
        if self.num_workers == 1:
            return number
        with self.translate_worker_errors():
            total = self._total(tf.constant(number if self.is_chief else 0, tf.float64))
        # Each of the chief's replicas has added it once.
        return round(float(total) * self.num_workers / self.num_replicas)

    def wait_for_all(self) -> None:
        """Return once every worker is here."""
        self.any_of([True])

    def wait_for_file(self, file: Path) -> None:
        """Return once a file that the chief wrote is seen here: a shared filesystem may show it later.

        Raises:
            WorkerLostError: if it does not come.
        """
        deadline = time.monotonic() + SHARING_SECONDS
        while not file.exists():
            if time.monotonic() > deadline:
                raise WorkerLostError(f"the chief's {file} is not visible here; is its folder shared?")
            time.sleep(0.1)

    def check_shared(self, file: Path) -> None:
        """Refuse, before any work, a workdir in which this worker does not see what the chief wrote.

        Raises:
            UserError: if so.
        """
        try:
            self.wait_for_file(file)
        except WorkerLostError as error:
            advice = f"the chief's {file.name} is not visible here, give a folder that all workers share"
            raise UserError("--workdir", file.parent, advice) from error

    def translate_worker_errors(self) -> contextlib.AbstractContextManager[None]:
        """Translate errors of operations whose other workers have ended into `WorkerLostError`."""
        return _translate_worker_errors() if self.num_workers > 1 else contextlib.nullcontext()

    @functools.cached_property
    def _total(self):
        @tf.function(autograph=False, reduce_retracing=True)
        def total(values: tf.Tensor) -> tf.Tensor:
            return self.strategy.reduce("SUM", self.strategy.run(lambda: values), axis=None)

        return total


ALONE = Cluster(tf.distribute.get_strategy())


def make_cluster(config: MachineConfig) -> Cluster:
    """Find the devices and the other processes; before TensorFlow does anything else.

    Args:
        config: what to use.

    Returns:
        the cluster; with several workers it returns when all have come.

    Raises:
        UserError: if there is no such device, or `TF_CONFIG` cannot be used.
    """
    num_workers = count_workers()
    gpus = tf.config.list_physical_devices("GPU")
    name = config.strategy
    if name == "auto":
        name = "multiworker" if num_workers > 1 else "mirrored" if len(gpus) > 1 else "one"
    if num_workers > 1 and name != "multiworker":
        advice = f"TF_CONFIG names {num_workers} workers: give multiworker or auto, or unset it"
        raise UserError("--strategy", config.strategy, advice)
    if name == "one":
        return ALONE
    if name == "mirrored":
        return Cluster(mirrored_strategy(_devices(len(gpus), config.replicas)))
    return Cluster(_tpu() if name == "tpu" else _multi_worker(num_workers))


def make_local_cluster(config: MachineConfig) -> Cluster:
    """Find the devices of this process alone, for a program whose processes do not speak with each other.

    Raises:
        UserError: as for `make_cluster`, or if `TF_CONFIG` names several workers.
    """
    if count_workers() > 1:
        advice = "this program knows of no other workers: unset it, and give each process its --shard i/n"
        raise UserError("TF_CONFIG", os.environ["TF_CONFIG"], advice)
    return make_cluster(config)


@contextlib.contextmanager
def _translate_worker_errors() -> Iterator[None]:
    try:
        yield
    except tf.errors.OpError as error:
        if isinstance(error, LOST) or (isinstance(error, tf.errors.InternalError) and LOST_WORDS.search(str(error))):
            words = next((line for line in str(error).splitlines() if LOST_WORDS.search(line)), type(error).__name__)
            raise WorkerLostError(words[:200]) from error
        raise


def count_workers() -> int:
    """Return how many workers `TF_CONFIG` names, 0 if there is none.

    Raises:
        UserError: if it cannot be used.
    """
    text = os.environ.get("TF_CONFIG", "")
    try:
        cluster = json.loads(text or "{}").get("cluster", {})
        unknown = set(cluster) - {"chief", "worker"}
        hosts = [host for addresses in cluster.values() for host in _list_of_texts(addresses)]
    except (ValueError, AttributeError, TypeError) as error:
        example = '{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}'
        advice = f"it is no such JSON as {example}, start the program with one of training/launch"
        raise UserError("TF_CONFIG", text, advice) from error
    if unknown:
        raise UserError("TF_CONFIG", text, f"{', '.join(sorted(unknown))} have nothing to do here, name workers only")
    for host in hosts:
        if not ADDRESS.fullmatch(host):
            raise UserError("TF_CONFIG", text, f"{host} is no HOST:PORT, such as a:2222")
    return len(hosts)


def _list_of_texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{value} is no list of texts")
    return value


def _devices(num_gpus: int, replicas: int | None) -> list[str]:
    if num_gpus:
        if replicas is not None and replicas > num_gpus:
            raise UserError("--replicas", replicas, f"give at most {num_gpus}, the GPUs of this machine")
        return [f"GPU:{index}" for index in range(replicas or num_gpus)]
    if replicas is None:
        raise UserError("--strategy", "mirrored", "this machine has no GPU, give one, or --replicas to try it out")
    try:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * replicas
        )
    except RuntimeError as error:
        if len(tf.config.list_logical_devices("CPU")) < replicas:
            raise UserError("--replicas", replicas, "TensorFlow has begun to work already, with fewer") from error
    return [f"CPU:{index}" for index in range(replicas)]


def _multi_worker(num_workers: int) -> tf.distribute.Strategy:
    if num_workers < 2:
        advice = "TF_CONFIG names no other worker, start the program with one of training/launch"
        raise UserError("--strategy", "multiworker", advice)
    try:
        with _translate_worker_errors():
            return tf.distribute.MultiWorkerMirroredStrategy()
    except (ValueError, TypeError, RuntimeError, tf.errors.OpError) as error:
        advice = f"it cannot be used ({first_line(error)})"
        if isinstance(error, tf.errors.UnknownError):  # all that TensorFlow says of a server that does not start
            advice += "; is the port of this worker in use?"
        raise UserError("TF_CONFIG", os.environ["TF_CONFIG"], advice) from error


def _tpu() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.OpError) as error:
        advice = f"no TPU was found ({first_line(error)}), give another strategy"
        raise UserError("--strategy", "tpu", advice) from error
    return tf.distribute.TPUStrategy(resolver)
