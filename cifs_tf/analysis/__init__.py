"""Channel analysis: which channels natural and adversarial images activate, and how that relates to robustness.

Functions return NumPy arrays, or frozen dataclasses of arrays of one length, which `dataclasses.asdict` turns into a
table; `plots` draws them.
"""

from cifs_tf.analysis.activations import channel_activations, last_layer_weights
from cifs_tf.analysis.measurement import Measurement, measure_channels
from cifs_tf.analysis.metrics import alignment, negative_share
from cifs_tf.analysis.profile import ChannelProfile, channel_profile, make_profile
from cifs_tf.analysis.robustness import Verdicts, class_wise_accuracy, read_verdicts

__all__ = [
    "ChannelProfile",
    "Measurement",
    "Verdicts",
    "alignment",
    "channel_activations",
    "channel_profile",
    "class_wise_accuracy",
    "last_layer_weights",
    "make_profile",
    "measure_channels",
    "negative_share",
    "read_verdicts",
]
