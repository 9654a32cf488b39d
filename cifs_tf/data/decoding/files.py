"""The file of an image to pixels, in Python: what the reader of a folder does, to the bits of `graph.decode_image`.

Pillow decodes most JPEG files, in less time, and says what is odd about a file; TensorFlow decodes the others.
"""

import errno
import functools
import io
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from cifs_tf.data.decoding.graph import decode_image, decode_pixels
from cifs_tf.data.decoding.orientation import ORIENTATION_MARKS, PNG, UPRIGHT, turn_array_upright
from cifs_tf.data.resizing import resize_array
from cifs_tf.sizes import ORIENTATION_TAG, Resize, draft

CHANNELS = 3
# Of a PNG file: where its bits a channel and its kind of colour stand, and the kinds that end in a transparency.
PNG_BITS, PNG_COLOUR, WITH_ALPHA = 24, 25, (4, 6)
# Of 16 bits a channel, those that cameras and scanners fill, and what becomes of the image.
FILLED = {12: "nearly black", 14: "dark"}
MASK = "its pixels are 0 and 1 of 255 only: the image is black"
TOO_MANY_PIXELS = "it has too many pixels to be a photograph, make it smaller"


def decode_file(content: bytes, size: tuple[int, int] | None, mode: Resize) -> tuple[np.ndarray, str | None]:
    """Decode an image file, turn it upright and bring it to a size.

    Args:
        content: of the file.
        size: height and width of the result; None: it keeps its own.
        mode: how it is resized.

    Returns:
        uint8 (height, width, 3), and what a person should know of the file, or None.

    Raises:
        tf.errors.InvalidArgumentError: if it cannot be decoded.
        OSError: if it has too many pixels.
    """
    content, oddity, pixels = _look_at(content, size, mode)
    if pixels is None:
        # In a PNG file without a mark of EXIF there is no orientation to look for.
        is_upright = content.startswith(PNG) and not any(mark in content for mark in ORIENTATION_MARKS)
        pixels = (decode_pixels(content, CHANNELS, None) if is_upright else _upright(size, mode)(content)).numpy()
    pixels = pixels if size is None else resize_array(pixels, size, mode)
    return pixels, MASK if oddity is None and pixels.max() == 1 else oddity


@functools.cache
def _upright(size: tuple[int, int] | None, mode: Resize) -> Callable[[bytes], tf.Tensor]:
    """Return `decode_image`, compiled: thread by thread it would be interpreted operation by operation."""
    signature = [tf.TensorSpec([], tf.string)]
    decode = functools.partial(decode_image, channels=CHANNELS, size=size, mode=mode)
    return tf.function(decode, input_signature=signature, autograph=False)


def _look_at(content: bytes, size: tuple[int, int] | None, mode: Resize) -> tuple[bytes, str | None, np.ndarray | None]:
    """Return a file as TensorFlow reads it rightly, what a person should know of it, and the pixels of a JPEG file.

    Pillow has opened it anyway, and decodes it to the bits of `decode_image`; what it refuses is for TensorFlow.
    """
    oddity = None
    try:
        with Image.open(io.BytesIO(content)) as image:
            oddity = _unfilled(content) or _oddity(image)
            is_moving_webp = image.format == "WEBP" and getattr(image, "n_frames", 1) > 1
            if is_moving_webp or image.format == "BMP":  # of which TensorFlow reads 24 bits rightly, and few others
                return _as_png(image), oddity, None
            is_plain_jpeg = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
            return content, oddity, _jpeg_pixels(image, size, mode) if is_plain_jpeg else None
    except Image.DecompressionBombError as error:  # TensorFlow would try, and end the process for want of memory
        raise OSError(errno.EFBIG, TOO_MANY_PIXELS) from error
    except Exception:  # Pillow raises many kinds; whether the file can be read is for TensorFlow to say
        return content, oddity, None


def _jpeg_pixels(image: Image.Image, size: tuple[int, int] | None, mode: Resize) -> np.ndarray:
    """Decode a JPEG file and turn it upright."""
    orientation = image.getexif().get(ORIENTATION_TAG, UPRIGHT)
    if size is not None:
        draft(image, orientation, size, mode)
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return np.ascontiguousarray(turn_array_upright(pixels, orientation))


def _unfilled(content: bytes) -> str | None:
    """Say that a PNG file of 16 bits a channel does not use them all."""
    if not content.startswith(PNG) or content[PNG_BITS] != 16:
        return None
    pixels = tf.io.decode_png(content, dtype=tf.uint16).numpy()
    colours = pixels[..., :-1] if content[PNG_COLOUR] in WITH_ALPHA else pixels
    filled = next((bits for bits in FILLED if colours.max() < 2**bits), None)
    if filled is None:
        return None
    return f"16 bits a channel, of which {filled} or fewer are used: the image is {FILLED[filled]}"


def _oddity(image: Image.Image) -> str | None:
    """Say what is lost of an image when it is decoded to 8 bits of red, green and blue."""
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # of a camera: its previews follow it
        return "animated: the first frame is used"
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        return "transparent: the colours below the transparency are used"
    return None


def _as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    ImageOps.exif_transpose(image).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
