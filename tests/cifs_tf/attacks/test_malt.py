"""The order in which MALT puts the classes of a linear network."""

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.attacks import MALT
from cifs_tf.errors import UserError

# Logits of a grey image of two pixels at (0.5, 0.5), for classes 0 to 4, and their slopes to each pixel.
LOGITS = np.array([4.0, 3.0, 2.0, 1.0, 0.0], np.float32)
SLOPES = np.array([[0, 0], [1, 0], [4, 3], [3, 9], [0, 16]], np.float32)


def linear(images):
    pixels = tf.reshape(images, (-1, 2)) - 0.5
    return (LOGITS + tf.matmul(pixels, SLOPES, transpose_b=True))[:, None]


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        # Leads 1, 2, 3, 4 of class 0 over sums 1, 7, 12, 16 of the slopes: 1, 0.286, 0.25, 0.25 (by logit).
        ("linf", [3, 4, 2, 1]),
        # Over lengths 1, 5, 9.49, 16: 1, 0.4, 0.316, 0.25.
        ("l2", [4, 3, 2, 1]),
        # Over largest slopes 1, 4, 9, 16: 1, 0.5, 0.333, 0.25.
        ("l1", [4, 3, 2, 1]),
    ],
)
def test_order_by_hand(norm, expected):
    images, labels = tf.fill([1, 1, 2, 1], 0.5), tf.constant([0])
    attack, natural = MALT(epsilon=0.1, norm=norm), linear(images)
    order = [attack.select_targets(linear, images, labels, [1.0], rank, natural).numpy().item() for rank in range(2, 6)]
    assert order == expected


def test_few_candidates_are_those_of_the_largest_logits():
    """Classes 1 and 2; a rank beyond them is the last."""
    images, labels = tf.fill([1, 1, 2, 1], 0.5), tf.constant([0])
    attack = MALT(epsilon=0.1, num_candidates=2)
    order = [
        attack.select_targets(linear, images, labels, [1.0], rank, linear(images)).numpy().item() for rank in (2, 3, 4)
    ]
    assert order == [2, 1, 1]


def test_it_reaches_the_class_that_it_aims_at():
    """Class 3 is 0.25 away, class 1 the whole distance 1: the first target is reached where the next logit's is not."""
    images, labels = tf.fill([1, 1, 2, 1], 0.5), tf.constant([0])
    seed = tf.zeros([1, 2], tf.int64)
    x = MALT(epsilon=0.26, num_steps=20)(linear, images, labels, head_weights=[1.0], seed=seed)
    assert linear(x).numpy()[0, 0].argmax() in (3, 4)


def test_a_targeted_loss_is_needed():
    with pytest.raises(UserError, match="loss: received dlr; give targeted_dlr"):
        MALT(epsilon=0.1, loss="dlr")
