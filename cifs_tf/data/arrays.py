"""Arrays for batches that are used again, because fresh memory takes longer to come than to be filled."""

import math
import sys
import threading

import numpy as np

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
