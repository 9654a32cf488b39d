"""The EWAS layer: CAS for each element of the features (Zhang and Liu, FGCS 2023)."""

import math

import keras
import tensorflow as tf

from cifs_tf.errors import UserError
from cifs_tf.layers.cas import CAS


@keras.saving.register_keras_serializable(package="cifs_tf")
class EWAS(CAS):
    """Element-wise activation scaling: the mask is the probe's weight row of the predicted class, over flat features.

    As `CAS`, but nothing is pooled: the linear probe reads every position and channel, so each of them has a weight of
    its own in the mask, signed and not normalised; in training the label's row is taken. Written from the paper's
    equations. Its authors attack the final prediction, and the mask's own with a hundredth of its weight: measure it
    with `--suite adaptive` or `strict`, which try every weight.

    Args:
        num_classes: number of classes; None (default) lets the classifier set it.
        **kwargs: those of `CIFS` and of `keras.layers.Layer`.

    Call arguments: as for `CIFS`; the features have fixed sizes but for the batch.

    Returns:
        dict: as for `CIFS`, with `relevance` and `importance` of every element, (batch, positions * channels).

    Raises:
        UserError: for features of unknown size.

    Reference:
        Zhang and Liu, "Improving adversarial robustness of neural networks with element-wise activation scaling",
        Future Generation Computer Systems 2023. Code: github.com/ieslab-ynu/EWAS.

    Example:
        >>> EWAS(num_classes=10)(tf.zeros((2, 4, 4, 64)))["importance"].shape
        TensorShape([2, 1024])
    """

    def _probed_size(self, features_shape):
        sizes = features_shape[1:]
        if None in sizes:
            raise UserError("features", tuple(features_shape), "give a fixed size, the probe reads every pixel")
        return math.prod(sizes)

    def _probed(self, features):
        return tf.reshape(features, [-1, self._probed_size(features.shape)])

    def _spread(self, importance, features):
        return tf.reshape(importance, [-1, *features.shape[1:]])
