"""The threat model: a ball of radius epsilon in L-infinity, L2 or L1 around each image, clipped to the pixel bounds."""

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf

from cifs_tf.attacks.objective import per_example
from cifs_tf.attacks.random import fold_in, normal, uniform
from cifs_tf.errors import UserError

NORMS = ("linf", "l2", "l1")
TINY = 1e-12
# Of the pixels, whose gradient is largest, that a steepest step in L1 changes (Tramer and Boneh 2019).
SPARSE_SHARE = 0.01
NEWTON_STEPS = 50
CLOSE = 1e-6
# Of `fold_in`, beyond any number of restarts: a radius must not be drawn from the seed of its direction.
RADIUS_STREAM = 2**15


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ball:
    """The threat model: at most epsilon away from the image, with pixels inside the bounds.

    Args:
        epsilon: radius, in the units of the images, >= 0; in L-infinity at most the range of the bounds. A scalar
            tensor (a warm-up) is taken as it is.
        norm: `"linf"` (default), `"l2"` (Euclidean) or `"l1"` (sum of absolute values), over all pixels and channels of
            an image.
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

    def around(self, images: tf.Tensor, radii: tf.Tensor | None = None) -> Callable[[tf.Tensor], tf.Tensor]:
        """Make the function that brings points into the ball around these images and into the bounds.

        Made once, outside a loop: its limits do not change from step to step.

        Args:
            images: centres of the balls.
            radii: of each image a radius of its own, (batch,). Default None: epsilon.
        """
        radius = self.epsilon if radii is None else per_example(radii, images)
        if self.norm == "linf":
            lowest = tf.maximum(images - radius, self.bounds[0])
            highest = tf.minimum(images + radius, self.bounds[1])
            return lambda x: tf.minimum(tf.maximum(x, lowest), highest)

        if self.norm == "l1":
            return lambda x: (
                images + project_onto_l1(x - images, radius, self.bounds[0] - images, self.bounds[1] - images)
            )

        def project(x: tf.Tensor) -> tf.Tensor:
            # The image lies inside the bounds, so clipping to them brings no pixel away from it.
            shift = x - images
            shrink = tf.minimum(radius / tf.maximum(_length(shift), TINY), 1.0)
            return tf.clip_by_value(images + shift * shrink, *self.bounds)

        return project

    def steepest(self, gradient: tf.Tensor) -> tf.Tensor:
        """Return the direction of length 1 in this norm in which a linear function rises fastest.

        In L1 that is one pixel; the hundredth part of all, whose gradients are largest, shares the step.
        """
        if self.norm == "linf":
            return tf.sign(gradient)
        if self.norm == "l1":
            return sparse_signs(gradient, tf.constant(SPARSE_SHARE, gradient.dtype))
        # The largest entry first: squares of small gradients would vanish.
        gradient = tf.math.divide_no_nan(gradient, tf.reduce_max(tf.abs(gradient), axis=[1, 2, 3], keepdims=True))
        return gradient / (_length(gradient) + TINY)

    def distance(self, x: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """Return the distance of points from the images, (batch,)."""
        shift = tf.reshape(x - images, [tf.shape(images)[0], -1])
        if self.norm == "linf":
            return tf.reduce_max(tf.abs(shift), axis=1)
        return tf.norm(shift, axis=1) if self.norm == "l2" else tf.reduce_sum(tf.abs(shift), axis=1)

    def dual_length(self, gradient: tf.Tensor) -> tf.Tensor:
        """Return how much a linear function of this gradient changes at most over a distance of 1, (batch,)."""
        dual = Ball(epsilon=0.0, norm={"linf": "l1", "l2": "l2", "l1": "linf"}[self.norm])
        return dual.distance(gradient, tf.zeros_like(gradient))

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

        In L-infinity the direction is uniform noise, scaled until one pixel sits at epsilon; in L1 it is Laplacian.
        """
        shape, dtype = images.shape[1:], images.dtype
        if self.norm == "linf":
            noise = uniform(seed, shape, -1.0, 1.0, dtype)
            length = tf.reduce_max(tf.abs(noise), axis=[1, 2, 3], keepdims=True)
        elif self.norm == "l1":
            noise = uniform(seed, shape, -1.0, 1.0, dtype)
            noise = -tf.sign(noise) * tf.math.log1p(-tf.minimum(tf.abs(noise), 1 - 1e-6))
            length = tf.reduce_sum(tf.abs(noise), axis=[1, 2, 3], keepdims=True)
        else:
            noise = normal(seed, shape, dtype)
            length = _length(noise)
        return tf.clip_by_value(images + share * self.epsilon * noise / (length + TINY), *self.bounds)


def project_onto_l1(shift: tf.Tensor, radius: float | tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Return the nearest point, in L2, of the L1 ball around 0 inside a box that holds 0 (Croce and Hein 2021).

    Each entry shrinks by the same amount, to 0 at most, and is cut off at its bound: the sum of what is left must be
    the radius. It falls with the amount, piece by piece linearly: Newton's method, kept in a bracket, finds it.

    Args:
        shift: float (batch, ...).
        radius: of the ball, or one for each example, (batch, 1, ...).
        low: least value of each entry, <= 0, like `shift`.
        high: greatest, >= 0.

    Returns:
        like `shift`.

    Example:
        >>> wide = tf.ones([1, 2])
        >>> project_onto_l1(tf.constant([[0.9, -0.3]]), 0.8, -wide, wide).numpy().round(3)
        array([[ 0.7, -0.1]], dtype=float32)
    """
    axes = list(range(1, len(shift.shape)))
    size = tf.abs(shift)
    room = tf.where(shift > 0, high, -low)

    def left(amount: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(size - amount, 0.0, room)

    def newton(amount: tf.Tensor, least: tf.Tensor, most: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, ...]:
        excess = tf.reduce_sum(left(amount), axis=axes, keepdims=True) - radius
        least, most = tf.where(excess > 0, amount, least), tf.where(excess > 0, most, amount)
        moving = (size > amount) & (size - amount < room)
        slope = tf.reduce_sum(tf.cast(moving, shift.dtype), axis=axes, keepdims=True)
        ahead = amount + tf.math.divide_no_nan(excess, slope)
        ahead = tf.where((ahead >= least) & (ahead <= most) & (slope > 0), ahead, 0.5 * (least + most))
        return ahead, least, most, outside & (tf.abs(excess) > CLOSE * radius)

    most = tf.reduce_max(size, axis=axes, keepdims=True)
    zeros = tf.zeros_like(most)
    outside = tf.reduce_sum(left(zeros), axis=axes, keepdims=True) > radius
    amount, _, most, _ = tf.while_loop(
        lambda amount, least, most, going: tf.reduce_any(going),
        newton,
        (zeros, zeros, most, outside),
        maximum_iterations=NEWTON_STEPS,
        parallel_iterations=1,
    )
    # The end of the bracket that lies inside, should rounding have kept Newton's method outside.
    is_inside = tf.reduce_sum(left(amount), axis=axes, keepdims=True) <= radius * (1 + CLOSE)
    return tf.sign(shift) * left(tf.where(outside, tf.where(is_inside, amount, most), zeros))


def sparse_signs(gradient: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Return the signs of the largest entries, a share of all (or of each example's), scaled to length 1 in L1."""
    size = tf.reshape(tf.abs(gradient), [tf.shape(gradient)[0], -1])
    number = tf.shape(size)[1]
    rank = tf.cast(tf.cast(number, share.dtype) * (1 - share), tf.int32) + tf.zeros_like(size[:, 0], tf.int32)
    least = tf.gather(tf.sort(size, axis=1), tf.clip_by_value(rank, 0, number - 1), axis=1, batch_dims=1)
    signs = tf.where(tf.abs(gradient) >= per_example(least, gradient), tf.sign(gradient), 0.0)
    return signs / (tf.reduce_sum(tf.abs(signs), axis=[1, 2, 3], keepdims=True) + TINY)


def _length(values: tf.Tensor) -> tf.Tensor:
    """Return the Euclidean length of each example, with the rank kept."""
    return tf.sqrt(tf.reduce_sum(tf.square(values), axis=list(range(1, len(values.shape))), keepdims=True))
