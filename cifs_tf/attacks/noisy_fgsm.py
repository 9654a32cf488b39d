"""FGSM from far noise: one gradient a step, for training."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from cifs_tf.attacks.objective import value_and_gradient
from cifs_tf.attacks.pgd import PGD
from cifs_tf.attacks.random import uniform
from cifs_tf.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisyFGSM(PGD):
    """N-FGSM (de Jorge et al. 2022): one step of the sign of the gradient, taken at an image with strong noise.

    x_adv = clip(x + n + step_size * sign(grad sum_h w_h loss_h(x + n))), n uniform in [-noise * epsilon, noise *
    epsilon], clipped to the bounds of pixels and not to the ball: the noise stays in the result, which lies up to
    noise * epsilon + step_size away from the image. So it is an augmentation to train on, and measures nothing.

    Args:
        epsilon: radius of the L-infinity ball that the network is to withstand.
        step_size: > 0; the paper takes epsilon.
        noise: half the width of the noise, in epsilons, >= 0. Default 2, the paper's value.

    The other fields of `PGD` do not apply. It is called as `PGD` is, with a seed.

    Raises:
        UserError: for a hyper-parameter out of range, or more than one step or restart.

    Reference:
        de Jorge et al., "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training", NeurIPS 2022.

    Example:
        >>> attack = NoisyFGSM(epsilon=8 / 255, step_size=8 / 255)
        >>> x_adv = attack(model.heads_fn(), images, labels, head_weights=head_weights(2, 2), seed=seeds)
    """

    num_steps: int = 1
    random_start: bool = True
    noise: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.noise >= 0:
            raise UserError("noise", self.noise, "give 0 or more")
        if (self.num_steps, self.num_restarts, self.norm) != (1, 1, "linf"):
            given = f"{self.num_steps} steps, {self.num_restarts} restarts, {self.norm}"
            raise UserError("num_steps", given, "give one step and no restarts in linf, or take PGD")

    def _run(
        self,
        weighted_loss: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor | None,
    ) -> tf.Tensor:
        width = self.noise * self.epsilon
        noisy = tf.clip_by_value(images + uniform(seed, images.shape[1:], -width, width, images.dtype), *self.bounds)
        _, _, gradient = value_and_gradient(weighted_loss, noisy)
        return tf.clip_by_value(noisy + self.step_size * tf.sign(gradient), *self.bounds)
