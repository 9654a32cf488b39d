"""Training methods: what each adds to the one `train_step`.

A method is a frozen dataclass with three functions: `at` gives it the values of its schedules at an epoch; `perturb`
makes the images to train on, outside the gradient tape; `loss` makes the per-example loss, inside it. A new one is one
file: subclass `Standard` or `PGDTraining`, and `register_method`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, Self, TypeAlias, TypeVar

import numpy as np
import tensorflow as tf

from cifs_tf.attacks import PGD
from cifs_tf.config import ModelConfig, RunConfig
from cifs_tf.errors import UserError
from cifs_tf.losses import contract, cross_entropy, head_weights, head_weights_in_warm_up, training_loss_factor
from cifs_tf.models import Classifier

HeadWeights: TypeAlias = np.ndarray | Callable[[tf.Tensor], tf.Tensor]
"""Float (1 + P,), or a function of the epoch (a scalar tensor) that returns it: a warm-up."""
METHODS: dict[str, Any] = {}
MethodClass = TypeVar("MethodClass", bound=type)


class Method(Protocol):
    """The interface of a training method to `AdversarialTrainer`."""

    @property
    def head_weights(self) -> Any:
        """Float (1 + P,), of the training loss and of the loss that validation reports."""

    def at(self, epoch: tf.Tensor) -> Method:
        """Return the method with the values of its schedules; `epoch`: finished ones, with fractions, a scalar."""

    def perturb(self, classifier: Classifier, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Make the images to train on, or return `images` itself: metrics are those of natural images then.

        `seed` is int64 (batch, 2), one per example.
        """

    def loss(
        self, classifier: Classifier, images: tf.Tensor, x_adv: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the per-example loss (batch,), and the heads (batch, 1 + P, classes) that metrics look at."""


def register_method(name: str) -> Callable[[MethodClass], MethodClass]:
    """Make a method known by a name, for `--method` and recipes; a class decorator.

    Args:
        name: not taken yet.

    Returns:
        the decorator; the class needs `from_config(config, head_weights)`.

    Raises:
        UserError: if the name is taken.

    Example:
        >>> @register_method("mine")
        ... @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class Mine(PGDTraining):
        ...     def loss(self, classifier, images, x_adv, labels): ...
    """
    if name in METHODS:
        raise UserError("name", name, f"it is taken, as are {', '.join(METHODS)}; give another one")

    def register(method: MethodClass) -> MethodClass:
        METHODS[name] = method
        return method

    return register


def make_method(config: RunConfig, model: ModelConfig, num_probes: int) -> Method:
    """Make the training method of a config.

    Args:
        config: of the run.
        model: the network of the run that is trained, whose defense decides the factor of the loss.
        num_probes: P, its number of selection layers.

    Returns:
        the method.

    Raises:
        UserError: for an unknown method, or values that do not fit it.
    """
    train = config.train
    if train.method not in METHODS:
        advice = f"give one of {', '.join(METHODS)}, or name the module that registers it with --plugins"
        raise UserError("--method", train.method, advice)
    factor = training_loss_factor(train.loss_scale, model.defense, train.beta)

    def rising(epoch: tf.Tensor) -> tf.Tensor:
        return factor * head_weights_in_warm_up(train.beta, num_probes, epoch, train.beta_warmup)

    weights = rising if train.beta_warmup else head_weights(train.beta, num_probes) * factor
    return METHODS[train.method].from_config(config, weights)


@register_method("standard")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Standard:
    """Training on natural images with the loss of Eq. (3).

    Args:
        head_weights: float (1 + P,), see `cifs_tf.losses.head_weights`; or a function of the epoch.
        label_smoothing: of the cross-entropy, in [0, 1]. Default 0.
    """

    head_weights: Any
    label_smoothing: float = 0.0

    @classmethod
    def from_config(cls, config: RunConfig, head_weights: HeadWeights) -> Self:
        """Make the method of a config."""
        return cls(head_weights=head_weights, label_smoothing=config.train.label_smoothing)

    def at(self, epoch: tf.Tensor) -> Self:
        """Return the method with the head weights of an epoch."""
        if not callable(self.head_weights):
            return self
        return dataclasses.replace(self, head_weights=self.head_weights(epoch))

    def perturb(self, classifier, images, labels, seed):
        """Return the images as they are."""
        return images

    def loss(self, classifier, images, x_adv, labels):
        """Compute Eq. (3) in training mode, where the labels enter the mask."""
        heads = classifier(x_adv, labels=labels, training=True)
        return contract(cross_entropy(heads, labels, self.label_smoothing), self.head_weights), heads


@register_method("pgd")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PGDTraining(Standard):
    """PGD adversarial training (Madry et al. 2018; Eq. 4): Eq. (3) on images that maximise it.

    The attack sees the network in inference mode, without labels in the mask, as in the official code.

    Args:
        head_weights: float (1 + P,), of the loss and of the attack on it; or a function of the epoch.
        attack: how images are perturbed.
        mask_gradient: what the attack sees of the mask, `"detached"` (default) or `"full"`.
        epsilon_warmup: epochs in which the radius and the step size of the attack rise linearly from 0. Default 0.
        label_smoothing: of the loss (the attack has the labels as they are), in [0, 1]. Default 0.
    """

    attack: PGD
    mask_gradient: str = "detached"
    epsilon_warmup: float = 0.0

    @classmethod
    def from_config(cls, config: RunConfig, head_weights: HeadWeights) -> Self:
        """Make the method of a config."""
        return cls(
            head_weights=head_weights,
            label_smoothing=config.train.label_smoothing,
            attack=cls.attack_of(config),
            mask_gradient=config.attack.train_mask_gradient,
            epsilon_warmup=config.attack.epsilon_warmup,
        )

    @classmethod
    def attack_of(cls, config: RunConfig) -> PGD:
        """Make the training attack of a config."""
        return PGD(**attack_fields(config))

    def at(self, epoch: tf.Tensor) -> Self:
        """Return the method with the head weights and the radius of an epoch."""
        method = super().at(epoch)
        if not self.epsilon_warmup:
            return method
        share = tf.minimum(epoch / self.epsilon_warmup, 1)
        epsilon, step_size = self.attack.epsilon * share, self.attack.step_size * share
        return dataclasses.replace(
            method, attack=dataclasses.replace(method.attack, epsilon=epsilon, step_size=step_size), epsilon_warmup=0
        )

    def perturb(self, classifier, images, labels, seed):
        """Attack the classifier."""
        heads_fn = classifier.heads_fn(self.mask_gradient)
        return self.attack(heads_fn, images, labels, head_weights=self.head_weights, seed=seed)


def attack_fields(config: RunConfig) -> dict[str, Any]:
    """Return the fields of `PGD` that a config gives to the training attack."""
    attack = config.attack
    return {
        "epsilon": attack.epsilon,
        "step_size": attack.step_size or attack.epsilon / 4,
        "num_steps": attack.num_steps,
        "random_start": attack.random_start,
    }
