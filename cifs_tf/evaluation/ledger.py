"""The ledger of an evaluation: one line of JSON for every batch that an attack has finished.

The first line says what is measured: a key of hashes, which must be the same for the evaluation to resume, and what a
report needs to know. Every further line holds the ids of some images and what one task found for each of them. Lines
are only ever appended, each with a checksum; an incomplete line that a killed process left is cut off, and one that was
edited, doubled or lost is named, and its batch measured again.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from cifs_tf.config import parse_shard
from cifs_tf.errors import UserError
from cifs_tf.evaluation.lines import (
    check_file,
    check_record,
    check_same,
    decode,
    describe_faults,
    encode,
    name_images,
    whole_length,
)
from cifs_tf.evaluation.records import MAIN, Header, LedgerLine, TaskRecord
from cifs_tf.files import write_atomically

SCHEMA = 1
FINISHED = "finished"
SAMPLE_SEED = 0


class Ledger:
    """The measurements of an evaluation, in memory, and in a file if there is one.

    Args:
        header: `key` (what must agree), `shard` (i/n) and `about` (what the report says).

    Example:
        >>> with Ledger.open("ledger.jsonl", header) as ledger:
        ...     ledger.append("natural", ids, {"ranks": ranks}, seconds=0.1)
    """

    def __init__(self, header: Header):
        self.header = header
        self.seconds = 0.0
        self.compile_seconds = 0.0
        self._file: IO[str] | None = None  # in memory only; `open` sets it
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
            UserError: if the file belongs to another evaluation, is no ledger, or is in use.
        """
        path = Path(path)
        check_file("ledger", path)
        is_read = False
        while not is_read:  # again after lines have been taken out of it
            with open(path, "a+", encoding="utf-8") as file:
                try:
                    # The ledger is its own lock: another file for it, as filelock needs, would lie beside each result.
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    advice = "another process writes it, wait for it or give another folder"
                    raise UserError("ledger", path, advice) from error
                content = path.read_bytes()
                if (whole := whole_length(content)) < len(content):
                    os.ftruncate(file.fileno(), whole)
                if not whole:
                    ledger, faults = cls(header), dict[int, str]()
                    ledger._file = file
                    ledger._write({"schema": SCHEMA, **header})
                else:
                    ledger, faults = cls._read(path)
                    check_same(path, ledger.header, header)
                is_read = not faults
                if faults:
                    print(f"{path}: {describe_faults(faults)}; what they held is measured again.")
                    lines = path.read_bytes().split(b"\n")
                    kept = b"\n".join(line for number, line in enumerate(lines, start=1) if number not in faults)
                    write_atomically(path, lambda new, kept=kept: new.write_bytes(kept))  # type: ignore[misc]
                    continue
                for task, ids in ledger.missing_ids().items():
                    print(f"{path}: lines of {task} are lost ({name_images(ids)}); what they held is measured again.")
                    ledger._ids.pop(FINISHED, None)
                ledger._file = file
                yield ledger

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Ledger:
        """Read a ledger, which is then kept in memory only.

        Raises:
            UserError: if it is no ledger, or a line before its last is damaged, doubled, or of images of another part.
        """
        ledger, faults = cls._read(Path(path))
        if faults:
            advice = f"it is damaged ({describe_faults(faults)}), the command that wrote it measures that again"
            raise UserError("ledger", path, advice)
        return ledger

    @classmethod
    def _read(cls, path: Path) -> tuple[Ledger, dict[int, str]]:
        """Read the lines that are whole, and say by its number what is wrong with every other line."""
        try:
            # What follows the last newline is a torn line, or nothing.
            lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]
            header, has_checks = decode(lines[0])
            if header.pop("schema") != SCHEMA:
                raise ValueError("it was written by another version")
            ledger = cls(header)  # type: ignore[arg-type]
            ours, classes = (
                ledger.ids_of_shard(),
                int(header["about"]["num_classes"]) if "num_classes" in header["about"] else None,
            )
        except OSError as error:
            raise UserError("ledger", path, f"it cannot be read ({error.strerror}), give a ledger.jsonl") from error
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            advice = "it is no ledger, or damaged (line 1), move it away to begin anew"
            raise UserError("ledger", path, advice) from error
        faults: dict[int, str] = {}
        records: dict[int, LedgerLine] = {}
        owners: dict[tuple[str, int], int] = {}
        for number, line in enumerate(lines[1:], start=2):
            try:
                record, is_checked = decode(line)
                check_record(record, ours, classes)
                if has_checks and not is_checked:
                    raise ValueError("has no checksum")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                faults[number] = str(error) if type(error) is ValueError else "is damaged"
                continue
            records[number] = record  # type: ignore[assignment]
            for i in record["ids"]:
                # Which of two lines is right is not known: neither is kept.
                first = owners.setdefault((record["task"], i), number)
                if first != number:
                    faults |= {first: f"has the images of line {number}", number: f"has the images of line {first}"}
        for number, kept in records.items():
            if number not in faults:
                ledger._take(kept)
        return ledger, faults

    def ids_of_shard(self) -> np.ndarray | None:
        """Return the ids of the images of the ledger's shard; None if its header does not tell how many there are."""
        number = self.header["about"].get("num_examples")
        part, parts = parse_shard(self.header["shard"], "ledger")
        return None if number is None else np.arange(part - 1, number, parts)

    def ids_to_measure(self, name: str) -> np.ndarray:
        """Return the ids of the images that a task measures, by what the tasks before it found."""
        task = next(task for task in self.tasks if task.name == name)
        if task.kind == "Natural" or task.on == "all":
            ours = self.ids_of_shard()
            if ours is None:
                return self.ids(name)
            ids = ours
        elif task.on == "correct":
            ids = self.correct()
        else:
            ids = self.survivors(MAIN if task.on == "unbroken" else task.pool, before=name)
        return ids if task.sample is None else np.intersect1d(ids, self._sample(task.sample))

    def _sample(self, size: int) -> np.ndarray:
        """Return so many of all ids, the same on every machine."""
        number = self.header["about"]["num_examples"]
        return np.random.default_rng(SAMPLE_SEED).permutation(number)[:size]

    def missing_ids(self) -> dict[str, np.ndarray]:
        """Return by task the ids of the images that it has not measured although a later one has begun."""
        names = [task.name for task in self.tasks]
        has_begun = [name in self._ids for name in (*names, FINISHED)]
        missing = {
            name: np.setdiff1d(self.ids_to_measure(name), self.ids(name))
            for place, name in enumerate(names)
            if any(has_begun[place + 1 :])
        }
        return {name: ids for name, ids in missing.items() if len(ids)}

    def check_complete(self, path: str | os.PathLike[str] = "in memory") -> None:
        """Refuse a ledger in which a task has measured other images than those that it had to.

        Args:
            path: names the ledger.

        Raises:
            UserError: naming the task and some of the images.
        """
        for task in self.tasks:
            different = np.setxor1d(self.ids_to_measure(task.name), self.ids(task.name))
            if len(different):
                what = f"{task.name} has not measured what it had to ({name_images(different)})"
                raise UserError("ledger", path, f"{what}, run its command again first")

    @property
    def finished(self) -> bool:
        """True once every task of its shard is done."""
        return FINISHED in self._ids

    @functools.cached_property
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
            self.append(FINISHED, np.array([], int), {})

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

    def survivors(self, pool: str, before: str | None = None) -> np.ndarray:
        """Return the ids of the images that are correct without an attack and that no task of a pool has broken.

        Args:
            pool: see `cifs_tf.evaluation.tasks`.
            before: by the tasks before the one of this name. Default None: by all.

        Returns:
            int (n,), in order.
        """
        tasks = itertools.takewhile(lambda task: task.name != before, self.tasks)
        broken = [self.fooled(task.name) for task in tasks if task.in_pool(pool)]
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
            if os.fstat(self._file.fileno()).st_nlink == 0:
                advice = "it was removed while it was being written, the same command begins anew"
                raise UserError("ledger", self._file.name, advice)
            self._file.write(encode(record) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def merge(paths: Sequence[str | os.PathLike[str]], target: str | os.PathLike[str]) -> Ledger:
    """Join the ledgers of all shards of one evaluation.

    Args:
        paths: the shards' files, in any order.
        target: the file to write, whole or not at all.

    Returns:
        the ledger of the whole evaluation.

    Raises:
        UserError: if they belong to different evaluations, one is missing, given twice, damaged or not finished, or if
            an image is in none of them, or in two.
    """
    ledgers = {Path(path): Ledger.read(path) for path in paths}
    if not ledgers:
        raise UserError("ledgers", [], "give the ledgers of all shards")
    first_path, first = next(iter(ledgers.items()))
    number = int(first.header["shard"].partition("/")[2])
    seen: dict[str, Path] = {}
    for path, ledger in ledgers.items():
        check_same(path, {**ledger.header, "shard": ""}, {**first.header, "shard": ""}, f"{first_path}")
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

    for path, ledger in ledgers.items():
        ledger.check_complete(path)
    _check_cover(ledgers)

    target = Path(target)
    if number > 1 and any(target.resolve() == path.resolve() for path in ledgers):
        raise UserError("merge", target, "it is one of the ledgers to join, give another file or folder")
    if target.exists():
        there = Ledger.read(target)
        check_same(target, {**there.header, "shard": ""}, {**first.header, "shard": ""}, f"{first_path}")
        if not there.finished:
            raise UserError("merge", target, "an evaluation that is not finished lies there, give another folder")
    merged = Ledger({**first.header, "shard": "1/1"})

    def write(path: Path) -> None:
        with open(path, "w", encoding="utf-8") as merged._file:
            merged._write({"schema": SCHEMA, **merged.header})
            for ledger in ledgers.values():
                for task in ledger._ids:
                    for ids, values in zip(ledger._ids[task], ledger._values[task], strict=True):
                        if task != FINISHED:
                            merged.append(task, ids, values)
                merged.seconds += ledger.seconds
            merged.finish()
        merged._file = None

    write_atomically(target, write)
    return merged


def _check_cover(ledgers: Mapping[Path, Ledger]) -> None:
    """Refuse ledgers that do not have every image of the evaluation once."""
    ids = np.concatenate([ledger.ids("natural") for ledger in ledgers.values()])
    number = next(iter(ledgers.values())).header["about"].get("num_examples") or int(ids.max(initial=-1)) + 1
    counts = np.bincount(ids, minlength=number)
    for text, wrong in (("in none", counts == 0), ("in two", counts > 1)):
        if wrong.any():
            advice = f"{name_images(np.flatnonzero(wrong))} are {text} of them, give each image once"
            raise UserError("ledgers", [str(path) for path in ledgers], advice)
