"""Importance mask generating functions: relevance g -> non-negative importance m (Section 3.2, step 3).

Any callable (batch, channels) -> (batch, channels) that is registered with `register_importance` can stand where a
built-in name can, and survives saving.
"""

import dataclasses
from collections.abc import Callable
from typing import Self

import keras
import tensorflow as tf

from cifs_tf.errors import UserError

_REGISTRY: dict[str, Callable] = {}


def register_importance(name: str) -> Callable[[Callable], Callable]:
    """Make a function, or a class whose instances are functions, known under a name.

    Args:
        name: what a config, a recipe or `CIFS(importance=...)` calls it.

    Returns:
        a decorator that returns its argument unchanged.

    Raises:
        UserError: if the name is taken.

    Example:
        >>> @register_importance("relu")
        ... def relu_importance(relevance):
        ...     return tf.nn.relu(relevance)
    """

    def register(function: Callable) -> Callable:
        if name in _REGISTRY:
            raise UserError("importance", name, "this name is registered already, choose another one")
        _REGISTRY[name] = function
        return keras.saving.register_keras_serializable(package="cifs_tf.importance", name=name)(function)

    return register


@dataclasses.dataclass(frozen=True)
class _Importance:
    """Base class of the built-in functions of relevance (batch, channels): their fields are their config."""

    def __post_init__(self) -> None:
        for name, value in self.get_config().items():
            if name == "scale" and value not in ("sum_to_one", "mean_one"):
                raise UserError("importance_scale", value, "give sum_to_one or mean_one")
            if name != "scale" and not value > 0:
                raise UserError(name, value, "give a number above 0")

    def get_config(self) -> dict:
        """Return the constructor's arguments, for saving."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict) -> Self:
        """Rebuild the function from `get_config()`."""
        return cls(**config)


@register_importance("softmax")
@dataclasses.dataclass(frozen=True)
class SoftmaxImportance(_Importance):
    """m = softmax(g / T), the paper's choice.

    Args:
        temperature: T > 0. Default 1, the paper's value.
        scale: `"sum_to_one"` (default, the paper), or `"mean_one"`, which multiplies by the number of channels: the
            features keep their size, so shortcuts and the last layer learn at their usual speed.
    """

    temperature: float = 1.0
    scale: str = "sum_to_one"

    def __call__(self, relevance: tf.Tensor) -> tf.Tensor:
        mask = tf.nn.softmax(relevance / self.temperature, axis=-1)
        return mask * relevance.shape[-1] if self.scale == "mean_one" else mask


@register_importance("constant")
@dataclasses.dataclass(frozen=True)
class ConstantImportance(_Importance):
    """m = 1/C for each of C channels, whatever the relevance: the softmax at an infinite temperature, a control.

    The probes make their raw predictions, and Eq. (3) trains them, but no channel is preferred. With `"mean_one"` the
    features pass unchanged.

    Args:
        scale: `"sum_to_one"` (default), m = 1/C, or `"mean_one"`, m = 1.
    """

    scale: str = "sum_to_one"

    def __call__(self, relevance: tf.Tensor) -> tf.Tensor:
        ones = tf.ones_like(relevance)
        return ones if self.scale == "mean_one" else ones / relevance.shape[-1]


@register_importance("softplus")
@dataclasses.dataclass(frozen=True)
class SoftplusImportance(_Importance):
    """m = softplus(alpha g) / alpha.

    Args:
        alpha: sharpness > 0. Default 5, the paper's value.
    """

    alpha: float = 5.0

    def __call__(self, relevance: tf.Tensor) -> tf.Tensor:
        return tf.nn.softplus(self.alpha * relevance) / self.alpha


@register_importance("sigmoid")
@dataclasses.dataclass(frozen=True)
class SigmoidImportance(_Importance):
    """m = sigmoid(alpha g), nearly a switch for a large alpha.

    Args:
        alpha: sharpness > 0. Default 10, the paper's value.
    """

    alpha: float = 10.0

    def __call__(self, relevance: tf.Tensor) -> tf.Tensor:
        return tf.sigmoid(self.alpha * relevance)


@register_importance("identity")
def identity_importance(relevance: tf.Tensor) -> tf.Tensor:
    """Return m = g, signed: what turns CIFS into CAS (see `cifs_tf.layers.CAS`)."""
    return relevance


def get_importance(identifier: str | dict | Callable, **parameters) -> Callable:
    """Find an importance function.

    Args:
        identifier: a registered name, a serialised function (a dict), or a callable, which is returned as it is.
        **parameters: constructor arguments for a name that belongs to a class (`temperature`, `scale`, `alpha`); those
            that are None are left out. A function that is given must agree with them.

    Returns:
        a callable (batch, channels) -> (batch, channels).

    Raises:
        UserError: for an unknown name, or a parameter that the function does not have or has with another value.

    Example:
        >>> get_importance("softmax", scale="mean_one")(tf.zeros((1, 4))).numpy()
        array([[1., 1., 1., 1.]], dtype=float32)
    """
    parameters = {name: value for name, value in parameters.items() if value is not None}
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if callable(identifier):
        for name, value in parameters.items():
            if getattr(identifier, name, None) != value:
                argument = "importance_scale" if name == "scale" else name
                raise UserError(argument, value, f"importance is {identifier} already, give one of the two")
        return identifier
    if identifier not in _REGISTRY:
        known = ", ".join(sorted(_REGISTRY))
        raise UserError("importance", identifier, f"give one of {known}, or register it with register_importance")
    found = _REGISTRY[identifier]
    if not isinstance(found, type):
        if parameters:
            raise UserError("importance", identifier, f"this function has no parameters {sorted(parameters)}")
        return found
    try:
        return found(**parameters)
    except TypeError as error:
        raise UserError("importance", identifier, f"its parameters do not fit: {error}") from error
