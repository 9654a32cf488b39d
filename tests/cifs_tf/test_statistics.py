"""Intervals and tests against their formulas, worked out here."""

import math

import pytest

from cifs_tf.statistics import interval_over_seeds, mcnemar_p_value, wilson_interval


@pytest.mark.parametrize(
    ("successes", "number", "expected"),
    [(50, 100, (0.4038, 0.5962)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (1, 1, (0.2065, 1.0))],
)
def test_wilson_interval(successes, number, expected):
    """Values of Brown, Cai and DasGupta's formula (2001), worked out with z = 1.96: 0 of n gives z2/(n + z2)."""
    assert wilson_interval(successes, number) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("successes", "number"), [(170, 200), (3, 10_000), (9_999, 10_000)])
def test_wilson_interval_to_the_last_digits(successes, number):
    """Share p of n, 97.5% quantile z: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    z, share, n = 1.959963984540054, successes / number, number
    center, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    expected = [(center - half) / (1 + z**2 / n), (center + half) / (1 + z**2 / n)]
    assert wilson_interval(successes, number) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_interval_over_seeds_adds_both_kinds_of_chance():
    """Two seeds at 0.5 and 0.52: mean 0.51, standard error 0.01, and t of one degree of freedom is 12.7062."""
    many = 10**9
    assert interval_over_seeds([0.5, 0.52], many) == pytest.approx((0.51 - 0.127062, 0.51 + 0.127062), abs=1e-4)
    assert interval_over_seeds([0.5, 0.6], many) == (0, 1)  # two seeds say nothing of so much chance
    assert interval_over_seeds([0.5, 0.5], 100) == wilson_interval(50, 100)
    low, high = interval_over_seeds([0.5, 0.52], 200)
    wilson_low, wilson_high = wilson_interval(102, 200)
    assert 0.51 - low == pytest.approx(math.sqrt(0.127062**2 + (0.51 - wilson_low) ** 2), abs=1e-5)
    assert high - 0.51 == pytest.approx(math.sqrt(0.127062**2 + (wilson_high - 0.51) ** 2), abs=1e-5)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 5), (5, 0), (3, 3), (2, 9)])
def test_mcnemar_is_twice_the_smaller_tail_of_the_binomial(first, second):
    """Sum of C(n, k) / 2^n for k up to the smaller count, twice; at most 1."""
    n = first + second
    tail = sum(math.comb(n, k) for k in range(min(first, second) + 1)) / 2**n
    assert mcnemar_p_value(first, second) == pytest.approx(min(1.0, 2 * tail), rel=1e-12)
