"""Arrays for batches that are used again, because fresh memory takes longer to come than to be filled."""

import math
import sys
import threading

import numpy as np

# The largest piece of memory, nearly, that glibc learns from (DEFAULT_MMAP_THRESHOLD_MAX of malloc, 32 MiB).
LEARNED_BYTES = 2**25 - 2**16
# Of arrays that TensorFlow takes as they are, without a copy, in floats.
ALIGNMENT = 16


class ReusedArrays:
    """Float32 arrays that are taken again when nobody has them, for as many elements as they had or fewer."""

    def __init__(self) -> None:
        self._owners: list[np.ndarray] = []
        self._never_viewed = [np.empty(0, np.float32)]
        self._taking = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array of a shape, whose content is anything, aligned so that TensorFlow takes it as it is."""
        size = math.prod(shape)
        with self._taking:
            owners, free = self._owners, sys.getrefcount(self._never_viewed[0])
            # Views hold their owner; of one without any, as many know as of that which never was viewed.
            unused = [i for i in range(len(owners)) if sys.getrefcount(owners[i]) == free]
            index = next((i for i in unused if len(owners[i]) >= size + ALIGNMENT), None)
            if index is None:
                for i in reversed(unused):  # smaller than what is wanted now
                    del owners[i]
                index = len(owners)
                owners.append(np.empty(size + ALIGNMENT, np.float32))
            owner = owners[index]
            start = -owner.ctypes.data // owner.itemsize % ALIGNMENT
            return owner[start : start + size].reshape(shape)


def keep_freed_memory() -> None:
    """Let the process keep memory that it frees, 64 MiB a thread at most: images of a megabyte come and go.

    glibc gives a piece back to the system when it is freed and takes a fresh one for the next image, page by page,
    which can cost as much as to decode it, unless it once saw a larger one freed (M_MMAP_THRESHOLD in mallopt(3)): it
    sees one here. Elsewhere this does nothing.
    """
    np.empty(LEARNED_BYTES, np.uint8)
