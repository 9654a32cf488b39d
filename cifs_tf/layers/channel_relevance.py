"""Relevance of channels to a prediction (Section 3.2, step 2, Eq. 1)."""

from collections.abc import Callable

import tensorflow as tf


def top_k_class_weights(probe_logits: tf.Tensor, top_k: int, labels: tf.Tensor | None = None) -> tf.Tensor:
    """Count how often each class is in the sum of Eq. (1): the set y^{l,k} as a vector of multiplicities.

    In training the label replaces the top-1 class and the other predictions stay; a label that is already among the
    others then counts twice, as in the official code.

    Args:
        probe_logits: float (batch, classes), the raw prediction.
        top_k: k, from 1 to the number of classes.
        labels: int (batch,), the true classes in training; None (default) takes the prediction as it is.

    Returns:
        float (batch, classes) that sums to k per example; a constant to every gradient.

    Example:
        >>> top_k_class_weights(tf.constant([[3., 2., 1.]]), top_k=2, labels=tf.constant([1])).numpy()
        array([[0., 2., 0.]], dtype=float32)
    """
    classes = tf.math.top_k(probe_logits, k=top_k).indices
    if labels is not None:
        labels = tf.cast(labels, classes.dtype)
        classes = tf.concat([labels[:, None], classes[:, 1:]], axis=1)
    return tf.reduce_sum(tf.one_hot(classes, probe_logits.shape[-1], dtype=probe_logits.dtype), axis=1)


def with_smooth_gradient(class_weights: tf.Tensor, probe_logits: tf.Tensor) -> tf.Tensor:
    """Give class weights, a constant to every gradient, the gradient of a smooth choice: k * softmax(probe_logits).

    For an attacker (a straight-through estimate): the choice of the top-k classes is piecewise constant, so an exact
    gradient does not see that pushing another class into it changes the mask.

    Args:
        class_weights: float (batch, classes), see `top_k_class_weights`.
        probe_logits: float (batch, classes), the raw prediction.

    Returns:
        the class weights, unchanged in value.

    Example:
        >>> logits = tf.constant([[3., 2., 1.]])
        >>> with_smooth_gradient(top_k_class_weights(logits, 2), logits).numpy()
        array([[1., 1., 0.]], dtype=float32)
    """
    k = tf.reduce_sum(class_weights, axis=-1, keepdims=True)
    smooth = tf.stop_gradient(k) * tf.nn.softmax(probe_logits)
    # In this order the value is exact: the smooth choice minus itself is 0.
    return class_weights + (smooth - tf.stop_gradient(smooth))


def scale_gradient(values: tf.Tensor, share: float | tf.Tensor | None) -> tf.Tensor:
    """Return the values, whose gradient is multiplied by a share on its way back.

    Args:
        values: float, any shape.
        share: a factor; 1 leaves the gradient alone, None stops it.

    Returns:
        the values, unchanged.

    Example:
        >>> x = tf.constant(3.0)
        >>> with tf.GradientTape() as tape:
        ...     tape.watch(x)
        ...     y = scale_gradient(x, tf.constant(0.5)) ** 2
        >>> float(y), float(tape.gradient(y, x))
        (9.0, 3.0)
    """
    if share is None:
        return tf.stop_gradient(values)
    if isinstance(share, float) and share == 1.0:
        return values
    scaled = tf.custom_gradient(lambda inputs: (tf.identity(inputs), lambda upstream: upstream * share))
    return scaled(values)


def relevance(probe: Callable[[tf.Tensor], tf.Tensor], pooled: tf.Tensor, class_weights: tf.Tensor) -> tf.Tensor:
    """Compute relevance g of Eq. (1), the gradient of the summed top-k logits to a common shift of each channel.

    The pooled vector moves one to one with such a shift, mean(z + delta) = mean(z) + delta, so the gradient to it is g
    itself, for any probe. An outer tape differentiates through the result (second order) towards the probe's weights
    and, if `pooled` was not detached, towards the features.

    Args:
        probe: maps (batch, channels) to logits (batch, classes).
        pooled: float (batch, channels), spatial mean of the features.
        class_weights: float (batch, classes), see `top_k_class_weights`.

    Returns:
        float (batch, channels), g.

    Example:
        >>> kernel = tf.constant([[1., 2.], [3., 4.]])
        >>> relevance(lambda z: z @ kernel, tf.zeros((1, 2)), tf.constant([[0., 1.]])).numpy()
        array([[2., 4.]], dtype=float32)
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(pooled)
        score = tf.reduce_sum(probe(pooled) * class_weights)
    return tape.gradient(score, pooled)
