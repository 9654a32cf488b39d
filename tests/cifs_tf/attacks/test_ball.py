"""Balls by hand."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from cifs_tf.attacks import PGD, Ball, example_seeds
from cifs_tf.errors import UserError


def column(*values):
    """Pixels of one image, (1, n, 1, 1)."""
    return tf.constant(values, tf.float64)[None, :, None, None]


def test_projection_by_hand():
    """Linf: each pixel by itself. L2: (0.3, 0.4) has length 0.5, so radius 0.1 leaves a fifth of it; then bounds."""
    images = column(0.5, 0.5)
    linf, l2 = (Ball(epsilon=0.1, norm=norm).around(images) for norm in ("linf", "l2"))
    np.testing.assert_allclose(linf(column(0.8, 0.45)), column(0.6, 0.45))
    np.testing.assert_allclose(l2(column(0.8, 0.9)), column(0.56, 0.58))
    np.testing.assert_allclose(l2(column(0.53, 0.54)), column(0.53, 0.54))
    np.testing.assert_allclose(Ball(epsilon=1, norm="l2").around(column(0.95))(column(1.2)), column(1.0))


def test_steepest_and_distance_by_hand():
    linf, l2 = Ball(epsilon=1), Ball(epsilon=1, norm="l2")
    np.testing.assert_allclose(linf.steepest(column(3.0, -4.0, 0.0)), column(1.0, -1.0, 0.0))
    np.testing.assert_allclose(l2.steepest(column(3.0, -4.0, 0.0)), column(0.6, -0.8, 0.0))
    np.testing.assert_array_equal(l2.steepest(column(0.0, 0.0)), column(0.0, 0.0))
    shift = column(0.3, -0.4), column(0.0, 0.0)
    np.testing.assert_allclose(linf.distance(*shift), [0.4])
    np.testing.assert_allclose(l2.distance(*shift), [0.5])


@given(st.integers(0, 10_000), st.sampled_from(["linf", "l2", "l1"]), st.floats(0.01, 1.0))
def test_projections_lie_inside_and_leave_what_is_inside(seed, norm, epsilon):
    rng = np.random.default_rng(seed)
    images, far = rng.random((3, 4, 4, 2)), rng.normal(0.5, 2, (3, 4, 4, 2))
    ball = Ball(epsilon=epsilon, norm=norm)
    project = ball.around(tf.constant(images))
    x = project(tf.constant(far))
    assert np.all((x >= 0) & (x <= 1))
    assert np.all(ball.distance(x, images) <= epsilon * (1 + 1e-9))
    np.testing.assert_allclose(project(x), x, atol=1e-12)


@given(st.integers(0, 10_000), st.floats(0.05, 3.0))
def test_the_projection_onto_l1_is_that_of_bisection(seed, epsilon):
    """What is left of each entry is as much less than it was, or its bound, or 0; float32 reaches the surface too."""
    rng = np.random.default_rng(seed)
    images, far = rng.random((4, 6, 6, 1)), rng.random((4, 6, 6, 1))
    far[rng.random(far.shape) < 0.2] += 1.0
    shift = far - images
    room = np.where(shift > 0, 1 - images, images)

    def left(amount):
        return np.clip(np.abs(shift) - amount[:, None, None, None], 0, room)

    low, high = np.zeros(4), np.full(4, 3.0)
    for _ in range(60):
        middle = (low + high) / 2
        outside = left(middle).sum(axis=(1, 2, 3)) > epsilon
        low, high = np.where(outside, middle, low), np.where(outside, high, middle)
    expected = images + np.sign(shift) * left(np.where(left(np.zeros(4)).sum(axis=(1, 2, 3)) > epsilon, high, 0))
    for dtype, close in ((tf.float64, 1e-6), (tf.float32, 1e-5)):
        project = Ball(epsilon=epsilon, norm="l1").around(tf.constant(images, dtype))
        np.testing.assert_allclose(project(tf.constant(far, dtype)), expected, atol=close)


def test_random_points_lie_in_the_l1_ball():
    images = tf.fill([50, 4, 4, 1], 0.5)
    ball = Ball(epsilon=2.0, norm="l1")
    for draw in (ball.random_point, ball.random_surface_point):
        distance = ball.distance(draw(images, example_seeds(0, 0, tf.range(50))), images).numpy()
        assert distance.max() <= 2.0 * (1 + 1e-5)
        assert distance.min() > 1.0


def test_random_points_fill_the_l2_ball():
    """In 12 dimensions half of the volume lies beyond radius 0.5^(1/12) = 0.944; the directions have mean zero."""
    images = tf.fill([2000, 2, 2, 3], tf.constant(0.5, tf.float64))
    ball = Ball(epsilon=0.3, norm="l2")
    points = tf.function(ball.random_point, autograph=False)(images, example_seeds(0, 0, tf.range(2000)))
    shift = (points - images).numpy().reshape(2000, -1)
    radii = np.linalg.norm(shift, axis=1) / 0.3
    assert radii.max() <= 1 + 1e-9
    assert np.mean(radii > 0.5 ** (1 / 12)) == pytest.approx(0.5, abs=0.04)
    assert np.abs(shift.mean(axis=0)).max() < 0.01


def test_l2_pgd_on_a_linear_network_by_hand():
    """Two classes: the gradient points along W[:, 1] - W[:, 0] = (3, 4) / 5 * 5; steps of 0.1 reach epsilon 0.15."""
    weight = tf.constant([[0.0, 3.0], [0.0, 4.0]], tf.float64)

    def heads_fn(x):
        return tf.matmul(tf.reshape(x, (-1, 2)), weight)[:, None]

    for steps, length in ((1, 0.1), (2, 0.15), (5, 0.15)):
        attack = PGD(epsilon=0.15, step_size=0.1, num_steps=steps, norm="l2")
        x = attack(heads_fn, column(0.5, 0.5), tf.constant([0]), head_weights=[1.0])
        np.testing.assert_allclose(x, column(0.5 + 0.6 * length, 0.5 + 0.8 * length), rtol=1e-9)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"epsilon": -1.0}, "epsilon: received -1.0"),
        ({"epsilon": 1.5}, "epsilon: received 1.5; give a radius from 0 to 1"),
        ({"epsilon": float("inf"), "norm": "l2"}, "epsilon: received inf; give a radius from 0 upwards"),
        ({"epsilon": float("nan"), "norm": "l2"}, "epsilon: received nan"),
        ({"epsilon": 0.1, "norm": "l0"}, "norm: received l0; give one of linf, l2"),
        ({"epsilon": 0.1, "bounds": (1.0, 0.0)}, "bounds: received"),
    ],
)
def test_errors(fields, words):
    with pytest.raises(UserError, match=words):
        Ball(**fields)


def test_an_l2_radius_may_exceed_the_range_of_a_pixel():
    assert Ball(epsilon=5.0, norm="l2").epsilon == 5.0
