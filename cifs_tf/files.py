"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cifs_tf.errors import UserError

# No space, over quota, over the limit of a file's size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a killed process had begun to write bears this in front of its name.
WRITING = ".writing-"


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name beside it, then rename: it is whole or it is not there.

    Args:
        path: the file; its folder is made.
        write: writes to the path that it is given, which ends like `path`.

    Raises:
        UserError: if the disk is full; what was there before is still there.
    """
    temporary = path.with_name(f"{WRITING}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        if _is_full(error):
            advice = f"{path.name} cannot be written, the disk is full; free some space, the same command continues"
            raise UserError("--workdir", path.parent, advice) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _is_full(error: BaseException) -> bool:
    """Whether a full disk is the reason, in Python's words, HDF5's or TensorFlow's."""
    numbers = [getattr(error, "errno", None), *map(int, re.findall(r"errno = (\d+)", str(error)))]
    return any(number in FULL for number in numbers) or any(os.strerror(number) in str(error) for number in FULL)
