"""Friendly PGD: adversarial images that are only just wrong."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from cifs_tf.attacks.objective import fooled, per_example, value_and_gradient
from cifs_tf.attacks.pgd import PGD
from cifs_tf.attacks.random import fold_in, normal
from cifs_tf.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FriendlyPGD(PGD):
    """PGD that stops, example by example, tau steps after the final head is fooled (FAT, Zhang et al. 2020).

    Before each step the prediction is read: an example that is fooled and has no steps left stays where it is; one that
    is fooled uses up one of its tau steps, which it does not get back if a step makes it right again.

    Args:
        epsilon: radius, see `Ball`.
        step_size: > 0.
        num_steps: of an example that is never fooled.
        tau: steps that a fooled example still makes, >= 0; an int or a scalar int32 tensor. Default 0.
        omega: standard deviation of Gaussian noise that is added to every step, >= 0. Default 0.

    The other fields are those of `PGD`; restarts and `keep` do not apply. It is called as `PGD` is; random starts and
    omega need a seed.

    Example:
        >>> attack = FriendlyPGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10, tau=1)
        >>> x_adv = attack(model.heads_fn(), images, labels, head_weights=head_weights(2, model.num_probes))
    """

    tau: int | tf.Tensor = 0
    omega: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not tf.is_tensor(self.tau) and self.tau < 0:
            raise UserError("tau", self.tau, "give 0 or more")
        if self.omega < 0:
            raise UserError("omega", self.omega, "give 0 or more")
        if self.num_restarts != 1 or self.keep != "last":
            raise UserError("num_restarts", self.num_restarts, "give 1, and keep last: the attack stops by itself")

    @property
    def needs_seed(self) -> bool:
        return self.random_start or self.omega > 0

    def _run(
        self,
        weighted_loss: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor | None,
    ) -> tf.Tensor:
        project = self.around(images)

        def step(
            index: tf.Tensor, x: tf.Tensor, active: tf.Tensor, left: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
            _, heads, gradient = value_and_gradient(weighted_loss, x)
            wrong = fooled(heads, labels)
            active &= ~wrong | (left > 0)
            left -= tf.cast(active & wrong, left.dtype)
            move = self.step_size * self.steepest(gradient)
            if self.omega:
                move += self.omega * normal(fold_in(seed, index + 1), images.shape[1:], images.dtype)
            return index + 1, tf.where(per_example(active, images), project(x + move), x), active, left

        active = tf.ones_like(labels, tf.bool)
        left = tf.fill(tf.shape(labels), tf.cast(self.tau, tf.int32))
        return tf.while_loop(
            lambda index, x, active, left: tf.reduce_any(active),
            step,
            (0, self._first(images, seed), active, left),
            maximum_iterations=self.num_steps,
            parallel_iterations=1,
        )[1]
