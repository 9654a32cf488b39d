"""The function that attacks maximise, its gradient, and tests of the predictions."""

from collections.abc import Callable

import tensorflow as tf

HeadsFn = Callable[[tf.Tensor], tf.Tensor]
"""Images (batch, height, width, channels) -> heads (batch, 1 + P, classes), in inference mode, without labels."""


def value_and_gradient(
    objective: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]], x: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Evaluate an objective per example and its gradient to the images.

    A network that hides its gradient must not stop an attack: where there is none, or it is not finite, it is 0.

    Args:
        objective: images -> (values (batch,), heads).
        x: images (batch, height, width, channels).

    Returns:
        values (batch,), heads, and the gradient of the sum of the values, like the images.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        values, heads = objective(x)
    gradient = tape.gradient(values, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    gradient.set_shape(x.shape)  # a loaded SavedModel forgets the size of the batch, which loops hold on to
    # A sum is cheaper than a look at each entry, and not finite if one of them is not.
    return (
        values,
        heads,
        tf.cond(
            tf.math.is_finite(tf.reduce_sum(gradient)),
            lambda: gradient,
            lambda: tf.where(tf.math.is_finite(gradient), gradient, tf.zeros_like(gradient)),
        ),
    )


def fooled(heads: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return whether the final prediction is not the label, or not a number.

    Args:
        heads: float (batch, 1 + P, classes).
        labels: int (batch,).

    Returns:
        bool (batch,).
    """
    logits = heads[:, 0]
    is_nan = tf.reduce_any(tf.math.is_nan(logits), axis=-1)
    return (tf.argmax(logits, axis=-1, output_type=labels.dtype) != labels) | is_nan


def choose(chosen: tf.Tensor, values: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Return the examples of `values` that are chosen, bool (batch,), and of `others` where they are not.

    Whole examples are copied, which is much faster than `tf.where`, which broadcasts the choice to each pixel.
    """
    return tf.raw_ops.Select(condition=chosen, x=values, y=others)


def per_example(values: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Give values (batch,) the rank of images, (batch, 1, 1, 1), to combine the two."""
    return tf.reshape(values, [-1] + [1] * (len(images.shape) - 1))


def select_target(heads: tf.Tensor, rank: int | tf.Tensor) -> tf.Tensor:
    """Return the class of a rank in the final prediction, the second for rank 2: int32 (batch,)."""
    order = tf.argsort(heads[:, 0], axis=-1, direction="DESCENDING", stable=True)
    return tf.gather(order, rank - 1, axis=1)
