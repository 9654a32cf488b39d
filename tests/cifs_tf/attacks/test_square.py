"""Square: its schedule by hand, and what its draws depend on."""

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.attacks import Square, example_seeds


def test_sides_of_32_pixels():
    """The share 0.8 is halved after 10, 50, 200, 500, 1000, 2000, 4000 queries: round(sqrt(0.8 / 2^i * 1024))."""
    sides = Square(epsilon=0.1).sides(32, 32)
    assert len(sides) == 5000
    places = [0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 4999]
    assert [sides[i] for i in places] == [29, 29, 20, 20, 14, 14, 10, 10, 7, 7, 5, 5, 4, 4, 3, 3]


def test_sides_fit_small_and_narrow_images():
    assert Square(epsilon=0.1).sides(8, 8).max() == 7
    assert set(Square(epsilon=0.1, num_queries=50).sides(1, 40)) == {1}
    assert Square(epsilon=0.1, initial_share=1.0).sides(4, 16).max() == 4


def stubborn(x):
    """A network that keeps to class 0, and whose lead falls with the brightness."""
    mean = tf.reduce_mean(x, axis=[1, 2, 3])
    return tf.stack([10 - mean, tf.zeros_like(mean)], axis=1)[:, None]


def queries(attack, images, seed=0):
    """The points that an attack asks about, in order."""
    asked = []

    def heads_fn(x):
        asked.append(x.numpy())
        return stubborn(x)

    ids = tf.range(len(images))
    attack(heads_fn, images, tf.zeros(len(images), tf.int32), head_weights=[1.0], seed=example_seeds(seed, 0, ids))
    return asked


@pytest.mark.parametrize("compat", [False, True])
def test_images_share_their_draws_only_if_compat(compat):
    """Two equal images: with a draw each they part, with a shared one they stay the same."""
    images = tf.fill([2, 8, 8, 1], 0.5)
    asked = queries(Square(epsilon=0.1, num_queries=20, compat=compat), images)
    last = next(x for x in reversed(asked) if len(x) == 2)
    assert np.array_equal(last[0], last[1]) == compat


def test_points_are_the_image_plus_or_minus_epsilon():
    """Stripes, then squares of 2 epsilon, clipped: away from the bounds every pixel is at epsilon."""
    images = tf.fill([3, 8, 8, 2], 0.5)
    for x in queries(Square(epsilon=0.1, num_queries=30), images)[1:]:
        np.testing.assert_allclose(np.abs(x - 0.5), 0.1, atol=1e-6)


def test_the_first_points_are_stripes():
    images = tf.fill([4, 8, 8, 2], 0.5)
    start = queries(Square(epsilon=0.1, num_queries=1), images)[1]
    assert np.all(start == start[:, :1])
    assert np.any(start != start[:, :, :1])


def test_the_lead_never_rises():
    """What is kept is never worse than before: in the end the images are as bright as they may be, but for a square."""
    images = tf.fill([2, 8, 8, 1], 0.5)
    asked = queries(Square(epsilon=0.1, num_queries=100), images)
    assert np.mean([x.mean() for x in asked[-20:]]) > 0.56


@pytest.mark.slow
def test_squares_that_change_nothing_cost_no_query():
    """A batch of 64: once most pixels are bright, most squares of brightness leave them as they are."""
    asked = queries(Square(epsilon=0.1, num_queries=120), tf.fill([64, 4, 4, 1], 0.5))
    sizes = [len(x) for x in asked[2:]]
    assert set(sizes) <= {16, 32, 48, 64}
    assert np.mean(sizes[60:]) < 60
