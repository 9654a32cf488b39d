"""Requests that come at the same time share a run of the model."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from cifs_tf.serving.endpoint.servables import seconds_left
from cifs_tf.serving.endpoint.signatures import check_rows
from cifs_tf.serving.endpoint.status import Code, StatusError, invalid_argument
from cifs_tf.serving.endpoint.versions import Version

LOGGER = logging.getLogger("serving")
# So many shared runs of a signature, of rows that differ, are compared with single ones before it is believed that rows
# do not mix.
TRIALS = 8
# Relative and absolute: kernels sum in another order for another number of rows.
TOLERANCES = 1e-3, 1e-4


@dataclasses.dataclass(frozen=True)
class BatchingOptions:
    """The rules by which requests are joined into batches, in TF Serving's words.

    Args:
        max_batch_size: rows of a run, >= 1. Default 1000.
        batch_timeout_micros: how long the first request waits for others, >= 0. Default 0: others join only while
            earlier runs keep the threads busy.
        max_execution_batch_size: rows of a run, where requests of more rows, up to `max_batch_size`, are split; None
            (default) splits none.
        num_batch_threads: runs at a time, >= 1. Default the number of processors.
        max_enqueued_batches: full batches that may wait; more requests are refused, >= 1. Default 10.
        allowed_batch_sizes: a run is filled up to the next of these; the last is the most rows of a run. Default none.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    num_batch_threads: int = 2
    max_enqueued_batches: int = 10
    allowed_batch_sizes: tuple[int, ...] = ()
    max_execution_batch_size: int | None = None

    @property
    def run_rows(self) -> int:
        """The most rows of a run."""
        return self.max_execution_batch_size or self.max_batch_size


class Batcher:
    """Runs rows of several requests together; a `Runner`.

    Nobody is answered with what another's rows had a part in, but for float rounding: unless a signature is known to
    treat every row by itself, its first shared runs are compared with single runs, and it is never batched again once
    they differ, or an output has not one row for each of the input.

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
        row_wise: bool = False,
    ) -> dict[str, np.ndarray]:
        """Wait for the runs that these rows are part of.

        Raises:
            StatusError: UNAVAILABLE if too many wait, INVALID_ARGUMENT for more rows than a request may have,
                DEADLINE_EXCEEDED if their turn comes after the deadline.
        """
        options, rows = self._options, len(next(iter(inputs.values())))
        if rows > options.max_batch_size:
            limit = options.max_batch_size
            raise invalid_argument(f"Task size {rows} is larger than maximum input batch size {limit}")
        trials = math.inf if row_wise else version.trials.get(signature_name, 0)
        if not rows or trials < 0 or (rows > options.run_rows and trials < TRIALS):
            return version.loaded.run(signature_name, inputs, outputs, deadline)
        tasks = []
        for start in range(0, rows, options.run_rows):
            part = {name: tensor[start : start + options.run_rows] for name, tensor in inputs.items()}
            number = min(options.run_rows, rows - start)
            tasks.append(_Task(version, signature_name, part, outputs, number, deadline, row_wise))
        # Rows of different shapes, where a signature leaves a dimension open, cannot share a run.
        shapes = tuple((name, inputs[name].shape[1:]) for name in sorted(inputs))
        with self._changed:
            queue = self._queues.setdefault((id(version), signature_name, outputs, shapes), deque())
            if sum(waiting.rows for waiting in queue) + rows > options.run_rows * options.max_enqueued_batches:
                raise StatusError(
                    Code.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full; "
                    f"max_enqueued_batches is {options.max_enqueued_batches}",
                )
            queue.extend(tasks)
            self._changed.notify(len(tasks))
        parts = [task.future.result() for task in tasks]
        return parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in outputs}

    def _work(self) -> None:
        while True:
            batch = _on_time(self._next_batch())
            try:
                if batch:
                    _answer(batch, self._options.allowed_batch_sizes)
            except BaseException as error:
                for task in batch:
                    if not task.future.done():
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
        return sum(task.rows for task in queue) >= self._options.run_rows

    def _take(self, key: Any) -> list[_Task]:
        queue = self._queues[key]
        batch = [queue.popleft()]
        rows = batch[0].rows
        while queue and rows + queue[0].rows <= self._options.run_rows:
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
    row_wise: bool
    future: Future = dataclasses.field(default_factory=Future)
    enqueued: float = dataclasses.field(default_factory=time.monotonic)

    def ready_at(self, options: BatchingOptions) -> float:
        return self.enqueued + options.batch_timeout_micros / 1e6


def _on_time(batch: list[_Task]) -> list[_Task]:
    """Refuse the requests that waited too long; return the others."""
    kept = []
    for task in batch:
        try:
            seconds_left(task.deadline)
            kept.append(task)
        except StatusError as error:
            task.future.set_exception(error)
    return kept


def _answer(batch: list[_Task], allowed_batch_sizes: tuple[int, ...]) -> None:
    """Answer requests by one run, or by single ones where it could make a difference."""
    first, rows = batch[0], sum(task.rows for task in batch)
    size = next((size for size in allowed_batch_sizes if size >= rows), rows)
    if size == first.rows:
        first.future.set_result(_run_alone(first))
        return
    name, trials = first.signature_name, first.version.trials
    if not first.row_wise and trials.get(name, 0) < TRIALS:
        for task in batch:
            _answer_alone(task)
        if trials.get(name, 0) >= 0 and _differ(batch):
            _try_together(batch, size)
        return
    try:
        shared = _run_together(batch, size)
    except StatusError as error:
        if error.code == Code.FAILED_PRECONDITION:
            _give_up(first, error.message)
        elif len(batch) == 1 or error.code != Code.INVALID_ARGUMENT:
            raise
        # A bad row, such as a broken image, must not fail the other requests.
        for task in batch:
            _answer_alone(task)
        return
    for task, outputs in zip(batch, shared, strict=True):
        task.future.set_result(outputs)


def _run_alone(task: _Task) -> dict[str, np.ndarray]:
    return task.version.loaded.run(task.signature_name, task.inputs, task.outputs, task.deadline)


def _answer_alone(task: _Task) -> None:
    try:
        task.future.set_result(_run_alone(task))
    except Exception as error:
        task.future.set_exception(error)


def _run_together(batch: list[_Task], size: int) -> list[dict[str, np.ndarray]]:
    """Run rows of several requests, filled up to a size, at once; return what belongs to each."""
    first, ends = batch[0], list(itertools.accumulate(task.rows for task in batch))
    inputs = {}
    for name, tensor in first.inputs.items():
        filling = np.repeat(tensor[:1], size - ends[-1], axis=0)
        inputs[name] = np.concatenate([*(task.inputs[name] for task in batch), filling])
    deadline = max(task.deadline for task in batch)
    outputs = first.version.loaded.run(first.signature_name, inputs, first.outputs, deadline)
    check_rows(outputs, size)
    starts = [0, *ends]
    return [
        {name: tensor[start:end] for name, tensor in outputs.items()} for start, end in zip(starts, ends, strict=False)
    ]


def _differ(batch: list[_Task]) -> bool:
    """Return whether rows of a batch differ: among the same ones even a mean shows nothing."""
    first = batch[0].inputs
    return any((tensor != first[name][:1]).any() for task in batch for name, tensor in task.inputs.items())


def _try_together(batch: list[_Task], size: int) -> None:
    """Compare a shared run with the single runs that were answered."""
    first = batch[0]
    if any(task.future.exception() for task in batch):
        return
    try:
        shared = _run_together(batch, size)
    except StatusError as error:
        if error.code == Code.FAILED_PRECONDITION:
            _give_up(first, error.message)
        return
    same = (
        _is_close(together[name], alone)
        for task, together in zip(batch, shared, strict=True)
        for name, alone in task.future.result().items()
    )
    if all(same):
        first.version.trials[first.signature_name] = first.version.trials.get(first.signature_name, 0) + 1
    else:
        _give_up(first, "Rows of a run change each other's answers")


def _is_close(together: np.ndarray, alone: np.ndarray) -> bool:
    if together.shape != alone.shape or alone.dtype.kind not in "fV":
        return np.array_equal(together, alone)
    relative, absolute = TOLERANCES
    return np.allclose(together.astype(float), alone.astype(float), relative, absolute, equal_nan=True)


def _give_up(task: _Task, reason: str) -> None:
    version, name = task.version, task.signature_name
    if version.trials.get(name, 0) >= 0:
        version.trials[name] = -1
        LOGGER.warning(
            "%s version %d, signature %s, is not batched from now on: %s", version.model, version.number, name, reason
        )
