"""Sizes of the images in a request, read from their headers before one of them is decoded."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable

from PIL import Image

from cifs_tf.serving.endpoint.status import invalid_argument

PNG = b"\x89PNG\r\n\x1a\n"
GIF = b"GIF8"
# Of a BMP file: sizes of its header below which it is of OS/2, with its fields elsewhere, and bits of a colour.
BMP_HEADER_BYTES, BMP_COLOUR_BITS = 40, 24
JPEG_XL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")
# Formats whose header Pillow reads, by how their files begin.
HEADERS = {b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"RIFF": "WEBP"}


def holds_images(signature_name: str, input_name: str) -> bool:
    """Return whether an input takes image files: that of this project's exports; other bytes are the model's matter."""
    return (signature_name, input_name) == ("encoded", "image_bytes")


def check_image_files(files: Iterable[bytes], max_pixels: int) -> None:
    """Refuse image files that say they are too large: a few bytes can decode to gigabytes.

    Args:
        files: image files of a request; other contents are left to the model to refuse.
        max_pixels: of all of them together, > 0.

    Raises:
        StatusError: INVALID_ARGUMENT, naming the limit's flag; also for JPEG XL, and for images whose header cannot be
            read, since a decoder may be able to, and BMP files with a palette or of OS/2, which the model misreads.
    """
    pixels = 0
    for index, file in enumerate(files):
        if file.startswith(JPEG_XL):
            raise invalid_argument(f"Image {index} is JPEG XL, which this server does not take; send PNG or JPEG")
        if file.startswith(b"BM") and not _is_plain_bmp(file):
            raise invalid_argument(
                f"Image {index} is a BMP file with a palette or of OS/2, which is not read; send PNG"
            )
        try:
            claimed = count_pixels(file)
        except Exception as error:  # Pillow raises whatever a damaged header leads it to
            raise invalid_argument(f"Image {index} has a header that cannot be read; send PNG or JPEG") from error
        pixels += claimed
        if pixels > max_pixels:
            raise invalid_argument(
                f"Images of more than {max_pixels} pixels in a request are not decoded (--max_image_pixels); image "
                f"{index} has {claimed}"
            )


def _is_plain_bmp(file: bytes) -> bool:
    header, bits = int.from_bytes(file[14:18], "little"), int.from_bytes(file[28:30], "little")
    return header >= BMP_HEADER_BYTES and bits >= BMP_COLOUR_BITS


def count_pixels(file: bytes) -> int:
    """Count the pixels that an image file claims, over all frames of an animation; 0 if it is not an image.

    Raises:
        Exception: of whichever kind, if its header is damaged.

    Example:
        >>> count_pixels(b"no image")
        0
    """
    if file.startswith(PNG):  # at a fixed place, in a damaged file too
        width, height = struct.unpack(">II", file[16:24]) if len(file) >= 24 else (0, 0)
        return int(width * height)
    if file.startswith(GIF):
        return _gif_pixels(file)
    kind = next((kind for start, kind in HEADERS.items() if file.startswith(start)), None)
    if kind is None:
        return 0
    try:
        with Image.open(io.BytesIO(file), formats=[kind]) as image:
            return int(image.width * image.height)
    except Image.DecompressionBombError:
        return 2**62


def _gif_pixels(file: bytes) -> int:
    """Count the pixels of all frames: a decoder gives every frame the size of the largest, and decodes them all."""
    width, height, flags = struct.unpack("<HHB", file[6:11])
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    frames = 0
    while position < len(file) and file[position] != 0x3B:
        if file[position] == 0x2C:
            left, top, across, down, flags = struct.unpack("<HHHHB", file[position + 1 : position + 10])
            width, height, frames = max(width, left + across), max(height, top + down), frames + 1
            position += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        else:
            position += 2
        while position < len(file) and file[position]:  # data, in blocks that tell their length
            position += 1 + file[position]
        position += 1
    return int(width * height * max(1, frames))
