"""The CIFS layer: probe, relevance, importance, selection (Figure 2 of the paper)."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.errors import UserError
from cifs_tf.layers.channel_relevance import relevance, scale_gradient, top_k_class_weights, with_smooth_gradient
from cifs_tf.layers.importance import get_importance
from cifs_tf.layers.probe import PROBES

MASK_GRADIENTS = ("detached", "full", "smoothed")


@keras.saving.register_keras_serializable(package="cifs_tf")
class CIFS(keras.layers.Layer):
    """Channel-wise importance-based feature selection: features z -> m * z (Eq. 1 and 2).

    1. the probe reads the pooled features and makes a raw prediction, which the loss of Eq. (3) trains;
    2. relevance g: gradient of its top-k logits to the pooled features (Eq. 1);
    3. importance m = importance(g), and the selected features m * z, broadcast over positions (Eq. 2).

    Args:
        probe: `"linear"` (default), `"mlp"`, or a Keras layer (batch, channels) -> (batch, classes).
        top_k: k of Eq. (1), >= 1. Default 2, the paper's value.
        importance: a name (`"softmax"` by default, `"softplus"`, `"sigmoid"`, or your own, see
            `register_importance`) or a callable (batch, channels) -> (batch, channels).
        importance_scale: `"sum_to_one"` (the paper) or `"mean_one"`, which keeps the size of the features, as a trained
            network needs it; of `"softmax"` and `"constant"`. None (default) is that of the function.
        temperature: of `"softmax"`, > 0. None (default) is that of the function.
        alpha: sharpness of `"softplus"` or `"sigmoid"`, > 0. None (default) is that of the function.
        mask_gradient: whether gradients flow from the mask to the features: `"detached"` (default, the official code:
            they reach the probe's weights only), `"full"`, or `"smoothed"`: full, and through the choice of the top-k
            classes too, whose gradient is taken as that of k * softmax(probe_logits). None changes a value.
        label_in_mask: whether the label replaces the top-1 class in training, as in the paper. Default True; False
            trains with the top-k classes as predicted, the mask that inference has.
        mask_permutation: seed, 0 to 2^32 - 1, of a fixed permutation p of the channels: channel i is multiplied by
            m[p(i)], see `channel_permutation`. A control: the multipliers keep their distribution and lose their
            relevance. Default None, the importance of each channel stays with it.
        num_classes: number of classes; None (default) lets the classifier set it.

    Call arguments:
        features: float (batch, ..., channels), channels last.
        labels: int (batch,), replaces the top-1 class in the mask; read only when `training` and `label_in_mask` are
            True.
        training: bool.
        mask_gradient: overrides the constructor's choice for this call (an attacker may differ from the trainer): a
            name, or a float tensor (2,), the shares of the gradients through the mask and through the choice of the
            top-k classes: [0, 0] is `"detached"`, [1, 0] `"full"`, [1, 1] `"smoothed"`.

    Returns:
        dict: `features` like the input, and in float32 (float64 under that policy) `probe_logits` (batch, classes),
        `relevance` and `importance` (batch, channels); the latter is what multiplies the features.

    Raises:
        UserError: if `top_k` exceeds the number of classes, a name is unknown, the permutation's seed is out of range,
            or the importance function lacks a parameter that is given, or has it with another value.

    Reference:
        Yan et al., "CIFS: Improving Adversarial Robustness of CNNs via Channel-wise Importance-based Feature
        Selection", ICML 2021.

    Example:
        >>> CIFS(probe="mlp", num_classes=10)(tf.zeros((2, 4, 4, 64)))["importance"].shape
        TensorShape([2, 64])
    """

    def __init__(
        self,
        probe: str | keras.layers.Layer = "linear",
        top_k: int = 2,
        importance: str | dict | Callable = "softmax",
        mask_gradient: str = "detached",
        num_classes: int | None = None,
        label_in_mask: bool = True,
        mask_permutation: int | None = None,
        importance_scale: str | None = None,
        temperature: float | None = None,
        alpha: float | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if isinstance(probe, dict):
            probe = keras.saving.deserialize_keras_object(probe)
        if isinstance(probe, str) and probe not in PROBES:
            raise UserError("probe", probe, f"give one of {', '.join(PROBES)}, or a Keras layer")
        if top_k < 1:
            raise UserError("top_k", top_k, "give an integer of 1 or more")
        self.probe = probe
        self.top_k = top_k
        self.importance = get_importance(importance, scale=importance_scale, temperature=temperature, alpha=alpha)
        self.mask_gradient = _check_mask_gradient(mask_gradient)
        self.num_classes = num_classes
        self.label_in_mask = label_in_mask
        self.mask_permutation = mask_permutation
        if mask_permutation is not None:
            channel_permutation(mask_permutation, 1)  # refuses a seed out of range before there are channels

    def build(self, features_shape):
        if self.num_classes is None:
            raise UserError("num_classes", None, "give the number of classes, or let a Classifier set it")
        if self.top_k > self.num_classes:
            raise UserError("top_k", self.top_k, f"give at most {self.num_classes}, the number of classes")
        if isinstance(self.probe, str):
            # The probe is tiny and its gradient shapes the mask: it keeps full precision under a mixed policy.
            self.probe = PROBES[self.probe](self.num_classes, dtype=self.variable_dtype, name="probe")
        if not self.probe.built:
            self.probe.build((features_shape[0], self._probed_size(features_shape)))

    def call(self, features, labels=None, training=None, mask_gradient=None):
        through_mask, through_choice = gradient_shares(self.mask_gradient if mask_gradient is None else mask_gradient)
        pooled = self._probed(tf.cast(features, self.variable_dtype))
        probe_logits = self.probe(pooled)
        labels = labels if training and self.label_in_mask else None
        source = scale_gradient(pooled, through_mask)
        channel_relevance, importance = self._importance(source, probe_logits, labels, through_choice)
        if self.mask_permutation is not None:
            order = channel_permutation(self.mask_permutation, importance.shape[-1])
            importance = tf.gather(importance, order, axis=-1)
        return {
            "features": features * self._spread(tf.cast(importance, features.dtype), features),
            "probe_logits": probe_logits,
            "relevance": channel_relevance,
            "importance": importance,
        }

    def _importance(self, pooled, probe_logits, labels, through_choice):
        """Return relevance and importance of what the probe reads; labels are None where the mask may not see them."""
        class_weights = top_k_class_weights(probe_logits, self.top_k, labels)
        if through_choice is not None:
            class_weights = with_smooth_gradient(class_weights, scale_gradient(probe_logits, through_choice))
        channel_relevance = relevance(self.probe, pooled, class_weights)
        return channel_relevance, self.importance(channel_relevance)

    def _probed_size(self, features_shape):
        """Return how many numbers the probe reads of an image: one for each channel."""
        return features_shape[-1]

    def _probed(self, features):
        """Return what the probe reads, (batch, channels): the mean over positions."""
        return tf.reduce_mean(features, axis=list(range(1, len(features.shape) - 1)))

    def _spread(self, importance, features):
        """Return the importance as the features' multiplier: the same at every position."""
        for axis in range(1, len(features.shape) - 1):
            importance = tf.expand_dims(importance, axis)
        return importance

    def get_config(self):
        probe = self.probe
        return {
            **super().get_config(),
            "probe": probe if isinstance(probe, str) else keras.saving.serialize_keras_object(probe),
            "top_k": self.top_k,
            "importance": keras.saving.serialize_keras_object(self.importance),
            "mask_gradient": self.mask_gradient,
            "num_classes": self.num_classes,
            "label_in_mask": self.label_in_mask,
            "mask_permutation": self.mask_permutation,
        }


def channel_permutation(seed: int, channels: int) -> np.ndarray:
    """Return the fixed permutation of a seed, the same with every version of NumPy.

    Args:
        seed: 0 to 2^32 - 1.
        channels: how many, >= 1.

    Returns:
        int32 (channels,), p: channel i takes what belongs to channel p[i].

    Raises:
        UserError: for a seed out of range.

    Example:
        >>> channel_permutation(0, 6).tolist()
        [5, 2, 1, 3, 0, 4]
    """
    if not 0 <= seed < 2**32:
        raise UserError("mask_permutation", seed, "give an integer from 0 to 2^32 - 1, or None")
    # The legacy generator: its stream is frozen, that of the new ones is not.
    return np.random.RandomState(seed).permutation(channels).astype(np.int32)


def gradient_shares(mask_gradient: str | tf.Tensor) -> tuple:
    """Return the shares of the gradients through the mask and through the choice of classes; None for no gradient."""
    if tf.is_tensor(mask_gradient):
        return mask_gradient[0], mask_gradient[1]
    _check_mask_gradient(mask_gradient)
    return (None if mask_gradient == "detached" else 1.0), (1.0 if mask_gradient == "smoothed" else None)


def _check_mask_gradient(mask_gradient: str) -> str:
    if mask_gradient not in MASK_GRADIENTS:
        raise UserError("mask_gradient", mask_gradient, f"give one of {', '.join(MASK_GRADIENTS)}")
    return mask_gradient
