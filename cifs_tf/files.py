"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What a killed process had begun to write bears this in front of its name.
WRITING = ".writing-"


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name beside it, then rename: it is whole or it is not there.

    Args:
        path: the file; its folder is made.
        write: writes to the path that it is given, which ends like `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{WRITING}{os.getpid()}-{path.name}")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
