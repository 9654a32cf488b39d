"""Floating-point operations of a classifier, counted from the shapes of its layers."""

import dataclasses
import math
from collections.abc import Iterator

import keras

from cifs_tf.framework_internals import calls, graph_of, layers_of

_ONE_KERNEL = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.Dense,
)
_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_COUNTED = (*_ONE_KERNEL, *_TRANSPOSED, *_SEPARABLE)


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations for one image, under the usual convention.

    A multiplication and an addition are two operations. A backward pass costs a forward pass for the gradient to
    the layers' inputs and another one for the gradient to their kernels. Everything but convolutions and dense
    layers (normalisation, activations, pooling, masks) is left out, as is the gradient of the probe that makes the
    relevance: together they do few operations, whatever time they take.

    Args:
        forward: F, one forward pass, in floating-point operations per image.
        first_layer: the part of F that the first layer does, the one that reads the image.
        left_out: names of layers that have kernels and are not counted, such as attention. Default none.
    """

    forward: int
    first_layer: int
    left_out: tuple[str, ...] = ()

    def attack(self, num_steps: int) -> int:
        """Return the operations per image of an attack, forward and backward to the image: 2 F num_steps."""
        return 2 * self.forward * num_steps

    def update(self) -> int:
        """Return the operations per image of a weight update: 3 F, without the first layer's gradient to the image."""
        return 3 * self.forward - self.first_layer

    def training_step(self, num_steps: int) -> int:
        """Return the operations per image of a step of adversarial training: an attack, then an update."""
        return self.attack(num_steps) + self.update()

    def evaluation(self, num_steps: int) -> int:
        """Return the operations per image of an evaluation: an attack, then a prediction on its images."""
        return self.attack(num_steps) + self.forward


def count_flops(classifier: keras.Model) -> Flops:
    """Count the floating-point operations of a classifier.

    Every output position of a convolution, and every output vector of a dense layer, costs one multiplication and
    one addition per element of the kernel: 2 * positions * prod(kernel shape), strided, grouped, depthwise and
    separable ones too; of a transposed convolution every input position. A layer that is used twice counts twice.

    Args:
        classifier: any `Classifier`, channels last.

    Returns:
        operations per image; see `Flops`. What it counts are the convolutions and dense layers of Keras, in nested
        functional models and wrappers too; other layers with kernels are named in `left_out`.

    Example:
        >>> flops = count_flops(Classifier(resnet("resnet18", (32, 32, 3), 10)))
        >>> round(64 * flops.training_step(num_steps=10) / 1e12, 3)
        1.635
    """
    counted = dict(_flops_of_layers(classifier.backbone))
    known = [flops for flops in counted.values() if flops is not None]
    # A probe reads one pooled vector per image.
    probes = sum(probe_flops(selection) for selection in classifier.cuts.values())
    left_out = tuple(node.operation.name for node, flops in counted.items() if flops is None)
    return Flops(sum(known) + probes, next(iter(known), 0), tuple(dict.fromkeys(left_out)))


def probe_flops(selection: keras.layers.Layer) -> int:
    """Count the operations per image of one raw prediction: those of the dense layers of a selection layer's probe.

    Args:
        selection: `CIFS`, `CAS`, or a layer with their call, built.
    """
    dense = (layer for layer in layers_of(selection) if isinstance(layer, keras.layers.Dense))
    return sum(2 * math.prod(layer.kernel.shape) for layer in dense)


def selection_flops(selection: keras.layers.Layer, features_shape: tuple[int | None, ...]) -> int | None:
    """Count the operations per image that a selection layer adds: pooling, probe, the probe's gradient, product.

    The gradient of the relevance (Eq. 1) takes every kernel once more; pooling adds, and Eq. (2) multiplies, every
    feature once. Activations, the choice of classes and the importance function are left out.

    Args:
        selection: `CIFS`, `CAS`, or a layer with their call, built.
        features_shape: (None, ..., channels) of the layer that is cut.

    Returns:
        operations, or None if a size of the features is unknown.

    Example:
        >>> selection_flops(classifier.cuts["stage4_block2_out"], (None, 4, 4, 512))  # linear, 10 classes
        36864
    """
    sizes = [size for size in features_shape[1:] if size is not None]
    return 2 * (probe_flops(selection) + math.prod(sizes)) if len(sizes) == len(features_shape) - 1 else None


def _flops_of_layers(model: keras.Model) -> Iterator[tuple]:
    """Yield each call of a layer with kernels and its operations per image, None where they cannot be counted."""
    for node in calls(model):
        layer = node.operation
        inner = graph_of(layer)
        if inner is not None:
            yield from _flops_of_layers(inner)
        elif isinstance(layer, _COUNTED) or (isinstance(layer, keras.layers.Layer) and _has_kernel(layer)):
            yield node, _layer_flops(layer, node.input_tensors[0].shape, node.outputs[0].shape)


def _has_kernel(layer: keras.layers.Layer) -> bool:
    """Tell whether a weight has more than one dimension: those of a normalisation have one, whatever their rank."""
    return any(sum(size > 1 for size in weight.shape) > 1 for weight in layer.weights)


def _layer_flops(layer: keras.layers.Layer, inputs: tuple, outputs: tuple) -> int | None:
    if isinstance(layer, keras.layers.Wrapper):
        return _layer_flops(layer.layer, inputs, outputs)
    positions = inputs[1:-1] if isinstance(layer, _TRANSPOSED) else outputs[1:-1]
    if None in positions:
        return None
    if isinstance(layer, _SEPARABLE):
        kernels = [layer.depthwise_kernel, layer.pointwise_kernel]
    elif isinstance(layer, _COUNTED):
        kernels = [layer.kernel]
    else:
        return None
    return 2 * math.prod(positions) * sum(math.prod(kernel.shape) for kernel in kernels)
