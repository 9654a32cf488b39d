"""Files, and folders of numbered versions, that are complete or not there; and locks between processes."""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cifs_tf.errors import UserError

# No space, over quota, over the limit of a file's size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Begins the name of a file until it is complete.
WRITING = ".writing-"
# Of a file of results, their checksum.
CHECK = "check"
# Age at which an unfinished file of another machine is removed.
ABANDONED_SECONDS = 3600
# Begins the name of a version until it is complete; servers that watch the folder ignore names with a dot in front.
EXPORTING = ".exporting-"
LOCK_SUFFIX = ".lock"
# Of a version: its model card, and the warm-up requests where TF Serving looks for them.
CARD_FILE, WARMUP_FILE = "model_card.json", Path("assets.extra", "tf_serving_warmup_requests")
# `is_locked` holds the lock for a moment itself: longer than that moment, a lock is another process's.
LOCK_SECONDS = 0.1

# The lock files that this process holds, and which file (device, inode) each was then.
_held: dict[Path, tuple[int, int]] = {}


def check_utf8(argument: str, received: object, name: str) -> None:
    """Refuse a name that cannot be written as UTF-8, and say whether the name or this process is to blame.

    Args:
        argument: where it came from, for the error.
        received: what was given, for the error.
        name: of a file, or an argument of a command line.

    Raises:
        UserError: if so.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        advice = f"the name {name!a} is not UTF-8, rename it"
        with contextlib.suppress(UnicodeError):
            letters = os.fsencode(name).decode()
            advice = (
                f"this process reads names as {sys.getfilesystemencoding()}, and {letters!a} is UTF-8; set "
                "PYTHONUTF8=1, or LC_ALL=C.UTF-8"
            )
        raise UserError(argument, received, advice) from None


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name beside it, then rename it: it is complete or it is not there.

    Args:
        path: the file; its folder is made.
        write: writes to the path that it is given, which ends like `path`.

    Raises:
        UserError: if the disk is full, what was there before is still there; or if the folder that this process has
            locked has gone, which is not made again.
    """
    temporary = temporary_of(path)
    _check_locked_folder(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _fsync(temporary)
        temporary.replace(path)
    except Exception as error:
        if _is_full(error):
            advice = f"{path.name} cannot be written, the disk is full; free some space, the same command continues"
            raise UserError("--workdir", path.parent, advice) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, atomically."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: if it is not there, or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise UserError("file", path, f"it cannot be read ({reason}), make it anew") from error


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write what was measured as JSON, atomically, with a checksum, of all but `wall_clock`, for `read_results`."""
    write_json(path, with_check(results))


def with_check(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return results with their checksum, for a file of another layout that `read_results` reads."""
    return {**results, CHECK: _checksum(results)}


def read_results(path: Path) -> dict[str, Any]:
    """Read what `write_results` wrote; numbers that were changed since are not believed.

    Raises:
        UserError: if it is not there, damaged, was edited, or is of a version that wrote no checksum.
    """
    results = read_json(path)
    if not isinstance(results, dict):
        raise UserError("file", path, "it is damaged; its command makes it again")
    check = results.pop(CHECK, None)
    if check is None:
        advice = "it has no checksum: it is of an earlier version, or was edited; its command makes it again"
        raise UserError("file", path, advice)
    if check != _checksum(results):
        raise UserError("file", path, "it is damaged, or was edited; its command makes it again")
    return results


def _checksum(results: Mapping[str, Any]) -> str:
    return hash_text(json.dumps({name: value for name, value in results.items() if name != "wall_clock"}))


def print_written(paths: Iterable[Path]) -> None:
    """Print which files were written."""
    print("Written:", *(f"  {path}" for path in paths), sep="\n")


def hash_text(text: str) -> str:
    """Return a hash of a text: 16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def carried_folder(in_package: str, in_checkout: str) -> Path:
    """Return a folder of files that are no code: the wheel carries it in the package, a checkout has it elsewhere."""
    package = Path(__file__).resolve().parent
    return package / in_package if (package / in_package).is_dir() else package.parent / in_checkout


def now() -> str:
    """Return the time as result files have it: UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def temporary_of(path: Path) -> Path:
    """Return the path of a file or folder until it is complete: beside it, its name says which process writes it."""
    return path.with_name(f"{WRITING}{platform.node()}-{os.getpid()}-{path.name}")


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes had begun to write below a folder; living ones are left alone.

    Processes of other machines cannot be asked: their unfinished files are removed after an hour.
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
    except PermissionError:  # it lives, and belongs to another user
        return True
    except FileNotFoundError:  # it has just been finished
        return True
    return int(begun[1]) != os.getpid()


def publish_version(base: str | os.PathLike[str], write: Callable[[Path], object], version: int | None = None) -> Path:
    """Write a folder BASE/VERSION under a temporary name, then rename it: it is complete or it is not there.

    Several processes may publish into the same base at once, each gets a number of its own. What a killed process had
    begun to write is removed.

    Args:
        base: folder of the versions; made, with its parents.
        write: writes into the folder that it is given.
        version: number, >= 1; None (default) takes the one after the highest there when all is written.

    Returns:
        the published folder.

    Raises:
        UserError: if the version exists, the base cannot be written to, or the disk is full.

    Example:
        >>> import tempfile
        >>> publish_version(tempfile.mkdtemp(), lambda folder: (folder / "notes").write_text("first")).name
        '1'
    """
    base = Path(base)
    check_version(base, version)
    _check_locked_folder(base)
    with contextlib.ExitStack() as stack:
        try:
            base.mkdir(parents=True, exist_ok=True)
            remove_abandoned(base)
            folder = stack.enter_context(_unfinished_version(base))
        except OSError as error:
            raise UserError("base", base, f"it cannot be written to ({error.strerror}), give another folder") from error
        try:
            write(folder)
            # Its files first, then their folders: a name that survives a power cut has its content.
            for path in (*filter(Path.is_file, folder.rglob("*")), *filter(Path.is_dir, folder.rglob("*")), folder):
                _fsync(path)
            published = _rename_to_version(folder, base, version)
            _fsync(base)
            return published
        except Exception as error:
            if _is_full(error):
                raise UserError("base", base, "the disk is full, free some space; nothing was published") from error
            raise


@contextlib.contextmanager
def _unfinished_version(base: Path) -> Iterator[Path]:
    """Make a folder that other processes leave alone while this one lives; remove what is left of it at the end."""
    folder = base / f"{EXPORTING}{secrets.token_hex(8)}"
    with hold_lock(_lock_of(folder)):
        folder.mkdir()
        try:
            yield folder
        finally:
            _remove_version(folder)


def _rename_to_version(folder: Path, base: Path, version: int | None) -> Path:
    while True:
        # Again after the writing: another process may have been faster, or be so between this line and the renaming.
        check_version(base, version)
        published = base / str(version or max(_versions(base), default=0) + 1)
        try:
            return folder.rename(published)
        except OSError:
            if not published.exists():
                raise


def check_version(base: Path, version: int | None) -> None:
    """Refuse a version that exists, or a number that cannot be one.

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
    for name in {path.name.removesuffix(LOCK_SUFFIX) for path in base.glob(f"{EXPORTING}*")}:
        with contextlib.suppress(BlockingIOError), hold_lock(_lock_of(base / name)):
            _remove_version(base / name)


def _versions(base: Path) -> list[int]:
    return [int(child.name) for child in base.iterdir() if child.name.isdecimal()] if base.is_dir() else []


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + LOCK_SUFFIX)


def _remove_version(folder: Path) -> None:
    """Remove an unfinished version and its lock file, which this process holds."""
    shutil.rmtree(folder, ignore_errors=True)
    _held.pop(_lock_of(folder).absolute(), None)  # its absence will mean nothing
    with contextlib.suppress(OSError):  # on Windows the file goes when it is closed
        _lock_of(folder).unlink()


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold a lock file until the context ends, or the process, however that ends.

    Args:
        path: the lock file, for nothing else; made if it is not there, and left there. Its folder must exist.

    Raises:
        BlockingIOError: if another process holds it, or another context of this one.
        OSError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / ".lock"
        >>> with hold_lock(path):
        ...     is_locked(path)
        True
    """
    lock = FileLock(path, timeout=LOCK_SECONDS, poll_interval=LOCK_SECONDS / 10)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(errno.EWOULDBLOCK, "another process holds the lock", str(path)) from error
    try:
        _held[path.absolute()] = _inode(path)
        yield
    finally:
        _held.pop(path.absolute(), None)
        lock.release()


def is_held(path: Path) -> bool:
    """Return whether this process holds a lock file, and it is still there: its folder has not been removed."""
    try:
        return _held.get(path.absolute()) == _inode(path)
    except OSError:
        return False


def _inode(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _check_locked_folder(path: Path) -> None:
    """Refuse to make a folder again that was removed while this process had locked it."""
    for lock in list(_held):
        if lock.parent in path.absolute().parents and not is_held(lock):
            advice = "the folder was removed or replaced while this process was at work in it, begin anew"
            raise UserError("--workdir", lock.parent, advice)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Return whether a process holds a lock file."""
    if not path.exists():
        return False
    try:
        with hold_lock(path):
            return False
    except BlockingIOError:
        return True


def _is_full(error: BaseException) -> bool:
    """Return whether a full disk is the reason, in Python's words, HDF5's or TensorFlow's."""
    numbers = [getattr(error, "errno", None), *map(int, re.findall(r"errno = (\d+)", str(error)))]
    return any(number in FULL for number in numbers) or any(os.strerror(number) in str(error) for number in FULL)
