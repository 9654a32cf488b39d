"""TRADES: natural accuracy, and a smooth neighbourhood."""

import dataclasses
from typing import Self

from cifs_tf.adversarial.methods import HeadWeights, PGDTraining, attack_fields, register_method
from cifs_tf.attacks import PGD
from cifs_tf.config import RunConfig
from cifs_tf.losses import contract, cross_entropy, kl_divergence


@register_method("trades")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TRADES(PGDTraining):
    """TRADES (Zhang et al. 2019): CE(f(x), y) + lambda KL(f(x) || f(x')), where x' maximises the divergence.

    Every head has its own cross-entropy and divergence, contracted with the head weights. The paper does not say how
    CIFS was trained with TRADES; this is the form that CAS (Bai et al. 2021) uses, an assumption. Gradients flow
    through both predictions.

    Args:
        head_weights: float (1 + P,), of the loss and of the attack; or a function of the epoch.
        attack: a `PGD` of the loss `"kl_divergence"`.
        trades_lambda: weight of the divergence, >= 0. Default 6.
        bn_updates: 3 (default) updates the running statistics of batch normalisation with x, x' and x again, as the
            original's three forward passes do; 2 leaves the third pass out. The gradients are the same.

    The other fields are those of `PGDTraining`.
    """

    trades_lambda: float = 6.0
    bn_updates: int = 3

    @classmethod
    def from_config(cls, config: RunConfig, head_weights: HeadWeights) -> Self:
        """Make the method of a config."""
        method = super().from_config(config, head_weights)
        return dataclasses.replace(
            method, trades_lambda=config.train.trades_lambda, bn_updates=config.train.trades_bn_updates
        )

    @classmethod
    def attack_of(cls, config: RunConfig) -> PGD:
        """Make the training attack of a config."""
        return PGD(loss="kl_divergence", start="gaussian", **attack_fields(config))

    def loss(self, classifier, images, x_adv, labels):
        """Compute the cross-entropy on natural images and the divergence, in training mode."""
        natural = classifier(images, labels=labels, training=True)
        heads = classifier(x_adv, labels=labels, training=True)
        if self.bn_updates == 3:
            classifier(images, labels=labels, training=True)
        per_head = cross_entropy(natural, labels, self.label_smoothing)
        per_head += self.trades_lambda * kl_divergence(natural, heads)
        return contract(per_head, self.head_weights), heads
