"""NR share and alignment, by hand and against SciPy."""

import hypothesis
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cifs_tf.analysis import alignment, negative_share
from cifs_tf.errors import UserError

# Few values, so that there are ties.
TABLES = arrays(float, (3, 6), elements=st.integers(-4, 4).map(float))


def test_negative_share_by_hand():
    """g = (1, -1, 0, 2): the second and third channel are NR, a channel of relevance 0 too (Section 1).

    (2 + 3) / 10; a negative activation, as CAS makes it, counts with its magnitude; nothing active, nothing known.
    """
    relevance = np.array([1, -1, 0, 2])
    activations = np.array([[1, 2, 3, 4], [1, -2, 3, 4], [1, 0, 0, 9], [0, 0, 0, 0]])
    np.testing.assert_array_equal(negative_share(activations, relevance), [0.5, 0.5, 0, np.nan])


def test_negative_share_of_a_relevance_for_each_image():
    relevance = np.array([[1, -1], [-1, 1]])
    assert negative_share(np.array([[3, 1], [3, 1]]), relevance).tolist() == [0.25, 0.75]


def test_alignment_by_hand():
    """Centred ranks of g = (3, 1, 2): (1, -1, 0).

    a = (1, 2, 3): (-1, 0, 1) . (1, -1, 0) / sqrt(2 * 2) = -1/2. a = (9, 0, 5): the same order, 1. a = (0, 9, 5): -1.
    a = (0, 0, 7): ranks 1.5, 1.5, 3, centred (-1/2, -1/2, 1): (-1/2 + 1/2) / sqrt(3/2 * 2) = 0.
    Without an order nothing is known.
    """
    relevance = np.array([3, 1, 2])
    activations = np.array([[1, 2, 3], [9, 0, 5], [0, 9, 5], [0, 0, 7], [1, 1, 1]])
    np.testing.assert_allclose(alignment(activations, relevance), [-0.5, 1, -1, 0, np.nan])


def test_alignment_with_ties_by_hand():
    """a = (0, 0, 1): centred ranks (-1/2, -1/2, 1); g = (1, 2, 3): (-1, 0, 1); 3/2 / sqrt(3/2 * 2) = sqrt(3)/2."""
    np.testing.assert_allclose(alignment(np.array([[0, 0, 1]]), np.array([1, 2, 3])), [np.sqrt(3) / 2])


@hypothesis.given(TABLES, TABLES)
def test_alignment_is_spearmans(activations, relevance):
    for row, first, second in zip(alignment(activations, relevance), abs(activations), relevance, strict=True):
        if np.ptp(first) == 0 or np.ptp(second) == 0:
            assert np.isnan(row)
        else:
            assert row == pytest.approx(scipy.stats.spearmanr(first, second).statistic, abs=1e-12)


@hypothesis.given(TABLES, TABLES)
def test_neither_depends_on_scale_nor_order(activations, relevance):
    shuffled = np.random.default_rng(0).permutation(6)
    for function in (negative_share, alignment):
        values = function(activations, relevance)
        np.testing.assert_allclose(function(3 * activations, 0.5 * relevance), values)
        np.testing.assert_allclose(function(activations[:, shuffled], relevance[:, shuffled]), values)
        assert np.all(np.isnan(values) | (np.abs(values) <= 1 + 1e-12))


@pytest.mark.parametrize("function", [negative_share, alignment])
def test_shapes_that_do_not_fit_are_named(function):
    with pytest.raises(UserError, match=r"relevance: received shape \(2,\); give \(3,\) or \(4, 3\)"):
        function(np.ones((4, 3)), np.ones(2))
    with pytest.raises(UserError, match=r"activations: received shape \(3,\)"):
        function(np.ones(3), np.ones(3))
