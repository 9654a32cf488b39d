"""Per-example losses of every head, and the head weights that contract them: all that knows about beta.

heads: float (batch, 1 + P, classes); a loss of the heads: (batch, 1 + P); head weights: (1 + P,).
"""

import math
import re

import numpy as np
import tensorflow as tf

from cifs_tf.config import EvaluationConfig
from cifs_tf.errors import UserError

PAPER_ATTACK_BETAS = EvaluationConfig().attack_betas
CW_KAPPA = 50.0
DLR_EPSILON = 1e-12


def head_weights(beta: float | str, num_probes: int) -> np.ndarray:
    """Return the weights of the heads in Eq. (3), for training and for an attacker's choice of beta.

    [1, beta/P, ..., beta/P] / (1 + beta); infinity leaves the raw predictions alone, [0, 1/P, ..., 1/P]; infinity-i
    leaves the i-th of them. Without selection layers there is one head, of weight 1, whatever beta.

    Args:
        beta: a number >= 0, `"infinity"`, or `"infinity-i"` with i from 1 to P.
        num_probes: P, the number of selection layers.

    Returns:
        float64 (1 + P,) that sums to 1.

    Raises:
        UserError: for another beta.

    Example:
        >>> head_weights(2, num_probes=2)
        array([0.33333333, 0.33333333, 0.33333333])
    """
    final, probe = _parse_beta(beta)
    weights = np.zeros(1 + num_probes)
    if num_probes == 0:
        weights[0] = 1.0
    elif probe is None:
        weights[0] = final
        weights[1:] = (1 - final) / num_probes
    elif 1 <= probe <= num_probes:
        weights[probe] = 1.0
    else:
        raise UserError("beta", beta, f"give infinity-1 to infinity-{num_probes}, one of the selection layers")
    return weights


def attack_betas_for(betas: tuple[float | str, ...], num_probes: int) -> tuple[float | str, ...]:
    """Select the attacker's betas that differ on a network with P selection layers.

    Args:
        betas: settings of beta_atk, see `head_weights`.
        num_probes: P.

    Returns:
        `(0,)` for a vanilla network, which has one head; otherwise the betas without those of a layer that it lacks.

    Raises:
        UserError: for an invalid beta, or if no beta is left.

    Example:
        >>> attack_betas_for(PAPER_ATTACK_BETAS, num_probes=0)
        (0,)
    """
    try:
        fitting = tuple(beta for beta in betas if (_parse_beta(beta)[1] or 0) <= num_probes)
    except UserError as error:
        raise UserError("attack_betas", error.received, error.advice) from error
    if num_probes == 0:
        return (0,)
    if not fitting:
        raise UserError("attack_betas", list(betas), f"give one that a network with {num_probes} selection layers has")
    return fitting


def training_loss_factor(loss_scale: str, defense: str, beta: float) -> float:
    """Return the official code's factor of Eq. (3): 3 for CIFS; 1 + beta for CAS, which drops the denominator.

    Args:
        loss_scale: `"paper"` (Eq. 3 as printed) or `"official"`.
        defense: `"cifs"`, `"cas"`, or another one, which is left alone.
        beta: beta of the training loss, >= 0.

    Returns:
        the factor.
    """
    if loss_scale == "official":
        return {"cifs": 3.0, "cas": 1.0 + beta}.get(defense, 1.0)
    return 1.0


def head_weights_in_warm_up(beta: float, num_probes: int, epoch: tf.Tensor, epochs: float) -> tf.Tensor:
    """Return head weights while beta rises linearly from 0, in `epochs` epochs, to its value.

    Args:
        beta: of Eq. (3) after the warm-up, a number >= 0.
        num_probes: P.
        epoch: finished epochs, with fractions, a scalar tensor.
        epochs: length of the warm-up, > 0.

    Returns:
        float (1 + P,) of the epoch's dtype.

    Example:
        >>> head_weights_in_warm_up(2, 1, tf.constant(5.0), 10).numpy()
        array([0.5, 0.5], dtype=float32)
    """
    now = beta * tf.minimum(epoch / epochs, 1)
    only_final = head_weights(0, num_probes)
    only_probes = head_weights("infinity", num_probes)
    return (only_final + now * only_probes) / (1 + now)


def cross_entropy(heads: tf.Tensor, labels: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """Compute the cross-entropy of every head.

    Args:
        heads: float (batch, 1 + P, classes), logits.
        labels: int (batch,).
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1]. Default 0.

    Returns:
        float (batch, 1 + P).

    Example:
        >>> cross_entropy(tf.zeros((1, 2, 10)), tf.constant([3])).numpy().round(4)
        array([[2.3026, 2.3026]], dtype=float32)
    """
    repeated = tf.repeat(labels[:, None], tf.shape(heads)[1], axis=1)
    hard = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=repeated, logits=heads)
    if not label_smoothing:
        return hard
    even = -tf.reduce_mean(tf.nn.log_softmax(heads), axis=-1)
    return (1 - label_smoothing) * hard + label_smoothing * even


def kl_divergence(heads: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """Compute KL(p || q), the divergence of every head's prediction p from another's q (TRADES' regulariser).

    Args:
        heads: float (batch, 1 + P, classes), logits of p.
        other: float (batch, 1 + P, classes), logits of q.

    Returns:
        float (batch, 1 + P), >= 0.

    Example:
        >>> kl_divergence(tf.zeros((1, 1, 2)), tf.math.log([[[1., 3.]]])).numpy().round(4)
        array([[0.1438]], dtype=float32)
    """
    log_p, log_q = tf.nn.log_softmax(heads), tf.nn.log_softmax(other)
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def boosted_cross_entropy(heads: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Compute MART's cross-entropy, which pushes the best other class down, of every head (Wang et al. 2020, Eq. 8).

    -log p_y - log(1 - max_{j != y} p_j), the second with the 1.0001 of the official code.

    Args:
        heads: float (batch, 1 + P, classes), logits.
        labels: int (batch,).

    Returns:
        float (batch, 1 + P).

    Example:
        >>> boosted_cross_entropy(tf.math.log([[[3., 1.]]]), tf.constant([0])).numpy().round(3)
        array([[0.575]], dtype=float32)
    """
    probabilities = tf.nn.softmax(heads)
    runner_up = _pick(probabilities, labels) - margin(probabilities, labels)
    return cross_entropy(heads, labels) - tf.math.log(1.0001 - runner_up + 1e-12)


def mart_regulariser(natural: tf.Tensor, adversarial: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Compute MART's divergence of the adversarial from the natural prediction, weighted by how wrong the latter is.

    KL(p || q) (1 - p_y), with the 1.0000001 and the log(q + 1e-12) of the official code.

    Args:
        natural: float (batch, 1 + P, classes), logits of p.
        adversarial: float (batch, 1 + P, classes), logits of q.
        labels: int (batch,).

    Returns:
        float (batch, 1 + P).
    """
    p, q = tf.nn.softmax(natural), tf.nn.softmax(adversarial)
    divergence = tf.reduce_sum(p * (tf.nn.log_softmax(natural) - tf.math.log(q + 1e-12)), axis=-1)
    return divergence * (1.0000001 - _pick(p, labels))


def cw_margin(heads: tf.Tensor, labels: tf.Tensor, kappa: float = CW_KAPPA) -> tf.Tensor:
    """Compute Carlini and Wagner's margin of every head, the loss that a C&W attack by PGD maximises.

    -max(z_y - max_{j != y} z_j + kappa, 0), of each example by itself.

    Args:
        heads: float (batch, 1 + P, classes), logits.
        labels: int (batch,).
        kappa: confidence, >= 0. Default 50, the official value, which in practice never lets the hinge close.

    Returns:
        float (batch, 1 + P), at most 0.

    Example:
        >>> cw_margin(tf.constant([[[3., 1.]]]), tf.constant([0]), kappa=0.).numpy()
        array([[-2.]], dtype=float32)
    """
    return -tf.nn.relu(margin(heads, labels) + kappa)


def margin(heads: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Compute the lead of the label over the best other class, of every head: z_y - max_{j != y} z_j.

    Args:
        heads: float (batch, 1 + P, classes), logits.
        labels: int (batch,).

    Returns:
        float (batch, 1 + P); below 0 where the label is not the prediction.

    Example:
        >>> margin(tf.constant([[[3., 1.]]]), tf.constant([1])).numpy()
        array([[-2.]], dtype=float32)
    """
    is_label = tf.one_hot(labels, heads.shape[-1], on_value=True, off_value=False)[:, None, :]
    return _pick(heads, labels) - tf.reduce_max(tf.where(is_label, heads.dtype.min, heads), axis=-1)


def dlr(heads: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Compute the difference of logits ratio of every head (Croce and Hein 2020): invariant to the scale of the logits.

    -(z_y - max_{j != y} z_j) / (z_(1) - z_(3)), z_(i) the i-th largest logit.

    Args:
        heads: float (batch, 1 + P, classes), logits of 3 classes or more.
        labels: int (batch,).

    Returns:
        float (batch, 1 + P); above 0 where the label is not the prediction.

    Example:
        >>> dlr(tf.constant([[[4., 2., 0.]]]), tf.constant([0])).numpy()
        array([[-0.5]], dtype=float32)
    """
    largest = tf.math.top_k(heads, k=3).values
    return -margin(heads, labels) / (largest[..., 0] - largest[..., 2] + DLR_EPSILON)


def targeted_dlr(heads: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Compute the targeted DLR of every head: -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2).

    Args:
        heads: float (batch, 1 + P, classes), logits of 4 classes or more.
        labels: int (batch,).
        targets: int (batch,), the classes aimed at.

    Returns:
        float (batch, 1 + P).

    Example:
        >>> targeted_dlr(tf.constant([[[4., 2., 1., 1.]]]), tf.constant([0]), tf.constant([1])).numpy().round(4)
        array([[-0.6667]], dtype=float32)
    """
    largest = tf.math.top_k(heads, k=4).values
    scale = largest[..., 0] - 0.5 * (largest[..., 2] + largest[..., 3]) + DLR_EPSILON
    return -(_pick(heads, labels) - _pick(heads, targets)) / scale


def contract(per_head: tf.Tensor, weights: tf.Tensor | np.ndarray) -> tf.Tensor:
    """Sum over heads with weights: Eq. (3) for cross-entropies and `head_weights(beta, P)`.

    Args:
        per_head: float (batch, 1 + P).
        weights: float (1 + P,).

    Returns:
        float (batch,).

    Example:
        >>> contract(tf.constant([[1., 3.]]), head_weights("infinity", 1)).numpy()
        array([3.], dtype=float32)
    """
    return tf.linalg.matvec(per_head, tf.cast(weights, per_head.dtype))


def _pick(heads: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """Return the logit of one class per example, of every head."""
    chosen = tf.one_hot(classes, heads.shape[-1], on_value=True, off_value=False)[:, None, :]
    return tf.reduce_sum(tf.where(chosen, heads, 0), axis=-1)


def _parse_beta(beta: float | str) -> tuple[float, int | None]:
    """Return (weight of the final head, index of a single probe or None)."""
    text = str(beta)
    if text == "infinity":
        return 0.0, None
    if re.fullmatch(r"infinity-[1-9]\d*", text):
        return 0.0, int(text.removeprefix("infinity-"))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value >= 0 and math.isfinite(value)):
        raise UserError(
            "beta", beta, "give a number of 0 or more, infinity, or infinity-i for the i-th selection layer"
        )
    return 1 / (1 + value), None
