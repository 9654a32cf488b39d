"""Batch normalisation against PyTorch's, written in NumPy."""

import keras
import numpy as np
import pytest

from cifs_tf.layers import BatchNormalization

CHANNELS = 3
SHAPES = {"2-D": (5, CHANNELS), "4-D": (2, 3, 4, CHANNELS)}


class TorchBatchNorm:
    """torch.nn.BatchNorm with momentum 0.1, eps 1e-5: normalises with the biased variance, keeps the unbiased."""

    def __init__(self, gamma, beta):
        self.gamma, self.beta = gamma, beta
        self.mean, self.variance = np.zeros(CHANNELS), np.ones(CHANNELS)

    def train(self, inputs):
        values = inputs.reshape(-1, CHANNELS)
        mean, variance, count = values.mean(axis=0), values.var(axis=0), len(values)
        self.mean = 0.9 * self.mean + 0.1 * mean
        self.variance = 0.9 * self.variance + 0.1 * variance * count / (count - 1)
        return self.gamma * (inputs - mean) / np.sqrt(variance + 1e-5) + self.beta

    def infer(self, inputs):
        return self.gamma * (inputs - self.mean) / np.sqrt(self.variance + 1e-5) + self.beta


def make_pair(shape, dtype="float64"):
    """The layer and its reference, with gamma and beta off their start."""
    layer = BatchNormalization(dtype=dtype)
    layer.build(shape)
    rng = np.random.default_rng(0)
    gamma, beta = rng.normal(size=(2, CHANNELS))
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    return layer, TorchBatchNorm(gamma, beta)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_two_training_steps_and_inference(shape):
    layer, torch = make_pair(shape)
    rng = np.random.default_rng(1)
    for _ in range(2):
        batch = rng.normal(2.0, 3.0, shape)
        np.testing.assert_allclose(layer(batch, training=True), torch.train(batch), rtol=1e-9)
        np.testing.assert_allclose(layer.moving_mean, torch.mean, rtol=1e-12)
        np.testing.assert_allclose(layer.moving_variance, torch.variance, rtol=1e-12)
    for training in (None, False):
        batch = rng.normal(2.0, 3.0, shape)
        np.testing.assert_allclose(layer(batch, training=training), torch.infer(batch), rtol=1e-9)
    np.testing.assert_allclose(layer.moving_mean, torch.mean, rtol=1e-12)


def test_frozen_layer_keeps_its_statistics():
    """Keras' meaning of trainable=False: inference mode even in training."""
    layer, torch = make_pair((5, CHANNELS))
    layer.trainable = False
    batch = np.random.default_rng(1).normal(2.0, 3.0, (5, CHANNELS))
    np.testing.assert_allclose(layer(batch, training=True), torch.infer(batch), rtol=1e-9)
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(CHANNELS))


def test_one_value_per_channel_stays_finite():
    """N = 1: the variance is 0, and N/(N-1) is not divided by zero."""
    layer, _ = make_pair((1, CHANNELS))
    outputs = layer(np.ones((1, CHANNELS)), training=True)
    np.testing.assert_allclose(outputs[0], layer.beta)
    np.testing.assert_allclose(layer.moving_variance, np.full(CHANNELS, 0.9))


def test_mixed_precision_keeps_statistics_in_float32():
    layer, torch = make_pair((64, CHANNELS), "mixed_bfloat16")
    batch = np.random.default_rng(1).normal(2.0, 3.0, (64, CHANNELS))
    assert layer(batch, training=True).dtype == "bfloat16"
    torch.train(batch)
    assert layer.moving_variance.dtype == "float32"
    np.testing.assert_allclose(layer.moving_variance, torch.variance, rtol=1e-2)
    assert layer(batch, training=False).dtype == "bfloat16"


def test_config_round_trip():
    layer = BatchNormalization(momentum=0.8, epsilon=1e-3, name="bn")
    config = layer.get_config()
    assert (config["momentum"], config["epsilon"]) == (0.8, 1e-3)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(copy) is BatchNormalization
    assert copy.get_config() == config


def test_defaults_are_pytorchs():
    config = BatchNormalization().get_config()
    assert (config["momentum"], config["epsilon"]) == (0.9, 1e-5)
