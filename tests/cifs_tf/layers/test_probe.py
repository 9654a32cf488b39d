"""Probes against NumPy."""

import keras
import numpy as np
import pytest

from cifs_tf.layers import LinearProbe, MLPProbe


def softplus(x):
    return np.logaddexp(0, x)


def build(probe, channels, seed=0):
    """Give every weight a value, biases too."""
    probe.build((None, channels))
    rng = np.random.default_rng(seed)
    probe.set_weights([rng.normal(size=weight.shape) for weight in probe.get_weights()])
    return probe


@pytest.fixture
def pooled():
    return np.random.default_rng(1).normal(size=(3, 6))


def test_linear_probe_is_an_affine_map(pooled):
    """logits = z W + b."""
    probe = build(LinearProbe(4, dtype="float64"), 6)
    kernel, bias = probe.get_weights()
    assert kernel.shape == (6, 4)
    np.testing.assert_allclose(probe(pooled), pooled @ kernel + bias, rtol=1e-12)


@pytest.mark.parametrize(("hidden_units", "sharpness"), [(128, 5.0), (7, 1.0), (3, 20.0)])
def test_mlp_probe_has_one_softplus_layer(pooled, hidden_units, sharpness):
    """logits = softplus(s (z W1 + b1)) / s W2 + b2."""
    probe = build(MLPProbe(4, hidden_units, sharpness, dtype="float64"), 6)
    w1, b1, w2, b2 = probe.get_weights()
    assert w1.shape == (6, hidden_units)
    expected = softplus(sharpness * (pooled @ w1 + b1)) / sharpness @ w2 + b2
    np.testing.assert_allclose(probe(pooled), expected, rtol=1e-10)


def test_mlp_probe_defaults_are_the_official_ones():
    probe = MLPProbe(10)
    assert (probe.hidden_units, probe.sharpness) == (128, 5.0)


def test_mlp_probe_stays_finite_far_from_zero():
    """softplus(5h)/5 is h for a large h, and 0 for a very negative one: no exp overflows."""
    probe = MLPProbe(1, hidden_units=2)
    probe.build((None, 1))
    probe.set_weights([np.array(weight) for weight in ([[1.0, -1.0]], [0.0, 0.0], [[1.0], [1.0]], [0.0])])
    np.testing.assert_allclose(probe(np.array([[1e6]], np.float32)), [[1e6]], rtol=1e-6)


@pytest.mark.parametrize("probe", [LinearProbe(4), MLPProbe(4, hidden_units=7, sharpness=2.0)])
def test_config_round_trip(probe, pooled):
    build(probe, 6)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(probe))
    assert copy.get_config() == probe.get_config()
    copy.set_weights(probe.get_weights())
    np.testing.assert_array_equal(copy(pooled), probe(pooled))
    assert copy.compute_output_shape((None, 6)) == (None, 4)
