"""Image files to pixels, in TensorFlow operations: training and the exported signature `encoded` read them alike.

JPEG, PNG, WebP, GIF (its first frame) and BMP are told apart by their content. A photograph is turned upright as its
EXIF orientation says (EXIF 2.3, tag 274), which cameras write instead of turning the pixels.
"""

from collections.abc import Callable

import tensorflow as tf

ORIENTATION_TAG = 274
UPRIGHT = 1
# Bytes that a marker, a chunk or a TIFF field begins with.
EXIF_HEADER = b"Exif\0\0"
PNG_EXIF, WEBP_EXIF = b"eXIf", b"EXIF"
# A file without one of these has no EXIF.
EXIF_MARKS = (EXIF_HEADER, PNG_EXIF, WEBP_EXIF)
JPEG, PNG, RIFF, WEBP, BMP = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF", b"WEBP", b"BM"
START_OF_SCAN, APP1 = 0xDA, 0xE1
# EXIF stands near the front; a file made of millions of empty parts must not keep a server busy.
MAXIMUM_PARTS = 4096
BMP_BITS_AT, BMP_COLOUR_BITS = 28, 24


def decode_image(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    """Decode an image file and turn it upright.

    Args:
        encoded: string scalar, the content of a JPEG, PNG, WebP, GIF or BMP file.
        channels: 1 or 3; a grey image becomes RGB, transparency is dropped.

    Returns:
        uint8 (height, width, channels).

    Raises:
        tf.errors.InvalidArgumentError: if it is no such file, is damaged, or is a BMP with a palette, whose colours
            TensorFlow does not read.

    Example:
        >>> image = tf.reshape(tf.range(2 * 3 * 3), (2, 3, 3))
        >>> decode_image(tf.io.encode_png(tf.cast(image, tf.uint8)), 3).shape
        TensorShape([2, 3, 3])
    """
    content = tf.io.decode_raw(encoded, tf.uint8)
    start = tf.pad(content[: BMP_BITS_AT + 2], [[0, 1]])
    has_palette = tf.logical_and(_begins(start, 0, BMP), _little(start, BMP_BITS_AT, 2) < BMP_COLOUR_BITS)
    with tf.control_dependencies([tf.debugging.assert_equal(has_palette, False, "a BMP file with a palette")]):
        image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
    image.set_shape((None, None, channels))  # unknown to the decoder, which might find an animation
    return turn_upright(image, exif_orientation(content))


def turn_upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undo an EXIF orientation: mirror and transpose pixels, none is computed.

    Args:
        image: (height, width, channels).
        orientation: int32 scalar, 1 to 8 as in EXIF; anything else leaves the image as it is.

    Returns:
        like the image, with height and width exchanged for 5 to 8.
    """
    # Bit by bit: what the eight orientations are made of.
    transposed = tf.logical_and(orientation >= 5, orientation <= 8)
    image = tf.cond(transposed, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    mirrored = tf.reduce_any(orientation == tf.constant([2, 3, 6, 7]))
    flipped = tf.reduce_any(orientation == tf.constant([3, 4, 7, 8]))
    image = tf.cond(mirrored, lambda: tf.reverse(image, [1]), lambda: image)
    return tf.cond(flipped, lambda: tf.reverse(image, [0]), lambda: image)


def exif_orientation(content: tf.Tensor) -> tf.Tensor:
    """Read the EXIF orientation of a JPEG, PNG or WebP file.

    Args:
        content: uint8 (bytes,), the file.

    Returns:
        int32 scalar, 1 (upright) where the file does not say.
    """
    # Read at positions beyond the end too, as a 0: padded once, not at each look, which would copy the whole file.
    content = tf.pad(content, [[0, 1]])
    is_webp = tf.logical_and(_begins(content, 0, RIFF), _begins(content, 8, WEBP))
    header = tf.case(
        [
            (_begins(content, 0, JPEG), lambda: _walk(content, 2, _jpeg_segment)),
            (_begins(content, 0, PNG), lambda: _walk(content, len(PNG), _png_chunk)),
            (is_webp, lambda: _walk(content, 12, _webp_chunk)),
        ],
        default=lambda: tf.constant(-1),
    )
    return tf.cond(header >= 0, lambda: _orientation_in(content, header), lambda: tf.constant(UPRIGHT))


def _walk(content: tf.Tensor, start: int, read: Callable) -> tf.Tensor:
    """Go from part to part of a file until one holds EXIF; return where its TIFF header lies, or -1."""

    def step(at: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return read(content, at)

    def goes_on(at: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
        return tf.logical_and(found < 0, tf.logical_and(at >= 0, at + 8 < tf.size(content) - 1))

    return tf.while_loop(goes_on, step, (tf.constant(start), tf.constant(-1)), maximum_iterations=MAXIMUM_PARTS)[1]


def _jpeg_segment(content: tf.Tensor, at: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    marker = _big(content, at, 2)
    is_exif = tf.logical_and(marker == 0xFF00 + APP1, _begins(content, at + 4, EXIF_HEADER))
    ends = tf.logical_or(marker < 0xFF00, marker == 0xFF00 + START_OF_SCAN)
    following = tf.where(ends, -1, at + 2 + _big(content, at + 2, 2))
    return following, tf.where(is_exif, at + 4 + len(EXIF_HEADER), -1)


def _png_chunk(content: tf.Tensor, at: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return _after(at, _big(content, at, 4), 12), tf.where(_begins(content, at + 4, PNG_EXIF), at + 8, -1)


def _webp_chunk(content: tf.Tensor, at: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    size = _little(content, at + 4, 4)
    prefix = tf.where(_begins(content, at + 8, EXIF_HEADER), len(EXIF_HEADER), 0)
    return _after(at, size + size % 2, 8), tf.where(_begins(content, at, WEBP_EXIF), at + 8 + prefix, -1)


def _after(at: tf.Tensor, size: tf.Tensor, frame: int) -> tf.Tensor:
    """Return where the next part begins; -1 if the size is negative, as one of 2 GiB and more is in int32."""
    return tf.where(size < 0, -1, at + frame + size)


def _orientation_in(content: tf.Tensor, header: tf.Tensor) -> tf.Tensor:
    """Look the orientation up in the first directory of a TIFF header: entries of 12 bytes, a tag and its value."""
    is_little = _begins(content, header, b"II")

    def number(at: tf.Tensor, size: int) -> tf.Tensor:
        return tf.where(is_little, _little(content, at, size), _big(content, at, size))

    directory = header + number(header + 4, 4)
    entries = directory + 2 + 12 * tf.range(number(directory, 2))
    values = tf.boolean_mask(number(entries + 8, 2), number(entries, 2) == ORIENTATION_TAG)
    return tf.cond(tf.size(values) > 0, lambda: values[0], lambda: tf.constant(UPRIGHT))


def _begins(content: tf.Tensor, at: tf.Tensor | int, text: bytes) -> tf.Tensor:
    """Return whether a file has these bytes at a position."""
    wanted = tf.constant(list(text))
    return tf.reduce_all(_bytes(content, at, len(text)) == wanted)


def _little(content: tf.Tensor, at: tf.Tensor | int, size: int) -> tf.Tensor:
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
