"""Files, and folders of numbered versions, that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cifs_tf.errors import UserError

# No space, over quota, over the limit of a file's size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a killed process had begun to write bears this in front of its name.
WRITING = ".writing-"
# After which a file that another machine had begun to write is nobody's.
ABANDONED_SECONDS = 3600
# The same of a version; the dot keeps it out of sight of servers that watch the folder.
EXPORTING = ".exporting-"


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name beside it, then rename: it is whole or it is not there.

    Args:
        path: the file; its folder is made.
        write: writes to the path that it is given, which ends like `path`.

    Raises:
        UserError: if the disk is full; what was there before is still there.
    """
    temporary = temporary_of(path)
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


def temporary_of(path: Path) -> Path:
    """Where a file or folder lies until it is whole: beside it, under a name that tells who writes it."""
    return path.with_name(f"{WRITING}{platform.node()}-{os.getpid()}-{path.name}")


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes had begun to write below a folder; living ones are left alone.

    Whether a process of another machine lives is not known: what it began goes after an hour.
    """
    for leftover in folder.rglob(f"{WRITING}*"):
        if not _is_being_written(leftover):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def _is_being_written(temporary: Path) -> bool:
    begun = re.match(rf"{re.escape(WRITING)}{re.escape(platform.node())}-(\d+)-", temporary.name)
    try:
        if begun is None:
            return time.time() - temporary.stat().st_mtime < ABANDONED_SECONDS
        os.kill(int(begun[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is somebody else's
        return True
    except FileNotFoundError:  # it has just been finished
        return True
    return int(begun[1]) != os.getpid()


def publish_version(base: str | os.PathLike[str], write: Callable[[Path], object], version: int | None = None) -> Path:
    """Write a folder BASE/VERSION under a temporary name, then rename: it is whole or it is not there.

    Several processes may publish into the same base at once, each gets a number of its own. What a killed one had begun
    to write is removed.

    Args:
        base: folder of the versions; made, with its parents.
        write: writes into the folder that it is given.
        version: number, >= 1; None (default) takes the one after the highest there when all is written.

    Returns:
        the published folder.

    Raises:
        UserError: if the version exists, the base cannot be written to, or the disk is full.
    """
    base = Path(base)
    check_version(base, version)
    try:
        base.mkdir(parents=True, exist_ok=True)
        with _locked(base):
            _remove_abandoned(base)
            temporary = Path(tempfile.mkdtemp(prefix=EXPORTING, dir=base))
            mine = _lock(temporary)
    except OSError as error:
        raise UserError("base", base, f"it cannot be written to ({error.strerror}), give another folder") from error
    try:
        path = temporary / "version"
        path.mkdir()
        write(path)
        with _locked(base):
            # Anew: another process may have been faster.
            check_version(base, version)
            published = base / str(version or max(_versions(base), default=0) + 1)
            path.rename(published)
        return published
    except Exception as error:
        if _is_full(error):
            raise UserError("base", base, "the disk is full, free some space; nothing was published") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(mine)


def check_version(base: Path, version: int | None) -> None:
    """Refuse a version that exists, or is no version.

    Raises:
        UserError: if so.
    """
    if version is None:
        return
    if not 1 <= version < 2**63:
        raise UserError("version", version, "give a number of 1 or more")
    if version in _versions(base):
        raise UserError("version", version, f"{base / str(version)} exists, give a higher number")


def remove_abandoned(base: Path) -> None:
    """Remove what killed processes had begun to publish in a folder of versions; living ones are left alone."""
    if base.is_dir():
        with _locked(base):
            _remove_abandoned(base)


def _versions(base: Path) -> list[int]:
    return [int(child.name) for child in base.iterdir() if child.name.isdecimal()] if base.is_dir() else []


def _remove_abandoned(base: Path) -> None:
    for folder in base.glob(f"{EXPORTING}*"):
        # In use, or gone since.
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            os.close(_lock(folder))
            shutil.rmtree(folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder for a moment."""
    lock = _lock(folder, wait=True)
    try:
        yield
    finally:
        os.close(lock)


def _lock(folder: Path, wait: bool = False) -> int:
    """Lock a folder until the returned descriptor is closed, or its process ends, however it ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is_full(error: BaseException) -> bool:
    """Whether a full disk is the reason, in Python's words, HDF5's or TensorFlow's."""
    numbers = [getattr(error, "errno", None), *map(int, re.findall(r"errno = (\d+)", str(error)))]
    return any(number in FULL for number in numbers) or any(os.strerror(number) in str(error) for number in FULL)
