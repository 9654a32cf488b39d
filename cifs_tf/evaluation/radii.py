"""Radii of balls: the usual one of each norm, and the one in which any image may become any other."""

import math
from collections.abc import Sequence

CIFAR_SHAPE = (32, 32, 3)


def farthest_radius(norm: str, image_shape: Sequence[int]) -> float:
    """Return the radius at which any image may become any other."""
    size = math.prod(image_shape)
    return {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}[norm]


def default_epsilon(norm: str, image_shape: Sequence[int]) -> float:
    """Return the radius of RobustBench for CIFAR-10 in L2 (0.5) or L1 (12), as long for each value of these images.

    Args:
        norm: `"l2"` or `"l1"`.
        image_shape: (height, width, channels).

    Example:
        >>> default_epsilon("l2", (32, 32, 3))
        0.5
    """
    share = math.prod(image_shape) / math.prod(CIFAR_SHAPE)
    return 0.5 * math.sqrt(share) if norm == "l2" else 12 * share
