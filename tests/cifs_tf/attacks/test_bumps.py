"""Bumps of Square in L2 and L1, by hand."""

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.attacks import Ball
from cifs_tf.attacks.bumps import Bumps, bump, tiles


def test_a_bump_by_hand():
    """Side 3: one row above 0, 1/4 1 1/4 higher in its middle by 1 and by 1/4 around; two below 0."""
    upper = np.array([[0.25, 1.25, 0.25]])
    lower = np.array([[0.25, 0.25, 0.25], [0.25, 1.25, 0.25]])
    expected = np.concatenate([upper / np.linalg.norm(upper), -lower / np.linalg.norm(lower)]) / np.sqrt(2)
    np.testing.assert_allclose(bump(3, "l2"), expected, atol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("side", [1, 3, 6, 7])
def test_a_bump_has_length_one(norm, side):
    one = bump(side, norm)
    assert np.sum(one**2 if norm == "l2" else np.abs(one)) == pytest.approx(1, abs=1e-6)
    assert np.abs(tiles(28, 28, norm, tf.ones([1, 28, 28, 1]))).max() > 0


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_move_spends_the_ball_on_the_first_window(norm):
    """What lay in the second window is gone, what lay elsewhere keeps its proportions; the length is epsilon."""
    rng = np.random.default_rng(0)
    images = np.full((1, 12, 12, 2), 0.5, np.float32)
    shift = 0.002 * rng.normal(size=images.shape).astype(np.float32)
    ball = Ball(epsilon=1.0, norm=norm)
    bumps = Bumps(ball, np.array([3]), tf.TensorShape(images.shape))
    corners, others = tf.constant([[1, 2]]), tf.constant([[8, 7]])
    x = bumps.move(
        images, images + shift, tf.constant(3), corners, others, tf.constant([0.2]), tf.constant([[0.1, 0.9]])
    )
    moved = x.numpy() - images
    np.testing.assert_allclose(moved[0, 8:11, 7:10], 0, atol=1e-6)
    assert float(ball.distance(x, images)[0]) == pytest.approx(1.0, abs=1e-3)
    assert np.abs(moved[0, 1:4, 2:5]).sum() > np.abs(moved).sum() / 4
    if norm == "l2":
        ratio = moved[0, 5:8, :6] / shift[0, 5:8, :6]
        np.testing.assert_allclose(ratio, ratio[0, 0, 0], rtol=1e-2)
