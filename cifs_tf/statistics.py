"""Confidence intervals and tests of the accuracies that this project reports."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy import stats

CONFIDENCE = 0.95


def wilson_interval(successes: int, number: int) -> tuple[float, float]:
    """Return the 95% confidence interval of a share, by Wilson's score.

    Args:
        successes: how many, 0 to `number`.
        number: of how many, >= 1.

    Returns:
        (low, high), in [0, 1].

    Example:
        >>> from cifs_tf.statistics import wilson_interval
        >>> tuple(round(bound, 3) for bound in wilson_interval(50, 100))
        (0.404, 0.596)
    """
    found = stats.binomtest(successes, number).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def accuracy_of(count: int, number: int) -> dict[str, Any]:
    """Return the share of images that were right: `accuracy`, `count`, `of`, and Wilson's 95% `interval`."""
    return {"accuracy": count / number, "count": count, "of": number, "interval": list(wilson_interval(count, number))}


def interval_over_seeds(shares: Sequence[float], number: int) -> tuple[float, float]:
    """Return the 95% interval of the mean share over seeds: the chance in training beside that in the images.

    The half widths of Student's t over the seeds and of Wilson's score over the images, which all seeds share, add up
    as squares.

    Args:
        shares: of the images, one per seed, two at least.
        number: of images, >= 1.

    Returns:
        (low, high), in [0, 1].

    Example:
        >>> from cifs_tf.statistics import interval_over_seeds
        >>> tuple(round(bound, 3) for bound in interval_over_seeds([0.4, 0.5, 0.6], 100))
        (0.234, 0.766)
    """
    mean, half = statistics.fmean(shares), _half_width(shares)
    low, high = wilson_interval(round(mean * number), number)
    return max(mean - math.hypot(half, mean - low), 0.0), min(mean + math.hypot(half, high - mean), 1.0)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of a mean of shares, by Student's t; of a single value (0, 1).

    Example:
        >>> from cifs_tf.statistics import mean_interval
        >>> tuple(round(bound, 3) for bound in mean_interval([0.4, 0.5, 0.6]))
        (0.252, 0.748)
    """
    if len(values) < 2:
        return 0.0, 1.0
    mean, half = statistics.fmean(values), _half_width(values)
    return max(mean - half, 0.0), min(mean + half, 1.0)


def _half_width(values: Sequence[float]) -> float:
    """Return half the width of the 95% interval of a mean, by Student's t."""
    error = statistics.stdev(values) / math.sqrt(len(values))
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, the upper one of an even number, and its 95% interval by order statistics.

    Args:
        values: one at least; infinite ones are larger than any.

    Returns:
        (median, low, high).

    Example:
        >>> from cifs_tf.statistics import median_interval
        >>> median_interval(range(20))
        (10.0, 5.0, 14.0)
    """
    ordered, number = sorted(map(float, values)), len(values)
    outer = max(int(stats.binom.ppf((1 - CONFIDENCE) / 2, number, 0.5)), 1)
    return ordered[number // 2], ordered[outer - 1], ordered[number - outer]


def mcnemar_p_value(first_alone: int, second_alone: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, of two classifiers judged on the same images.

    Args:
        first_alone: images on which only the first is right.
        second_alone: images on which only the second is right.

    Returns:
        the probability of so uneven a division, or a more uneven one, if neither were better.

    Example:
        >>> from cifs_tf.statistics import mcnemar_p_value
        >>> mcnemar_p_value(0, 5)
        0.0625
    """
    total = first_alone + second_alone
    return float(stats.binomtest(first_alone, total).pvalue) if total else 1.0
