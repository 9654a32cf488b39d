"""Sizes of resized images, in integers: training, the exported model and the client compute the same.

All of it takes integers of Python, or scalar integer tensors; the client has no TensorFlow, so there is none in it.
"""

from typing import Any, Literal

Resize = Literal["crop", "stretch", "pad"]


def largest_part(height: Any, width: Any, size: tuple[int, int]) -> tuple[Any, Any]:
    """Return height and width of the largest part of an image that has the shape of `size`, (height, width).

    Example:
        >>> largest_part(30, 40, (8, 8))
        (30, 30)
    """
    return _between(width * size[0] // size[1], height), _between(height * size[1] // size[0], width)


def scaled_into(height: Any, width: Any, size: tuple[int, int]) -> tuple[Any, Any]:
    """Return height and width, rounded, of an image that is scaled to lie just within `size`, (height, width).

    Example:
        >>> scaled_into(30, 40, (8, 8))
        (6, 8)
    """
    return (
        _between((2 * height * size[1] + width) // (2 * width), size[0]),
        _between((2 * width * size[0] + height) // (2 * height), size[1]),
    )


def _between(value: Any, high: Any) -> Any:
    """Return the value, but 1 at least and `high` at most."""
    lower = (value + high - abs(value - high)) // 2
    return (lower + 1 + abs(lower - 1)) // 2
