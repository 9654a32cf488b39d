"""The ledger of an evaluation: one line of JSON for every batch that an attack has finished.

The first line says what is measured: a key of hashes, which must be the same for the evaluation to resume, and what a
report needs to know. Every further line holds the ids of some images and what one task found for each of them. Lines
are only ever appended; an incomplete line that a killed process left is cut off.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from cifs_tf.errors import UserError
from cifs_tf.evaluation.records import Header, LedgerLine, TaskRecord
from cifs_tf.files import write_atomically

SCHEMA = 1
# Of a header, what an error names where two evaluations differ.
NAMED = ("suite", "epsilon", "seed", "num_examples", "mask_gradients")


class Ledger:
    """The measurements of an evaluation, in memory, and in a file if there is one.

    Args:
        header: `key` (what must agree), `shard` (i/n) and `about` (what the report says).
        file: where to keep it, opened for appending; None keeps it in memory only.

    Example:
        >>> with Ledger.open("ledger.jsonl", header) as ledger:
        ...     ledger.append("natural", ids, {"ranks": ranks}, seconds=0.1)
    """

    def __init__(self, header: Header, file: IO[str] | None = None):
        self.header = header
        self.seconds = 0.0
        self.compile_seconds = 0.0
        self._file = file
        self._ids: dict[str, list[np.ndarray]] = {}
        self._values: dict[str, list[dict[str, np.ndarray]]] = {}

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: str | os.PathLike[str], header: Header) -> Iterator[Ledger]:
        """Create a ledger, or resume the one in the file; other processes are kept out.

        Args:
            path: the file; its folder is made.
            header: what is to be measured.

        Yields:
            the ledger.

        Raises:
            UserError: if the file belongs to another evaluation, is damaged before its last line, or is in use.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    "ledger", path, "another process writes it, wait for it or give another folder"
                ) from error
            whole = cls._repair(path, file)
            if not whole:
                ledger = cls(header, file)
                ledger._write({"schema": SCHEMA, **header})
            else:
                ledger = cls.read(path)
                _check_same(path, ledger.header, header)
                ledger._file = file
            yield ledger

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Ledger:
        """Read a ledger, which is then kept in memory only.

        Raises:
            UserError: if it is no ledger, or damaged before its last line.
        """
        path, number = Path(path), 1
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
            header = json.loads(lines[0])
            if header.pop("schema") != SCHEMA:
                raise ValueError("it was written by another version")
            ledger = cls(header)
            # What follows the last newline is a torn line, or nothing.
            for number, line in enumerate(lines[1:-1], start=2):  # noqa: B007 -- told if it fails
                ledger._take(json.loads(line))
        except OSError as error:
            raise UserError("ledger", path, f"it cannot be read ({error.strerror}), give a ledger.jsonl") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            advice = f"it is no ledger, or damaged (line {number}), move it away to begin anew"
            raise UserError("ledger", path, advice) from error
        return ledger

    @property
    def finished(self) -> bool:
        """True once every task of its shard is done."""
        return "finished" in self._ids

    @property
    def tasks(self) -> list[TaskRecord]:
        """The tasks of the evaluation, in order."""
        return [TaskRecord(**task) for task in self.header["about"]["tasks"]]

    @property
    def num_examples(self) -> int:
        """Number of images that the natural predictions have been measured on."""
        return len(self.ids("natural"))

    def append(self, task: str, ids: np.ndarray, values: Mapping[str, np.ndarray], seconds: float = 0.0) -> None:
        """Add what a task found for some images.

        Args:
            task: its name.
            ids: int (n,).
            values: int arrays (n, ...), by name.
            seconds: how long it took.
        """
        lists = {name: np.asarray(value).astype(int).tolist() for name, value in values.items()}
        record: LedgerLine = {
            "task": task,
            "ids": np.asarray(ids).tolist(),
            "values": lists,
            "seconds": round(seconds, 3),
        }
        self._write(record)
        self._take(record)

    def finish(self) -> None:
        """Record that every task is done."""
        if not self.finished:
            self.append("finished", np.array([], int), {})

    def ids(self, task: str) -> np.ndarray:
        """Return the images that a task has measured, in the order of their ids."""
        return np.sort(np.concatenate([np.array([], int), *self._ids.get(task, [])]).astype(int))

    def values(self, task: str, name: str) -> np.ndarray:
        """Return what a task found, in the order of the ids; empty if it found nothing."""
        parts = [values[name] for values in self._values.get(task, []) if len(values.get(name, []))]
        if not parts:
            return np.array([], int)
        return np.concatenate(parts)[np.argsort(np.concatenate([i for i in self._ids[task] if len(i)]), kind="stable")]

    def fooled(self, task: str) -> np.ndarray:
        """Return the ids of the images whose label the final head does not put first, in order."""
        ranks = self.values(task, "ranks")
        return self.ids(task)[ranks[:, 0] > 0] if len(ranks) else np.array([], int)

    def correct(self) -> np.ndarray:
        """Return the ids of the images that are classified correctly without an attack, in order."""
        return np.setdiff1d(self.ids("natural"), self.fooled("natural"))

    def survivors(self, pool: str) -> np.ndarray:
        """Return the ids of the images that are correct without an attack and that no task of a pool has broken.

        Args:
            pool: see `cifs_tf.evaluation.tasks`.

        Returns:
            int (n,), in order.
        """
        broken = [self.fooled(task.name) for task in self.tasks if task.in_pool(pool)]
        return np.setdiff1d(self.correct(), np.concatenate([np.array([], int), *broken]))

    def curve(self, pool: str) -> list[tuple[float, float]]:
        """Return the points (x, robust accuracy) of a cumulative curve, one for each x.

        Args:
            pool: `"steps"`, `"restarts"` or `"epsilon"`.

        Returns:
            the points, by increasing x; at x = 0, the natural accuracy; empty if the curve was not measured.
        """
        tasks = [task for task in self.tasks if task.pool == pool and task.x is not None]
        if not tasks:
            return []
        count, survivors = max(1, self.num_examples), self.correct()
        points = {0.0: len(survivors) / count}
        for task in tasks:
            survivors = np.setdiff1d(survivors, self.fooled(task.name))
            points[float(task.x or 0)] = len(survivors) / count
        return sorted(points.items())

    def _take(self, record: LedgerLine) -> None:
        self._ids.setdefault(record["task"], []).append(np.array(record["ids"], int))
        values = {name: np.array(value, int) for name, value in record["values"].items()}
        self._values.setdefault(record["task"], []).append(values)
        self.seconds += record["seconds"]

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record, separators=(",", ":"), ensure_ascii=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    @staticmethod
    def _repair(path: Path, file: IO[str]) -> int:
        """Cut off an incomplete last line; return the number of bytes that are left."""
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        last = content[content.rfind(b"\n", 0, max(whole - 1, 0)) + 1 : whole]
        try:
            json.loads(last or b"{}")
        except ValueError:
            whole -= len(last)
        if whole < len(content):
            os.ftruncate(file.fileno(), whole)
        return whole


def merge(paths: Sequence[str | os.PathLike[str]], target: str | os.PathLike[str]) -> Ledger:
    """Join the ledgers of all shards of one evaluation.

    Args:
        paths: the shards' files, in any order.
        target: the file to write, whole or not at all.

    Returns:
        the ledger of the whole evaluation.

    Raises:
        UserError: if they belong to different evaluations, one is missing, given twice or not finished.
    """
    ledgers = {Path(path): Ledger.read(path) for path in paths}
    if not ledgers:
        raise UserError("ledgers", [], "give the ledgers of all shards")
    first_path, first = next(iter(ledgers.items()))
    number = int(first.header["shard"].partition("/")[2])
    seen: dict[str, Path] = {}
    for path, ledger in ledgers.items():
        _check_same(path, {**ledger.header, "shard": ""}, {**first.header, "shard": ""}, f"{first_path}")
        shard = ledger.header["shard"]
        if shard in seen:
            raise UserError(
                "ledgers", path, f"it overlaps with {seen[shard]}: both are shard {shard}, give one of them"
            )
        if not ledger.finished:
            raise UserError("ledgers", path, f"shard {shard} is not finished, run its command again first")
        seen[shard] = path
    wanted = [f"{i}/{number}" for i in range(1, number + 1)]
    missing, foreign = ([shard for shard in a if shard not in b] for a, b in ((wanted, seen), (seen, wanted)))
    if missing or foreign or len(paths) != len(ledgers):
        what = f"shard {', '.join(missing)} is missing" if missing else "a ledger is given twice"
        if foreign:
            what = f"shard {', '.join(foreign)} divides the images in another way than {first.header['shard']}"
        raise UserError("ledgers", [str(path) for path in paths], f"{what}, give each of the {number} shards once")

    target = Path(target)
    if target.exists():
        there = Ledger.read(target)
        _check_same(target, {**there.header, "shard": ""}, {**first.header, "shard": ""}, f"{first_path}")
        if not there.finished:
            raise UserError("merge", target, "an evaluation that is not finished lies there, give another folder")
    merged = Ledger({**first.header, "shard": "1/1"})

    def write(path: Path) -> None:
        with open(path, "w", encoding="utf-8") as merged._file:
            merged._write({"schema": SCHEMA, **merged.header})
            for ledger in ledgers.values():
                for task in ledger._ids:
                    for ids, values in zip(ledger._ids[task], ledger._values[task], strict=True):
                        if task != "finished":
                            merged.append(task, ids, values)
                merged.seconds += ledger.seconds
            merged.finish()
        merged._file = None

    write_atomically(target, write)
    return merged


def _check_same(path: Path, found: Header, wanted: Header, other: str = "this evaluation") -> None:
    keys = {**found["key"], "shard": found["shard"]}, {**wanted["key"], "shard": wanted["shard"]}
    different = [f"{name} {keys[0].get(name)} there, {keys[1].get(name)} in {other}" for name in keys[1]]
    different = [text for text, name in zip(different, keys[1], strict=True) if keys[0].get(name) != keys[1][name]]
    if keys[0].get("config") != keys[1].get("config"):
        about = found["about"], wanted["about"]
        different += [
            f"{name} {about[0].get(name)} there, {about[1].get(name)} in {other}"
            for name in NAMED
            if about[0].get(name) != about[1].get(name)
        ]
    if different:
        advice = f"it belongs to another evaluation ({'; '.join(different)}), give another folder or move it away"
        raise UserError("ledger", path, advice)
