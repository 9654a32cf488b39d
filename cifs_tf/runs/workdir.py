"""The only folder that a run writes to, and where its files are.

config.yaml                     what the run was asked to do
images.json                     which images it was begun with: classes, splits, hashes; with others it is not continued
DEFENSE/checkpoints/            the newest checkpoints of the network with that defense, and its best epoch's weights
DEFENSE/history.json            what each epoch logged
DEFENSE/curves.png              the same as a picture
DEFENSE/tensorboard/            the same, broken images, importances and options, for TensorBoard
DEFENSE/not_finite/             a step whose loss or gradients were not finite: its batch, and which they were
DEFENSE/last.keras, best.keras  the trained network after its last epoch, and after its best on the validation images
DEFENSE/evaluation/last/SUITE/  what the attacks found: ledger.jsonl, card.jsonl, report.json, report.md, report.html
export/DEFENSE/1/               SavedModel and model.onnx
result.json                     everything that was measured
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cifs_tf.config import RunConfig
from cifs_tf.errors import UserError
from cifs_tf.files import hash_text, hold_lock, is_held, remove_abandoned, remove_unfinished, write_text
from cifs_tf.runs.keys import read_key
from cifs_tf.runs.recipes import dump_yaml, parse_config

# Fields that may change between a run and its continuation: they say where and how, not what.
PLACES = ("workdir", "data_dir", "cache", "cache_dir", "checkpoint_minutes", "on_nan", "strategy", "replicas")
LOCK_FILE = ".lock"
# What the run that lies there has is taken then.
SETTLED_LATER = (("precision", "auto"), ("resize", "auto"))
# Of a run that was begun before there was the option.
BEFORE = {"resize": "stretch"}
# First line of config.yaml: the run's key, and a hash of the options below. At the top, so that a cut file has it.
HEADER = re.compile(r"# run ([0-9a-f]{16}), options ([0-9a-f]{16})\n")
# What a run leaves, in the order in which it appears.
RESULTS = (
    "*/checkpoints/step-*.npz",
    "*/history.json",
    "*/last.keras",
    "*/best.keras",
    "result.json",
    "export/*/[1-9]*",
)


class Workdir:
    """A run's folder.

    Args:
        path: the folder; made, with its parents, by `open`.

    Example:
        >>> folder = Workdir("runs/digits")
        >>> with folder.open(config):
        ...     print(folder.path)
    """

    def __init__(self, path: str | os.PathLike[str]):
        try:
            self.path = Path(path).expanduser()
        except RuntimeError as error:
            raise UserError("--workdir", path, f"{error}, give another folder") from error

    def check(self, config: RunConfig) -> None:
        """Refuse, before anything is written, a folder that cannot be used.

        Raises:
            UserError: if it cannot be written to, or holds a run with another config.
        """
        try:
            check_folder(self.path)
            if not self.config_file.exists():
                self._refuse_results()
                return
            text = self.config_file.read_text(encoding="utf-8")
            stored = yaml.safe_load(text)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = error.strerror if isinstance(error, OSError) else f"{self.config_file} is damaged"
            raise UserError("--workdir", self.path, f"it cannot be used ({reason}), give another folder") from error
        if not isinstance(stored, dict):
            raise UserError("--workdir", self.path, f"{self.config_file} holds no config, give another folder")
        self._check_whole(text, "--workdir")
        # An option that came later leaves a run as it was: what does not name it has its default, or did as before.
        stored, asked = {**RunConfig().flat(), **BEFORE, **stored}, config.flat()
        different = [
            f"{name} {stored.get(name)} there, {asked.get(name)} here"
            for name in {**stored, **asked}
            if name not in PLACES
            and stored.get(name) != asked.get(name)
            and (name, asked.get(name)) not in SETTLED_LATER
        ]
        if different:
            advice = f"it holds a run with another config ({'; '.join(different[:4])}), give another folder"
            raise UserError("--workdir", self.path, advice)

    @contextlib.contextmanager
    def open(self, config: RunConfig) -> Iterator[None]:
        """Make the folder, or continue in it, and keep other processes out until the context ends.

        What a killed process had begun to write is removed.

        Raises:
            UserError: as for `check`, or if another process is at work there.
        """
        self.check(config)
        with contextlib.ExitStack() as lock:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock.enter_context(hold_lock(self.path / LOCK_FILE))
            except BlockingIOError as error:
                advice = "another process is at work there, wait for it or give another folder"
                raise UserError("--workdir", self.path, advice) from error
            except OSError as error:
                advice = f"it cannot be written to ({error.strerror}), give another folder"
                raise UserError("--workdir", self.path, advice) from error
            remove_unfinished(self.path)
            for base in self.path.glob("export/*"):
                remove_abandoned(base)
            is_new = not self.config_file.exists() or not (self.key or self.has_begun)
            options = dump_yaml(config)
            own = {name: value for name, value in config.flat().items() if name not in PLACES}
            key = hash_text(json.dumps(own, default=str)) if is_new else self.key
            # A run that was begun before there were keys goes on without.
            header = f"# run {key}, options {hash_text(options)}\n" if key else ""
            write_text(self.config_file, header + options)
            try:
                yield
            except Exception as error:
                self._check_there(error)
                raise
            self._check_there()

    def read_config(self, option: str = "--run") -> RunConfig:
        """Read the config of the run.

        Args:
            option: names the run in errors. Default `"--run"`.

        Raises:
            UserError: if there is none, or it is damaged.
        """
        if not self.path.exists():
            raise UserError(option, self.path, "there is no such folder, give the workdir of a run")
        try:
            self._check_whole(self.config_file.read_text(encoding="utf-8"), option)
            before = [f"--{name}={value}" for name, value in BEFORE.items() if self.stored(name) is None]
            return parse_config("", "", [f"--recipe={self.config_file}", *before])
        except (OSError, UnicodeDecodeError, UserError) as error:
            raise UserError(option, self.path, "it holds no whole config.yaml, give the workdir of a run") from error

    def stored(self, name: str) -> Any:
        """Return a value of the config that lies there; None if it cannot be read."""
        try:
            return yaml.safe_load(self.config_file.read_text(encoding="utf-8"))[name]
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
            return None

    @property
    def key(self) -> str | None:
        """What tells this run from others: a hash of the options that it began with; None before there were any."""
        try:
            header = HEADER.match(self.config_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            return None
        return header and header[1]

    def _check_whole(self, text: str, option: str) -> None:
        """Refuse a config of which a part was lost: the defaults would take its place."""
        header = HEADER.match(text)
        is_torn = header is None and text.lstrip("\ufeff").lower().startswith("# run")
        if is_torn or (header and hash_text(text[header.end() :]) != header[2]):
            advice = f"{self.config_file} is damaged, or was edited; put it back, or give another folder"
            raise UserError(option, self.path, advice)
        # Runs that were begun before there were keys have none anywhere.
        if header is None and self._tells_key():
            advice = f"{self.config_file} has lost its first line, with the run's key; put it back"
            raise UserError(option, self.path, f"{advice}, or give another folder")

    def _tells_key(self) -> bool:
        """Return whether a file of the run holds its key, which config.yaml then began with."""
        networks = (file for pattern in ("*/*.keras", "*/checkpoints/*.npz") for file in self.path.glob(pattern))
        return any(map(read_key, (self.images_file, self.result_file, *networks)))

    def _refuse_results(self) -> None:
        """Refuse results without a config: nothing says which one made them."""
        found = next((file for pattern in RESULTS for file in sorted(self.path.glob(pattern))), None)
        if found is not None:
            advice = f"it has {found.relative_to(self.path)} but no config.yaml; put it back, or give another folder"
            raise UserError("--workdir", self.path, advice)

    def _check_there(self, error: Exception | None = None) -> None:
        """End a run whose folder has gone."""
        if not is_held(self.path / LOCK_FILE):
            advice = "the folder was removed or replaced while this process was at work in it, begin anew"
            raise UserError("--workdir", self.path, advice) from error

    @property
    def config_file(self) -> Path:
        """The config of the run."""
        return self.path / "config.yaml"

    @property
    def images_file(self) -> Path:
        """Which images the run was begun with, see `cifs_tf.runs.images`."""
        return self.path / "images.json"

    @property
    def has_begun(self) -> bool:
        """True if a network was trained there, or a part of one."""
        left = ("result.json", "*/checkpoints/*", "*/*.keras", "trials/*")
        return any(next(self.path.glob(pattern), None) for pattern in left)

    @property
    def result_file(self) -> Path:
        """Everything that was measured."""
        return self.path / "result.json"

    def checkpoints(self, defense: str) -> Path:
        """Return the folder of checkpoints."""
        return self.path / defense / "checkpoints"

    def tensorboard(self, defense: str) -> Path:
        """Return the folder of TensorBoard's event files."""
        return self.path / defense / "tensorboard"

    def history_file(self, defense: str) -> Path:
        """Return the file of what each epoch logged."""
        return self.path / defense / "history.json"

    def curves_file(self, defense: str) -> Path:
        """Return the file of the training curves."""
        return self.path / defense / "curves.png"

    def model_file(self, defense: str, checkpoint: str = "last") -> Path:
        """Return the file of the trained network, after its last or its best epoch."""
        return self.path / defense / f"{checkpoint}.keras"

    def evaluation(self, defense: str, checkpoint: str, suite: str) -> Path:
        """Return the folder of what a suite of attacks found."""
        return self.path / defense / "evaluation" / checkpoint / suite

    def export_base(self, defense: str) -> Path:
        """Return the folder of the exported versions."""
        return self.path / "export" / defense


def check_folder(folder: Path) -> None:
    """Refuse, before anything is written, a folder that cannot be made or written to.

    Raises:
        UserError: naming what stands in the way.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError("--workdir", folder, f"{existing} cannot be written to, give another folder")
