"""Decoded images on disk: records of one size in a file, found by the names of the files that they were decoded from.

`pixels.bin` holds one record of uint8 pixels after another, and is only ever appended to. `index.jsonl` says in its
first line what they are, and in each further line which file a record is of: its name, size, time and number on
the disk, the record's number, the hash of its pixels, and a checksum of them, which is computed four times as fast.
Each line begins with a checksum of itself. It is written when its record is on the disk, so a process may be killed at
any moment: what was in the index before is there, and the same command decodes the rest.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import math
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifs_tf.data.arrays import ReusedArrays
from cifs_tf.data.folder_scan import ImageFile
from cifs_tf.errors import UserError
from cifs_tf.files import hold_lock

SCHEMA = 3
HASH_BYTES = 8
LOCK_SECONDS = 1.0
# Records that are written to the disk together.
FLUSHED_TOGETHER = 128
# Of all batches of a process: those of training and of validation are made in turn.
ARRAYS = ReusedArrays()


class Entry(NamedTuple):
    """A record of the index.

    Args:
        name: of the file, below the dataset's folder.
        size: of the file, in bytes.
        time: of its last change, in nanoseconds.
        inode: its number on the disk, which tells it from another that was given its name.
        record: its number in the file of pixels; -1 takes the name out of the index.
        digest: hash of its pixels, hexadecimal.
        oddity: what is lost of it when it is decoded, or None.
        checksum: CRC-32 of its pixels.
    """

    name: str
    size: int
    time: int
    inode: int
    record: int
    digest: str
    oddity: str | None
    checksum: int


def digest_of(content: bytes | np.ndarray) -> str:
    """Return the hash of bytes, or of an image's pixels, 16 hexadecimal digits."""
    data = content if isinstance(content, bytes) else np.ascontiguousarray(content).data
    return hashlib.blake2b(data, digest_size=HASH_BYTES).hexdigest()


class Records:
    """The images of one folder, resized in one way, in a folder of the cache.

    Several processes may read, and one at a time writes, see `writing`.

    Args:
        folder: of the records, made by `writing`.

    Raises:
        UserError: if it cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.shape: tuple[int, int, int] | None = None
        self.entries: dict[str, Entry] = {}
        self.fault: UserError | None = None
        self._file: int | None = None
        self._checked: set[int] = set()
        self._opening = threading.Lock()
        self.reload()

    def reload(self) -> None:
        """Read the index again; what is cut, or has no record on the disk, is left out."""
        self.shape, self.entries, self._names = None, {}, {}
        try:
            lines = (self.folder / "index.jsonl").read_bytes().split(b"\n")[:-1]  # the last is empty, or was cut
            stored = (self.folder / "pixels.bin").stat().st_size
            header = _unsealed(lines[0])
            if header["schema"] != SCHEMA:
                return
            self.shape = tuple(header["shape"])
            for line in lines[1:]:
                entry = Entry(*_unsealed(line))
                if entry.record < 0:
                    self.entries.pop(entry.name, None)
                elif (entry.record + 1) * self.record_bytes <= stored:
                    self.entries[entry.name] = entry
        except (FileNotFoundError, IndexError):
            return
        except (ValueError, KeyError, TypeError):  # damaged: all is decoded again
            self.shape, self.entries = None, {}
        except OSError as error:
            raise UserError("--cache_dir", self.folder, f"it cannot be read ({error.strerror})") from error
        self._names = {entry.record: entry.name for entry in self.entries.values()}

    @property
    def record_bytes(self) -> int:
        """Bytes of an image."""
        return math.prod(self.shape or ())

    def describe(self, number: int) -> str:
        """Say where so many of them are, as a sentence goes on after "images are"."""
        return f"read from {self.folder}, {number * self.record_bytes / 2**20:,.0f} MiB, as they are needed"

    def find(self, name: str, stamp: tuple[int, int, int]) -> Entry | None:
        """Return the record of a file of this size, time and number on the disk; None if there is none."""
        entry = self.entries.get(name)
        return entry if entry is not None and entry[1:4] == stamp else None

    def digest(self, record: int) -> bytes:
        """Return the hash of the pixels of a record."""
        return bytes.fromhex(self.entries[self._names[record]].digest)

    @contextlib.contextmanager
    def writing(self, shape: tuple[int, int, int]) -> Iterator[Callable[..., None]]:
        """Wait until no other process writes, and yield the function that adds a record.

        It takes an image, its name, the size, time and number of its file, its hash and oddity. What it took is in the
        index for certain when the context ends, and in parts before that.

        Args:
            shape: of the images; other records that are there are given up.

        Raises:
            UserError: if the folder cannot be written to, or the disk is full.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock(), contextlib.ExitStack() as files:
                self.reload()
                if self.shape != shape:
                    self._begin(shape)
                index = files.enter_context((self.folder / "index.jsonl").open("r+b"))
                index.truncate(index.read().rfind(b"\n") + 1)  # a line that was cut
                index.seek(0, os.SEEK_END)
                pixels = files.enter_context((self.folder / "pixels.bin").open("r+b"))
                disk = files.enter_context(concurrent.futures.ThreadPoolExecutor(1))
                pending: list[Entry] = []
                flushed: tuple[Sequence[Entry], concurrent.futures.Future] = (), disk.submit(int)
                # After the last whole one, whatever the index says of it: nobody else may read it then.
                following = -(-pixels.seek(0, os.SEEK_END) // self.record_bytes)
                pixels.seek(following * self.record_bytes)

                def put_into_index(entries: Sequence[Entry]) -> None:
                    getattr(os, "fdatasync", os.fsync)(pixels.fileno())  # macOS has the second alone
                    index.write(b"".join(map(_sealed, entries)))
                    index.flush()
                    os.fsync(index.fileno())

                def flush(entries: Sequence[Entry]) -> None:
                    """Begin to write these to the disk, beside the decoding, when those before them are there."""
                    nonlocal flushed
                    before, done = flushed
                    done.result()
                    for entry in before:
                        self.entries[entry.name] = entry
                        self._names[entry.record] = entry.name
                        self._checked.add(entry.record)
                    pixels.flush()
                    flushed = entries, disk.submit(put_into_index, entries)

                def add(
                    image: np.ndarray, name: str, stamp: tuple[int, int, int], digest: str, oddity: str | None
                ) -> None:
                    nonlocal following, pending
                    written = np.ascontiguousarray(image).data
                    pixels.write(written)
                    pending.append(Entry(name, *stamp, following, digest, oddity, zlib.crc32(written)))
                    following += 1
                    if len(pending) == FLUSHED_TOGETHER:
                        flush(pending)
                        pending = []

                try:
                    yield add
                finally:  # a file that is refused does not undo those before it
                    flush(pending)
                    flush(())
        except OSError as error:
            advice = f"it cannot be written to ({error.strerror}); free some space, or give another folder"
            raise UserError("--cache_dir", self.folder, advice) from error

    def read(self, record: int, image: np.ndarray) -> None:
        """Read an image by its number, and compare it with its checksum the first time.

        Args:
            record: its number.
            image: uint8 of `shape`, to read into.

        Raises:
            UserError: if it is not what was written; it is taken out of the index. `fault` keeps the error, which
                tf.data passes on as one of its own.
        """
        try:
            with self._opening:
                if self._file is None:
                    self._file = os.open(self.folder / "pixels.bin", os.O_RDONLY)
            found = os.preadv(self._file, [image.data], record * self.record_bytes)
        except OSError as error:  # the folder was removed, or its disk is damaged
            advice = f"it cannot be read any more ({error.strerror}); the same command makes it again"
            self.fault = UserError("--cache_dir", self.folder, advice)
            raise self.fault from error
        if found == self.record_bytes and record in self._checked:
            return
        name = self._names[record]
        if found != self.record_bytes or zlib.crc32(image.data) != self.entries[name].checksum:
            number = self._forget_damaged()
            others = "" if number == 1 else f", as {number - 1:,} others are"
            advice = f"its record of {name} is damaged{others}; the same command decodes them again"
            self.fault = UserError("--cache_dir", self.folder, advice)
            raise self.fault
        self._checked.add(record)

    def _forget_damaged(self) -> int:
        """Take all that is not what was written out of the index, so that one command more decodes it; count it."""
        size, file = self.record_bytes, self._file or 0

        def is_damaged(entry: Entry) -> bool:
            return zlib.crc32(os.pread(file, size, entry.record * size)) != entry.checksum

        damaged = list(filter(is_damaged, self.entries.values()))
        lines = [_sealed(Entry(entry.name, 0, 0, 0, -1, "", None, 0)) for entry in damaged]
        with contextlib.suppress(OSError), self._lock(), (self.folder / "index.jsonl").open("ab") as index:
            index.write(b"".join(lines))
        return len(damaged)

    def _begin(self, shape: tuple[int, int, int]) -> None:
        """Start with empty files, the index last: without one there is nothing."""
        (self.folder / "index.jsonl").unlink(missing_ok=True)
        (self.folder / "pixels.bin").unlink(missing_ok=True)  # who reads it has it open
        (self.folder / "pixels.bin").touch()
        (self.folder / "index.jsonl").write_bytes(_sealed({"schema": SCHEMA, "shape": shape}))
        self.shape, self.entries, self._names = shape, {}, {}

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            said = False
            while True:
                try:
                    held.enter_context(hold_lock(self.folder / ".lock"))
                    break
                except BlockingIOError:
                    if not said:
                        print(f"waiting: another process writes to {self.folder}", flush=True)
                    said = True
                    time.sleep(LOCK_SECONDS)
            yield


class StoredImages:
    """Images on disk, read when they are asked for; they stand where an array (examples, ...) would.

    Args:
        records: where they lie.
        numbers: int (examples,), of their records.

    Example:
        >>> import tempfile
        >>> records, image = Records(Path(tempfile.mkdtemp())), np.zeros((8, 8, 3), np.uint8)
        >>> with records.writing(image.shape) as add:
        ...     add(image, "cat/1.jpg", (5_000, 0, 0), digest_of(image), None)
        >>> StoredImages(records, np.array([0]))[:].shape
        (1, 8, 8, 3)
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, records: Records, numbers: np.ndarray):
        self.records, self.numbers = records, numbers

    @property
    def shape(self) -> tuple[int, ...]:
        """(examples, height, width, channels)."""
        return len(self.numbers), *(self.records.shape or ())

    @property
    def ndim(self) -> int:
        """Number of dimensions, 4."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, key: Any) -> np.ndarray:
        if (
            isinstance(key, tuple)
            or key is None
            or key is Ellipsis
            or (not isinstance(key, slice) and np.ndim(key) > 1)
        ):
            raise IndexError("images on disk take one index, a slice or a list of indices; images[:] reads all of them")
        chosen = self.numbers[key]
        images = np.empty((*np.shape(chosen), *self.shape[1:]), np.uint8)
        for image, record in zip(images if np.ndim(chosen) else [images], np.atleast_1d(chosen).tolist(), strict=True):
            self.records.read(record, image)
        return images

    def reader_of_floats(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return a function from indices to float32 images in [0, 1], for many threads.

        What it returns is used again when nobody has it any more, so it is faster than to convert whole batches.
        """

        def read(indices: np.ndarray) -> np.ndarray:
            floats, pixels = ARRAYS.take((len(indices), *self.shape[1:])), np.empty(self.shape[1:], np.uint8)
            for image, record in zip(floats, self.numbers[indices].tolist(), strict=True):
                self.records.read(record, pixels)
                np.copyto(image, pixels)
                np.divide(image, np.float32(255), out=image)
            return floats

        return read

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read all of them into memory (NumPy's protocol)."""
        return self[:].astype(dtype or self.dtype, copy=False)

    def digests(self) -> list[bytes]:
        """Return the hash of each image's pixels, without reading them."""
        return [self.records.digest(number) for number in self.numbers.tolist()]

    def take(self, indices: np.ndarray) -> StoredImages:
        """Return some of them, which are not read by that."""
        return StoredImages(self.records, self.numbers[indices])


class UnreadImages:
    """Image files that are not decoded (yet); they stand where an array (examples, ...) would.

    Args:
        files: to decode.
        shape: of an image. Default None: not known yet.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, files: Sequence[ImageFile], shape: tuple[int, int, int] | None = None):
        self.files = tuple(files)
        self._shape = shape

    @property
    def shape(self) -> tuple[int, ...]:
        """(examples, height, width, channels)."""
        return len(self.files), *(self._shape or ())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: object) -> np.ndarray:
        raise RuntimeError("these images were not loaded: name their split in `load_dataset(config, splits)`")

    def reader_of_floats(self) -> Callable[[np.ndarray], np.ndarray]:
        """Refuse: there is nothing to read."""
        return self[:]  # type: ignore[return-value]

    def take(self, indices: np.ndarray) -> UnreadImages:
        """Return some of them."""
        return UnreadImages([self.files[index] for index in np.arange(len(self.files))[indices]], self._shape)


def _sealed(value: Any) -> bytes:
    """Write a line of the index: a checksum, and the value as JSON."""
    text = json.dumps(value, ensure_ascii=True).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _unsealed(line: bytes) -> Any:
    """Read a line of the index, without its end.

    Raises:
        ValueError: if it is not as it was written.
    """
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        raise ValueError(f"a damaged line: {line[:40]!r}")
    return json.loads(text)
