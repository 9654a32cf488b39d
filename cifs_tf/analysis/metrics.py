"""Metrics of the paper's hypothesis: the share of activation on negatively-relevant channels, and the rank correlation
of activations and relevances (Section 3.1).
"""

import numpy as np
from scipy.stats import rankdata

from cifs_tf.errors import UserError


def negative_share(activations: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """Return the share of each image's activation that lies on negatively-relevant (NR) channels, those with g <= 0.

    sum_{i: g_i <= 0} |a_i| / sum_i |a_i|

    Args:
        activations: float (examples, channels), see `channel_activations`.
        relevance: float (channels,) or (examples, channels): g, the weights of the last layer for the class, or
            `classifier.explain(images)["relevance"]` of a selection layer.

    Returns:
        float (examples,) in [0, 1]; NaN for an image that activates no channel.

    Raises:
        UserError: if the shapes do not fit.

    Example:
        >>> negative_share(np.array([[3.0, 1.0]]), np.array([0.5, -0.5]))
        array([0.25])
    """
    magnitudes, relevance = _magnitudes(activations, relevance)
    total = magnitudes.sum(axis=1)
    negative = np.where(relevance <= 0, magnitudes, 0).sum(axis=1)
    return np.divide(negative, total, out=np.full(len(total), np.nan), where=total > 0)


def alignment(activations: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of each image's activation magnitudes and the channels' relevances.

    The correlation of the ranks, where channels that are equal share their mean rank: 1 if a more relevant channel is
    always the more active one, -1 if it is always the less active one.

    Args:
        activations: float (examples, channels), see `channel_activations`.
        relevance: float (channels,) or (examples, channels), as for `negative_share`.

    Returns:
        float (examples,) in [-1, 1]; NaN where all channels are equally active, or equally relevant.

    Raises:
        UserError: if the shapes do not fit.

    Example:
        >>> alignment(np.array([[1.0, 2.0, 3.0]]), np.array([-1.0, 0.0, 5.0]))
        array([1.])
    """
    magnitudes, relevance = _magnitudes(activations, relevance)
    first, second = (rankdata(values, axis=1) for values in (magnitudes, relevance))
    first, second = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (first, second))
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return np.divide((first * second).sum(axis=1), scale, out=np.full(len(scale), np.nan), where=scale > 0)


def _magnitudes(activations: np.ndarray, relevance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return activation magnitudes, and a relevance for each, in float64."""
    magnitudes, relevance = np.abs(np.asarray(activations, float)), np.asarray(relevance, float)
    if magnitudes.ndim != 2:
        raise UserError("activations", f"shape {magnitudes.shape}", "give (examples, channels)")
    if relevance.shape not in (magnitudes.shape, magnitudes.shape[1:]):
        advice = f"give {magnitudes.shape[1:]} or {magnitudes.shape}, a number for each channel"
        raise UserError("relevance", f"shape {relevance.shape}", advice)
    return magnitudes, np.broadcast_to(relevance, magnitudes.shape)
