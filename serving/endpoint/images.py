"""How large the images in a request are, read from their headers: none is decoded before that is known."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable

from PIL import Image

from serving.endpoint.status import invalid_argument

PNG = b"\x89PNG\r\n\x1a\n"
JPEG_XL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")
FORMATS = ("JPEG", "GIF", "BMP", "WEBP")


def check_images(files: Iterable[bytes], max_pixels: int) -> None:
    """Refuse image files that say they are too large: a few bytes can decode to gigabytes.

    Args:
        files: texts of a request; what is no image is left alone.
        max_pixels: of all of them together, > 0.

    Raises:
        StatusError: INVALID_ARGUMENT, naming the limit's flag; also for JPEG XL, whose size is not read here.
    """
    pixels = 0
    for index, file in enumerate(files):
        if file.startswith(JPEG_XL):
            raise invalid_argument(f"Image {index} is JPEG XL, which this server does not take; send PNG or JPEG")
        width, height = image_size(file)
        pixels += width * height
        if pixels > max_pixels:
            raise invalid_argument(
                f"Images of more than {max_pixels} pixels in a request are not decoded (--max_image_pixels); image "
                f"{index} has {width} x {height}"
            )


def image_size(file: bytes) -> tuple[int, int]:
    """Width and height that an image file claims, (0, 0) for what is none.

    Example:
        >>> image_size(b"no image")
        (0, 0)
    """
    if file.startswith(PNG):  # by hand, for a damaged file too: the header stands at a fixed place
        return struct.unpack(">II", file[16:24]) if len(file) >= 24 else (0, 0)
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            return image.size
    except Image.DecompressionBombError:
        return 2**31, 2**31
    except Exception:  # Pillow raises whatever a damaged header leads it to; the model says that it is no image
        return 0, 0
