"""Targeted FAB: the nearest point of the decision boundary, approached by projections (Croce and Hein 2020)."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from cifs_tf.attacks.minimal import FAR, MinimalNorm, nearer
from cifs_tf.attacks.objective import HeadsFn, choose, fooled, select_target, value_and_gradient
from cifs_tf.attacks.packing import loop_packed
from cifs_tf.losses import contract

MINIMUM_STEP = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True)
class FABT(MinimalNorm):
    """Fast adaptive boundary attack towards one class; called as every `Attack`.

    Each iteration linearises the boundary between the label and the target, projects both the current point and the
    image onto it inside the pixel bounds, and goes to a mixture of the two, a little beyond; from a misclassified point
    it steps back towards the image. It minimises the distance, and counts where that is at most epsilon. The boundary
    is that of the weighted heads. Nothing is random.

    Args:
        epsilon: radius that counts as success, in the units of the images, see `Ball`.
        num_steps: iterations, >= 0. Default 100.
        max_share: largest share of the image's own projection in the mixture. Default 0.1.
        overshoot: how far beyond the boundary to go. Default 1.05.
        backward: share of the distance kept on the step back. Default 0.9.
        norm: see `Ball`.
        bounds: see `Ball`.

    Reference:
        Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020.

    Example:
        >>> x_adv = FABT(epsilon=8 / 255)(model.heads_fn(), images, labels, head_weights=head_weights(0, 2))
    """

    num_steps: int = 100
    max_share: float = 0.1
    overshoot: float = 1.05
    backward: float = 0.9

    is_targeted = True

    @property
    def cost(self) -> float:
        return 1.5 * self.num_steps

    def nearest(
        self,
        heads_fn: HeadsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        head_weights: tf.Tensor | np.ndarray,
        target_rank: int | tf.Tensor = 2,
        enough: float | tf.Tensor = 0.0,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        natural = heads_fn(images)
        targets = select_target(natural, target_rank)
        classes = natural.shape[-1]
        # z_t - z_y, as a weighting of the classes.
        towards = tf.one_hot(targets, classes, dtype=natural.dtype) - tf.one_hot(labels, classes, dtype=natural.dtype)
        already = fooled(natural, labels)

        def step(_: tf.Tensor, state: Sequence[tf.Tensor], constants: Sequence[tf.Tensor]) -> list[tf.Tensor]:
            (best, best_distance, x), (images, labels, towards) = state, constants
            origin = tf.reshape(images, [tf.shape(images)[0], -1])

            def objective(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                heads = heads_fn(x)
                return contract(tf.reduce_sum(heads * towards[:, None, :], axis=-1), head_weights), heads

            difference, _, gradient = value_and_gradient(objective, x)
            normal = tf.reshape(gradient, tf.shape(origin))
            point = tf.reshape(x, tf.shape(origin))
            offset = tf.reduce_sum(normal * point, axis=1) - difference
            both = project_onto_hyperplane(
                tf.concat([point, origin], 0), tf.tile(normal, [2, 1]), tf.tile(offset, [2]), self.bounds, self.norm
            )
            move, own_move = tf.split(both - tf.concat([point, origin], 0), 2)
            size, own_size = (
                tf.maximum(self.distance(values, tf.zeros_like(values)), MINIMUM_STEP) for values in (move, own_move)
            )
            share = tf.minimum(size / (size + own_size), self.max_share)[:, None]
            mixed = (1 - share) * (point + self.overshoot * move) + share * (origin + self.overshoot * own_move)
            x = tf.reshape(tf.clip_by_value(mixed, *self.bounds), tf.shape(images))

            misclassified = fooled(heads_fn(x), labels)
            distance = self.distance(x, images)
            found = misclassified & (best_distance > enough)
            best, best_distance = nearer(found, x, distance, best, best_distance)
            return [best, best_distance, choose(misclassified, images + self.backward * (x - images), x)]

        start = tf.where(already, tf.zeros_like(contract(natural[..., 0], head_weights)), FAR)
        best, best_distance = loop_packed(
            step,
            lambda best, best_distance, x: best_distance <= enough,
            [images, start, images],
            [images, labels, towards],
            num_steps=self.num_steps,
            num_results=2,
        )
        return best, best_distance


def project_onto_hyperplane(
    points: tf.Tensor, normals: tf.Tensor, offsets: tf.Tensor, bounds: tuple[float, float], norm: str = "linf"
) -> tf.Tensor:
    """Return the nearest point of a hyperplane inside a box.

    In L-infinity each coordinate moves by the same length r, in L2 by r |w_i|, or as far as its bound lets it: the sum
    over i of |w_i| min(r, room_i), or of |w_i| min(r |w_i|, room_i), must equal the distance c = |w . t - b|. The left
    side is concave and piecewise linear in r, so Newton's method from r = 0 approaches the solution from below and
    reaches it after finitely many steps. In L1 the coordinates of the largest |w_i| move one after the other, each as
    far as it may. Where the box holds no point of the hyperplane, the nearest corner is taken.

    Args:
        points: t, float (batch, size) within the bounds.
        normals: w, float (batch, size).
        offsets: b, float (batch,): the hyperplane is w . v = b.
        bounds: (lowest, highest) coordinate.
        norm: see `Ball`. Default `"linf"`.

    Returns:
        float (batch, size).

    Example:
        >>> project_onto_hyperplane(tf.constant([[0.5, 0.5]]), tf.constant([[1., 1.]]), tf.constant([0.6]), (0., 1.))
        <tf.Tensor: shape=(1, 2), dtype=float32, numpy=array([[0.3, 0.3]], dtype=float32)>
    """
    gap = tf.reduce_sum(normals * points, axis=1) - offsets
    downhill = -tf.sign(normals) * tf.sign(gap)[:, None]
    weight, needed = tf.abs(normals), tf.abs(gap)[:, None]
    room = tf.where(downhill > 0, bounds[1] - points, points - bounds[0])
    if norm == "l1":
        order = tf.argsort(weight, axis=1, direction="DESCENDING", stable=True)
        heavy, wide = (tf.gather(values, order, axis=1, batch_dims=1) for values in (weight, room))
        before = tf.cumsum(heavy * wide, axis=1, exclusive=True)
        lengths = tf.clip_by_value(tf.math.divide_no_nan(needed - before, heavy), 0.0, wide)
        return points + downhill * tf.gather(lengths, tf.argsort(order, axis=1), axis=1, batch_dims=1)
    # How fast each coordinate moves; scaled to at most 1, which changes the length and not the point.
    speed: tf.Tensor | float = 1.0
    if norm == "l2":
        speed = tf.math.divide_no_nan(weight, tf.reduce_max(weight, axis=1, keepdims=True))

    def newton(length: tf.Tensor, moving: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        free = room > length * speed
        reached = tf.reduce_sum(weight * tf.minimum(length * speed, room), axis=1, keepdims=True)
        slope = tf.reduce_sum(tf.where(free, weight * speed, 0), axis=1, keepdims=True)
        # Without slope everything is at its bound: the corner.
        step = tf.where(slope > 0, tf.math.divide_no_nan(needed - reached, slope), 0)
        step = tf.maximum(step, 0)
        return length + step, step > 1e-7 * tf.maximum(length, MINIMUM_STEP)

    length = tf.zeros_like(needed)
    length, _ = tf.while_loop(
        lambda length, moving: tf.reduce_any(moving),
        newton,
        (length, needed > 0),
        maximum_iterations=100,
        parallel_iterations=1,
    )
    return points + downhill * tf.minimum(length * speed, room)
