"""A run's folder as `training/run.py` left it, read without importing anything that trains."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentParser

from cifs_tf.command_line import import_plugins
from cifs_tf.config import GROUPS, RunConfig
from cifs_tf.errors import UserError

if TYPE_CHECKING:
    from cifs_tf.models import Classifier


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """One network of a finished run.

    Args:
        path: the run's workdir.
        config: what the run was asked to do.
        defense: which of its networks: `"cifs"`, `"cas"` or `"vanilla"`.
        checkpoint: the network after its `"last"` or its `"best"` epoch.

    Example:
        >>> run = read_run("runs/digits")
        >>> classifier = run.load()
    """

    path: Path
    config: RunConfig
    defense: str
    checkpoint: str

    @property
    def model_file(self) -> Path:
        """The trained network."""
        return self.path / self.defense / f"{self.checkpoint}.keras"

    @property
    def export_base(self) -> Path:
        """Folder of the versions that are exported within the run's folder."""
        return self.path / "export" / self.defense

    def load(self) -> Classifier:
        """Load the network, in the precision it was trained in.

        Raises:
            UserError: if it cannot be loaded, or a plugin of the run cannot be imported.
        """
        import keras

        from cifs_tf.models import Classifier

        import_plugins(self.config.model)
        try:
            classifier = keras.models.load_model(self.model_file, compile=False)
        except Exception as error:  # whatever a damaged file makes Keras raise
            reason = str(error).strip().partition("\n")[0]
            raise UserError("--run", self.path, f"Keras cannot load {self.model_file.name} ({reason})") from error
        if not isinstance(classifier, Classifier):
            raise UserError("--run", self.path, f"{self.model_file} is no network of this project, give a run's folder")
        return classifier

    def result(self) -> dict[str, Any]:
        """Read `result.json`, empty if there is none.

        Raises:
            UserError: if it is damaged.
        """
        return self._read_json(self.path / "result.json") if (self.path / "result.json").exists() else {}

    def reports(self) -> dict[str, dict[str, Any]]:
        """Read what `training/evaluate.py` and the run found of this network: reports by suite of attacks.

        Raises:
            UserError: if one is damaged.
        """
        folder = self.path / self.defense / "evaluation" / self.checkpoint
        return {file.parent.name: self._read_json(file) for file in sorted(folder.glob("*/report.json"))}

    def _read_json(self, file: Path) -> dict[str, Any]:
        try:
            return json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise UserError("--run", self.path, f"{file.relative_to(self.path)} is damaged, make it anew") from error


def read_run(path: str | os.PathLike[str], defense: str | None = None, checkpoint: str = "last") -> TrainedRun:
    """Read a run's folder.

    Args:
        path: the workdir.
        defense: which of the run's networks; None (default) is its own, not the twin.
        checkpoint: `"last"` (default) or `"best"`.

    Returns:
        the run.

    Raises:
        UserError: if it is no run's folder, or that network is not there.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError("--run", path, "there is no such folder, give the workdir of a run")
    config_file = path / "config.yaml"
    try:
        config = _parse(yaml.safe_load(config_file.read_text()))
    except Exception as error:  # whatever a damaged file makes the parsers raise
        raise UserError("--run", path, "it holds no whole config.yaml, give the workdir of a run") from error
    run = TrainedRun(path, config, defense or config.model.defense, checkpoint)
    if not run.model_file.exists():
        missing = run.model_file.relative_to(path)
        advice = f"it has no {missing}, finish its training, or give another --defense or --checkpoint"
        raise UserError("--run", path, advice)
    return run


def _parse(values: dict[str, Any]) -> RunConfig:
    parser = ArgumentParser(exit_on_error=False)
    for group in GROUPS.values():
        parser.add_class_arguments(group)
    return RunConfig.from_flat(vars(parser.parse_object(values)))
