"""Stochastic gradient descent exactly as PyTorch's, which the paper's hyper-parameters were chosen for."""

import keras
from keras import ops

from cifs_tf.errors import UserError
from cifs_tf.framework_internals import variable_index


@keras.saving.register_keras_serializable(package="cifs_tf")
class SGD(keras.optimizers.Optimizer):
    """SGD with heavy-ball momentum and coupled weight decay.

    v <- momentum v + (gradient + weight_decay w);  w <- w - learning_rate v. Keras' own SGD decays the weights beside
    the gradient, and keeps learning_rate inside v, so that a drop of the rate acts late; this one does neither. A
    gradient that is not finite leaves its variable and v as they are.

    Args:
        learning_rate: float > 0, or a Keras schedule of the optimizer step. Default 0.1.
        momentum: in [0, 1]. Default 0.
        weight_decay: >= 0, on every trainable variable, biases and batch normalisation included. Default 0.
        name: of the optimizer.
        **kwargs: those of `keras.optimizers.Optimizer`.

    Raises:
        UserError: for a hyper-parameter out of range.

    Example:
        >>> optimizer = SGD(0.1, momentum=0.9, weight_decay=2e-4)
    """

    def __init__(self, learning_rate=0.1, momentum=0.0, weight_decay=0.0, name="sgd", **kwargs):
        if isinstance(learning_rate, int | float) and not learning_rate > 0:
            raise UserError("learning_rate", learning_rate, "give a number above 0")
        if not 0 <= momentum <= 1:
            raise UserError("momentum", momentum, "give a number from 0 to 1")
        if weight_decay is None or weight_decay < 0:
            raise UserError("weight_decay", weight_decay, "give a number of 0 or more")
        # The base class would apply its own, decoupled, weight decay.
        super().__init__(learning_rate=learning_rate, weight_decay=None, name=name, **kwargs)
        self.momentum = momentum
        self.coupled_weight_decay = weight_decay

    def build(self, variables):
        """Create a momentum buffer for each variable."""
        if self.built:
            return
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable with its gradient."""
        velocity = self.velocities[variable_index(self, variable)]
        gradient = ops.cast(gradient, variable.dtype)
        finite = ops.isfinite(ops.sum(gradient))
        ahead = self.momentum * velocity + gradient + self.coupled_weight_decay * variable
        self.assign(velocity, ops.where(finite, ahead, velocity))
        step = ops.cast(learning_rate, variable.dtype) * velocity
        self.assign_sub(variable, ops.where(finite, step, ops.zeros_like(step)))

    def get_config(self):
        """Return the constructor's arguments."""
        own = {"momentum": self.momentum, "weight_decay": self.coupled_weight_decay}
        return {**super().get_config(), **own}


def step_decay(
    learning_rate: float, milestones: tuple[int, ...], decay: float, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Make a schedule that multiplies the learning rate by `decay` after each milestone epoch (PyTorch's MultiStepLR).

    Args:
        learning_rate: at the start, > 0.
        milestones: numbers of finished epochs, ascending; none for a constant rate.
        decay: factor in (0, 1].
        steps_per_epoch: optimizer steps per epoch.

    Returns:
        a Keras schedule.

    Raises:
        UserError: if the milestones do not ascend.

    Example:
        >>> round(float(step_decay(0.1, (75, 90), 0.1, steps_per_epoch=390)(390 * 75)), 6)
        0.01
    """
    if list(milestones) != sorted(set(milestones)):
        raise UserError("lr_milestones", list(milestones), "give ascending numbers of epochs")
    if not milestones:
        # Keras' piecewise schedule needs a boundary.
        return keras.optimizers.schedules.PolynomialDecay(learning_rate, 1, learning_rate)
    values = [learning_rate * decay**index for index in range(len(milestones) + 1)]
    # Keras keeps a value up to and including its boundary; steps are counted from 0.
    boundaries = [milestone * steps_per_epoch - 1 for milestone in milestones]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)
