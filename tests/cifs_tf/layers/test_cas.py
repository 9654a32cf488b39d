"""The CAS layer: a row of the dense weight as mask."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.layers import CAS, CIFS

CHANNELS, CLASSES = 6, 5
LABELS = np.array([3, 0, 3])


@pytest.fixture
def layer():
    layer = CAS(num_classes=CLASSES, dtype="float64")
    layer.build((None, 3, 2, CHANNELS))
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(size=weight.shape) for weight in layer.get_weights()])
    return layer


@pytest.fixture
def features():
    return np.random.default_rng(1).normal(size=(3, 3, 2, CHANNELS))


@pytest.mark.parametrize("training", [None, False, True])
def test_mask_is_the_row_of_a_class(layer, features, training):
    """Inference: of the predicted class, labels unread. Training: of the label. Signed and not normalised."""
    kernel, bias = layer.get_weights()
    logits = features.mean(axis=(1, 2)) @ kernel + bias
    classes = LABELS if training else logits.argmax(axis=1)
    outputs = layer(features, labels=LABELS, training=training)
    np.testing.assert_allclose(outputs["probe_logits"], logits, rtol=1e-10)
    np.testing.assert_allclose(outputs["importance"], kernel.T[classes], rtol=1e-12)
    np.testing.assert_allclose(outputs["features"], features * kernel.T[classes][:, None, None], rtol=1e-12)
    assert np.any(outputs["importance"].numpy() < 0)


def test_gradient_reaches_the_weight(layer, features):
    """d sum(W[:, y] z) / dW[c, k] = sum over examples of class k and positions of z_c."""
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(features, labels=LABELS, training=True)["features"])
    to_kernel, to_bias = tape.gradient(total, [weight.value for weight in layer.trainable_weights])
    expected = np.zeros((CHANNELS, CLASSES))
    for example, label in zip(features, LABELS, strict=True):
        expected[:, label] += example.sum(axis=(0, 1))
    np.testing.assert_allclose(to_kernel, expected, rtol=1e-10, atol=1e-12)
    assert to_bias is None


def test_is_a_cifs_layer_with_fixed_parts(layer, features):
    cifs = CIFS("linear", top_k=1, importance="identity", num_classes=CLASSES, dtype="float64")
    cifs.build((None, 3, 2, CHANNELS))
    cifs.set_weights(layer.get_weights())
    np.testing.assert_array_equal(cifs(features)["features"], layer(features)["features"])


def test_config_round_trip(layer, features):
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(copy) is CAS
    copy.set_weights(layer.get_weights())
    np.testing.assert_array_equal(copy(features)["features"], layer(features)["features"])
