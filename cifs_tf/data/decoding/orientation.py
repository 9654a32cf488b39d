"""The orientation of a photograph: found in its file, in TensorFlow operations, and undone.

Cameras write it instead of turning the pixels: in EXIF (EXIF 2.3, tag 274), or in XMP, which counts where EXIF has
none. Both are read as Pillow's `exif_transpose` does, but for what a PNG file holds compressed.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from cifs_tf.sizes import ORIENTATION_TAG, TRANSPOSED

UPRIGHT = 1
# What the orientations are made of, besides.
MIRRORED, FLIPPED = (2, 3, 6, 7), (3, 4, 7, 8)
# Types of numbers in TIFF by their bytes: a byte with sign, shorts and longs without and with.
NUMBERS = {1: (6,), 2: (3, 8), 4: (4, 9)}
# Bytes that a marker, a chunk or a TIFF field begins with.
EXIF_HEADER, JPEG_XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
PNG_EXIF, PNG_XMP = b"eXIf", b"iTXtXML:com.adobe.xmp\0"
WEBP_EXIF, WEBP_XMP = b"EXIF", b"XMP "
XMP_ORIENTATION = b"tiff:Orientation"
XMP_SIZE = 2**17  # with what lies before it
# A file without one of these has no orientation.
ORIENTATION_MARKS = (EXIF_HEADER, PNG_EXIF, WEBP_EXIF, XMP_ORIENTATION)
JPEG, PNG, RIFF, WEBP = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF", b"WEBP"
WEBP_AT = 8
START_OF_SCAN, APP1 = 0xDA, 0xE1
# Markers without a length: TEM, the restarts, and the start and the end of an image.
STANDALONE = (0x01, *range(0xD0, 0xDA))
# Both stand near the front; a file made of millions of empty parts must not keep a server busy.
MAXIMUM_PARTS = 4096


def turn_array_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Return a view of an array that is turned as by `turn_upright`."""
    image = image.transpose(1, 0, 2) if orientation in TRANSPOSED else image
    image = image[:, ::-1] if orientation in MIRRORED else image
    return image[::-1] if orientation in FLIPPED else image


def turn_upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undo an EXIF orientation: mirror and transpose pixels, none is computed.

    Args:
        image: (height, width, channels).
        orientation: int32 scalar, 1 to 8 as in EXIF; anything else leaves the image as it is.

    Returns:
        like the image, with height and width exchanged for 5 to 8.
    """
    image = tf.cond(is_in(orientation, TRANSPOSED), lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    image = tf.cond(is_in(orientation, MIRRORED), lambda: tf.reverse(image, [1]), lambda: image)
    return tf.cond(is_in(orientation, FLIPPED), lambda: tf.reverse(image, [0]), lambda: image)


def is_in(orientation: tf.Tensor, chosen: tuple[int, ...]) -> tf.Tensor:
    """Return whether an orientation is one of some."""
    return tf.reduce_any(orientation == tf.constant(chosen))


def exif_orientation(content: tf.Tensor) -> tf.Tensor:
    """Read the orientation of a JPEG, PNG or WebP file: of EXIF, or of XMP where EXIF has none.

    Args:
        content: uint8 (bytes,), the file.

    Returns:
        int32 scalar, 1 (upright) where the file does not say.
    """
    # Read at positions beyond the end too, as a 0: padded once, not at each look, which would copy the whole file.
    content = tf.pad(content, [[0, 1]])
    is_webp = tf.logical_and(begins(content, 0, RIFF), begins(content, WEBP_AT, WEBP))
    exif, xmp = tf.case(
        [
            (begins(content, 0, JPEG), lambda: _walk(content, 2, _jpeg_segment)),
            (begins(content, 0, PNG), lambda: _walk(content, len(PNG), _png_chunk)),
            (is_webp, lambda: _walk(content, 12, _webp_chunk)),
        ],
        default=lambda: (tf.constant(-1), tf.constant(-1)),
    )
    found = tf.cond(exif >= 0, lambda: _orientation_in_exif(content, exif), lambda: tf.constant(0))
    after = tf.where(xmp < 0, exif, xmp)  # XMP comes soon after EXIF
    found = tf.cond((found == 0) & (after >= 0), lambda: _orientation_in_xmp(content, after), lambda: found)
    return tf.where(found == 0, UPRIGHT, found)


def _walk(content: tf.Tensor, start: int, read: Callable) -> tuple[tf.Tensor, tf.Tensor]:
    """Go from part to part of a file until one holds EXIF; return where it lies, and an XMP before it, or -1."""

    def step(at: tf.Tensor, exif: tf.Tensor, xmp: tf.Tensor) -> tuple[tf.Tensor, ...]:
        following, exif, xmp_here = read(content, at)
        return following, exif, tf.where(xmp < 0, xmp_here, xmp)

    def goes_on(at: tf.Tensor, exif: tf.Tensor, xmp: tf.Tensor) -> tf.Tensor:
        return tf.logical_and(exif < 0, tf.logical_and(at >= 0, at + 8 < tf.size(content) - 1))

    none = tf.constant(-1)
    _, exif, xmp = tf.while_loop(goes_on, step, (tf.constant(start), none, none), maximum_iterations=MAXIMUM_PARTS)
    return exif, xmp


def _jpeg_segment(content: tf.Tensor, at: tf.Tensor) -> tuple[tf.Tensor, ...]:
    marker = _big(content, at, 2)
    is_application = marker == 0xFF00 + APP1
    is_exif = tf.logical_and(is_application, begins(content, at + 4, EXIF_HEADER))
    is_xmp = tf.logical_and(is_application, begins(content, at + 4, JPEG_XMP))
    # Bytes that fill up, or belong to nothing, come before a marker.
    is_filling = (marker < 0xFF00) | (marker == 0xFFFF) | (marker == 0xFF00)
    is_standalone = tf.reduce_any(marker - 0xFF00 == tf.constant(STANDALONE))
    length = tf.where(is_filling, 1, tf.where(is_standalone, 2, 2 + _big(content, at + 2, 2)))
    following = tf.where(marker == 0xFF00 + START_OF_SCAN, -1, at + length)
    return following, tf.where(is_exif, at + 4, -1), tf.where(is_xmp, at + 4, -1)


def _png_chunk(content: tf.Tensor, at: tf.Tensor) -> tuple[tf.Tensor, ...]:
    is_exif, is_xmp = (begins(content, at + 4, mark) for mark in (PNG_EXIF, PNG_XMP))
    following = _after(at, _big(content, at, 4), 12)
    return following, tf.where(is_exif, at + 8, -1), tf.where(is_xmp, at + 8, -1)


def _webp_chunk(content: tf.Tensor, at: tf.Tensor) -> tuple[tf.Tensor, ...]:
    size = little(content, at + 4, 4)
    is_exif, is_xmp = (begins(content, at, mark) for mark in (WEBP_EXIF, WEBP_XMP))
    return _after(at, size + size % 2, 8), tf.where(is_exif, at + 8, -1), tf.where(is_xmp, at + 8, -1)


def _after(at: tf.Tensor, size: tf.Tensor, frame: int) -> tf.Tensor:
    """Return where the next part begins; -1 if the size is negative, as one of 2 GiB and more is in int32."""
    return tf.where(size < 0, -1, at + frame + size)


def _orientation_in_exif(content: tf.Tensor, header: tf.Tensor) -> tf.Tensor:
    """Look the orientation up in the first directory of a TIFF header: entries of 12 bytes, a tag and its value."""
    for _ in range(2):  # some write the name of EXIF twice
        header += tf.where(begins(content, header, EXIF_HEADER), len(EXIF_HEADER), 0)
    is_little = begins(content, header, b"II")

    def number(at: tf.Tensor, size: int) -> tf.Tensor:
        return tf.where(is_little, little(content, at, size), _big(content, at, size))

    directory = header + number(header + 4, 4)
    entries = directory + 2 + 12 * tf.range(number(directory, 2))
    kinds, counts, values = number(entries + 2, 2), number(entries + 4, 4), tf.zeros_like(entries)
    for size, types in NUMBERS.items():  # more than fit into 4 bytes lie elsewhere
        is_here = tf.reduce_any(kinds[:, None] == tf.constant(types), -1) & (counts > 0) & (counts * size <= 4)
        values = tf.where(is_here, number(entries + 8, size), values)
    values = tf.boolean_mask(values, number(entries, 2) == ORIENTATION_TAG)
    return tf.cond(tf.size(values) > 0, lambda: values[-1], lambda: tf.constant(0))


def _orientation_in_xmp(content: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Find `tiff:Orientation="6"`, or `<tiff:Orientation>6<`, in what follows."""
    part = tf.pad(content[start : start + XMP_SIZE], [[0, 1]])
    places = tf.cast(tf.where((part[:-1] == XMP_ORIENTATION[0]) & (part[1:] == XMP_ORIENTATION[1]))[:, 0], tf.int32)
    is_name = tf.reduce_all(_bytes(part, places, len(XMP_ORIENTATION)) == tf.constant(list(XMP_ORIENTATION)), -1)
    ends = tf.boolean_mask(places, is_name) + len(XMP_ORIENTATION)
    is_attribute = tf.reduce_all(_bytes(part, ends, 2) == tf.constant(list(b'="')), -1)
    is_element = _bytes(part, ends, 1)[:, 0] == ord(">")
    digits = _bytes(part, tf.where(is_attribute, ends + 2, ends + 1), 1)[:, 0] - ord("0")
    digits = tf.boolean_mask(digits, (is_attribute | is_element) & (digits >= 0) & (digits <= 9))
    return tf.cond(tf.size(digits) > 0, lambda: digits[0], lambda: tf.constant(0))


def begins(content: tf.Tensor, at: tf.Tensor | int, text: bytes) -> tf.Tensor:
    """Return whether a file has these bytes at a position."""
    wanted = tf.constant(list(text))
    return tf.reduce_all(_bytes(content, at, len(text)) == wanted)


def little(content: tf.Tensor, at: tf.Tensor | int, size: int) -> tf.Tensor:
    """Read an unsigned number, least byte first; positions of any shape."""
    return tf.reduce_sum(_bytes(content, at, size) * tf.constant([256**i for i in range(size)]), -1)


def _big(content: tf.Tensor, at: tf.Tensor | int, size: int) -> tf.Tensor:
    """Read an unsigned number, greatest byte first; positions of any shape."""
    return tf.reduce_sum(_bytes(content, at, size) * tf.constant([256**i for i in reversed(range(size))]), -1)


def _bytes(content: tf.Tensor, at: tf.Tensor | int, size: int) -> tf.Tensor:
    """Return the bytes at some positions, as int32; 0 beyond the end of the file, whose content ends with one."""
    indices = tf.expand_dims(tf.convert_to_tensor(at, tf.int32), -1) + tf.range(size)
    last = tf.size(content) - 1
    inside = tf.logical_and(indices >= 0, indices < last)
    return tf.cast(tf.gather(content, tf.where(inside, indices, last)), tf.int32)
