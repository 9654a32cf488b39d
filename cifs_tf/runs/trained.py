"""A trained network of a run, read from the run's folder; TensorFlow is imported when it is loaded."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifs_tf.command_line import import_plugins
from cifs_tf.config import RunConfig
from cifs_tf.errors import UserError
from cifs_tf.files import read_json, read_results
from cifs_tf.runs.keys import read_stamp
from cifs_tf.runs.workdir import Workdir

if TYPE_CHECKING:
    from cifs_tf.models import Classifier


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """One network of a run, after its last or its best epoch.

    Args:
        run: the run's folder.
        config: of the run.
        defense: which of its networks: `"cifs"`, `"cas"` or `"vanilla"`.
        checkpoint: `"last"` or `"best"`. Default `"last"`.
        option: names the run in errors. Default `"--run"`.

    Example:
        >>> network = find_network(workdir)
        >>> classifier = network.load()
    """

    run: Workdir
    config: RunConfig
    defense: str
    checkpoint: str = "last"
    option: str = "--run"

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.run.path

    @property
    def title(self) -> str:
        """The network as reports call it."""
        return f"{self.path}, {self.defense}, {self.checkpoint} epoch"

    @property
    def model_file(self) -> Path:
        """The network's file."""
        return self.run.model_file(self.defense, self.checkpoint)

    def evaluation(self, suite: str) -> Path:
        """Return the folder of what a suite of attacks found."""
        return self.run.evaluation(self.defense, self.checkpoint, suite)

    def differences(self, report: dict[str, Any], suite: str, weights: str) -> list[str]:
        """Return in what a report is not of this network and of what its run would measure; empty if it is.

        Args:
            report: content of a `report.json`.
            suite: that should have measured it.
            weights: hash of the loaded network, see `fingerprint_of`.
        """
        about, epsilon = report["about"], float(self.config.attack.epsilon)
        is_equal = {
            "weights": report.get("key", {}).get("weights") == weights,
            "suite": about.get("suite") == suite,
            "split": about.get("split") in (None, "test"),  # there was no other one
            "epsilon": math.isclose(about.get("epsilon") or 0, epsilon),
            "norm": about.get("norm") in (None, "linf"),  # there was no other one
            "images": not about.get("unlike_run"),
        }
        return [name for name, equal in is_equal.items() if not equal]

    def load(self) -> Classifier:
        """Load the network, in float32 whatever it was trained in (or float64).

        Raises:
            UserError: if it is missing, damaged, or of another run, or a plugin of the run cannot be imported.
        """
        self._read_stamp()
        from cifs_tf.models import with_precision
        from cifs_tf.models.build import load_classifier

        import_plugins(self.config.model)
        classifier = load_classifier(self.model_file, self.option, self.path)
        mixed = self.config.train.precision == "mixed_bfloat16"
        return with_precision(classifier, "float32") if mixed else classifier

    def history(self) -> list[dict[str, Any]]:
        """Return what each epoch of its training logged, as the network's file has it; nothing if it is not known.

        Raises:
            UserError: if that is missing, damaged, or of another run.
        """
        history = self._read_stamp().get("history")
        file = self.run.history_file(self.defense)
        if history is None and file.exists():  # begun before there were stamps
            history = read_json(file)
        return list(history or ())

    def _read_stamp(self) -> dict[str, Any]:
        wanted = {"key": self.run.key, "defense": self.defense, "checkpoint": self.checkpoint}
        try:
            return read_stamp(self.model_file, wanted)
        except (FileNotFoundError, ValueError) as error:
            reason = "there is none" if isinstance(error, FileNotFoundError) else error
            name = self.model_file.relative_to(self.path)
            advice = f"{name} cannot be used ({reason}), the command of the run makes it again"
            raise UserError(self.option, self.path, advice) from error

    def result(self) -> dict[str, Any]:
        """Read `result.json`; it is empty if there is none.

        Raises:
            UserError: if it is damaged, was edited, or is of another run.
        """
        if not self.run.result_file.exists():
            return {}
        result = self._read_results(self.run.result_file)
        if self.run.key is not None and result.get("key", {}).get("run") != self.run.key:
            raise UserError(
                self.option, self.path, "result.json is of another run, the command of the run makes it again"
            )
        return result

    def reports(self) -> dict[str, dict[str, Any]]:
        """Read the reports of all evaluations of this network on other than its own held-out images, by suite.

        Raises:
            UserError: if one is damaged, or was edited.
        """
        files = sorted(self.evaluation("").glob("*/report.json"))
        found = {file.parent.name: self._read_results(file) for file in files}
        return {
            suite: report for suite, report in found.items() if report.get("about", {}).get("split") != "validation"
        }

    def _read_results(self, file: Path) -> dict[str, Any]:
        try:
            return read_results(file)
        except UserError as error:
            raise UserError(self.option, self.path, f"of {file.relative_to(self.path)}: {error.advice}") from error


def find_network(
    path: str | os.PathLike[str], defense: str | None = None, checkpoint: str = "last", option: str = "--run"
) -> TrainedNetwork:
    """Find a trained network in a run's folder.

    Args:
        path: the run's folder.
        defense: which of its networks; None (default) is its own, not the twin.
        checkpoint: `"last"` (default) or `"best"`.
        option: names the run in errors. Default `"--run"`.

    Returns:
        the network, not loaded yet.

    Raises:
        UserError: if there is no run, or that network is not there.
    """
    run = Workdir(path)
    config = run.read_config(option)
    network = TrainedNetwork(run, config, defense or config.model.defense, checkpoint, option)
    if not network.model_file.exists():
        missing = network.model_file.relative_to(run.path)
        advice = f"it has no {missing}, finish its training, or give another --defense or --checkpoint"
        raise UserError(option, run.path, advice)
    return network
