"""The squeeze-and-excitation block, whose mask is learnt and knows no classes (Hu et al., CVPR 2018)."""

from __future__ import annotations

import keras
import tensorflow as tf

from cifs_tf.errors import UserError
from cifs_tf.layers.cifs import CIFS


@keras.saving.register_keras_serializable(package="cifs_tf")
class SqueezeExcitation(CIFS):
    """Squeeze-and-excitation: m = sigmoid(W2 relu(W1 z + b1) + b2) of the pooled features z, channels times m.

    It stands where CIFS stands and has its linear probe, so that losses and attacks are the same; the mask reads the
    features alone, neither the probe nor labels: a comparison for what relevance adds to a learnt gate.

    Args:
        num_classes: number of classes; None (default) lets the classifier set it.
        reduction: channels for each unit between W1 and W2, >= 1. Default 16, the paper's value.
        **kwargs: those of `CIFS` and of `keras.layers.Layer`. `mask_gradient` is `"full"` by default, as the gate
            learns by it.

    Call arguments: as for `CIFS`.

    Returns:
        dict: as for `CIFS`; `relevance` is the sigmoid's argument.

    Raises:
        UserError: for a reduction below 1.

    Reference:
        Hu, Shen and Sun, "Squeeze-and-Excitation Networks", CVPR 2018.

    Example:
        >>> SqueezeExcitation(num_classes=10)(tf.zeros((2, 4, 4, 64)))["importance"].shape
        TensorShape([2, 64])
    """

    def __init__(self, num_classes: int | None = None, reduction: int = 16, **kwargs):
        fixed = {"probe": "linear", "top_k": 1, "importance": "sigmoid", "mask_gradient": "full"}
        super().__init__(num_classes=num_classes, **{**fixed, **kwargs})
        if reduction < 1:
            raise UserError("reduction", reduction, "give an integer of 1 or more")
        self.reduction = reduction

    def build(self, features_shape):
        super().build(features_shape)
        channels = features_shape[-1]
        self.squeeze = keras.layers.Dense(-(-channels // self.reduction), "relu", dtype=self.variable_dtype)
        self.excitation = keras.layers.Dense(channels, dtype=self.variable_dtype)
        self.squeeze.build((None, channels))
        self.excitation.build((None, self.squeeze.units))

    def _importance(self, pooled, probe_logits, labels, through_choice):
        gate = self.excitation(self.squeeze(pooled))
        return gate, tf.sigmoid(gate)

    def get_config(self):
        return {**super().get_config(), "reduction": self.reduction}
