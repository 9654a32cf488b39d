"""Augmentation of a batch, stateless: the same seed gives the same images."""

import tensorflow as tf

CROP_PADDING = 4


def crop(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Pad with 4 pixels of zeros and crop at random, each image by itself.

    Args:
        images: float (batch, height, width, channels).
        seed: int32 (2,).

    Returns:
        float, like the images.
    """
    batch, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    padded = tf.pad(images, [[0, 0], [CROP_PADDING] * 2, [CROP_PADDING] * 2, [0, 0]])
    corners = tf.random.stateless_uniform([batch, 2], seed, 0, 2 * CROP_PADDING + 1, tf.int32)
    rows = tf.gather(padded, corners[:, :1] + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(rows, corners[:, 1:] + tf.range(width), axis=2, batch_dims=1)


def flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirror left and right with probability 1/2, each image by itself; arguments as for `crop`."""
    mirrored = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seed) < 0.5
    return tf.where(mirrored, tf.reverse(images, axis=[2]), images)


def crop_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Crop, then flip; arguments as for `crop`."""
    return flip(crop(images, seed), tf.bitwise.invert(seed))


AUGMENTATIONS = {"none": lambda images, seed: images, "crop": crop, "crop_flip": crop_flip}
