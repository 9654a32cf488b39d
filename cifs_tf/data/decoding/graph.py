"""An image file to pixels inside a graph, in TensorFlow operations: what the exported signature `encoded` does.

JPEG, PNG, WebP, GIF (its first frame) and BMP are told apart by their content. A photograph is turned upright, and a
JPEG file that is to be resized to much less is decoded to a half, a fourth or an eighth of its size.
"""

import functools

import tensorflow as tf

from cifs_tf.data.decoding.orientation import (
    JPEG,
    RIFF,
    WEBP,
    WEBP_AT,
    begins,
    exif_orientation,
    is_in,
    little,
    turn_upright,
)
from cifs_tf.sizes import TRANSPOSED, Resize, halvings

BMP = b"BM"
BMP_BITS_AT, BMP_COLOUR_BITS = 28, 24


def decode_image(
    encoded: tf.Tensor, channels: int, size: tuple[int, int] | None = None, mode: Resize = "stretch"
) -> tf.Tensor:
    """Decode an image file and turn it upright.

    Args:
        encoded: string scalar, the content of a JPEG, PNG, WebP, GIF or BMP file.
        channels: 1 or 3; a grey image becomes RGB, transparency is dropped.
        size: height and width to which the caller resizes the image; a JPEG file is decoded smaller where this leaves
            it twice as large, see `halvings`. Default None: it keeps its size.
        mode: how the caller resizes it.

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
    has_palette = tf.logical_and(begins(start, 0, BMP), little(start, BMP_BITS_AT, 2) < BMP_COLOUR_BITS)
    orientation = exif_orientation(content)
    with tf.control_dependencies([tf.debugging.assert_equal(has_palette, False, "a BMP file with a palette")]):
        decoders = [functools.partial(decode_pixels, encoded, channels, times) for times in (*range(4), None)]
        decoders.append(functools.partial(_decode_webp, encoded, channels))
        is_jpeg = begins(start, 0, JPEG)
        is_webp = tf.logical_and(begins(start, 0, RIFF), begins(start, WEBP_AT, WEBP))
        other = tf.where(is_webp, len(decoders) - 1, len(decoders) - 2)
        chosen = tf.cond(is_jpeg, lambda: _jpeg_halvings(encoded, orientation, size, mode), lambda: other)
        image = tf.switch_case(chosen, decoders)
    return turn_upright(image, orientation)


def decode_pixels(encoded: tf.Tensor, channels: int, times: int | None) -> tf.Tensor:
    """Decode an image file as its pixels lie.

    Args:
        encoded: string scalar, the content of the file.
        channels: 1 or 3.
        times: how often a JPEG file is halved; None for another file.

    Returns:
        uint8 (height, width, channels).
    """
    if times is not None:  # the accurate transform gives the bits of Pillow; the fast one is off by up to 4 levels
        method = "INTEGER_ACCURATE"
        return tf.io.decode_jpeg(encoded, channels=channels, ratio=2**times, dct_method=method)
    image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
    image.set_shape((None, None, channels))  # unknown to the decoder, which might find an animation
    return image


def _decode_webp(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    """Decode a WebP file, which TensorFlow does with the channels that it has alone."""
    image = tf.io.decode_image(encoded, channels=0, expand_animations=False)
    image.set_shape((None, None, None))
    colours = tf.ensure_shape(image[..., :3], (None, None, 3))
    return tf.image.rgb_to_grayscale(colours) if channels == 1 else colours


def _jpeg_halvings(encoded: tf.Tensor, orientation: tf.Tensor, size: tuple[int, int] | None, mode: Resize) -> tf.Tensor:
    if size is None:
        return tf.constant(0)
    shape = tf.io.extract_jpeg_shape(encoded)
    height, width = tf.unstack(tf.where(is_in(orientation, TRANSPOSED), shape[1::-1], shape[:2]))
    return halvings(height, width, size, mode)
