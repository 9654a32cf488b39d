"""Requests that come at the same time share a run of the model."""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from cifs_tf.serving.endpoint.models.servables import seconds_left
from cifs_tf.serving.endpoint.models.signatures import check_rows
from cifs_tf.serving.endpoint.models.versions import Version
from cifs_tf.serving.endpoint.status import Code, StatusError, invalid_argument


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

    Nobody is answered with what another's rows had a part in: only a signature that is known to treat every row by
    itself shares runs, as no trial can show that of a model, and only as long as every output has a row for each of
    the input. All others wait their turn in the same queues, and run one request at a time.

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
        if not rows:
            return version.loaded.run(signature_name, inputs, outputs, deadline)
        if not row_wise:
            reason = f"nothing says that its rows are independent; if they are, give --row_wise_models {version.model}"
            version.run_singly(signature_name, reason)
        alone = signature_name in version.single
        step, tasks = rows if alone else options.run_rows, []
        for start in range(0, rows, step):
            part = {name: tensor[start : start + step] for name, tensor in inputs.items()}
            number = len(next(iter(part.values())))
            tasks.append(_Task(version, signature_name, part, outputs, number, deadline, alone, number < rows))
        # Rows of different shapes, where a signature leaves a dimension open, cannot share a run.
        shapes = tuple((name, inputs[name].shape[1:]) for name in sorted(inputs))
        with self._changed:
            queue = self._queues.setdefault((id(version), signature_name, outputs, shapes, alone), deque())
            is_long = sum(task.rows for task in queue) + rows > options.run_rows * options.max_enqueued_batches
            if is_long and len(queue) >= (options.max_enqueued_batches if alone else 1):
                raise StatusError(
                    Code.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full; "
                    f"max_enqueued_batches is {options.max_enqueued_batches}",
                )
            queue.extend(tasks)
            self._changed.notify(len(tasks))
        if len(tasks) == 1:
            return tasks[0].future.result()
        try:
            parts = [task.future.result() for task in tasks]
            return {name: np.concatenate([part[name] for part in parts]) for name in outputs}
        except StatusError as error:
            if error.code != Code.FAILED_PRECONDITION:
                raise
            version.run_singly(signature_name, error.message)
            return version.loaded.run(signature_name, inputs, outputs, deadline)

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
                due = {key: self._due_at(queue) for key, queue in self._queues.items()}
                now = time.monotonic()
                if ready := [key for key, at in due.items() if at <= now]:
                    return self._take(min(ready, key=lambda key: self._queues[key][0].enqueued))
                self._changed.wait(min(due.values()) - now if due else None)

    def _due_at(self, queue: deque[_Task]) -> float:
        waits = not queue[0].alone and sum(task.rows for task in queue) < self._options.run_rows
        return queue[0].enqueued + waits * self._options.batch_timeout_micros / 1e6

    def _take(self, key: Any) -> list[_Task]:
        queue = self._queues[key]
        batch = [queue.popleft()]
        rows = batch[0].rows
        while queue and not batch[0].alone and rows + queue[0].rows <= self._options.run_rows:
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
    alone: bool
    is_part: bool
    future: Future = dataclasses.field(default_factory=Future)
    enqueued: float = dataclasses.field(default_factory=time.monotonic)


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
    """Answer requests by one run, or by single ones where one fails."""
    first, rows = batch[0], sum(task.rows for task in batch)
    size = next((size for size in allowed_batch_sizes if size >= rows), rows)
    if first.alone or size == first.rows:
        _answer_alone(first)
        return
    try:
        shared = _run_together(batch, size)
    except StatusError as error:
        if error.code == Code.FAILED_PRECONDITION:
            first.version.run_singly(first.signature_name, error.message)
        elif len(batch) == 1 or error.code != Code.INVALID_ARGUMENT:
            raise
        # A bad row, such as a broken image, must not fail the other requests.
        for task in batch:
            _answer_alone(task)
        return
    for task, outputs in zip(batch, shared, strict=True):
        task.future.set_result(outputs)


def _answer_alone(task: _Task) -> None:
    try:
        outputs = task.version.loaded.run(task.signature_name, task.inputs, task.outputs, task.deadline)
        if task.is_part:
            check_rows(outputs, task.rows)
        task.future.set_result(outputs)
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
