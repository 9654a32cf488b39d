"""The CAS layer, the baseline of the paper (Bai et al., ICLR 2021)."""

import keras

from cifs_tf.layers.cifs import CIFS


@keras.saving.register_keras_serializable(package="cifs_tf")
class CAS(CIFS):
    """Channel-wise activation suppressing: the mask is the probe's weight row of the predicted class.

    That row is the top-1 relevance of a linear probe, so CAS is CIFS with a linear probe, k = 1 and the identity as
    importance function: signed, not normalised; in training the label's row is taken.

    Args:
        num_classes: number of classes; None (default) lets the classifier set it.
        **kwargs: those of `CIFS` and of `keras.layers.Layer`.

    Call arguments and returns: as for `CIFS`.

    Reference:
        Bai et al., "Improving Adversarial Robustness via Channel-wise Activation Suppressing", ICLR 2021.

    Example:
        >>> CAS(num_classes=10)(tf.zeros((2, 4, 4, 64)))["probe_logits"].shape
        TensorShape([2, 10])
    """

    def __init__(self, num_classes: int | None = None, **kwargs):
        fixed = {"probe": "linear", "top_k": 1, "importance": "identity", "mask_gradient": "detached"}
        super().__init__(num_classes=num_classes, **{**fixed, **kwargs})
