"""Referees: those on 8-bit pixels make 8-bit images inside the ball, in every norm."""

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.evaluation.checks.referees import referees
from cifs_tf.evaluation.tasks import inside
from cifs_tf.losses import margin

WEIGHTS = tf.constant(np.random.default_rng(0).normal(size=(64, 3)), tf.float32)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 8 / 255), ("l2", 0.5), ("l2", 3.0), ("l1", 4.0)])
def test_8_bit_images_stay_in_the_ball_and_move(norm, epsilon, make_victim):
    victim = make_victim(lambda x: (tf.reshape(x, [-1, 64]) @ WEIGHTS)[:, None], num_classes=3, num_probes=0)
    found = {task.family: task for task in referees(epsilon, "exact", norm=norm, with_square=True)}
    assert set(found) == ({"square", "rays", "grid"} if norm == "linf" else {"square", "grid"})
    images = tf.constant(np.random.default_rng(1).integers(0, 256, (20, 8, 8, 1)) / 255, tf.float32)
    labels = tf.argmax(victim.heads_fns["exact"](images)[:, 0], axis=1, output_type=tf.int32)
    x = found["grid"].craft_fn(victim)(images, labels, tf.constant([1.0]), tf.constant(2), tf.zeros([20, 2], tf.int64))
    assert np.abs(255 * x - np.round(255 * x)).max() < 1e-3
    assert np.all(inside(found["grid"].attack, x, images))
    before, after = (margin(victim.heads_fns["exact"](each), labels)[:, 0].numpy() for each in (images, x))
    assert np.all(after <= before)
    assert np.mean(after < before) > 0.9
