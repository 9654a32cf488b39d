"""Floating-point operations of a classifier, counted from the shapes of its layers."""

from __future__ import annotations

import dataclasses
import math

import keras

from cifs_tf.models.classifier import Classifier


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
    """

    forward: int
    first_layer: int

    def attack(self, num_steps: int) -> int:
        """Operations per image of an attack, forward and backward to the image: 2 F num_steps."""
        return 2 * self.forward * num_steps

    def update(self) -> int:
        """Operations per image of a weight update: 3 F, without the first layer's gradient to the image."""
        return 3 * self.forward - self.first_layer

    def training_step(self, num_steps: int) -> int:
        """Operations per image of a step of adversarial training: an attack, then an update on its images."""
        return self.attack(num_steps) + self.update()

    def evaluation(self, num_steps: int) -> int:
        """Operations per image of an evaluation: an attack, then a prediction on its images."""
        return self.attack(num_steps) + self.forward


def count_flops(classifier: Classifier) -> Flops:
    """Count the floating-point operations of a classifier.

    Every output position of a convolution, and every output vector of a dense layer, costs one multiplication and
    one addition per element of the kernel: 2 * positions * prod(kernel shape), strided and grouped ones too.

    Args:
        classifier: any classifier whose backbone uses each of its `Conv2D` and `Dense` layers once, channels last.

    Returns:
        operations per image; see `Flops`.

    Example:
        >>> flops = count_flops(Classifier(resnet("resnet18", (32, 32, 3), 10)))
        >>> 64 * flops.training_step(num_steps=10) / 1e12
        1.635...
    """
    layers = [
        _layer_flops(layer, math.prod(layer.output.shape[1:-1]))
        for layer in classifier.backbone.layers
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)
    ]
    # A probe reads one pooled vector per image.
    probes = [
        _layer_flops(layer, 1)
        for selection in classifier.cuts.values()
        for layer in selection._flatten_layers()
        if isinstance(layer, keras.layers.Dense)
    ]
    return Flops(forward=sum(layers) + sum(probes), first_layer=next(iter(layers), 0))


def _layer_flops(layer: keras.layers.Layer, positions: int) -> int:
    return 2 * positions * math.prod(layer.kernel.shape)
