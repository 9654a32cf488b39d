"""Checkpoints of a training run: at every epoch's end and within long ones, atomically; the newest two are kept."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from rich import print as rich_print

from cifs_tf.adversarial import AdversarialTrainer, catastrophic_overfitting
from cifs_tf.errors import UserError
from cifs_tf.files import read_json, temporary_of, write_atomically, write_json
from cifs_tf.runs.cluster import ALONE, SHARING_SECONDS, Cluster
from cifs_tf.runs.curves import best_epoch
from cifs_tf.runs.keys import DAMAGE, STAMP, read_stamp, stamp, warn
from cifs_tf.runs.preemption import Preempted, WorkerLostError

KEPT = 2
FILE_NAME = re.compile(r"step-(\d+)\.npz")
BEST = "best.npz"
SMALLER = "a smaller --learning_rate with another --workdir may avoid it"
# Of a run that was begun before there were stamps.
UNKNOWN: Mapping[str, Any] = {"key": None}
ADVICE = f"the same command repeats the step, --on_nan skip goes on without it, {SMALLER}"
# No step was skipped, so none is repeated: the weights are finite, what they answer is not.
VALIDATION_ADVICE = f"the weights are finite, what they answer is not: --on_nan skip leaves such values out, {SMALLER}"


class Checkpoint(NamedTuple):
    """A checkpoint that was read: the finished steps, the values of all variables in order, and the file's stamp."""

    step: int
    values: list[np.ndarray]
    stamp: dict[str, Any]


class Checkpoints(keras.callbacks.Callback):
    """Save weights, optimizer, metrics and history; restore the newest that can be read.

    Also keeps the weights of the best epoch on the validation images, and saves a checkpoint before it stops the
    training, at SIGTERM or at a step in which something was not finite. Of several workers the chief alone writes; all
    of them read, in a folder that they share, and stop together.

    Args:
        folder: where the checkpoints lie.
        history_file: what each epoch logged, a JSON list.
        steps_per_epoch: optimizer steps per epoch.
        minutes: time between checkpoints within an epoch, > 0.
        on_nan: `"stop"` at a step that is not finite, or `"skip"` it.
        batch_at: step -> (images, labels) of it, for the dump of such a step.
        requested: tells whether the process was asked to end.
        identity: what the stamps of the files must say, see `cifs_tf.runs.keys.read_stamp`. Default: nothing.
        cluster: the workers of the run. Default this process alone.
    """

    def __init__(
        self,
        folder: Path,
        history_file: Path,
        *,
        steps_per_epoch: int,
        minutes: float,
        on_nan: str,
        batch_at: Callable[[int], tuple[np.ndarray, np.ndarray]],
        requested: Callable[[], bool],
        identity: Mapping[str, Any] = UNKNOWN,
        cluster: Cluster = ALONE,
    ):
        super().__init__()
        self.folder, self.history_file = folder, history_file
        self.steps_per_epoch, self.minutes = steps_per_epoch, minutes
        self.on_nan, self.batch_at, self.requested, self.cluster = on_nan, batch_at, requested, cluster
        self.identity = identity
        self.history: list[dict[str, Any]] = []
        self.saved_at = time.monotonic()
        # Steps that were skipped before, and why: with `--on_nan skip` there may have been some.
        self.skipped, self.not_finite = 0, dict[str, int]()

    def restore(self, trainer: AdversarialTrainer) -> int:
        """Load the newest whole checkpoint into a compiled trainer.

        A file that cannot be loaded is named, and the one before it used.

        Args:
            trainer: compiled, with freshly built weights.

        Returns:
            the number of finished steps, 0 without a checkpoint.

        Raises:
            WorkerLostError: if this worker does not find the chief's checkpoint.
        """
        with self.cluster.strategy.scope():
            trainer.optimizer.build(trainer.trainable_variables)
        state = _state(trainer)
        iterations = next(index for index, variable in enumerate(state) if variable is trainer.optimizer.iterations)
        shapes = [variable.shape for variable in state]
        newest = self._read_newest(self._files(), shapes, iterations) if self.cluster.is_chief else None
        step = self.cluster.from_chief(newest.step if newest else 0)
        if not step:
            return 0
        newest = newest or self._read_shared(step, shapes, iterations)
        # By all workers at once: what metrics keep is shared among them.
        for variable, value in zip(state, newest.values, strict=True):
            variable.assign(value)
        if self.cluster.is_chief:
            if newest.stamp:
                self.history = newest.stamp["history"]
            elif finished := step // self.steps_per_epoch:
                self.history = read_json(self.history_file)[:finished]
            if self.history:
                write_json(self.history_file, self.history)
        self.skipped, self.not_finite = trainer.skipped_steps, trainer.not_finite
        return step

    def _read_shared(self, step: int, shapes: Sequence[tuple[int, ...]], iterations: int) -> Checkpoint:
        """Read the chief's checkpoint, once it is visible here."""
        deadline = time.monotonic() + SHARING_SECONDS
        while time.monotonic() < deadline:
            files = [file for file in self._files() if _step(file) == step]
            if found := self._read_newest(files, shapes, iterations):
                return found
            time.sleep(1)
        raise WorkerLostError(f"the chief's checkpoint of step {step} cannot be read in {self.folder}; is it shared?")

    def on_train_batch_end(self, batch, logs=None):
        """Save after a step if it is time, or the process was asked to end (Keras' hook).

        Raises:
            UserError: if something was not finite, and steps like that are not skipped.
            Preempted: after a checkpoint, if the process was asked to end.
        """
        step = int(self.model.optimizer.iterations.numpy())
        if self.on_nan == "stop" and self.model.skipped_steps > self.skipped:
            self._stop_before(step - 1)
        if step % self.steps_per_epoch == 0:
            return  # the epoch's end saves
        is_due = self.cluster.is_chief and time.monotonic() - self.saved_at > 60 * self.minutes
        requested, is_due = self.cluster.any_of([self.requested(), is_due])
        if requested or is_due:
            self._save(step)
        if requested:
            self.cluster.wait_for_all()  # the chief writes; whoever ended now might take it along
            raise Preempted

    def on_epoch_end(self, epoch, logs=None):
        """Save after an epoch (Keras' hook).

        Raises:
            UserError: if a validation result is not finite, and steps like that are not skipped; or if every step of
                the epoch was skipped.
            Preempted: if the process was asked to end.
        """
        logs = {name: float(value) for name, value in (logs or {}).items()}
        broken = [name for name, value in logs.items() if not math.isfinite(value)]
        if broken and self.on_nan == "stop":
            raise UserError(
                "--on_nan", "stop", f"{broken[0]} is {logs[broken[0]]} after epoch {epoch + 1}; {VALIDATION_ADVICE}"
            )
        if self.on_nan == "skip" and not math.isfinite(logs.get("loss", 0.0)):
            raise UserError(
                "--on_nan", "skip", f"no step of epoch {epoch + 1} was finite, nothing is learnt; {SMALLER}"
            )
        entry = {name: value if math.isfinite(value) else None for name, value in logs.items()}
        if self.on_nan == "skip":
            entry["skipped_steps"] = self.model.skipped_steps
        self.history.append(entry)
        if self.cluster.is_chief:
            if best_epoch(self.history) == len(self.history):
                best = {**self.identity, "epoch": len(self.history)}
                write_arrays(self.folder / BEST, self.model.inference_classifier.get_weights(), best)
            write_json(self.history_file, self.history)
        self._save(int(self.model.optimizer.iterations.numpy()))
        if self.cluster.any_of([self.requested()])[0]:
            raise Preempted

    def _save(self, step: int) -> None:
        self.saved_at = time.monotonic()
        # Read by all workers, because what metrics keep is summed over them.
        values = [variable.numpy() for variable in _state(self.model)]
        if not self.cluster.is_chief:
            return
        write_arrays(self.folder / f"step-{step:08d}.npz", values, {**self.identity, "history": self.history})
        for old in self._files()[:-KEPT]:
            old.unlink()

    def _stop_before(self, step: int) -> None:
        """Keep the state before the step whose update was not finite, and its batch; say what it was."""
        model, epoch = self.model, step // self.steps_per_epoch
        quantities = [name for name, count in model.not_finite.items() if count > self.not_finite.get(name, 0)]
        stem = self.folder.parent / "not_finite" / f"step-{step:08d}"
        if self.cluster.is_chief:
            images, labels = self.batch_at(step)
            write_atomically(stem.with_suffix(".npz"), lambda file: np.savez(file, images=images, labels=labels))
            write_json(stem.with_suffix(".json"), {"epoch": epoch + 1, "step": step, "not_finite": quantities})
        model.optimizer.iterations.assign(step)
        model.skipped.assign(self.skipped)
        model.not_finite_counts.assign([self.not_finite.get(name, 0) for name in model.quantities])
        self._save(step)
        named = quantities[0] + (f" and {len(quantities) - 1} more" if len(quantities) > 1 else "")
        self.cluster.wait_for_all()
        advice = f"{named} was not finite in step {step} (epoch {epoch + 1}), see {stem}.json; {ADVICE}"
        raise UserError("--on_nan", "stop", advice)

    def _read_newest(
        self, files: Sequence[Path], shapes: Sequence[tuple[int, ...]], iterations: int
    ) -> Checkpoint | None:
        """Read the last of some checkpoints that is whole; None if there is no such one."""
        for file in reversed(files):
            step = _step(file)
            try:
                found = read_stamp(file, self.identity)
                values = read_arrays(file, shapes)
                if int(values[iterations]) != step:
                    raise ValueError(f"it is of step {int(values[iterations])}")
                return Checkpoint(step, values, found)
            except DAMAGE as error:
                warn(f"{file} cannot be loaded ({error}); trying the one before it.")
        return None

    def _files(self) -> list[Path]:
        files = self.folder.glob("step-*.npz") if self.folder.is_dir() else []
        return sorted((file for file in files if FILE_NAME.fullmatch(file.name)), key=_step)


class SingleStepWatch(keras.callbacks.Callback):
    """Say at once if training with one gradient collapses, see `catastrophic_overfitting`.

    Args:
        checkpoints: whose history is watched; it must come first among the callbacks.
    """

    def __init__(self, checkpoints: Checkpoints):
        super().__init__()
        self.checkpoints = checkpoints
        self.told = False

    def on_epoch_end(self, epoch, logs=None):
        """Look at what the epoch logged (Keras' hook)."""
        history = self.checkpoints.history
        found = catastrophic_overfitting(history)
        if found and not self.told:
            rich_print(found)
        if history and history[-1].get("val_robust_accuracy") is not None:  # an epoch without says nothing
            self.told = found is not None


def write_arrays(file: Path, arrays: Sequence[np.ndarray], content: Mapping[str, Any] = UNKNOWN) -> None:
    """Write arrays in order, and a stamp, atomically.

    NumPy's format, not Keras' HDF5: that crashes the process when the disk is full, and has no checksums.
    """

    def write(path: Path) -> None:
        np.savez(path, *arrays)
        stamp(path, content)

    write_atomically(file, write)


def read_arrays(file: Path, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Read what `write_arrays` wrote.

    Raises:
        ValueError: if it holds other shapes.
        one of `DAMAGE`: if it is damaged.
    """
    with np.load(file) as content:
        arrays = [content[f"arr_{index}"] for index in range(sum(name != STAMP for name in content.files))]
    if [array.shape for array in arrays] != [tuple(shape) for shape in shapes]:
        raise ValueError("it is of another network")
    return arrays


def adopt_checkpoints(source: Path, target: Path, key: str | None) -> None:
    """Copy the checkpoints of another run as those of a run, whose training begins with them.

    Args:
        source: the folder of the other run's checkpoints.
        target: the folder of the run's own; it must not exist.
        key: of the run.
    """
    copied = temporary_of(target)
    copied.mkdir(parents=True)
    for file in sorted(source.glob("*.npz")):
        with np.load(file) as content:
            arrays = [content[name] for name in content.files if name != STAMP]
        write_arrays(copied / file.name, arrays, {**read_stamp(file, UNKNOWN), "key": key})
    copied.rename(target)


def _state(trainer: AdversarialTrainer) -> list[Any]:
    """Return everything that a step changes. In order, not by name: Keras numbers names by what was built before."""
    variables = (*trainer.variables, *trainer.metrics_variables, *trainer.optimizer.variables)
    state = {id(variable): variable for variable in variables}
    for variable in trainer.attack_classifier.variables if trainer.attack_classifier else ():
        del state[id(variable)]  # given its value at every step
    return list(state.values())


def _step(file: Path) -> int:
    match = FILE_NAME.fullmatch(file.name)
    assert match, file
    return int(match[1])
