"""Batch normalisation folded into the convolution before it, in inference mode.

With the running statistics, scale (k * x) + shift = (scale k) * x + shift: a kernel is smaller than a feature map, and
TensorFlow joins the convolution, the shift and the activation that follows into one operation. An attack is nothing but
passes in inference mode.
"""

import collections
from collections.abc import Container

import keras
import tensorflow as tf

from cifs_tf.framework_internals import calls
from cifs_tf.layers import BatchNormalization


def find_pairs(backbone: keras.Model, kept: Container[str] = ()) -> dict[str, str]:
    """Find the convolutions whose output goes nowhere but into a batch normalisation.

    Args:
        backbone: functional Keras model.
        kept: names of layers whose own output is needed.

    Returns:
        name of the normalisation by name of the convolution, which has no bias and no activation.

    Example:
        >>> find_pairs(resnet("resnet10", (8, 8, 1), 10))["stem_conv"]
        'stem_bn'
    """
    nodes = list(calls(backbone))
    times = collections.Counter(node.operation.name for node in nodes)
    readers = collections.defaultdict(list)
    for node in nodes:
        for tensor in node.input_tensors:
            readers[id(tensor)].append(node.operation)
    pairs = {}
    for node in nodes:
        conv, output = node.operation, node.outputs[0]
        if not _is_plain(conv) or conv.name in kept or output is backbone.outputs[0]:
            continue
        match readers[id(output)]:
            case [BatchNormalization() as bn] if times[conv.name] == times[bn.name] == 1:
                pairs[conv.name] = bn.name
    return pairs


def _is_plain(layer) -> bool:
    """Tell whether a layer is a two-dimensional convolution, channels last, and nothing else."""
    if type(layer) is not keras.layers.Conv2D or layer.use_bias or layer.data_format != "channels_last":
        return False
    return layer.activation is keras.activations.linear


def convolve_and_normalise(conv: keras.layers.Conv2D, bn: BatchNormalization, inputs: tf.Tensor) -> tf.Tensor:
    """Apply both layers at once, in inference mode.

    Args:
        conv: convolution without bias and activation.
        bn: the batch normalisation of its output.
        inputs: float (batch, height, width, channels).

    Returns:
        float (batch, height, width, filters).
    """
    scale, shift = bn.scale_and_shift()
    kernel = tf.cast(conv.kernel * scale, conv.compute_dtype)
    outputs = conv.convolution_op(tf.cast(inputs, conv.compute_dtype), kernel)
    return tf.nn.bias_add(outputs, tf.cast(shift, outputs.dtype))
