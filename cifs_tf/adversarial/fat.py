"""Friendly adversarial training."""

import dataclasses
from typing import Self

import tensorflow as tf

from cifs_tf.adversarial.methods import HeadWeights, PGDTraining, attack_fields, register_method
from cifs_tf.attacks import FriendlyPGD
from cifs_tf.config import RunConfig


@register_method("fat")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FAT(PGDTraining):
    """Friendly adversarial training (Zhang et al. 2020): Eq. (3) on images that `FriendlyPGD` only just makes wrong.

    The stop looks at the final head, the steps climb the joint loss. tau, the steps after the first wrong prediction,
    grows by one after each milestone.

    Args:
        head_weights: float (1 + P,), of the loss and of the attack on it; or a function of the epoch.
        attack: a `FriendlyPGD`; its tau is the one of the first epoch.
        tau_milestones: ascending numbers of finished epochs. Default (50, 90), FAT's own: tau 0, 1, 2.

    The other fields are those of `PGDTraining`.
    """

    attack: FriendlyPGD
    tau_milestones: tuple[int, ...] = (50, 90)

    @classmethod
    def from_config(cls, config: RunConfig, head_weights: HeadWeights) -> Self:
        """Make the method of a config."""
        method = super().from_config(config, head_weights)
        return dataclasses.replace(method, tau_milestones=config.train.fat_tau_milestones)

    @classmethod
    def attack_of(cls, config: RunConfig) -> FriendlyPGD:
        """Make the training attack of a config."""
        return FriendlyPGD(omega=config.train.fat_omega, **attack_fields(config))

    def at(self, epoch: tf.Tensor) -> Self:
        """Return the method with the values of an epoch."""
        method = super().at(epoch)
        passed = [tf.cast(epoch >= milestone, tf.int32) for milestone in self.tau_milestones]
        tau = tf.add_n([tf.constant(self.attack.tau), *passed])
        return dataclasses.replace(method, attack=dataclasses.replace(method.attack, tau=tau))
