"""Bring images to one size: training, the exported signature `encoded` and the client do it alike, to one level of 255.

`stretch` scales height and width each by its own factor; `crop` takes the largest central part of the wanted shape and
scales it; `pad` scales the whole image into the wanted shape and leaves black margins. Sizes are computed in integers,
so that every implementation has the same.
"""

import tensorflow as tf

from cifs_tf.config import DataConfig
from cifs_tf.sizes import Resize, largest_part, scaled_into


def resize(image: tf.Tensor, size: tuple[int, int], mode: Resize) -> tf.Tensor:
    """Resize one image, bilinear and antialiased.

    Args:
        image: uint8 (height, width, channels), of any size.
        size: height and width of the result.
        mode: `"crop"`, `"stretch"` or `"pad"`.

    Returns:
        uint8 (*size, channels).

    Example:
        >>> resize(tf.zeros((30, 40, 3), tf.uint8), (8, 8), "crop").shape
        TensorShape([8, 8, 3])
    """
    if image.shape[:2] == size:
        return image
    height, width = (tf.shape(image)[0], tf.shape(image)[1]) if None in image.shape[:2] else image.shape[:2]
    if mode == "crop":
        inner_height, inner_width = largest_part(height, width, size)
        top, left = (height - inner_height) // 2, (width - inner_width) // 2
        image = image[top : top + inner_height, left : left + inner_width]
    target = scaled_into(height, width, size) if mode == "pad" else size
    scaled = tf.image.resize(tf.cast(image, tf.float32), target, antialias=True)
    scaled = tf.saturate_cast(tf.round(scaled), tf.uint8)
    if mode == "pad":
        scaled = tf.image.pad_to_bounding_box(
            scaled, (size[0] - target[0]) // 2, (size[1] - target[1]) // 2, size[0], size[1]
        )
    return tf.ensure_shape(scaled, (*size, image.shape[2]))


def mode_of(config: DataConfig) -> Resize:
    """Return how a config resizes, or what `auto` means for a new run: to crop the photographs of a folder."""
    return config.resize if config.resize != "auto" else "crop" if config.dataset.startswith("folder:") else "stretch"


def served_mode(config: DataConfig, asked: Resize | bool | None = None) -> Resize | None:
    """Return how the model of a run resizes images of another size: as the run did, if nothing else is asked for.

    Args:
        config: the images of the run.
        asked: a mode; True for that of the run, or stretch if it resized none; False for none. Default None: that of
            the run, or none.

    Returns:
        the mode; None if another size is an error.
    """
    if isinstance(asked, str):
        return asked
    own = None if config.image_size is None else mode_of(config)
    return own if asked is None else (own or "stretch") if asked else None
