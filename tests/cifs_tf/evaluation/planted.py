"""A linear network by hand, whose faults are planted by each test."""

import numpy as np
import tensorflow as tf

EPSILON = 0.1
WEIGHTS = tf.constant(np.random.default_rng(0).normal(size=(64, 3)), tf.float32)
DECOY = tf.constant(np.random.default_rng(1).normal(size=(64, 3)), tf.float32)


def linear(images, weights=WEIGHTS):
    return (tf.reshape(images, [-1, 64]) - 0.5) @ weights


def grid(images):
    return tf.reduce_all(tf.abs(images * 255 - tf.round(images * 255)) < 1e-3, axis=[1, 2, 3])[:, None]


def failed(report):
    return {check["name"] for check in report["audit"] if check["verdict"] == "fail"}
