"""MART: misclassification-aware adversarial training."""

import dataclasses
from typing import Self

from cifs_tf.adversarial.methods import HeadWeights, PGDTraining, attack_fields, register_method
from cifs_tf.attacks import PGD
from cifs_tf.config import RunConfig
from cifs_tf.errors import UserError
from cifs_tf.losses import boosted_cross_entropy, contract, mart_regulariser


@register_method("mart")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MART(PGDTraining):
    """MART (Wang et al. 2020): BCE(f(x'), y) + lambda KL(f(x) || f(x')) (1 - f_y(x)), x' by PGD on the cross-entropy.

    Every head has its own two terms, contracted with the head weights.

    Args:
        head_weights: float (1 + P,), of the loss and of the attack; or a function of the epoch.
        attack: how images are perturbed.
        mart_lambda: weight of the divergence, >= 0. Default 5.

    The other fields are those of `PGDTraining`; label smoothing has no place in MART's cross-entropy.

    Raises:
        UserError: for label smoothing.
    """

    mart_lambda: float = 5.0

    def __post_init__(self):
        if self.label_smoothing:
            raise UserError("label_smoothing", self.label_smoothing, "give 0, or another method than mart")

    @classmethod
    def from_config(cls, config: RunConfig, head_weights: HeadWeights) -> Self:
        """Make the method of a config."""
        return dataclasses.replace(super().from_config(config, head_weights), mart_lambda=config.train.mart_lambda)

    @classmethod
    def attack_of(cls, config: RunConfig) -> PGD:
        """Make the training attack of a config."""
        return PGD(start="gaussian", **attack_fields(config))

    def loss(self, classifier, images, x_adv, labels):
        """Compute the boosted cross-entropy and the weighted divergence, in training mode."""
        natural = classifier(images, labels=labels, training=True)
        heads = classifier(x_adv, labels=labels, training=True)
        per_head = boosted_cross_entropy(heads, labels)
        per_head += self.mart_lambda * mart_regulariser(natural, heads, labels)
        return contract(per_head, self.head_weights), heads
