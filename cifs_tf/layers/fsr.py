"""The FSR layer: feature separation and recalibration (Kim et al., CVPR 2023)."""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from cifs_tf.errors import UserError
from cifs_tf.layers.batch_normalization import BatchNormalization
from cifs_tf.layers.channel_relevance import scale_gradient
from cifs_tf.layers.cifs import CIFS, gradient_shares

TEMPERATURE = 0.1  # of the Gumbel softmax, the paper's value


@keras.saving.register_keras_serializable(package="cifs_tf")
class FSR(CIFS):
    """Feature separation and recalibration: z -> m z + (1 - m) (z + R((1 - m) z)), m = sigmoid((S(z) + g) / 0.1).

    S and R are three 3x3 convolutions each, with batch normalisation and ReLU between them; g is the difference of two
    Gumbel noises for each element in training, 0 else. The probe reads the pooled robust part m z. In training the
    layer adds CE(probe((1 - m) z), y') + CE(probe((1 - m) (z + R)), y), y' being the wrong class that the first of the
    two favours (the paper takes it from the network's final prediction, which a layer does not see). Written from the
    paper's equations. Its authors' test attacks the final prediction alone and the mask through its own gradient.

    Args:
        num_classes: number of classes; None (default) lets the classifier set it.
        hidden_channels: of S and R, >= 1. Default 64, the paper's value.
        **kwargs: those of `CIFS` and of `keras.layers.Layer`. `mask_gradient` is `"full"` by default, as S learns by
            it.

    Call arguments: as for `CIFS`; features are (batch, height, width, channels). Labels enter the losses, not the mask.

    Returns:
        dict: as for `CIFS`, with `relevance` S(z) and `importance` m of every element, (batch, positions * channels).

    Raises:
        UserError: for features that are no images, or no hidden channel.

    Reference:
        Kim et al., "Feature Separation and Recalibration for Adversarial Robustness", CVPR 2023.

    Example:
        >>> FSR(num_classes=10)(tf.zeros((2, 4, 4, 8)))["importance"].shape
        TensorShape([2, 128])
    """

    def __init__(self, num_classes: int | None = None, hidden_channels: int = 64, **kwargs):
        fixed = {"probe": "linear", "top_k": 1, "importance": "sigmoid", "mask_gradient": "full"}
        super().__init__(num_classes=num_classes, **{**fixed, **kwargs})
        if hidden_channels < 1:
            raise UserError("hidden_channels", hidden_channels, "give an integer of 1 or more")
        if self.mask_permutation is not None:
            raise UserError("mask_permutation", self.mask_permutation, "leave it out, the mask of FSR has no channels")
        self.hidden_channels = hidden_channels
        self.noise = keras.random.SeedGenerator()

    def build(self, features_shape):
        if len(features_shape) != 4:
            raise UserError("features", tuple(features_shape), "cut a layer of (batch, height, width, channels)")
        super().build(features_shape)
        self.separation = self._convolutions(features_shape, "separation")
        self.recalibration = self._convolutions(features_shape, "recalibration")

    def call(self, features, labels=None, training=None, mask_gradient=None):
        z = tf.cast(features, self.variable_dtype)
        robustness = self.separation(z, training=training)
        mask = tf.sigmoid((robustness + self._noise(robustness) if training else robustness) / TEMPERATURE)
        through_mask, _ = gradient_shares(self.mask_gradient if mask_gradient is None else mask_gradient)
        mask = scale_gradient(mask, through_mask)
        robust, rest = mask * z, (1 - mask) * z
        recalibrated = rest + (1 - mask) * self.recalibration(rest, training=training)
        if training and labels is not None:
            rest_logits = self.probe(self._probed(rest))
            right = tf.one_hot(labels, self.num_classes, on_value=True, off_value=False, dtype=tf.bool)
            wrong = tf.argmax(tf.where(right, rest_logits.dtype.min, rest_logits), axis=1, output_type=labels.dtype)
            cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits
            recalibrated_logits = self.probe(self._probed(recalibrated))
            self.add_loss(tf.reduce_mean(cross_entropy(wrong, rest_logits)))
            self.add_loss(tf.reduce_mean(cross_entropy(labels, recalibrated_logits)))
        return {
            "features": tf.cast(robust + recalibrated, features.dtype),
            "probe_logits": self.probe(self._probed(robust)),
            "relevance": _flat(robustness),
            "importance": _flat(mask),
        }

    def _noise(self, like):
        """Return the difference of two Gumbel noises, which is logistic."""
        tiny = keras.config.epsilon()
        uniform = keras.random.uniform(tf.shape(like), tiny, 1 - tiny, dtype=like.dtype, seed=self.noise)
        return tf.math.log(uniform) - tf.math.log1p(-uniform)

    def _convolutions(self, features_shape, name):
        layers, channels = [], features_shape[-1]
        for size in (self.hidden_channels, self.hidden_channels):
            convolution = keras.layers.Conv2D(size, 3, padding="same", use_bias=False, dtype=self.variable_dtype)
            layers += [convolution, BatchNormalization(dtype=self.variable_dtype)]
            layers += [keras.layers.ReLU(dtype=self.variable_dtype)]
        layers.append(keras.layers.Conv2D(channels, 3, padding="same", dtype=self.variable_dtype))
        stack = keras.Sequential(layers, name=name)
        stack.build(features_shape)
        return stack

    def get_config(self):
        return {**super().get_config(), "hidden_channels": self.hidden_channels}


def _flat(values):
    return tf.reshape(
        values, [tf.shape(values)[0], math.prod(values.shape[1:]) if None not in values.shape[1:] else -1]
    )
