"""Networks that answer by chance: their votes, and attacks on their mean."""

import dataclasses
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.data import Split
from cifs_tf.evaluation import as_attacked, evaluate, suites
from cifs_tf.evaluation.chance import Voted, expected_referees, rand_tasks
from cifs_tf.evaluation.checks.sanity import entrance_tasks
from tests.cifs_tf.evaluation.planted import DECOY, EPSILON, failed, linear


def test_a_gradient_that_misleads_on_average(make_victim, labelled):
    """A decoy with a little noise: attacks on the mean follow its gradient, Square and RayS do not."""

    def noise(images):
        return 1e-3 * tf.random.normal([tf.shape(images)[0], 1, 3])

    def decoy(images):
        return (tf.stop_gradient(linear(images)) + 1e-3 * linear(images, DECOY))[:, None] + noise(images)

    attack = rand_tasks(make_victim(num_classes=3), EPSILON, "exact")[0]
    attack = dataclasses.replace(attack, attack=dataclasses.replace(attack.attack, num_steps=20))
    asked = [attack, *expected_referees(EPSILON, "exact")]
    tasks = [Voted(votes=5), *(dataclasses.replace(task, eot=2, votes=5) for task in asked)]
    misleading = make_victim(decoy, num_classes=3, num_probes=0)
    honest = make_victim(lambda images: linear(images)[:, None] + noise(images), num_classes=3, num_probes=0)
    assert failed(evaluate(misleading, labelled, tasks)) == {"square adds nothing", "rays add nothing"}
    assert failed(evaluate(honest, labelled, tasks)) == set()


def test_votes_of_no_number_are_for_no_class(make_victim):
    """Three calls of four are NaN: class 0, the argmax of NaN, has a quarter of the votes, not all of them."""
    calls = itertools.cycle([1.0, np.nan, np.nan, np.nan])
    victim = make_victim(lambda x: tf.ones((len(x), 2, 2)) * [1.0, 0.0] * next(calls))
    zeros = tf.zeros(5, tf.int32)
    found = Voted(votes=4).measure_fn(victim)(tf.zeros((5, 8, 8, 1)), zeros, None, None, None)
    assert np.all(found["ranks"] == 1)
    assert np.all(np.sum(found["right"], axis=1) == 1)


@pytest.mark.slow
def test_chance_is_judged_by_votes(make_victim):
    """Logits of the mean pixel and noise: where they are clear the vote says so, and single calls are told."""
    images = np.repeat(np.array([20, 60, 195, 235], np.uint8), 6)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    split = Split(images, (images[:, 0, 0, 0] > 127).astype(np.int32))

    def heads(x):
        mean = tf.reduce_mean(x, axis=[1, 2, 3])
        logits = tf.stack([0.5 - mean, mean - 0.5], axis=1) + tf.random.normal((tf.shape(x)[0], 2), stddev=0.05)
        return logits[:, None]

    victim = make_victim(heads, num_classes=2, num_probes=0)
    attack = rand_tasks(victim, 0.33, "exact")[0]
    attack = dataclasses.replace(attack, eot=3, votes=9, attack=dataclasses.replace(attack.attack, num_steps=10))
    tasks = [Voted(votes=9), attack, *entrance_tasks(("exact",), with_gradients=False)]
    for suite, verdict in (("quick", "fail"), ("rand", "warn")):
        report = evaluate(victim, split, tasks, about={"suite": suite})
        assert report["natural"]["count"] == 24
        assert report["worst_case"]["count"] == 12  # 20/255 and 235/255 are 0.42 away from the middle, the others 0.26
        found = {check["name"]: check["verdict"] for check in report["audit"]}
        assert (found["same answer twice"], found["accuracy of a single call"]) == (verdict, "info")
        assert ("suite rand took the place of quick" in str(report["about"]["limits"])) == (suite == "quick")


def test_dropout_that_is_left_on_is_found(digits):
    class Forgotten(keras.layers.Dropout):
        def call(self, inputs, training=None):
            return super().call(inputs, training=True)

    image = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(Forgotten(0.5)(image))
    victim = as_attacked(keras.Model(image, keras.layers.Dense(10)(x)))
    assert type(suites.make_suite("standard", victim, 0.1)[0]).__name__ == "Voted"
