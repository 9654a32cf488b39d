"""The lines of a ledger: how they are written, and checked when they are read."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cifs_tf.errors import UserError
from cifs_tf.evaluation.networks.answers import same_answers
from cifs_tf.evaluation.records import Header

# With this a ledger begins, and a card.
BEGINNING = b'{"schema":'
# Of a header, what an error names where two evaluations differ.
NAMED = ("suite", "epsilon", "seed", "num_examples", "mask_gradients")
# Of the lines or images that a sentence is about.
NAMED_AT_MOST = 5


def check_file(argument: str, path: Path) -> None:
    """Make the folder of a file of an evaluation, and refuse what cannot be written to.

    Raises:
        UserError: naming the argument and the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
    except OSError as error:
        raise UserError(argument, path, f"it cannot be written to ({error.strerror}), give another file") from error


def whole_length(content: bytes) -> int:
    """Count the bytes of a ledger before an incomplete last line.

    Of a file that does not begin as a ledger all of them count: it is somebody else's, and nothing of it is cut off.
    """
    if not (content.startswith(BEGINNING) or BEGINNING.startswith(content)):
        return len(content)
    whole = content.rfind(b"\n") + 1
    last = content[content.rfind(b"\n", 0, max(whole - 1, 0)) + 1 : whole]
    try:
        json.loads(last or b"{}")
    except ValueError:
        whole -= len(last)
    return whole


def encode(record: Mapping[str, Any]) -> str:
    """Write a line as JSON, with a checksum, `check`, at its end."""
    return _json({**record, "check": _checksum(record)})


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False)


def _checksum(record: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(_json(record).encode(errors='surrogateescape')):08x}"


def decode(line: str) -> tuple[dict[str, Any], bool]:
    """Read a line: its content, and whether it had a checksum, which is right then.

    Raises:
        ValueError: if it is no JSON, or was edited.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError("is damaged") from error
    check = record.pop("check", None)
    if check is not None and check != _checksum(record):
        raise ValueError("was edited")
    return record, check is not None


def check_record(record: Mapping[str, Any], ours: np.ndarray | None, classes: int | None) -> None:
    """Refuse a line whose numbers cannot be.

    Args:
        record: the line.
        ours: ids of the images that it may have; None for any.
        classes: number of classes, for the ranges of ranks and labels; None does not look at them.

    Raises:
        ValueError, KeyError, TypeError: if so.
    """
    ids = np.array(record["ids"])
    if not isinstance(record["task"], str) or ids.ndim != 1 or (len(ids) and ids.dtype.kind != "i"):
        raise ValueError("is damaged")
    if len(np.unique(ids)) != len(ids) or (ours is not None and not np.isin(ids, ours).all()):
        raise ValueError("has images that are not of this part, or twice")
    float(record["seconds"])
    for name, value in record["values"].items():
        found = np.array(value)
        # Ranks may be the number of classes, where a logit is NaN. What has no range here is true or false.
        tops = {"ranks": classes, "labels": None if classes is None else classes - 1, "distance": None, "answers": None}
        top = tops.get(name, 1)
        if len(found) != len(ids) or (found.size and found.dtype.kind != "i"):
            raise ValueError(f"has {name} for other images than it names")
        if found.size and (found.min() < 0 or (top is not None and found.max() > top)):
            raise ValueError(f"has {name} out of range")


def describe_faults(faults: Mapping[int, str]) -> str:
    """Say what is wrong with the first of some lines, by their numbers."""
    some = [f"line {number} {fault}" for number, fault in sorted(faults.items())[:NAMED_AT_MOST]]
    return ", ".join(some) + (f" and {len(faults) - len(some)} more" if len(faults) > len(some) else "")


def name_images(ids: np.ndarray) -> str:
    """Name the first of some images."""
    some = ", ".join(str(i) for i in ids[:NAMED_AT_MOST].tolist())
    return f"image{'s' if len(ids) > 1 else ''} {some}{', ...' if len(ids) > NAMED_AT_MOST else ''}"


def check_same(path: Path, found: Header, wanted: Header, other: str = "this evaluation") -> None:
    """Refuse a ledger whose header is that of another evaluation.

    Raises:
        UserError: saying in what they differ.
    """
    keys = {**found["key"], "shard": found["shard"]}, {**wanted["key"], "shard": wanted["shard"]}
    different = [f"{name} {keys[0].get(name)} there, {keys[1].get(name)} in {other}" for name in keys[1]]
    different = [text for text, name in zip(different, keys[1], strict=True) if keys[0].get(name) != keys[1][name]]
    if keys[0].get("config") != keys[1].get("config"):
        named = _differing_options(found["about"], wanted["about"], other)
        if named:  # a hash tells less; what is left is the order of attacks, or a surrogate
            different = [text for text in different if not text.startswith("config ")] + named
    if not different and not same_answers(found.get("answers"), wanted.get("answers")):
        different = ["the network answers otherwise than it did, though its weights are the same"]
    if different:
        advice = f"it belongs to another evaluation ({'; '.join(different)}), give another folder or move it away"
        raise UserError("ledger", path, advice)


def _differing_options(found: Mapping[str, Any], wanted: Mapping[str, Any], other: str) -> list[str]:
    """Name the options in which two evaluations differ, with both values: of the whole, or of their tasks."""
    different = [
        f"{name} {found.get(name)} there, {wanted.get(name)} in {other}"
        for name in NAMED
        if found.get(name) != wanted.get(name)
    ]
    tasks = [{task["name"]: task for task in about.get("tasks", ())} for about in (found, wanted)]
    for place, mine, theirs in ((" there", *tasks), (f" in {other}", *reversed(tasks))):
        if only := [name for name in mine if name not in theirs]:
            different.append(
                f"{', '.join(only[:NAMED_AT_MOST])}{' and others' * (len(only) > NAMED_AT_MOST)} only{place}"
            )
    for name in tasks[0] if not different else ():
        one, two = (_flat(each[name]) for each in tasks)
        for key in {**one, **two}:
            if one.get(key) != two.get(key) and len(different) < NAMED_AT_MOST:
                different.append(f"{key} of {name} {one.get(key)} there, {two.get(key)} in {other}")
    return different


def _flat(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a task with those of its attack."""
    return {**task, **(task.get("attack") or {}), "attack": (task.get("attack") or {}).get("kind")}
