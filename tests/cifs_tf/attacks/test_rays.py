"""RayS: where a ray ends, how it is divided, and that it stays in the ball."""

import numpy as np
import tensorflow as tf

from cifs_tf.attacks import RayS


def test_a_ray_ends_where_the_prediction_changes():
    """Two classes by the mean pixel m: from grey 0.4, brighter by 26/255 changes it, 25/255 does not."""

    def heads(images):
        mean = tf.reduce_mean(images, axis=[1, 2, 3])
        return tf.stack([0.5 - mean, mean - 0.5], axis=1)[:, None]

    images, labels = tf.fill([3, 4, 4, 1], 102 / 255), tf.constant([0, 0, 1])
    for steps, moved in ((25, False), (26, True)):
        x = RayS(epsilon=steps / 255, num_queries=20)(heads, images, labels, head_weights=[1.0])
        assert np.allclose(x[0] - images[0], 26 / 255 if moved else 0.0, atol=1e-6)
        assert np.array_equal(x[2], images[2])  # misclassified before


def test_a_ray_is_divided_until_every_pixel_had_its_turn():
    parts = RayS(epsilon=0.1, num_queries=15).parts(8)
    assert parts[:4].tolist() == [[0, 8], [0, 4], [4, 8], [0, 2]]
    assert parts[-1].tolist() == [7, 8]
    assert RayS(epsilon=0.1, num_queries=40).parts(8)[15].tolist() == [0, 8]


def test_a_ray_stays_in_the_ball_whatever_the_network_says():
    """Of a network that answers by a coin, which seems to be fooled at any radius."""
    images = tf.fill([40, 4, 4, 1], 0.5)

    def heads(x):
        return tf.random.stateless_uniform((len(x), 1, 2), tf.random.uniform((2,), 0, 2**30, tf.int32))

    x = RayS(epsilon=2 / 255, num_queries=60)(heads, images, tf.zeros(40, tf.int32), head_weights=[1.0])
    assert np.max(np.abs(x - images)) <= 2 / 255 + 1e-6
