"""Measure how fast a machine convolves: its peak, and the convolutions of a network, each alone."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from cifs_tf.benchmarks.timing import timed
from cifs_tf.framework_internals import calls
from cifs_tf.models import Classifier

KERNEL_SIZE = 3
CHAIN_LENGTH = 8
REPEATS = 5


@dataclasses.dataclass(frozen=True)
class PassSeconds:
    """Seconds of all convolutions of a network for one batch, each alone, pass by pass.

    Args:
        forward: the convolutions themselves.
        input_gradient: their gradients to their inputs, that to the images included.
        image_gradient: the last of these, which a weight update does without.
        kernel_gradient: their gradients to their kernels.
    """

    forward: float
    input_gradient: float
    image_gradient: float
    kernel_gradient: float

    def training_step(self, num_steps: int) -> float:
        """Return seconds in a step of adversarial training, see `cifs_tf.models.flops.Flops`."""
        attack = num_steps * (self.forward + self.input_gradient)
        return attack + self.forward + self.input_gradient - self.image_gradient + self.kernel_gradient

    def evaluation(self, num_steps: int) -> float:
        """Return seconds in an attack and a prediction on its images."""
        return num_steps * (self.forward + self.input_gradient) + self.forward


class Limits(NamedTuple):
    """The convolutions' own speed, against which the steps of a network are measured.

    Args:
        peak: FLOP/s of chains of convolutions, by shape, see `convolution_peak`.
        alone: seconds of the network's own convolutions.
    """

    peak: dict[str, float]
    alone: PassSeconds


def measure_limits(classifier: Classifier, batch_size: int, precision: str) -> Limits:
    """Measure both; see `convolution_peak` and `convolution_seconds` for the arguments."""
    peak = convolution_peak(peak_shapes(classifier), batch_size, precision)
    return Limits(peak, convolution_seconds(classifier, batch_size, precision))


def fastest(limits: Sequence[Limits]) -> Limits:
    """Return the best of several measurements, number by number."""
    alone = zip(*(dataclasses.astuple(limit.alone) for limit in limits), strict=True)
    peak = {shape: max(limit.peak[shape] for limit in limits) for shape in limits[0].peak}
    return Limits(peak, PassSeconds(*map(min, alone)))


def peak_shapes(classifier: Classifier) -> list[tuple[int, int, int]]:
    """Return (height, width, channels) of the network's 3x3 convolutions that keep their input's shape."""
    convolutions = [layer for layer in classifier.backbone.layers if isinstance(layer, keras.layers.Conv2D)]
    return sorted(
        {
            layer.output.shape[1:]
            for layer in convolutions
            if layer.kernel_size == (KERNEL_SIZE, KERNEL_SIZE) and layer.input.shape == layer.output.shape
        },
        reverse=True,
    )


def convolution_peak(shapes: list[tuple[int, int, int]], batch_size: int, precision: str) -> dict[str, float]:
    """Measure FLOP/s of compiled chains of convolutions, by shape; the best of several repeats."""
    dtype = keras.DTypePolicy(precision).compute_dtype

    @tf.function(autograph=False)
    def chain(x, kernel):
        for _ in range(CHAIN_LENGTH):
            x = tf.nn.conv2d(x, kernel, 1, "SAME")
        return tf.reduce_max(x)

    peak = {}
    for height, width, channels in shapes:
        x = tf.cast(tf.random.normal((batch_size, height, width, channels)), dtype)
        kernel = _kernel((KERNEL_SIZE, KERNEL_SIZE, channels, channels), dtype)
        flops = CHAIN_LENGTH * 2 * batch_size * height * width * (KERNEL_SIZE * channels) ** 2
        run = functools.partial(chain.get_concrete_function(x, kernel), x, kernel)
        peak[f"{channels}@{height}x{width}"] = flops / _least_seconds(run)
    return peak


def convolution_seconds(classifier: Classifier, batch_size: int, precision: str) -> PassSeconds:
    """Time every convolution of a network and its two gradients, each alone: the best of several repeats.

    What a step takes beyond their sum is not the fault of the convolutions.

    Args:
        classifier: whose backbone's `Conv2D` layers are timed; those of the same shapes once.
        batch_size: images per batch.
        precision: dtype policy, whose compute dtype is used.
    """
    dtype = keras.DTypePolicy(precision).compute_dtype
    nodes = [node for node in calls(classifier.backbone) if isinstance(node.operation, keras.layers.Conv2D)]
    alike = collections.defaultdict(list)
    for node in nodes:
        conv = node.operation
        alike[node.input_tensors[0].shape, conv.kernel.shape, conv.strides, conv.padding].append(node)
    sums: dict[str, float] = collections.defaultdict(float)
    for same in alike.values():
        found = _time_convolution(same[0].operation, (batch_size, *same[0].input_tensors[0].shape[1:]), dtype)
        for name, seconds in found.items():
            sums[name] += len(same) * seconds
        if nodes[0] in same:
            sums["image_gradient"] = found["input_gradient"]
    return PassSeconds(**sums)


def _time_convolution(conv: keras.layers.Conv2D, input_shape: tuple[int, ...], dtype: str) -> dict[str, float]:
    x, kernel = tf.cast(tf.random.normal(input_shape), dtype), _kernel(conv.kernel.shape, dtype)
    outputs = conv.convolution_op(x, kernel)
    output_gradient = tf.random.normal(outputs.shape, dtype=outputs.dtype)

    def differentiate(source: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(source)
            outputs = conv.convolution_op(x, kernel)
        return tape.gradient(outputs, source, output_gradient)

    # What is captured here are arguments of the compiled functions, so nothing is computed beforehand; the forward pass
    # that a gradient does not need is pruned.
    passes: dict[str, Callable[[], tf.Tensor]] = {
        "forward": lambda: conv.convolution_op(x, kernel),
        "input_gradient": lambda: differentiate(x),
        "kernel_gradient": lambda: differentiate(kernel),
    }
    # One number of each result, because all of them would be copied.
    return {
        name: _least_seconds(tf.function(lambda make=make: tf.reshape(make(), [-1])[0], autograph=False))
        for name, make in passes.items()
    }


def _kernel(shape: tuple[int, ...], dtype: str) -> tf.Tensor:
    """Draw a kernel that keeps the variance, so that no value overflows, or underflows and is slow."""
    height, width, channels, _ = shape
    return tf.cast(tf.random.normal(shape, stddev=(height * width * channels) ** -0.5), dtype)


def _least_seconds(run: Callable[[], tf.Tensor]) -> float:
    timed(run)
    return min(timed(run)[0] for _ in range(REPEATS))
