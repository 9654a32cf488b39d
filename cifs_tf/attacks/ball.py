"""The threat model: an L-infinity or L2 ball of radius epsilon around each image, clipped to the bounds of pixels."""

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf

from cifs_tf.attacks.objective import per_example
from cifs_tf.attacks.random import fold_in, normal, uniform
from cifs_tf.errors import UserError

NORMS = ("linf", "l2")
TINY = 1e-12
# Of `fold_in`, beyond any number of restarts: a radius must not be drawn from the seed of its direction.
RADIUS_STREAM = 2**15


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ball:
    """The threat model: at most epsilon away from the image, with pixels inside the bounds.

    Args:
        epsilon: radius, in the units of the images, >= 0; in L-infinity at most the range of the bounds. A scalar
            tensor (a warm-up) is taken as it is.
        norm: `"linf"` (default) or `"l2"` (Euclidean, over all pixels and channels of an image).
        bounds: (lowest, highest) pixel value. Default (0, 1).

    Raises:
        UserError: for a radius out of range, an unknown norm, or bounds in the wrong order.

    Example:
        >>> project = Ball(epsilon=0.1).around(tf.fill([1, 1, 1, 1], 0.5))
        >>> project(tf.fill([1, 1, 1, 1], 0.9)).numpy()
        array([[[[0.6]]]], dtype=float32)
    """

    epsilon: float | tf.Tensor
    norm: str = "linf"
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UserError("norm", self.norm, f"give one of {', '.join(NORMS)}")
        if not self.bounds[0] < self.bounds[1]:
            raise UserError("bounds", self.bounds, "give the lowest pixel value, then a higher one")
        most = self.bounds[1] - self.bounds[0] if self.norm == "linf" else math.inf
        if not tf.is_tensor(self.epsilon) and (not 0 <= self.epsilon <= most or math.isinf(self.epsilon)):
            upper = f"to {most:g}" if self.norm == "linf" else "upwards"
            raise UserError("epsilon", self.epsilon, f"give a radius from 0 {upper}")

    def around(self, images: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
        """Make the function that brings points into the ball around these images and into the bounds.

        Made once, outside a loop: its limits do not change from step to step.
        """
        if self.norm == "linf":
            lowest = tf.maximum(images - self.epsilon, self.bounds[0])
            highest = tf.minimum(images + self.epsilon, self.bounds[1])
            return lambda x: tf.minimum(tf.maximum(x, lowest), highest)

        def project(x: tf.Tensor) -> tf.Tensor:
            # The image lies inside the bounds, so clipping to them brings no pixel away from it.
            shift = x - images
            shrink = tf.minimum(self.epsilon / tf.maximum(_length(shift), TINY), 1.0)
            return tf.clip_by_value(images + shift * shrink, *self.bounds)

        return project

    def steepest(self, gradient: tf.Tensor) -> tf.Tensor:
        """Return the direction of length 1 in this norm in which a linear function rises fastest."""
        if self.norm == "linf":
            return tf.sign(gradient)
        # The largest entry first: squares of small gradients would vanish.
        gradient = tf.math.divide_no_nan(gradient, tf.reduce_max(tf.abs(gradient), axis=[1, 2, 3], keepdims=True))
        return gradient / (_length(gradient) + TINY)

    def distance(self, x: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """Return the distance of points from the images, (batch,)."""
        shift = tf.reshape(x - images, [tf.shape(images)[0], -1])
        return tf.reduce_max(tf.abs(shift), axis=1) if self.norm == "linf" else tf.norm(shift, axis=1)

    def random_point(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Draw a point uniformly in the ball around each image, clipped to the bounds; seed: int64 (batch, 2)."""
        shape, dtype = images.shape[1:], images.dtype
        if self.norm == "linf":
            noise = uniform(seed, shape, -self.epsilon, self.epsilon, dtype)
            return tf.clip_by_value(images + noise, *self.bounds)
        # A direction, and a radius whose volume is uniform.
        radius = uniform(fold_in(seed, RADIUS_STREAM), tf.TensorShape([]), 0.0, 1.0, dtype) ** (1 / math.prod(shape))
        return self.around(images)(self.random_surface_point(images, seed, per_example(radius, images)))

    def random_surface_point(self, images: tf.Tensor, seed: tf.Tensor, share: tf.Tensor | float = 1.0) -> tf.Tensor:
        """Follow a random direction from each image up to epsilon (times `share`), clipped to the bounds.

        In L-infinity the direction is uniform noise, scaled until one pixel sits at epsilon.
        """
        shape, dtype = images.shape[1:], images.dtype
        if self.norm == "linf":
            noise = uniform(seed, shape, -1.0, 1.0, dtype)
            length = tf.reduce_max(tf.abs(noise), axis=[1, 2, 3], keepdims=True)
        else:
            noise = normal(seed, shape, dtype)
            length = _length(noise)
        return tf.clip_by_value(images + share * self.epsilon * noise / (length + TINY), *self.bounds)


def _length(values: tf.Tensor) -> tf.Tensor:
    """Return the Euclidean length of each example, with the rank kept."""
    return tf.sqrt(tf.reduce_sum(tf.square(values), axis=list(range(1, len(values.shape))), keepdims=True))
