"""Channel-wise activations, and the weights that the last layer gives to them (Section 3.1, Appendix A.1)."""

from __future__ import annotations

import difflib

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.checks import check_images
from cifs_tf.errors import UserError
from cifs_tf.framework_internals import operation_of
from cifs_tf.models import Classifier
from cifs_tf.models.from_keras import WithoutActivation


def channel_activations(
    classifier: Classifier, images: tf.Tensor | np.ndarray, layer: str | None = None, batch_size: int = 250
) -> np.ndarray:
    """Measure the activation of each channel, averaged over positions, in inference mode (Appendix A.1).

    Args:
        classifier: the network.
        images: float (examples, height, width, channels) in [0, 1].
        layer: name of a layer of the backbone, whose output is taken after its selection layer, if there is one; None
            (default) takes the input of the last dense layer, after the last selection layer's mask.
        batch_size: images at a time. Default 250.

    Returns:
        float (examples, channels).

    Raises:
        UserError: if the images are not float, there is no such layer, or the last one is not dense.

    Example:
        >>> channel_activations(classifier, images).shape
        (250, 512)
    """
    check_images(images, shape=classifier.image_shape)
    images = tf.convert_to_tensor(images)
    if batch_size < 1:
        raise UserError("batch_size", batch_size, "give a number of 1 or more")
    name = last_layer(classifier).name if layer is None else _check_layer(classifier, layer)
    if not len(images):
        raise UserError("images", "none", "give at least one")
    parts = []
    for start in range(0, len(images), batch_size):
        inputs, outputs = classifier.observe(images[start : start + batch_size], name)
        values = inputs if layer is None else outputs
        # NumPy and SciPy know no bfloat16.
        values = tf.cast(values, keras.backend.result_type(values.dtype, "float32"))
        parts.append(tf.reduce_mean(values, axis=list(range(1, len(values.shape) - 1))).numpy())
    return np.concatenate(parts)


def last_layer_weights(classifier: Classifier) -> np.ndarray:
    """Return the weights of the last dense layer: the relevance of each of its channels to each class (Section 3.1).

    The logits are linear in the pooled activations, so their gradient of Eq. (1) is this matrix, the same for every
    image.

    Args:
        classifier: the network.

    Returns:
        float (channels, classes).

    Raises:
        UserError: if the last layer is not dense.
    """
    return last_layer(classifier).kernel.numpy()


def last_layer(classifier: Classifier) -> keras.layers.Dense:
    """Return the dense layer that computes the logits.

    Raises:
        UserError: if another layer computes them.
    """
    layer = operation_of(classifier.backbone.outputs[0])
    if isinstance(layer, WithoutActivation):
        layer = layer.layer
    if not isinstance(layer, keras.layers.Dense):
        advice = (
            f"its last layer, {layer.name}, is a {type(layer).__name__}; give a backbone that ends in a Dense layer"
        )
        raise UserError("classifier", classifier.name, advice)
    return layer


def _check_layer(classifier: Classifier, layer: str) -> str:
    names = [each.name for each in classifier.backbone.layers if not isinstance(each, keras.layers.InputLayer)]
    if layer not in names:
        close = difflib.get_close_matches(layer, names, n=3) or names[-3:]
        raise UserError("layer", layer, f"name a layer of the backbone, such as {', '.join(close)}")
    return layer
