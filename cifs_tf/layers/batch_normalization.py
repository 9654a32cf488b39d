"""Batch normalisation with PyTorch's running variance."""

import keras
import tensorflow as tf

from cifs_tf.distribute import num_replicas, replica_mean
from cifs_tf.errors import UserError


@keras.saving.register_keras_serializable(package="cifs_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' layer with PyTorch's defaults and its unbiased running variance.

    The batch is normalised with the biased variance, but N/(N-1) times it enters the running average (N: values per
    channel in the batch), which Keras' own layer leaves out. Under `tf.distribute` the batch is the global one: its
    moments are those of all replicas, so that they agree with each other and with a single device. In inference the
    four vectors fold into one scale and one shift per channel.

    Args:
        momentum: weight of the old running value, in [0, 1]. Default 0.9 (PyTorch's `momentum=0.1`).
        epsilon: added to the variance, > 0. Default 1e-5.
        **kwargs: those of `keras.layers.BatchNormalization`; the axis is the last one, and `synchronized` makes no
            difference.

    Call arguments:
        inputs: float (..., channels), channels last.
        training: bool; True normalises with the batch and updates the running statistics.

    Returns:
        float, like the inputs.

    Example:
        >>> BatchNormalization()(tf.zeros((2, 4, 4, 8)), training=True).shape
        TensorShape([2, 4, 4, 8])
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs):
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)
        if self.axis != -1:
            raise UserError("axis", self.axis, "give -1, channels are last")

    def call(self, inputs, training=None):
        if training and self.trainable:
            values = tf.cast(inputs, self.variable_dtype)
            gamma, beta = self._gamma_and_beta()
            mean, variance = _global_moments(values)
            self._update_running(mean, variance, values)
            outputs = tf.nn.batch_normalization(values, mean, variance, beta, gamma, self.epsilon)
            return tf.cast(outputs, self.compute_dtype)
        scale, shift = self.scale_and_shift()
        return inputs * tf.cast(scale, inputs.dtype) + tf.cast(shift, inputs.dtype)

    def scale_and_shift(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Return what inference multiplies by and adds, (channels,) each."""
        gamma, beta = self._gamma_and_beta()
        scale = gamma * tf.math.rsqrt(tf.convert_to_tensor(self.moving_variance) + self.epsilon)
        return scale, beta - tf.convert_to_tensor(self.moving_mean) * scale

    def _gamma_and_beta(self):
        gamma = tf.convert_to_tensor(self.gamma) if self.scale else tf.ones((), self.variable_dtype)
        beta = tf.convert_to_tensor(self.beta) if self.center else tf.zeros((), self.variable_dtype)
        return gamma, beta

    def _update_running(self, mean, variance, values):
        channels = values.shape[-1]
        count = tf.cast(tf.size(values) // channels * num_replicas(), variance.dtype)
        unbiased = variance * (count / tf.maximum(count - 1, 1))
        self.moving_mean.assign(self.momentum * self.moving_mean + (1 - self.momentum) * mean)
        self.moving_variance.assign(self.momentum * self.moving_variance + (1 - self.momentum) * unbiased)


def _global_moments(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return mean and biased variance per channel of the global batch, of which each replica has an equal part."""
    mean, variance = tf.nn.moments(values, list(range(values.shape.rank - 1)))
    if num_replicas() == 1:
        return mean, variance
    # Two reductions, because E[x^2] - E[x]^2 in one would cancel.
    global_mean = replica_mean(mean)
    return global_mean, replica_mean(variance + tf.square(mean - global_mean))
