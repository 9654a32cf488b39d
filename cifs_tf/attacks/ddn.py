"""DDN: the nearest misclassified point in L2, direction and norm apart (Rony et al. 2019)."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from cifs_tf.attacks.minimal import FAR, MinimalNorm, annealed, nearer
from cifs_tf.attacks.objective import HeadsFn, fooled, per_example, value_and_gradient
from cifs_tf.attacks.packing import loop_packed
from cifs_tf.losses import contract, cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDN(MinimalNorm):
    """Decoupled direction and norm attack in L2; called as every `Attack`.

    Each step adds alpha_k g / |g| to the perturbation, g the gradient of the cross-entropy of the weighted heads, and
    scales it to the length r_k = (1 - gamma) r_{k-1} if the last point was misclassified, else (1 + gamma) r_{k-1}.
    alpha_k falls along half a cosine. Nothing is random.

    Args:
        epsilon: radius that counts as success, in the units of the images, see `Ball`.
        num_steps: iterations, >= 0. Default 200.
        step_size: alpha of the first step; the last is a hundredth of it. Default 1.
        gamma: relative change of the length at each step. Default 0.05.
        first_length: r_0. Default 1.
        norm: `"l2"`.
        bounds: see `Ball`.

    Reference:
        Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and defenses",
        CVPR 2019, Algorithm 1.

    Example:
        >>> x, distance = DDN(epsilon=0.5).nearest(model.heads_fn(), images, labels, head_weights(0, 2))
    """

    num_steps: int = 200
    step_size: float = 1.0
    gamma: float = 0.05
    first_length: float = 1.0
    norm: str = "l2"

    norms = ("l2",)

    def nearest(
        self,
        heads_fn: HeadsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        head_weights: tf.Tensor | np.ndarray,
        target_rank: int | tf.Tensor = 2,
        enough: float | tf.Tensor = 0.0,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        def step(index: tf.Tensor, state: Sequence[tf.Tensor], constants: Sequence[tf.Tensor]) -> list[tf.Tensor]:
            (best, best_distance, x, length), (images, labels) = state, constants

            def objective(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                heads = heads_fn(x)
                return contract(cross_entropy(heads, labels), head_weights), heads

            _, heads, gradient = value_and_gradient(objective, x)
            misclassified, distance = fooled(heads, labels), self.distance(x, images)
            best, best_distance = nearer(misclassified, x, distance, best, best_distance)
            length = tf.where(misclassified, 1 - self.gamma, 1 + self.gamma) * length
            step_size = annealed(self.step_size, self.step_size / 100, index, self.num_steps, x.dtype)
            shift = self.steepest(x - images + step_size * self.steepest(gradient))
            x = tf.clip_by_value(images + per_example(length, x) * shift, *self.bounds)
            return [best, best_distance, x, length]

        ones = tf.ones_like(images[:, 0, 0, 0])
        best, distance = loop_packed(
            step,
            lambda best, distance, x, length: distance <= enough,
            [images, tf.where(fooled(heads_fn(images), labels), 0 * ones, FAR), images, self.first_length * ones],
            [images, labels],
            num_steps=self.num_steps,
            num_results=2,
        )
        return best, distance
