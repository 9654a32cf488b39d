"""Probe networks: the surrogate classifiers that make a layer's raw prediction (Section 3.2, step 1).

A probe maps the pooled feature vector (batch, channels) to logits (batch, classes). Pooling stands outside, in the
selection layer, because the relevance of Eq. (1) is the gradient to exactly that vector; any Keras layer of this
signature can be a probe.
"""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="cifs_tf")
class LinearProbe(keras.layers.Layer):
    """Linear probe of the last block: logits = W z + b.

    Args:
        num_classes: number of classes, >= 2.

    Call arguments:
        pooled: float (batch, channels), the spatial mean of the features.

    Returns:
        float (batch, num_classes), the raw prediction.

    Example:
        >>> LinearProbe(10)(tf.zeros((2, 64))).shape
        TensorShape([2, 10])
    """

    def __init__(self, num_classes: int, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.dense = keras.layers.Dense(num_classes, name="dense", dtype=self.dtype_policy)

    def build(self, pooled_shape):
        self.dense.build(pooled_shape)

    def call(self, pooled):
        return self.dense(pooled)

    def compute_output_shape(self, pooled_shape):
        return (pooled_shape[0], self.num_classes)

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes}


@keras.saving.register_keras_serializable(package="cifs_tf")
class MLPProbe(keras.layers.Layer):
    """Two-layer probe of the penultimate block: logits = W2 softplus_s(W1 z + b1) + b2 (Appendix E.4).

    softplus_s(h) = softplus(s h) / s, PyTorch's `Softplus(beta=s)`. Its gradient is a sigmoid, so the relevance is
    smooth and exports to ONNX; a ReLU probe would do neither.

    Args:
        num_classes: number of classes, >= 2.
        hidden_units: width of the hidden layer, >= 1. Default 128, the official value.
        sharpness: s > 0 above. Default 5, the official value.

    Call arguments:
        pooled: float (batch, channels), the spatial mean of the features.

    Returns:
        float (batch, num_classes), the raw prediction.

    Example:
        >>> MLPProbe(10)(tf.zeros((2, 64))).shape
        TensorShape([2, 10])
    """

    def __init__(self, num_classes: int, hidden_units: int = 128, sharpness: float = 5.0, **kwargs):
        super().__init__(**kwargs)
        self.num_classes, self.hidden_units, self.sharpness = num_classes, hidden_units, sharpness
        self.hidden = keras.layers.Dense(hidden_units, name="hidden", dtype=self.dtype_policy)
        self.dense = keras.layers.Dense(num_classes, name="dense", dtype=self.dtype_policy)

    def build(self, pooled_shape):
        self.hidden.build(pooled_shape)
        self.dense.build((pooled_shape[0], self.hidden_units))

    def call(self, pooled):
        return self.dense(tf.nn.softplus(self.sharpness * self.hidden(pooled)) / self.sharpness)

    def compute_output_shape(self, pooled_shape):
        return (pooled_shape[0], self.num_classes)

    def get_config(self):
        config = {
            "num_classes": self.num_classes,
            "hidden_units": self.hidden_units,
            "sharpness": self.sharpness,
        }
        return {**super().get_config(), **config}


PROBES = {"linear": LinearProbe, "mlp": MLPProbe}
