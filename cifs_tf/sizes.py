"""Sizes of resized images, in integers: training, the exported model and the client compute the same.

All of it takes integers of Python, or scalar integer tensors; the client has no TensorFlow, so there is none in it.
"""

from typing import Any, Literal

Resize = Literal["crop", "stretch", "pad"]

# The EXIF orientation (EXIF 2.3), and which of them exchange height and width.
ORIENTATION_TAG = 274
TRANSPOSED = (5, 6, 7, 8)


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


def halvings(height: Any, width: Any, size: tuple[int, int], mode: Resize) -> Any:
    """Return how often both sides of a JPEG file may be halved while it is decoded, before it is resized.

    libjpeg decodes to a half, a fourth or an eighth in less time. What is left is at least twice as large as the
    result, so that the antialiased resize, which takes the rest, decides how it looks.

    Args:
        height: of the image, upright, in pixels.
        width: of the image, upright, in pixels.
        size: height and width of the result.
        mode: how it is resized.

    Returns:
        0 to 3.

    Example:
        >>> halvings(533, 400, (64, 64), "crop"), halvings(3000, 4000, (64, 64), "crop")
        (1, 3)
    """
    target = scaled_into(height, width, size) if mode == "pad" else size
    if mode == "crop":
        height, width = largest_part(height, width, size)
    times = _lesser(height // (2 * target[0]), width // (2 * target[1]))
    return sum(_lesser(times // ratio, 1) for ratio in (2, 4, 8))


def draft(picture: Any, orientation: Any, size: tuple[int, int], mode: Resize) -> None:
    """Let Pillow decode a JPEG file smaller, as `halvings` says; of other files it decodes all.

    Args:
        picture: opened and not loaded.
        orientation: of its EXIF.
        size: height and width to which it is resized.
        mode: how.
    """
    width, height = picture.size
    upright = (width, height) if orientation in TRANSPOSED else (height, width)
    times = halvings(*upright, size, mode)
    picture.draft(None, (width >> times, height >> times))


def _between(value: Any, high: Any) -> Any:
    """Return the value, but 1 at least and `high` at most."""
    lower = _lesser(value, high)
    return (lower + 1 + abs(lower - 1)) // 2


def _lesser(one: Any, other: Any) -> Any:
    return (one + other - abs(one - other)) // 2
