"""Augmentation of a batch, stateless: the same seed gives the same images, whichever part of the batch is made."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

CROP_PADDING = 4
# Of a random resized crop: the least share of the image's area, and the widest and the narrowest shape.
LEAST_AREA = 0.25
LONGEST_SHAPE = 4 / 3


class Rows(NamedTuple):
    """Which images of a batch are made here: random numbers are drawn for all of them.

    Args:
        total: images in the batch.
        first: position of the first one made here.
    """

    total: int
    first: int


Augmentation = Callable[[tf.Tensor, tf.Tensor, Rows | None], tf.Tensor]


def none(images: tf.Tensor, seed: tf.Tensor, rows: Rows | None = None) -> tf.Tensor:
    """Leave the images as they are; arguments as for `crop`."""
    return images


def crop(images: tf.Tensor, seed: tf.Tensor, rows: Rows | None = None) -> tf.Tensor:
    """Pad with 4 pixels of zeros and crop at random, each image by itself.

    Args:
        images: float (batch, height, width, channels).
        seed: int32 (2,).
        rows: which of a larger batch they are. Default None: all of it.

    Returns:
        float, like the images.
    """
    height, width = images.shape[1], images.shape[2]
    padded = tf.pad(images, [[0, 0], [CROP_PADDING] * 2, [CROP_PADDING] * 2, [0, 0]])
    corners = _draw(images, seed, rows, [2], 0, 2 * CROP_PADDING + 1, tf.int32)
    cut = tf.gather(padded, corners[:, :1] + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(cut, corners[:, 1:] + tf.range(width), axis=2, batch_dims=1)


def flip(images: tf.Tensor, seed: tf.Tensor, rows: Rows | None = None) -> tf.Tensor:
    """Mirror left and right with probability 1/2, each image by itself; arguments as for `crop`."""
    mirrored = _draw(images, seed, rows, [1, 1, 1]) < 0.5
    return tf.where(mirrored, tf.reverse(images, axis=[2]), images)


def crop_flip(images: tf.Tensor, seed: tf.Tensor, rows: Rows | None = None) -> tf.Tensor:
    """Crop, then flip; arguments as for `crop`."""
    return flip(crop(images, seed, rows), tf.bitwise.invert(seed), rows)


def resized_crop(images: tf.Tensor, seed: tf.Tensor, rows: Rows | None = None) -> tf.Tensor:
    """Scale a random part of each image to the whole, bilinear; arguments as for `crop`.

    Its area is drawn from 0.25 to 1 of the image's, its width over its height from 3/4 to 4/3 on a logarithmic scale; a
    side that would be longer than the image's is as long, and the place is drawn from where the part fits.
    """
    total, first = rows or (tf.shape(images)[0], 0)
    # Boxes of the whole batch: functions of vectors may round otherwise in a part of it.
    area, shape, top, left = tf.unstack(tf.random.stateless_uniform([total, 4], seed), axis=1)
    area = LEAST_AREA + (1 - LEAST_AREA) * area
    shape = LONGEST_SHAPE ** (2 * shape - 1)
    height, width = tf.minimum(1.0, tf.sqrt(area / shape)), tf.minimum(1.0, tf.sqrt(area * shape))
    top, left = top * (1 - height), left * (1 - width)
    boxes = tf.stack([top, left, top + height, left + width], axis=1)[first : first + tf.shape(images)[0]]
    return tf.image.crop_and_resize(images, boxes, tf.range(tf.shape(images)[0]), images.shape[1:3])


def resized_crop_flip(images: tf.Tensor, seed: tf.Tensor, rows: Rows | None = None) -> tf.Tensor:
    """Scale a random part to the whole, then flip; arguments as for `crop`."""
    return flip(resized_crop(images, seed, rows), tf.bitwise.invert(seed), rows)


def _draw(
    images: tf.Tensor,
    seed: tf.Tensor,
    rows: Rows | None,
    shape: list[int],
    low: int = 0,
    high: int = 1,
    dtype=tf.float32,
) -> tf.Tensor:
    """Draw uniform numbers of a shape for each image of the batch, and return those of these images."""
    number = tf.shape(images)[0]
    total, first = rows or (number, 0)
    return tf.random.stateless_uniform([total, *shape], seed, low, high, dtype)[first : first + number]


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": none,
    "crop": crop,
    "crop_flip": crop_flip,
    "resized_crop_flip": resized_crop_flip,
}
