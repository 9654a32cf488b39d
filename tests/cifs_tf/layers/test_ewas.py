"""The EWAS layer: a row of the dense weight over all elements as mask."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.config import ModelConfig
from cifs_tf.errors import UserError
from cifs_tf.layers import EWAS
from cifs_tf.models import Classifier, build_classifier

SHAPE, CLASSES = (3, 2, 4), 5
LABELS = np.array([3, 0, 3])


@pytest.fixture
def layer():
    layer = EWAS(num_classes=CLASSES, dtype="float64")
    layer.build((None, *SHAPE))
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(size=weight.shape) for weight in layer.get_weights()])
    return layer


@pytest.fixture
def features():
    return np.random.default_rng(1).normal(size=(3, *SHAPE))


@pytest.mark.parametrize("training", [None, False, True])
def test_mask_is_the_row_of_a_class(layer, features, training):
    """p = flat(z) W + b, output z * W[:, c], element by element; c the predicted class, in training the label."""
    kernel, bias = layer.get_weights()
    logits = features.reshape(3, -1) @ kernel + bias
    classes = LABELS if training else logits.argmax(axis=1)
    outputs = layer(features, labels=LABELS, training=training)
    np.testing.assert_allclose(outputs["probe_logits"], logits, rtol=1e-10)
    np.testing.assert_allclose(outputs["importance"], kernel.T[classes], rtol=1e-12)
    np.testing.assert_allclose(outputs["features"], features * kernel.T[classes].reshape(3, *SHAPE), rtol=1e-12)


@pytest.mark.parametrize(("mask_gradient", "reaches"), [("detached", False), ("full", False), ("smoothed", True)])
def test_only_the_choice_of_the_class_depends_on_the_features(layer, features, mask_gradient, reaches):
    """The row is a weight: gradients reach the features through the smoothed choice of the class, or not at all."""
    features = tf.constant(features)
    with tf.GradientTape() as tape:
        tape.watch(features)
        value = tf.reduce_sum(layer(features, mask_gradient=mask_gradient)["importance"] ** 2)
    gradient = tape.gradient(value, features)
    assert (gradient is not None and bool(np.any(gradient))) == reaches


def test_round_trips(tmp_path):
    classifier = build_classifier(ModelConfig(arch="resnet10", width=4, defense="ewas"), (8, 8, 1), CLASSES)
    images = np.random.default_rng(2).random((3, 8, 8, 1), np.float32)
    heads = classifier(images)
    assert heads.shape == (3, 3, CLASSES)
    copy = Classifier.from_config(classifier.get_config())
    assert copy.get_config() == classifier.get_config()
    classifier.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(loaded(images), heads)
    assert {type(cut) for cut in loaded.cuts.values()} == {EWAS}


def test_features_of_unknown_size_are_refused():
    with pytest.raises(UserError, match=r"features: received .*None.*fixed size"):
        EWAS(num_classes=CLASSES).build((None, None, None, 4))
