"""The mechanism: probes, relevance (Eq. 1), importance functions, the CIFS layer (Eq. 2), and others to compare."""

from cifs_tf.layers.batch_normalization import BatchNormalization
from cifs_tf.layers.cas import CAS
from cifs_tf.layers.channel_relevance import relevance, top_k_class_weights
from cifs_tf.layers.cifs import CIFS, MASK_GRADIENTS, channel_permutation
from cifs_tf.layers.ewas import EWAS
from cifs_tf.layers.fsr import FSR
from cifs_tf.layers.importance import (
    ConstantImportance,
    SigmoidImportance,
    SoftmaxImportance,
    SoftplusImportance,
    get_importance,
    register_importance,
)
from cifs_tf.layers.probe import LinearProbe, MLPProbe
from cifs_tf.layers.squeeze_excitation import SqueezeExcitation

__all__ = [
    "CAS",
    "CIFS",
    "EWAS",
    "FSR",
    "MASK_GRADIENTS",
    "BatchNormalization",
    "ConstantImportance",
    "LinearProbe",
    "MLPProbe",
    "SigmoidImportance",
    "SoftmaxImportance",
    "SoftplusImportance",
    "SqueezeExcitation",
    "channel_permutation",
    "get_importance",
    "register_importance",
    "relevance",
    "top_k_class_weights",
]
