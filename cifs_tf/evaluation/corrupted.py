"""Accuracy on images with common corruptions: tasks, and their part of a report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from cifs_tf.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from cifs_tf.evaluation.ledger import Ledger
from cifs_tf.evaluation.networks.attacked import AttackedModel
from cifs_tf.evaluation.records import Corruptions
from cifs_tf.evaluation.tasks import Task, label_ranks
from cifs_tf.statistics import mean_interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corrupted(Task):
    """The predictions on corrupted images: `family` is the kind, `x` the severity."""

    on: str = "all"
    pool: str = "corruptions"
    section: str = "corruptions"

    is_eager = True
    uses_one_trace = True

    def compile_key(self) -> Any:
        return ("corrupted", self.family, self.x)

    def measure_fn(self, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        heads_fn = next(iter(model.heads_fns.values()))
        kind, severity = self.family, int(self.x or 1)

        def measure(images, labels, weights, rank, seed):  # type: ignore[no-untyped-def]
            pairs = zip(images.numpy(), seed.numpy().tolist(), strict=True)
            made = np.stack([corrupt(image, kind, severity, own) for image, own in pairs])
            return {"ranks": label_ranks(heads_fn(tf.constant(made)), labels)}

        return measure


def corrupted_tasks() -> list[Task]:
    """List every corruption at every severity, on all images."""
    return [
        Corrupted(name=f"{kind}, {severity}", family=kind, x=float(severity))
        for kind in CORRUPTIONS
        for severity in SEVERITIES
    ]


def describe_corruptions(ledger: Ledger, is_subset: bool) -> Corruptions | None:
    """Return accuracies by kind and severity, and the mean corruption error; None where none was measured.

    The mean corruption error is the mean of all error rates, as is usual for CIFAR-10-C: no reference network's errors
    divide it. Its interval is that of a mean over images.
    """
    tasks = [task for task in ledger.tasks if task.kind == "Corrupted"]
    if not tasks:
        return None
    wrong = {task.name: ledger.values(task.name, "ranks")[:, 0] > 0 for task in tasks}
    kinds: dict[str, list[float]] = {}
    for task in tasks:
        kinds.setdefault(task.family, []).append(1 - float(wrong[task.name].mean()))
    errors = np.mean(list(wrong.values()), axis=0).tolist()
    interval = list(mean_interval(errors)) if is_subset else None
    return {"mce": math.fsum(errors) / len(errors), "interval": interval, "kinds": kinds}
