"""FMN: the nearest misclassified point, in a ball that adapts its radius (Pintor et al. 2021)."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from cifs_tf.attacks.ball import Ball
from cifs_tf.attacks.minimal import FAR, MinimalNorm, annealed, nearer
from cifs_tf.attacks.objective import HeadsFn, fooled, value_and_gradient
from cifs_tf.attacks.packing import loop_packed
from cifs_tf.losses import contract, margin


@dataclasses.dataclass(frozen=True, kw_only=True)
class FMN(MinimalNorm):
    """Fast minimum-norm attack in L-infinity, L2 or L1; called as every `Attack`.

    With m the label's lead (z_y - max z_j, of the weighted heads), g its gradient, d the distance of the point x_k and
    d* the smallest of a misclassified point so far, each step sets the radius r_k to

    - min((1 - gamma_k) r_{k-1}, d*) if x_k is misclassified,
    - (1 + gamma_k) r_{k-1} if it is not, but another was,
    - (1 + gamma_k) (d + |m| / |g|_q) before any was: beyond the linearised boundary (q is the dual norm; the paper goes
      to it, which rounding may miss),

    and goes to the projection of x_k - alpha_k g / |g|_2 onto the ball of that radius and the bounds. alpha_k and
    gamma_k fall along half a cosine. Nothing is random.

    Args:
        epsilon: radius that counts as success, in the units of the images, see `Ball`.
        num_steps: iterations, >= 0. Default 200.
        step_size: alpha of the first step, in L2; the last is a hundredth of it. Default 1.
        gamma: relative change of the radius at the first step. Default 0.05.
        last_gamma: at the last. Default 0.001.
        norm: see `Ball`.
        bounds: see `Ball`.

    Reference:
        Pintor et al., "Fast minimum-norm adversarial attacks through adaptive norm constraints", NeurIPS 2021,
        Algorithm 1.

    Example:
        >>> x, distance = FMN(epsilon=0.5).nearest(model.heads_fn(), images, labels, head_weights(0, 2))
    """

    num_steps: int = 200
    step_size: float = 1.0
    gamma: float = 0.05
    last_gamma: float = 0.001

    def nearest(
        self,
        heads_fn: HeadsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        head_weights: tf.Tensor | np.ndarray,
        target_rank: int | tf.Tensor = 2,
        enough: float | tf.Tensor = 0.0,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        downhill = Ball(epsilon=0.0, norm="l2").steepest
        zeros = tf.zeros_like(images[:, 0, 0, 0])

        def step(index: tf.Tensor, state: Sequence[tf.Tensor], constants: Sequence[tf.Tensor]) -> list[tf.Tensor]:
            (best, best_distance, x, radius), (images, labels) = state, constants

            def objective(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                heads = heads_fn(x)
                return contract(margin(heads, labels), head_weights), heads

            lead, heads, gradient = value_and_gradient(objective, x)
            misclassified, distance = fooled(heads, labels), self.distance(x, images)
            best, best_distance = nearer(misclassified, x, distance, best, best_distance)
            change = annealed(self.gamma, self.last_gamma, index, self.num_steps, x.dtype)
            to_boundary = tf.math.divide_no_nan(tf.abs(lead), self.dual_length(gradient))
            outwards = (1 + change) * tf.where(best_distance < FAR, radius, distance + to_boundary)
            radius = tf.where(misclassified, tf.minimum((1 - change) * radius, best_distance), outwards)
            step_size = annealed(self.step_size, self.step_size / 100, index, self.num_steps, x.dtype)
            x = self.around(images, radius)(x - step_size * downhill(gradient))
            return [best, best_distance, x, radius]

        distance = tf.where(fooled(heads_fn(images), labels), zeros, FAR)
        best, distance = loop_packed(
            step,
            lambda best, distance, x, radius: distance <= enough,
            [images, distance, images, zeros],
            [images, labels],
            num_steps=self.num_steps,
            num_results=2,
        )
        return best, distance
