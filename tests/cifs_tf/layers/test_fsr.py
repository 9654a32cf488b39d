"""The FSR layer: separation, recalibration, and the losses it adds in training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.adversarial import AdversarialTrainer, PGDTraining
from cifs_tf.attacks import PGD
from cifs_tf.config import ModelConfig
from cifs_tf.errors import UserError
from cifs_tf.layers import FSR
from cifs_tf.models import build_classifier

SHAPE, CLASSES = (3, 2, 4), 5
LABELS = np.array([3, 0, 3])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cross_entropy(logits, classes):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(classes)), classes])


@pytest.fixture
def layer():
    keras.utils.set_random_seed(0)
    layer = FSR(num_classes=CLASSES, hidden_channels=6, dtype="float64")
    layer.build((None, *SHAPE))
    rng = np.random.default_rng(0)
    layer.set_weights([np.abs(rng.normal(size=weight.shape)) for weight in layer.get_weights()])
    return layer


@pytest.fixture
def features():
    return np.random.default_rng(1).normal(size=(3, *SHAPE)) / 10


def separate(layer, features, training, noise=0.0):
    """Robust and non-robust part, the correction of the latter, and the probe: by the layer's own convolutions."""
    mask = sigmoid((layer.separation(features, training=training).numpy() + noise) / 0.1)
    rest = (1 - mask) * features
    correction = (1 - mask) * layer.recalibration(rest, training=training).numpy()
    kernel, bias = layer.probe.get_weights()
    return mask * features, rest, correction, lambda z: z.mean(axis=(1, 2)) @ kernel + bias


def test_inference_separates_and_recalibrates(layer, features):
    robust, rest, correction, probe = separate(layer, features, training=False)
    outputs = layer(features, labels=LABELS, training=False)
    np.testing.assert_allclose(outputs["features"], robust + rest + correction, rtol=1e-10)
    np.testing.assert_allclose(outputs["probe_logits"], probe(robust), rtol=1e-10)
    np.testing.assert_allclose(outputs["importance"], (robust / features).reshape(3, -1), rtol=1e-8)
    assert layer.losses == []


def test_training_adds_the_two_losses(layer, features, monkeypatch):
    """CE(p(rest), the wrong class it favours) and CE(p(rest + correction), label), each the mean of the batch."""
    noise = np.random.default_rng(2).logistic(size=features.shape)
    monkeypatch.setattr(layer, "_noise", lambda like: tf.constant(noise))
    before = layer.get_weights()
    robust, rest, correction, probe = separate(layer, features, training=True, noise=noise)
    layer.set_weights(before)  # batch statistics moved
    outputs = layer(features, labels=LABELS, training=True)
    np.testing.assert_allclose(outputs["features"], robust + rest + correction, rtol=1e-10)
    wrong = probe(rest)
    wrong[np.arange(3), LABELS] = -np.inf
    expected = [cross_entropy(probe(rest), wrong.argmax(axis=1)), cross_entropy(probe(rest + correction), LABELS)]
    np.testing.assert_allclose([float(loss) for loss in layer.losses], expected, rtol=1e-10)


def test_noise_is_logistic_and_of_training_only(layer, features):
    """The difference of two Gumbel variables: mean 0, variance pi^2 / 3."""
    noise = layer._noise(tf.zeros((200, 200), tf.float64)).numpy()
    assert abs(noise.mean()) < 0.05
    assert abs(noise.var() - np.pi**2 / 3) < 0.1
    twice = [layer(features, training=False)["features"].numpy() for _ in range(2)]
    np.testing.assert_array_equal(*twice)


@pytest.mark.slow
def test_trains_and_round_trips(tmp_path):
    keras.utils.set_random_seed(0)
    classifier = build_classifier(ModelConfig(arch="resnet10", width=4, defense="fsr"), (8, 8, 1), CLASSES)
    images, labels = np.random.default_rng(2).random((8, 8, 8, 1), np.float32), np.arange(8) % CLASSES
    before = [weight.numpy() for weight in classifier.trainable_weights]
    trainer = AdversarialTrainer(
        classifier, PGDTraining(head_weights=[0.5, 0.25, 0.25], attack=PGD(epsilon=0.1, step_size=0.1, num_steps=1))
    )
    trainer.compile(keras.optimizers.SGD(0.1))
    trainer.fit(images, labels, batch_size=4, verbose=0)
    assert all(np.any(a != b.numpy()) for a, b in zip(before, classifier.trainable_weights, strict=True))
    classifier.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    np.testing.assert_allclose(loaded(images), classifier(images), atol=1e-6)


def test_refuses_what_it_cannot_separate():
    with pytest.raises(UserError, match=r"features.*height"):
        FSR(num_classes=CLASSES).build((None, 4))
    with pytest.raises(UserError, match="mask_permutation"):
        FSR(num_classes=CLASSES, mask_permutation=0)
