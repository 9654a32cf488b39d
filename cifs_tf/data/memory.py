"""Images are held in memory as uint8: check that they fit, and bring them to one size."""

import math
import os

import tensorflow as tf

from cifs_tf.errors import UserError

MEMORY_SHARE = 0.5


def check_memory(dataset: str, num_examples: int, image_shape: tuple[int, int, int]) -> None:
    """Refuse a dataset that would fill more than half of the machine's memory.

    Raises:
        UserError: with the size that it would have.
    """
    needed = num_examples * math.prod(image_shape)
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > MEMORY_SHARE * available:
        advice = (
            f"its {num_examples:,} images of {image_shape} take {needed / 2**30:.0f} GiB of the machine's "
            f"{available / 2**30:.0f} GiB; give a smaller --image_size"
        )
        raise UserError("--dataset", dataset, advice)


def resize(image: tf.Tensor, side: int) -> tf.Tensor:
    """Resize one uint8 image (height, width, channels) to side x side, with antialiasing.

    Returns:
        uint8 (side, side, channels).
    """
    resized = tf.image.resize(tf.cast(image, tf.float32), (side, side), antialias=True)
    return tf.saturate_cast(tf.round(resized), tf.uint8)
