"""The base of attacks that look for the nearest misclassified point instead of any in a ball."""

import abc
import dataclasses

import numpy as np
import tensorflow as tf

from cifs_tf.attacks.attack import Attack
from cifs_tf.attacks.objective import HeadsFn, choose

# Distance of a point that has not been found.
FAR = 1e10


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinimalNorm(Attack):
    """Base class of minimal-norm attacks; called as every `Attack`, they count what they find within epsilon.

    A subclass implements `nearest`.
    """

    @abc.abstractmethod
    def nearest(
        self,
        heads_fn: HeadsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        head_weights: tf.Tensor | np.ndarray,
        target_rank: int | tf.Tensor = 2,
        enough: float | tf.Tensor = 0.0,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the nearest misclassified point that is found for each image, and its distance, (batch,).

        An image that is misclassified itself has distance 0; where nothing is found the image comes back, and `FAR`.
        An example that has come within `enough` is left alone. Other arguments: see `Attack`.
        """

    def search(
        self,
        heads_fn: HeadsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        head_weights: tf.Tensor | np.ndarray,
        seed: tf.Tensor | None,
        target_rank: int | tf.Tensor,
    ) -> tf.Tensor:
        x, distance = self.nearest(heads_fn, images, labels, head_weights, target_rank, self.epsilon)
        return choose(distance <= self.epsilon, x, images)


def annealed(first: float, last: float, index: tf.Tensor, num_steps: int, dtype: tf.DType) -> tf.Tensor:
    """Return a step size on its way from the first to the last along half a cosine, at a step counted from 0."""
    share = tf.cast(index, dtype) / max(num_steps - 1, 1)
    return last + 0.5 * (first - last) * (1 + tf.cos(np.pi * share))


def nearer(
    misclassified: tf.Tensor, x: tf.Tensor, distance: tf.Tensor, best: tf.Tensor, best_distance: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the nearest misclassified points, and their distances (batch,), after a look at the points x."""
    better = misclassified & (distance < best_distance)
    return choose(better, x, best), tf.where(better, distance, best_distance)
