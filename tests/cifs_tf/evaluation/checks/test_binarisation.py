"""The binarisation test: planted adversarial examples are found in honest features, and not behind hidden gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.data import Split
from cifs_tf.evaluation import as_attacked, evaluate, make_suite
from cifs_tf.evaluation.checks.binarisation import Binarised, _separate
from cifs_tf.evaluation.checks.judging import next_step
from cifs_tf.evaluation.checks.sanity_verdicts import sanity_verdicts
from cifs_tf.evaluation.networks.outputs import last_features
from cifs_tf.evaluation.tasks import Natural

RNG = np.random.default_rng(0)
FEATURES = tf.constant(RNG.normal(size=(64, 40)), tf.float32)
WEIGHTS = tf.constant(RNG.normal(size=(40, 3)), tf.float32)
IMAGES = RNG.integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)


def features(images):
    return tf.nn.relu((tf.reshape(images, [-1, 64]) - 0.5) @ FEATURES + 0.1)


NETWORKS = {
    "honest": lambda x: features(x) @ WEIGHTS + 1.0,
    "honest, probabilities of large logits": lambda x: tf.nn.softmax(100 * (features(x) @ WEIGHTS)),
    "levels": lambda x: features(tf.round(x * 12) / 12) @ WEIGHTS,
    "turned round": lambda x: (2 * tf.stop_gradient(features(x)) - features(x)) @ WEIGHTS,
    "two at its end": lambda x: features(x) @ WEIGHTS + features(1 - x) @ WEIGHTS,
}


class Planted(keras.Model):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, images):
        return self.function(images)


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("honest, probabilities of large logits", "pass"),
        ("levels", "fail"),
        ("turned round", "fail"),
        ("two at its end", "skip"),
    ],
)
def test_verdicts(name, verdict):
    network = NETWORKS[name]
    labels = np.argmax(network(tf.constant(IMAGES / np.float32(255), tf.float32)), axis=1).astype(np.int32)
    victim = as_attacked(Planted(network), image_shape=(8, 8, 1))
    report = evaluate(victim, Split(IMAGES, labels), [Natural(), Binarised(epsilon=0.1)])
    (check,) = [check for check in report["audit"] if check["name"] == "known adversarial examples are found"]
    assert check["verdict"] == verdict, check
    if verdict == "pass":
        assert check["number"] == 0
        assert "for 24 of 24 images (86.2% to 100.0%)" in check["sentence"]
    assert report["believable"] is (verdict != "fail")


def test_the_border_point_is_separated_by_construction():
    """Points inside have negative leads, the border point a positive one, a thousandth of the way below it."""
    drawn = RNG.normal(size=(50, 2, 200)).astype(np.float32)
    border = 3 + RNG.normal(size=(2, 200)).astype(np.float32)
    readout = _separate(tf.constant(drawn), tf.constant(border))
    inner = np.array([readout.lead(each) for each in drawn])
    assert readout.separates.numpy().all()
    assert (inner < 0).all()
    assert (readout.lead(border).numpy() > 0).all()
    np.testing.assert_allclose(readout.lead(border), 1e-3 * (readout.lead(border) - inner.max(axis=0)), rtol=0.02)
    np.testing.assert_allclose(readout.lead(border) - inner.min(axis=0), 1, rtol=1e-3)


def test_points_that_are_alike_cannot_be_asked():
    """Features that do not change leave nothing to separate, and no NaN."""
    alike = tf.ones([20, 2, 5])
    readout = _separate(alike, tf.ones([2, 5]))
    assert not readout.separates.numpy().any()
    assert np.isfinite(readout.lead(tf.ones([2, 5]))).all()


@pytest.mark.parametrize("name", ["honest", "honest, probabilities of large logits"])
def test_features_are_what_the_last_matrix_reads(name):
    images = tf.constant(IMAGES / np.float32(255), tf.float32)
    np.testing.assert_allclose(last_features(NETWORKS[name], (8, 8, 1))(images), features(images), rtol=1e-5)


def test_features_of_keras_models_and_of_the_final_head(make_victim, trained):
    """Those of a classifier with selection layers are the masked ones that its last layer reads."""
    image = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(image)
    model = keras.Sequential([keras.Model(image, flat), keras.layers.Dense(4), keras.layers.Softmax()])
    images = tf.constant(IMAGES[:5] / np.float32(255), tf.float32)
    found = last_features(as_attacked(model).answers_fns["exact"], (8, 8, 1))
    np.testing.assert_allclose(found(images), tf.reshape(images, [5, 64]))
    classifier = trained.classifier
    expected = classifier.observe(images, classifier.backbone.layers[-1].name)[0]
    for answers in as_attacked(classifier).answers_fns.values():
        np.testing.assert_allclose(last_features(answers, classifier.image_shape)(images), expected, rtol=1e-4)
    assert make_victim().answers_fns == {}


def test_which_suites_ask(trained):
    """The two that take hours; a stand-in for the gradient is not the network's features."""
    victim = as_attacked(trained.classifier)
    for name, has in (("strict", True), ("adaptive", True), ("standard", False), ("quick", False)):
        kinds = [type(task) for task in make_suite(name, victim, 0.1)]
        assert (Binarised in kinds) is has, name
        assert Binarised not in [type(task) for task in make_suite(name, victim, 0.1, audit=False)]
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(4)])
    assert as_attacked(model, backward=model).answers_fns == {}


@pytest.mark.parametrize(
    ("asked", "found", "verdict"),
    [(0, 0, "skip"), (50, 50, "pass"), (50, 48, "pass"), (20, 18, "warn"), (20, 16, "fail")],
)
def test_counts_are_judged_with_their_interval(make_ledger, asked, found, verdict):
    task = {"name": "binarised", "kind": "Binarised", "section": "sanity", "on": "correct", "counts": False}
    values = {"asked": [i < asked for i in range(50)], "found": [i < found for i in range(50)]}
    ledger = make_ledger([task], {"natural": (range(50), {"ranks": [[0]] * 50}), "binarised": (range(50), values)})
    (check,) = [check for check in sanity_verdicts(ledger) if check.name.startswith("known")]
    assert check.verdict == verdict, check
    assert verdict == "skip" or f"{found} of {asked} images" in check.sentence
    assert "stand-in" in next_step([check.name])
