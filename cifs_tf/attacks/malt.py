"""MALT: targeted APGD towards the classes whose linearised boundary is nearest (Melamed et al. 2024)."""

import dataclasses

import numpy as np
import tensorflow as tf

from cifs_tf.attacks.apgd import APGD
from cifs_tf.attacks.objective import HeadsFn, value_and_gradient
from cifs_tf.errors import UserError
from cifs_tf.losses import contract


@dataclasses.dataclass(frozen=True, kw_only=True)
class MALT(APGD):
    """APGD-T that orders its targets by distance instead of by logit; called as every `Attack`.

    Of the classes with the largest logits, that one comes first (target rank 2) whose boundary to the label would be
    nearest if the network were linear: the order of (z_y - z_t) / |grad z_y - grad z_t|_q, q the dual norm, of the
    weighted heads. That costs a pass for each of these classes.

    Args:
        epsilon: radius, see `Ball`.
        num_candidates: how many classes are ordered; target ranks go up to one more. Default 9.
        norm: see `Ball`.
        num_steps, rho, bounds, compat: see `APGD`, whose loss is `"targeted_dlr"` here.

    Reference:
        Melamed, Yehudai and Shamir, "MALT powers up adversarial attacks", NeurIPS 2024.

    Example:
        >>> attack = MALT(epsilon=8 / 255)
        >>> x_adv = attack(model.heads_fn(), images, labels, head_weights=head_weights(0, 2), seed=seeds, target_rank=2)
    """

    loss: str = "targeted_dlr"
    num_candidates: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.is_targeted:
            raise UserError("loss", self.loss, "give targeted_dlr, or APGD for another loss")

    def select_targets(
        self,
        heads_fn: HeadsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        head_weights: tf.Tensor | np.ndarray,
        target_rank: int | tf.Tensor,
        natural: tf.Tensor,
    ) -> tf.Tensor:
        """Return the class that each example is attacked towards, int32 (batch,): of a rank by distance."""
        classes = natural.shape[-1]
        is_label = tf.one_hot(labels, classes, on_value=True, off_value=False)
        others = tf.where(is_label, natural.dtype.min, natural[:, 0])
        candidates = tf.math.top_k(others, min(self.num_candidates, classes - 1)).indices

        def distance(targets: tf.Tensor) -> tf.Tensor:
            lead_of = tf.one_hot(labels, classes, dtype=natural.dtype) - tf.one_hot(
                targets, classes, dtype=natural.dtype
            )

            def lead(x: tf.Tensor) -> tf.Tensor:
                heads = heads_fn(x)
                return contract(tf.reduce_sum(heads * lead_of[:, None, :], axis=-1), head_weights), heads

            value, _, gradient = value_and_gradient(lead, images)
            return value / (self.dual_length(gradient) + np.finfo(np.float32).tiny)

        distances = tf.map_fn(
            distance, tf.transpose(candidates), fn_output_signature=natural.dtype, parallel_iterations=1
        )
        order = tf.argsort(tf.transpose(distances), axis=1, stable=True)
        chosen = tf.minimum(target_rank - 2, tf.shape(order)[1] - 1)
        return tf.gather(candidates, tf.gather(order, chosen, axis=1), axis=1, batch_dims=1)
