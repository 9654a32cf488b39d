"""Image files to pixels of one size, many at a time: into memory, or into the cache on disk and from there."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from cifs_tf.config import DataConfig
from cifs_tf.data.arrays import keep_freed_memory
from cifs_tf.data.decoding.files import CHANNELS, MASK, decode_file
from cifs_tf.data.folder_scan import ImageFile, LeftOut, is_image_by_content
from cifs_tf.data.home import cache_folder, lives_in_memory
from cifs_tf.data.memory import check_disk
from cifs_tf.data.progress import decoding_progress
from cifs_tf.data.resizing import mode_of
from cifs_tf.data.stored import Records, StoredImages, digest_of
from cifs_tf.errors import UserError
from cifs_tf.hardware import usable_cores

READ_AS_ARE = "JPEG, PNG, WebP, GIF and BMP are"
# Files that a thread decodes before it hands them over, as threads wait for each other to do so, and how many such
# parts are in the works for each thread: enough that none waits, few enough that their pixels are no burden.
FILES_TOGETHER, AHEAD = 8, 2


class Decoded(NamedTuple):
    """What became of a file: its pixels and their hash, or the reason why there are none."""

    image: np.ndarray | None
    digest: str
    oddity: str | None
    reason: str | None
    stamp: tuple[int, int, int]


class Reader:
    """Reads the files of a folder that a run uses, and remembers what was odd about them.

    Args:
        config: `image_size`, `resize`, `on_corrupt`, `cache` and `cache_dir` are read.
        root: the dataset's folder, which exists.
    """

    def __init__(self, config: DataConfig, root: Path):
        self.config, self.root = config, root
        self.size = None if config.image_size is None else (config.image_size, config.image_size)
        self.mode = mode_of(config)
        self.unreadable: dict[Path, LeftOut] = {}
        self.home = ""
        self._odd: dict[Path, str | None] = {}
        self._digests: dict[Path, str] = {}

    def read(
        self, splits: Mapping[str, Sequence[ImageFile]], others: Sequence[ImageFile] = ()
    ) -> dict[str, np.ndarray | StoredImages] | None:
        """Read the files of some splits.

        Args:
            splits: files by split.
            others: whose size is that of all images, where there are no files to read.

        Returns:
            the images by split; None if there are files that cannot be read and such are skipped: they are in
            `unreadable` then, and others may have to take their place.

        Raises:
            UserError: for a file that cannot be read, unless such are skipped; for files that differ in size, if no
                size is given; if memory or disk are too small, or the cache cannot be used.
        """
        files = [file for chosen in splits.values() for file in chosen]
        first = self._first(files or others)
        if first is None:
            return None
        num_bytes = len(files) * math.prod(first)
        with concurrent.futures.ThreadPoolExecutor(usable_cores()) as self._pool:
            into = self._into_memory if lives_in_memory(self.config, num_bytes) else self._into_cache
            found = into(splits, first)
        return None if any(file.path in self.unreadable for file in files) else found

    def digests(self, files: Sequence[ImageFile]) -> list[bytes]:
        """Return the hash of the pixels of each file, empty for those that were not read."""
        return [bytes.fromhex(self._digests.get(file.path, "")) for file in files]

    def notes(self) -> list[str]:
        """Return a sentence for each oddity of the files that were read, with their number.

        Raises:
            UserError: if all of them are black.
        """
        odd = collections.Counter(filter(None, self._odd.values()))
        if odd[MASK] == len(self._odd) > 0:
            raise UserError(
                "--dataset",
                self.config.dataset,
                "the pixels of all its images are 0 and 1 of 255; write them times 255",
            )
        return [f"{count:,} {'file' if count == 1 else 'files'}: {oddity}" for oddity, count in odd.items()]

    def _first(self, files: Sequence[ImageFile]) -> tuple[int, int, int] | None:
        """Return the shape of all images: that of the first file that can be read, if none was asked for."""
        if self.size is not None:
            return (*self.size, CHANNELS)
        for file in files:
            image = self._taken(file, self._decode(file)).image
            if image is not None:
                return image.shape
        return None

    def _into_memory(self, splits: Mapping[str, Sequence[ImageFile]], shape: tuple[int, int, int]) -> dict[str, Any]:
        images = {split: np.empty((len(files), *shape), np.uint8) for split, files in splits.items()}
        places = [(split, place) for split, files in splits.items() for place in range(len(files))]
        files = [file for chosen in splits.values() for file in chosen]
        for file, (split, place), decoded in zip(files, places, self._decoded(files), strict=True):
            if decoded.image is not None:
                images[split][place] = self._fitting(file, decoded.image, shape)
        self.home = f"in memory, {sum(each.nbytes for each in images.values()) / 2**20:,.0f} MiB"
        return images

    def _into_cache(self, splits: Mapping[str, Sequence[ImageFile]], shape: tuple[int, int, int]) -> dict[str, Any]:
        root = self.root
        records = Records(cache_folder(self.config, root.resolve().name, [str(root.resolve())]))
        if root.resolve() in records.folder.resolve().parents:
            advice = f"it lies in the dataset's folder {root}, whose images it would be taken for; give another"
            raise UserError("--cache_dir", records.folder.parent, advice)
        names = {file.path: file.path.relative_to(root).as_posix() for chosen in splits.values() for file in chosen}

        def missing() -> list[ImageFile]:
            if records.shape != shape:
                records.entries.clear()
            return [file for chosen in splits.values() for file in chosen if not self._known(file, records, names)]

        if wanted := missing():
            check_disk(records.folder, len(wanted) * math.prod(shape))
            with records.writing(shape) as add:
                wanted = missing()  # another process may have been at it
                for file, decoded in zip(wanted, self._decoded(wanted), strict=True):
                    if decoded.image is not None:
                        image = self._fitting(file, decoded.image, shape)
                        add(image, names[file.path], decoded.stamp, decoded.digest, decoded.oddity)
        self.home = records.describe(len(names))
        return {
            split: StoredImages(
                records,
                np.array([records.entries[names[file.path]].record for file in files if file.path in self._digests]),
            )
            for split, files in splits.items()
        }

    def _known(self, file: ImageFile, records: Records, names: Mapping[Path, str]) -> bool:
        """Return whether the cache has a file as it is now; its hash and oddity are taken over then."""
        try:
            status = file.path.stat()
        except OSError:
            return False  # decoding says why
        entry = records.find(names[file.path], _stamp(status))
        if entry is None:
            return False
        self._digests[file.path], self._odd[file.path] = entry.digest, entry.oddity
        return True

    def _decoded(self, files: Sequence[ImageFile]) -> Iterator[Decoded]:
        """Decode files in parallel, and yield them in order, a few ahead of what is taken."""
        together = 1 if self.size is None else FILES_TOGETHER  # as they are, they may be large
        parts = [files[start : start + together] for start in range(0, len(files), together)]
        keep_freed_memory()
        with decoding_progress(len(files)) as advance:
            found = _in_order(self._pool, lambda part: [self._decode(file) for file in part], parts)
            for file, decoded in zip(files, itertools.chain.from_iterable(found), strict=True):
                advance()
                yield self._taken(file, decoded)

    def _taken(self, file: ImageFile, decoded: Decoded) -> Decoded:
        if decoded.image is not None:
            self._digests[file.path], self._odd[file.path] = decoded.digest, decoded.oddity
        elif self.config.on_corrupt == "refuse":
            advice = (
                f"the file {file.path} cannot be read as an image ({decoded.reason}); remove it, or give "
                "--on_corrupt skip"
            )
            raise UserError("--dataset", self.config.dataset, advice)
        else:
            name = str(file.path.relative_to(self.root))
            self.unreadable[file.path] = LeftOut(name, str(decoded.reason), is_unreadable=True)
        return decoded

    def _fitting(self, file: ImageFile, image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        if image.shape != shape:
            size = f"{image.shape[1]}x{image.shape[0]}"
            advice = f"{file.path} is {size} and others are not; give the side to resize them to"
            raise UserError("--image_size", None, advice)
        return image

    def _decode(self, file: ImageFile) -> Decoded:
        """Decode a file and bring it to the size; called in threads."""
        try:
            status = file.path.stat()
            pixels, oddity = decode_file(file.path.read_bytes(), self.size, self.mode)
            return Decoded(pixels, digest_of(pixels), oddity, None, _stamp(status))
        except (tf.errors.InvalidArgumentError, OSError) as error:
            reason = (
                f"it cannot be decoded, {READ_AS_ARE}" if not _readable(file.path) else "it is damaged or cut short"
            )
            if isinstance(error, OSError):
                reason = str(error.strerror)
            elif not file.path.stat().st_size:
                reason = "it is empty"
            return Decoded(None, "", None, reason, (0, 0, 0))


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Return what tells a file from others of its name: size, time in ns of its last change, number on the disk.

    The time is that of its content, or of its name, which keeps the time of the content. Files of a folder keep both
    when it is renamed, and an archive writes many in one tick of the clock; the number tells these apart.
    """
    return status.st_size, max(status.st_mtime_ns, status.st_ctime_ns), status.st_ino


def _in_order(
    pool: concurrent.futures.ThreadPoolExecutor, function: Callable[[Any], Any], items: Sequence[Any]
) -> Iterator[Any]:
    """Map in parallel and in order, with a bounded number of results that wait."""
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    rest = iter(items)
    for item in itertools.islice(rest, AHEAD * usable_cores()):
        waiting.append(pool.submit(function, item))
    try:
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(rest, 1))
            yield result
    finally:
        for future in waiting:
            future.cancel()


def _readable(file: Path) -> bool:
    try:
        return is_image_by_content(file)
    except OSError:
        return True
