"""FAB's projection against bisection, and one step by hand."""

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from cifs_tf.attacks import FABT
from cifs_tf.attacks.fab import project_onto_hyperplane


def by_bisection(point, normal, offset):
    """Move every pixel by at most the smallest r that reaches the hyperplane inside [0, 1]; to the corner if none."""
    gap = normal @ point - offset
    direction = -np.sign(normal) * np.sign(gap)
    room = np.where(direction > 0, 1 - point, point)

    def at(r):
        return point + direction * np.minimum(r, room)

    low, high = 0.0, 1.0
    if (normal @ at(1.0) - offset) * np.sign(gap) > 0:
        return at(1.0)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (normal @ at(middle) - offset) * np.sign(gap) > 0 else (low, middle)
    return at(high)


@given(st.integers(0, 10_000), st.integers(1, 12), st.booleans())
def test_projection_is_that_of_bisection(seed, size, with_zeros):
    rng = np.random.default_rng(seed)
    points, normals, offsets = rng.random((5, size)), rng.normal(size=(5, size)), rng.normal(size=5)
    if with_zeros:
        normals[rng.random((5, size)) < 0.3] = 0
        points[rng.random((5, size)) < 0.3] = 0
    found = project_onto_hyperplane(*map(tf.constant, (points, normals, offsets)), (0.0, 1.0)).numpy()
    expected = [by_bisection(*row) for row in zip(points, normals, offsets, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.all((found >= 0) & (found <= 1))


@pytest.mark.parametrize(
    ("point", "normal", "offset", "expected"),
    [
        ([0.5, 0.5], [1.0, 1.0], 0.6, [0.3, 0.3]),  # 2 r = 0.4
        ([0.1, 0.5], [1.0, 1.0], 0.2, [0.0, 0.2]),  # the first pixel has room for 0.1 only
        ([0.5, 0.5], [0.0, 1.0], 0.9, [0.5, 0.9]),  # a pixel without weight stays
        ([0.5, 0.5], [1.0, 1.0], -1.0, [0.0, 0.0]),  # out of reach: the corner
        ([0.5, 0.5], [0.0, 0.0], 1.0, [0.5, 0.5]),  # no direction
        ([0.5, 0.5], [1.0, 1.0], 1.0, [0.5, 0.5]),  # on it already
    ],
)
def test_projection_by_hand(point, normal, offset, expected):
    found = project_onto_hyperplane(
        *(tf.constant([value], tf.float64) for value in (point, normal, offset)), (0.0, 1.0)
    )
    np.testing.assert_allclose(found[0], expected, atol=1e-9)


def line(x):
    """Two classes of one pixel: class 1 beyond 0.5."""
    pixel = tf.reshape(x, (-1, 1))
    return tf.concat([0.5 - pixel, pixel - 0.5], axis=1)[:, None]


def test_one_step_by_hand():
    """From 0.4 both projections lie at 0.5, so the step of 1.05 ends at 0.505: distance 0.105."""
    image, label = tf.constant([[[[0.4]]]], tf.float64), tf.constant([0])
    for epsilon, expected in ((0.11, 0.505), (0.1, 0.4)):
        x = FABT(epsilon=epsilon, num_steps=1)(line, image, label, head_weights=[1.0])
        np.testing.assert_allclose(x, [[[[expected]]]], rtol=1e-9)


@pytest.mark.slow
def test_more_steps_come_closer():
    """The boundary is 0.1 away and the first step ends at 0.105; back to 0.4945, the next ends at 0.1005, by hand."""
    image, label = tf.constant([[[[0.4]]]], tf.float64), tf.constant([0])
    x = FABT(epsilon=0.101, num_steps=2)(line, image, label, head_weights=[1.0])
    assert x.numpy().item() == pytest.approx(0.50052, abs=1e-5)
    assert FABT(epsilon=0.0999)(line, image, label, head_weights=[1.0]).numpy().item() == 0.4


@pytest.mark.parametrize(
    ("norm", "point", "normal", "offset", "expected"),
    [
        ("l2", [0.5, 0.5], [1.0, 2.0], 0.5, [0.3, 0.1]),  # 5 r = 1, along the normal
        ("l2", [0.1, 0.5], [1.0, 1.0], 0.2, [0.0, 0.2]),  # the first pixel has room for 0.1 only
        ("l2", [0.5, 0.5], [0.0, 0.0], 1.0, [0.5, 0.5]),
        ("l1", [0.5, 0.5], [1.0, 2.0], 0.7, [0.5, 0.1]),  # the pixel of the larger weight alone
        ("l1", [0.5, 0.5], [1.0, 2.0], 0.25, [0.25, 0.0]),  # which has room for 0.5 only
        ("l1", [0.5, 0.5], [1.0, 1.0], -1.0, [0.0, 0.0]),
        ("l1", [0.5, 0.5], [0.0, 0.0], 1.0, [0.5, 0.5]),
    ],
)
def test_projection_in_other_norms_by_hand(norm, point, normal, offset, expected):
    values = (tf.constant([value], tf.float64) for value in (point, normal, offset))
    np.testing.assert_allclose(project_onto_hyperplane(*values, (0.0, 1.0), norm)[0], expected, atol=1e-9)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_no_point_of_the_hyperplane_is_nearer(norm):
    """A linear program and a quadratic one, solved by SciPy."""
    rng = np.random.default_rng(3)
    for _ in range(5):
        point, normal = rng.random(6), rng.normal(size=6)
        offset = normal @ rng.random(6)
        values = (tf.constant([value], tf.float64) for value in (point, normal, offset))
        found = project_onto_hyperplane(*values, (0.0, 1.0), norm)[0].numpy()
        assert normal @ found == pytest.approx(offset, abs=1e-9)
        # The moves up and down, each of them at least 0.
        bounds = [(0, 1 - each) for each in point] + [(0, each) for each in point]
        both = np.concatenate([normal, -normal])
        if norm == "l1":
            best = scipy.optimize.linprog(
                np.ones(12), A_eq=both[None], b_eq=[offset - normal @ point], bounds=bounds
            ).fun
        else:
            equal = {"type": "eq", "fun": lambda x, normal=normal, offset=offset: normal @ x - offset}
            best = (
                scipy.optimize.minimize(
                    lambda x, point=point: np.sum((x - point) ** 2), point, bounds=[(0, 1)] * 6, constraints=equal
                ).fun
                ** 0.5
            )
        assert np.linalg.norm(found - point, 1 if norm == "l1" else 2) <= best + 1e-4
