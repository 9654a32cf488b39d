"""The squeeze-and-excitation layer: a learnt gate with the contract of CIFS."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.config import ModelConfig
from cifs_tf.errors import UserError
from cifs_tf.layers import SqueezeExcitation
from cifs_tf.models import build_classifier

CLASSES = 5


@pytest.fixture
def layer():
    layer = SqueezeExcitation(num_classes=CLASSES, reduction=3, dtype="float64")
    layer.build((None, 2, 2, 8))
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(size=weight.shape) for weight in layer.get_weights()])
    return layer


@pytest.mark.parametrize("training", [None, True])
def test_mask_is_a_gate_of_the_pooled_features(layer, training):
    features = np.random.default_rng(1).normal(size=(3, 2, 2, 8))
    pooled = features.mean(axis=(1, 2))
    (w1, b1), (w2, b2), (w, b) = (part.get_weights() for part in (layer.squeeze, layer.excitation, layer.probe))
    assert w1.shape == (8, 3)  # 8 / 3, rounded up
    gate = 1 / (1 + np.exp(-(np.maximum(pooled @ w1 + b1, 0) @ w2 + b2)))
    outputs = layer(features, labels=np.array([1, 2, 0]), training=training)
    np.testing.assert_allclose(outputs["importance"], gate, rtol=1e-10)
    np.testing.assert_allclose(outputs["features"], features * gate[:, None, None], rtol=1e-10)
    np.testing.assert_allclose(outputs["probe_logits"], pooled @ w + b, rtol=1e-10)


@pytest.mark.parametrize(("mask_gradient", "reaches"), [("detached", False), ("full", True), (None, True)])
def test_gradient_flows_through_the_gate(layer, mask_gradient, reaches):
    features = tf.constant(np.random.default_rng(1).normal(size=(3, 2, 2, 8)))
    with tf.GradientTape() as tape:
        tape.watch(features)
        value = tf.reduce_sum(layer(features, mask_gradient=mask_gradient)["importance"] ** 2)
    assert (tape.gradient(value, features) is not None) == reaches


def test_round_trips(tmp_path):
    classifier = build_classifier(ModelConfig(arch="resnet10", width=4, defense="se"), (8, 8, 1), CLASSES)
    images = np.random.default_rng(2).random((3, 8, 8, 1), np.float32)
    classifier.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    np.testing.assert_allclose(loaded(images), classifier(images), atol=1e-6)
    assert {type(cut) for cut in loaded.cuts.values()} == {SqueezeExcitation}


def test_refuses_a_reduction_below_one():
    with pytest.raises(UserError, match=r"reduction.*1 or more"):
        SqueezeExcitation(reduction=0)
