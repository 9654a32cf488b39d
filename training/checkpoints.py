"""Checkpoints of a training run: one file per epoch, written whole, the newest two kept."""

from __future__ import annotations

import math
import re
from pathlib import Path

import keras
from rich import print as rich_print

from cifs_tf.adversarial import AdversarialTrainer
from cifs_tf.errors import UserError
from cifs_tf.files import write_atomically
from training.workdir import read_json, write_json

KEPT = 2
FILE_NAME = re.compile(r"epoch-(\d+)\.weights\.h5")


class Checkpoints(keras.callbacks.Callback):
    """Save weights, optimizer and history after every epoch; restore the newest that can be read.

    Args:
        folder: where the checkpoints lie.
        history_file: what each epoch logged, a JSON list.
    """

    def __init__(self, folder: Path, history_file: Path):
        super().__init__()
        self.folder, self.history_file = folder, history_file
        self.history: list[dict[str, float]] = []

    def restore(self, trainer: AdversarialTrainer) -> int:
        """Load the newest whole checkpoint into a compiled trainer.

        A file that cannot be loaded is named, and the one before it used.

        Args:
            trainer: compiled, with freshly built weights.

        Returns:
            the number of finished epochs, 0 without a checkpoint.
        """
        trainer.optimizer.build(trainer.trainable_variables)
        variables = [*trainer.variables, *trainer.optimizer.variables]
        fresh = [variable.numpy() for variable in variables]
        for file in reversed(self._files()):
            try:
                trainer.load_weights(file)
            except (OSError, ValueError, KeyError) as error:
                rich_print(f"[yellow]{file} cannot be loaded ({error}); trying the one before it.")
                # It may have been loaded in part.
                for variable, value in zip(variables, fresh, strict=True):
                    variable.assign(value)
                continue
            epoch = _epoch(file)
            self.history = read_json(self.history_file)[:epoch]
            return epoch
        return 0

    def on_epoch_end(self, epoch, logs=None):
        """Save after an epoch (Keras' hook).

        Raises:
            UserError: if the loss is not finite; the checkpoint before it is kept.
        """
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            advice = f"the loss became {logs['loss']} in epoch {epoch + 1}; give a smaller one, and another --workdir"
            raise UserError("--learning_rate", f"{float(self.model.optimizer.learning_rate):g}", advice)
        self.history.append({name: float(value) for name, value in (logs or {}).items()})
        # The history first: a checkpoint never misses the epochs before it.
        write_json(self.history_file, self.history)
        file = self.folder / f"epoch-{epoch + 1:04d}.weights.h5"
        write_atomically(file, self.model.save_weights)
        for old in self._files()[:-KEPT]:
            old.unlink()

    def _files(self) -> list[Path]:
        files = self.folder.glob("epoch-*.weights.h5") if self.folder.is_dir() else []
        return sorted((file for file in files if FILE_NAME.fullmatch(file.name)), key=_epoch)


def _epoch(file: Path) -> int:
    match = FILE_NAME.fullmatch(file.name)
    assert match, file
    return int(match[1])
