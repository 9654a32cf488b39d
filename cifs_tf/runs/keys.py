"""The stamp of a run in the files that it trains, so that those of another run are not taken for them.

Checkpoints and networks are ZIP archives; a stamp is one more member of them, JSON: the run's key, which network it is,
after which epoch, and what its epochs logged. Reading it reads the whole file, against the checksums of the archive.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

STAMP = "run.json"
# What a file that is damaged, cut, or of another run raises when it is read.
DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def warn(text: str) -> None:
    """Print a sentence about a file; the path in it is not broken at the end of a line."""
    Console().print(text, style="yellow", soft_wrap=True, markup=False, highlight=False)


def stamp(file: Path, content: Mapping[str, Any]) -> None:
    """Add a stamp to a checkpoint or a network.

    Args:
        file: a ZIP archive, `.npz` or `.keras`, without a stamp.
        content: plain types; `key` is the run's, see `Workdir.key`.
    """
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(STAMP, json.dumps(content, allow_nan=False))


def read_stamp(file: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Read the stamp of a file, which is read whole.

    Args:
        file: that `stamp` has stamped.
        wanted: what the stamp must say. A `key` of None, of a run that was begun before there were stamps, lets pass
            what has none.

    Returns:
        the stamp; empty if such a run's file has none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or says something else; in words that can stand in brackets.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
            found = json.loads(archive.read(STAMP)) if STAMP in archive.namelist() else {}
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        raise ValueError("it is damaged") from error
    if damaged is not None:
        raise ValueError("it is damaged")
    if wanted["key"] is None:
        return found
    if not isinstance(found, dict) or found.get("key") != wanted["key"]:
        raise ValueError("it is of another run")
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ValueError(f"it is of the {name} {found.get(name)}, not {value}")
    return found


def read_key(file: Path) -> str | None:
    """Return the run's key that a file, JSON or stamped, tells, whatever else is wrong with it; None if it has none."""
    try:
        if file.suffix == ".json":
            found = json.loads(file.read_text(encoding="utf-8"))
        else:
            with zipfile.ZipFile(file) as archive:
                found = json.loads(archive.read(STAMP))
        key = found.get("key") or found.get("run")
        key = key.get("run") if isinstance(key, dict) else key
    except (*DAMAGE, AttributeError):
        return None
    return key and str(key)
