"""Adversarial weight perturbation, on top of any method."""

import dataclasses

import tensorflow as tf

from cifs_tf.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightPerturbation:
    """Adversarial weight perturbation (AWP, Wu et al. 2020): the update's gradient is taken where the loss is higher.

    Each kernel w (convolutions and dense layers, not biases or batch normalisation) moves to w + gamma ||w|| g / ||g||
    with g the gradient of the method's loss; the gradient there is applied at w.

    Args:
        gamma: length of the step against that of the kernel, >= 0. Default 0.01.
        start_epoch: finished epochs before it begins, >= 0. Default 0.

    Raises:
        UserError: for a value out of range.

    Example:
        >>> AdversarialTrainer(classifier, method, weight_perturbation=WeightPerturbation(gamma=0.01))
    """

    gamma: float = 0.01
    start_epoch: float = 0

    def __post_init__(self) -> None:
        for name in ("gamma", "start_epoch"):
            if not getattr(self, name) >= 0:
                raise UserError(name, getattr(self, name), "give 0 or more")

    def step(self, variable: tf.Tensor, gradient: tf.Tensor | None, epoch: tf.Tensor) -> tf.Tensor | None:
        """Compute how far a variable moves, like it; None if it does not.

        Args:
            variable: float, of any shape.
            gradient: like the variable, or None.
            epoch: finished epochs, with fractions, a scalar.
        """
        if gradient is None or len(variable.shape) < 2:
            return None
        gamma = self.gamma * tf.cast(epoch >= self.start_epoch, variable.dtype)
        return gamma * tf.math.divide_no_nan(tf.norm(variable) * gradient, tf.norm(gradient))
