"""RayS: a search that asks for predicted classes only (Chen and Gu 2020)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import tensorflow as tf

from cifs_tf.attacks.attack import Attack
from cifs_tf.attacks.objective import HeadsFn, fooled, per_example

LEVELS = 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class RayS(Attack):
    """Ray search in the L-infinity ball, by predicted classes alone; called as every `Attack`.

    From each image a ray runs in a direction of signs until the prediction changes. Ever smaller parts of the direction
    are flipped, and kept if the prediction then changes earlier. An example whose ray ends within epsilon is fooled;
    the others come back as they were. It reads neither logits nor gradients, so nothing that is done to them misleads
    it; neither do networks that answer honestly on 8-bit pixels alone: radii are multiples of 1/255 (of epsilon, where
    that is less), so that images on this grid stay on it.

    Args:
        epsilon: radius, in the units of the images, see `Ball`.
        num_queries: parts that are flipped, each of which costs one pass, and about seven where it helps. Default 500.
        norm: see `Ball`, `"linf"`.
        bounds: see `Ball`.

    Reference:
        Chen and Gu, "RayS: a ray searching method for hard-label adversarial attack", KDD 2020.

    Example:
        >>> attack = RayS(epsilon=8 / 255)
        >>> x_adv = attack(model.heads_fn(), images, labels, head_weights=head_weights(0, 2))
    """

    num_queries: int = 500

    norms = ("linf",)

    @property
    def cost(self) -> float:
        return self.num_queries / 2

    def parts(self, size: int) -> np.ndarray:
        """Return the first and last pixel of each flip, int32 (num_queries, 2): halves, quarters, ... and again."""
        depth = max(1, math.ceil(math.log2(size)))
        found: list[np.ndarray] = []
        while sum(map(len, found)) < self.num_queries:
            for level in range(depth + 1):
                limits = np.unique(np.round(np.linspace(0, size, 2**level + 1)).astype(np.int32))
                found.append(np.stack([limits[:-1], limits[1:]], axis=1))
        return np.concatenate([*found, np.zeros((0, 2), np.int32)])[: self.num_queries]

    def search(
        self,
        heads_fn: HeadsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        head_weights: tf.Tensor | np.ndarray,
        seed: tf.Tensor | None,
        target_rank: int | tf.Tensor,
    ) -> tf.Tensor:
        if self.num_queries == 0 or self.epsilon == 0:
            return images
        span = self.bounds[1] - self.bounds[0]
        steps = math.floor(self.epsilon / span * LEVELS + 1e-4)
        unit = span / LEVELS if steps else self.epsilon
        within, farthest = max(steps, 1), math.ceil(span / unit)
        size = math.prod(images.shape[1:])
        places, parts = tf.range(size), tf.constant(self.parts(size))

        def point(direction: tf.Tensor, radius: tf.Tensor) -> tf.Tensor:
            shift = unit * tf.cast(per_example(radius, images), images.dtype) * tf.reshape(direction, tf.shape(images))
            return tf.clip_by_value(images + shift, *self.bounds)

        def is_fooled(direction: tf.Tensor, radius: tf.Tensor) -> tf.Tensor:
            return fooled(heads_fn(point(direction, radius)), labels)

        def shorten(direction: tf.Tensor, radius: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
            """Bisect the chosen radii, at which the network is fooled."""

            def halve(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                middle = (low + high) // 2
                now = is_fooled(direction, middle)
                return tf.where(now, low, middle), tf.where(now, middle, high)

            low = tf.where(chosen, tf.zeros_like(radius), radius)
            return tf.while_loop(
                lambda low, high: tf.reduce_any(high - low > 1), halve, (low, radius), parallel_iterations=1
            )[1]

        def flip(index: tf.Tensor, direction: tf.Tensor, radius: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            inside = (places >= parts[index, 0]) & (places < parts[index, 1])
            candidate = tf.where(inside, -direction, direction)
            shorter = tf.minimum(radius - 1, farthest)
            better = is_fooled(candidate, shorter) & (radius > within)
            radius = tf.where(better, shorter, radius)
            direction = tf.where(better[:, None], candidate, direction)
            return index + 1, direction, shorten(direction, radius, better)

        already = fooled(heads_fn(images), labels)
        direction = tf.ones([tf.shape(images)[0], size], images.dtype)
        # One step beyond the farthest: no radius is known to fool the network yet.
        radius = tf.where(already, 0, farthest + 1) + tf.zeros_like(labels, tf.int32)
        _, direction, radius = tf.while_loop(
            lambda index, direction, radius: (index < self.num_queries) & tf.reduce_any(radius > within),
            flip,
            (tf.constant(0), direction, radius),
            parallel_iterations=1,
        )
        return tf.where(per_example((radius <= within) & ~already, images), point(direction, radius), images)
