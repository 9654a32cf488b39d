"""The engine: runs the tasks of an evaluation in batches of fixed sizes, and writes its measurements to a ledger.

Survivors are packed together before every task, so no attack is spent on an image that is broken already. Random
numbers are drawn per image from (seed, task, image), so the results depend neither on the batches nor on the order, nor
on devices or interruptions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.attacks import HeadsFn, example_seeds
from cifs_tf.config import parse_shard
from cifs_tf.data import Split, to_float
from cifs_tf.errors import UserError
from cifs_tf.evaluation.ledger import Ledger
from cifs_tf.evaluation.networks.attacked import AttackedModel
from cifs_tf.evaluation.records import MAIN, Header
from cifs_tf.evaluation.tasks import Crafted, Task
from cifs_tf.files import hash_text
from cifs_tf.losses import head_weights

ProgressFn = Callable[[str, float, int], None]
"""Called as (task, share of the work done, in [0, 1], survivors of the pool `main` when the task began)."""
FIRST = "first "
KeepFn = Callable[[Crafted, Split, np.ndarray, np.ndarray, HeadsFn], None]
"""Called with the adversarial images that broke some images, see `cifs_tf.evaluation.cards.card.Card.keep`."""
DECIDES = (
    *("attacks/*.py", "layers/*.py", "models/*.py", "losses.py", "data/split.py", "data/corruptions.py"),
    *(f"evaluation/{name}.py" for name in ("engine", "tasks", "chance", "corrupted", "records", "networks/*")),
    *(f"evaluation/checks/{name}.py" for name in ("sanity", "consistency", "referees", "binarisation")),
)


def header_of(
    model: AttackedModel, split: Split, tasks: Sequence[Task], *, seed: int, shard: str = "1/1", about: dict[str, Any]
) -> Header:
    """Describe an evaluation: the key under which its ledger may be resumed, and what its report says.

    Args:
        model: the attacked model.
        split: the images.
        tasks: what is measured.
        seed: of everything random.
        shard: `i/n`, this machine's part of the images.
        about: what else the report says, in plain types.

    Returns:
        `key`, `shard`, `about`.
    """
    described = [task.describe() for task in tasks]
    surrogates = [task.surrogate.fingerprint for task in tasks if isinstance(task, Crafted) and task.surrogate]
    header = {
        "key": {
            "weights": model.fingerprint,
            "data": hash_split(split),
            "config": hash_text(repr((described, surrogates, seed))),
            "code": code_version(),
            "versions": {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__},
        },
        "shard": shard,
        "about": {
            "network": model.name,
            "num_probes": model.num_probes,
            "num_classes": model.num_classes,
            "mask_gradients": list(model.mask_gradients),
            "limits": list(model.limits),
            "num_examples": len(split),
            "seed": seed,
            "precision": model.precision,
            "tensor_float_32": tf.config.experimental.tensor_float_32_execution_enabled(),
            **dict.fromkeys(("suite", "epsilon", "dataset", "subset_of", "class_names")),
            **about,
            "tasks": described,
        },
    }
    # As it will be read from the file: a report must not tell whether it was.
    return json.loads(json.dumps(header))  # type: ignore[no-any-return]


def run_tasks(
    model: AttackedModel,
    split: Split,
    tasks: Sequence[Task],
    ledger: Ledger,
    *,
    seed: int = 0,
    batch_size: int = 250,
    strategy: tf.distribute.Strategy | None = None,
    on_progress: ProgressFn = lambda task, share, survivors: None,
    keep: KeepFn | None = None,
) -> Ledger:
    """Run what the ledger does not hold yet.

    Args:
        model: the attacked model.
        split: images to measure on.
        tasks: what to measure, `Natural` first.
        ledger: takes what is found; its header's shard says which images are ours.
        seed: of everything random, 0 to 2^31 - 1.
        batch_size: images per batch, over all devices, at most.
        strategy: spreads each batch over its replicas; None (default) uses one device.
        on_progress: see `ProgressFn`.
        keep: takes the adversarial images; None (default) leaves them.

    Returns:
        the ledger.

    Raises:
        UserError: if there are no images, or they do not fit the model.
        RuntimeError: if an attack left its ball: a bug of the attack, none of its results are kept.

    Example:
        >>> ledger = run_tasks(model, test, make_suite("standard", model, 0.1), Ledger(header))
        >>> len(ledger.survivors("main")) / len(test)
        0.554
    """
    check_input(model, split, tasks, ledger.header["shard"])
    replicas = strategy.num_replicas_in_sync if strategy else 1
    sizes = _batch_sizes(batch_size, replicas)
    runner = _Runner(model, split, seed, strategy)
    total = sum(task.cost for task in tasks)
    done = 0.0
    for task in tasks:
        ids = np.setdiff1d(ledger.ids_to_measure(task.name), ledger.ids(task.name))
        correct = ledger.correct()
        survivors = len(ledger.survivors(MAIN))  # reads the whole ledger: once for each task, not for each batch
        for start in range(0, len(ids), sizes[0]):
            chunk, started = ids[start : start + sizes[0]], time.perf_counter()
            size = min(size for size in sizes if size >= len(chunk))
            values = runner.measure(task, chunk, size, _longer(task, tasks, ledger))
            ledger.compile_seconds, runner.compile_seconds = ledger.compile_seconds + runner.compile_seconds, 0.0
            _verify(task, values.pop("outside", None))
            if "x_adv" in values:
                broken, x_adv = chunk[values.pop("broken")], values.pop("x_adv")
                if keep is not None and isinstance(task, Crafted) and task.counts:
                    was_right = np.isin(broken, correct)
                    keep(task, split, broken[was_right], x_adv[was_right], runner.heads_fn)
            ledger.append(task.name, chunk, values, time.perf_counter() - started)
            share = (done + task.cost * (start + len(chunk)) / len(ids)) / total
            on_progress(task.name, share, survivors)
        done += task.cost
    on_progress("finished", 1.0, len(ledger.survivors(MAIN)))
    ledger.finish()
    return ledger


def check_input(model: AttackedModel, split: Split, tasks: Sequence[Task], shard: str = "1/1") -> None:
    """Refuse images, models, tasks and shards that do not fit each other.

    Raises:
        UserError: naming what does not fit.
    """
    if len(split) == 0:
        raise UserError("split", "no images", "give at least one")
    surrogates = [task.surrogate for task in tasks if isinstance(task, Crafted) and task.surrogate]
    for argument, attacked in [("model", model), *(("surrogate", surrogate) for surrogate in surrogates)]:
        if split.image_shape != tuple(attacked.image_shape):
            advice = f"the images have the shape {split.image_shape}, resize them (--image_size)"
            raise UserError(argument, f"image shape {attacked.image_shape}", advice)
        if split.labels.max() >= attacked.num_classes:
            advice = f"the labels go up to {split.labels.max()}, give a model with as many classes"
            raise UserError(argument, f"{attacked.num_classes} classes", advice)
    if parse_shard(shard, "shard")[1] > len(split):
        raise UserError("shard", shard, f"there are {len(split)} images, give at most as many parts")
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise UserError("suite", names, "give tasks with different names")


def _batch_sizes(batch_size: int, replicas: int) -> list[int]:
    """Return the few sizes that batches have: sixteenths of the whole one, so that the last one has little padding."""
    largest = math.ceil(batch_size / replicas)
    unit = math.ceil(largest / 16)
    return [replicas * min(largest, unit * part) for part in range(math.ceil(largest / unit), 0, -1)]


def hash_split(split: Split) -> str:
    """Hash images and labels."""
    pixels = hashlib.sha256()
    split.add_to(pixels)
    return pixels.hexdigest()[:16]


def code_version() -> str:
    """Return a hash of the source that decides the results: those of different code are not mixed."""
    root = Path(__file__).parents[1]
    files = sorted(file for part in DECIDES for file in root.glob(part))
    return hash_text("".join(f"{file.relative_to(root)}{file.read_text()}" for file in files))


def _traced_once(model: AttackedModel) -> AttackedModel:
    """Return the model with functions that are traced once, for many small tasks."""
    signature = [tf.TensorSpec((None, *model.image_shape), tf.float32)]
    return dataclasses.replace(
        model,
        heads_fns={
            mask: tf.function(heads_fn, input_signature=signature, autograph=False)
            for mask, heads_fn in model.heads_fns.items()
        },
    )


class _Runner:
    """Runs measurements: compiles each once, and holds what a longer attack has found until it is its turn.

    Args:
        model, split, seed, strategy: see `run_tasks`.
    """

    def __init__(self, model: AttackedModel, split: Split, seed: int, strategy: tf.distribute.Strategy | None):
        self._model, self._split, self._seed, self._strategy = model, split, seed, strategy
        self._traced_once = model if strategy else _traced_once(model)  # a trace is of one device
        self._compiled: dict[Any, Callable[..., dict[str, np.ndarray]]] = {}
        self._ahead: dict[tuple[Any, ...], dict[str, np.ndarray]] = {}
        self.heads_fn = next(iter(self._traced_once.heads_fns.values()))
        self.compile_seconds = 0.0

    def measure(self, task: Task, ids: np.ndarray, size: int, longer: Crafted | None = None) -> dict[str, np.ndarray]:
        """Measure a task on some images.

        Args:
            task: what is measured.
            ids: of the images.
            size: of the batch, which is padded.
            longer: an attack that goes on where this one ends; what it finds is held.

        Returns:
            arrays by name; of an attack `x_adv` holds only the images that are `broken`.
        """
        found = self._ahead.pop((task.name, *ids.tolist()), None)
        if found is not None:
            return found
        key = task.compile_key(), longer and longer.attack
        if key not in self._compiled:
            started = time.perf_counter()
            model = self._traced_once if task.uses_one_trace else self._model
            measure = longer.measure_both_fn(task, model) if longer else task.measure_fn(model)  # type: ignore[arg-type]
            make = call_eagerly if task.is_eager else compile_measurement
            self._compiled[key] = make(measure, self._split, self._seed, self._strategy)
            self.compile_seconds += time.perf_counter() - started
        found = self._compiled[key](ids if task.is_eager else np.resize(ids, size), task, self._model.num_probes)
        found = {name: value[: len(ids)] for name, value in found.items()}
        if longer is not None:
            begun = _with_broken({name.removeprefix(FIRST): found.pop(name) for name in list(found) if FIRST in name})
            self._ahead[(longer.name, *ids.tolist())] = _with_broken(found, but=begun["broken"])
            return begun
        return _with_broken(found)


def _with_broken(found: dict[str, np.ndarray], but: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Keep the adversarial images of those that are broken, `but` some, and say which."""
    if "x_adv" in found:
        found["broken"] = (found["ranks"][:, 0] > 0) & (True if but is None else ~but)
        found["x_adv"] = found["x_adv"][found["broken"]]
    return found


def _longer(task: Task, tasks: Sequence[Task], ledger: Ledger) -> Crafted | None:
    """Return the task that goes on where this one ends, if none of it is measured yet."""
    found = (each for each in tasks if isinstance(each, Crafted) and each.goes_on_from(task))
    return next((each for each in found if not len(ledger.ids(each.name))), None)


def _verify(task: Task, outside: np.ndarray | None) -> None:
    if outside is not None and outside.any():
        raise RuntimeError(f"{task.name}: {int(outside.sum())} images left the ball or the bounds; this is a bug")


def compile_measurement(
    measure: Callable[..., dict[str, tf.Tensor]],
    split: Split,
    seed: int,
    strategy: tf.distribute.Strategy | None = None,
) -> Callable[[np.ndarray, Task, int], dict[str, np.ndarray]]:
    """Compile a measurement once for every batch and for tasks that share it.

    Args:
        measure: see `Task.measure_fn`.
        split: the images.
        seed: of everything random.
        strategy: see `run_tasks`.

    Returns:
        (ids, task, number of probes) -> what was found, by name; head weights, target and random stream of the task are
        arguments of the compiled function.
    """
    signature = [
        tf.TensorSpec((None, *split.image_shape), tf.float32),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((None,), tf.float32),
        tf.TensorSpec((), tf.int32),
        tf.TensorSpec((None, 2), tf.int64),
    ]
    # Traced here: every call has this signature.
    function = tf.function(measure, input_signature=signature, autograph=False).get_concrete_function()

    def call(ids: np.ndarray, task: Task, num_probes: int) -> dict[str, np.ndarray]:
        arguments = _arguments(ids, task, num_probes, split, seed)
        if strategy is None:
            return {name: value.numpy() for name, value in function(*arguments).items()}
        return _on_replicas(function, arguments, strategy)

    return call


def call_eagerly(
    measure: Callable[..., dict[str, tf.Tensor]], split: Split, seed: int, strategy: Any = None
) -> Callable[[np.ndarray, Task, int], dict[str, np.ndarray]]:
    """Make the same of a measurement that is not to be compiled; it takes one device."""

    def call(ids: np.ndarray, task: Task, num_probes: int) -> dict[str, np.ndarray]:
        found = measure(*_arguments(ids, task, num_probes, split, seed))
        return {name: np.asarray(value) for name, value in found.items()}

    return call


def _arguments(ids: np.ndarray, task: Task, num_probes: int, split: Split, seed: int) -> tuple[tf.Tensor, ...]:
    return (
        to_float(split.images[ids]),
        tf.constant(split.labels[ids], tf.int32),
        tf.constant(head_weights(task.beta, num_probes), tf.float32),
        tf.constant(task.target_rank, tf.int32),
        example_seeds(seed, task.stream, tf.constant(ids)),
    )


def _on_replicas(
    function: Callable[..., dict[str, tf.Tensor]], arguments: Sequence[tf.Tensor], strategy: tf.distribute.Strategy
) -> dict[str, np.ndarray]:
    """Run equal parts of a batch on the replicas, and put the results together in order."""
    number = strategy.num_replicas_in_sync

    def part(index: int) -> tuple[Any, ...]:
        images, labels, weights, rank, seeds = arguments
        rows = slice(index * len(images) // number, (index + 1) * len(images) // number)
        return images[rows], labels[rows], weights, rank, seeds[rows]

    parts = [part(index) for index in range(number)]
    distributed = tuple(
        strategy.experimental_distribute_values_from_function(
            lambda context, position=position: parts[context.replica_id_in_sync_group][position]
        )
        for position in range(len(arguments))
    )
    results = strategy.run(function, args=distributed)
    return {name: np.concatenate(strategy.experimental_local_results(value)) for name, value in results.items()}
