"""FMN, DDN and FAB against networks whose smallest distances are known."""

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.attacks import DDN, FABT, FMN
from cifs_tf.attacks.minimal import FAR
from cifs_tf.errors import UserError

# Of a linear network the distance of the boundary is |z_1 - z_2| / |w_1 - w_2|, in the dual norm.
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


def linear(images):
    """Two classes of 64 pixels around 0.5, so that no distance reaches the bounds."""
    weight = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)
    return tf.matmul(tf.reshape(images, (-1, 64)) - 0.5, weight)[:, None]


@pytest.fixture(scope="module")
def known():
    """Images, labels, and the smallest distance of each in every norm; the last image is misclassified."""
    images = 0.5 + 0.1 * (np.random.default_rng(0).random((24, 8, 8, 1)).astype(np.float32) - 0.5)
    logits = linear(images).numpy()[:, 0]
    labels = logits.argmax(axis=1).astype(np.int32)
    labels[-1] = 1 - labels[-1]
    weight = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)
    lead = np.abs(logits[:, 0] - logits[:, 1])
    lead[-1] = 0
    return images, labels, {norm: lead / np.linalg.norm(weight[:, 0] - weight[:, 1], q) for norm, q in DUAL.items()}


@pytest.mark.parametrize(
    ("attack", "within"),
    [
        (FMN(epsilon=1.0), 1.001),
        (FMN(epsilon=1.0, norm="l2"), 1.001),
        (FMN(epsilon=1.0, norm="l1"), 1.001),
        (DDN(epsilon=1.0), 1.01),
        (FABT(epsilon=1.0), 1.01),
        (FABT(epsilon=1.0, norm="l2"), 1.01),
        (FABT(epsilon=1.0, norm="l1"), 1.01),
    ],
    ids=lambda value: f"{type(value).__name__} {value.norm}" if hasattr(value, "norm") else "",
)
def test_the_boundary_of_a_linear_network_is_found(attack, within, known):
    images, labels, distances = known
    expected = distances[attack.norm]
    nearest = tf.function(lambda x, y: attack.nearest(linear, x, y, [1.0]), autograph=False)
    x, distance = nearest(tf.constant(images), tf.constant(labels))
    assert np.all(linear(x).numpy()[:, 0].argmax(axis=1) != labels)
    shift = (x.numpy() - images).reshape(len(images), -1)
    np.testing.assert_allclose(
        np.linalg.norm(shift, {1: np.inf, 2: 2, np.inf: 1}[DUAL[attack.norm]], axis=1), distance, rtol=1e-6
    )
    assert distance[-1] == 0
    assert np.all(distance >= expected * (1 - 1e-4))
    assert np.all(distance <= expected * within)


@pytest.mark.parametrize("attack", [FMN, DDN, FABT])
def test_what_cannot_be_reached_is_said(attack):
    """A network with one answer: nothing is misclassified, and nothing becomes a number that is none."""
    images = tf.fill([2, 4, 4, 1], 0.5)
    attack = attack(epsilon=0.1, num_steps=5)
    x, distance = attack.nearest(lambda x: x[:, :1, :2, 0] * 0 + [[[1.0, 0.0]]], images, tf.constant([0, 0]), [1.0])
    assert np.all(distance.numpy() == np.float32(FAR))
    np.testing.assert_array_equal(x, images)


def test_ddn_knows_l2_alone():
    with pytest.raises(UserError, match="norm: received linf; give l2"):
        DDN(epsilon=0.1, norm="linf")
