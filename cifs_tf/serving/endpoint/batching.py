"""Requests that come at the same time share a run of the model."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from cifs_tf.serving.endpoint.predictor import check_deadline, run_alone
from cifs_tf.serving.endpoint.status import Code, StatusError, invalid_argument
from cifs_tf.serving.endpoint.versions import Version


@dataclasses.dataclass(frozen=True)
class BatchingOptions:
    """The rules by which requests are joined into batches, in TF Serving's words.

    Args:
        max_batch_size: rows of a run, >= 1. Default 1000.
        batch_timeout_micros: how long the first request waits for others, >= 0. Default 0: others join only while
            earlier runs keep the threads busy.
        num_batch_threads: runs at a time, >= 1. Default the number of processors.
        max_enqueued_batches: full batches that may wait; more requests are refused, >= 1. Default 10.
        allowed_batch_sizes: a run is filled up to the next of these; the last is `max_batch_size`. Default none.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    num_batch_threads: int = 2
    max_enqueued_batches: int = 10
    allowed_batch_sizes: tuple[int, ...] = ()


class Batcher:
    """Runs rows of several requests together; a `Runner`.

    Rows of a batch never see each other in a classifier that is in inference mode, so what a request is answered does
    not depend on its company, but for float rounding.

    Args:
        options: see there.
    """

    def __init__(self, options: BatchingOptions) -> None:
        self._options = options
        self._queues: dict[Any, deque[_Task]] = {}
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{index}", daemon=True)
            for index in range(options.num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    def __call__(
        self,
        version: Version,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        outputs: tuple[str, ...],
        deadline: float = math.inf,
    ) -> dict[str, np.ndarray]:
        """Wait for the run that these rows are part of.

        Raises:
            StatusError: UNAVAILABLE if too many wait, INVALID_ARGUMENT for more rows than a run may have,
                DEADLINE_EXCEEDED if their turn comes after the deadline.
        """
        limit = self._options.max_batch_size
        rows = len(next(iter(inputs.values())))
        if rows > limit:
            raise invalid_argument(f"Task size {rows} is larger than maximum input batch size {limit}")
        if not rows:
            return run_alone(version, signature_name, inputs, outputs, deadline)
        # Rows of different shapes, where a signature leaves a dimension open, cannot share a run.
        shapes = tuple((name, inputs[name].shape[1:]) for name in sorted(inputs))
        task = _Task(version, signature_name, inputs, outputs, rows, deadline)
        with self._changed:
            queue = self._queues.setdefault((id(version), signature_name, outputs, shapes), deque())
            if sum(waiting.rows for waiting in queue) + rows > limit * self._options.max_enqueued_batches:
                raise StatusError(
                    Code.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full; "
                    f"max_enqueued_batches is {self._options.max_enqueued_batches}",
                )
            queue.append(task)
            self._changed.notify()
        return task.future.result()

    def _work(self) -> None:
        while True:
            batch = _on_time(self._next_batch())
            try:
                if batch:
                    _run(batch, self._options.allowed_batch_sizes)
            except BaseException as error:
                for task in batch:
                    task.future.set_exception(error)

    def _next_batch(self) -> list[_Task]:
        with self._changed:
            while True:
                ready = [(queue[0].ready_at(self._options), key) for key, queue in self._queues.items()]
                full = [key for key, queue in self._queues.items() if self._is_full(queue)]
                now = time.monotonic()
                if full or (ready and min(ready, key=lambda item: item[0])[0] <= now):
                    key = full[0] if full else min(ready, key=lambda item: item[0])[1]
                    return self._take(key)
                self._changed.wait(min(at for at, _ in ready) - now if ready else None)

    def _is_full(self, queue: deque[_Task]) -> bool:
        return sum(task.rows for task in queue) >= self._options.max_batch_size

    def _take(self, key: Any) -> list[_Task]:
        queue = self._queues[key]
        batch = [queue.popleft()]
        rows = batch[0].rows
        while queue and rows + queue[0].rows <= self._options.max_batch_size:
            batch.append(queue.popleft())
            rows += batch[-1].rows
        if queue:
            self._changed.notify()
        else:
            del self._queues[key]
        return batch


@dataclasses.dataclass(eq=False)
class _Task:
    version: Version
    signature_name: str
    inputs: Mapping[str, np.ndarray]
    outputs: tuple[str, ...]
    rows: int
    deadline: float
    future: Future = dataclasses.field(default_factory=Future)
    enqueued: float = dataclasses.field(default_factory=time.monotonic)

    def ready_at(self, options: BatchingOptions) -> float:
        return self.enqueued + options.batch_timeout_micros / 1e6


def _on_time(batch: list[_Task]) -> list[_Task]:
    """Refuse the requests that waited too long; return the others."""
    kept = []
    for task in batch:
        try:
            check_deadline(task.deadline)
            kept.append(task)
        except StatusError as error:
            task.future.set_exception(error)
    return kept


def _run(batch: list[_Task], allowed_batch_sizes: tuple[int, ...]) -> None:
    first, rows = batch[0], sum(task.rows for task in batch)
    size = next((size for size in allowed_batch_sizes if size >= rows), rows)
    inputs = {}
    for name, tensor in first.inputs.items():
        tensors = [task.inputs[name] for task in batch]
        inputs[name] = (
            np.concatenate([*tensors, np.repeat(tensor[:1], size - rows, axis=0)]) if size > first.rows else tensor
        )
    try:
        outputs = run_alone(first.version, first.signature_name, inputs, first.outputs)
    except StatusError as error:
        if len(batch) == 1 or error.code != Code.INVALID_ARGUMENT:
            raise
        # A bad row, such as a broken image, must not fail the other requests.
        for task in batch:
            try:
                _run([task], allowed_batch_sizes)
            except Exception as error:
                task.future.set_exception(error)
        return
    start = 0
    for task in batch:
        task.future.set_result({name: tensor[start : start + task.rows] for name, tensor in outputs.items()})
        start += task.rows
