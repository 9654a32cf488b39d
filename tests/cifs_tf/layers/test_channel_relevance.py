"""Relevance (Eq. 1) against finite differences and closed forms."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from cifs_tf.layers import LinearProbe, MLPProbe, relevance, top_k_class_weights
from cifs_tf.layers.channel_relevance import with_smooth_gradient

CHANNELS, CLASSES = 6, 5


def make_probe(kind, seed=0):
    probe = {"linear": LinearProbe, "mlp": MLPProbe}[kind](CLASSES, dtype="float64")
    probe.build((None, CHANNELS))
    rng = np.random.default_rng(seed)
    probe.set_weights([rng.normal(0, 0.5, weight.shape) for weight in probe.get_weights()])
    return probe


def make_pooled(seed=0, batch=3):
    return tf.constant(np.random.default_rng(100 + seed).normal(size=(batch, CHANNELS)))


def expected_classes(logits, k, label=None):
    """The list y^{l,k} of one example: its k largest logits, the first replaced by the label."""
    classes = list(np.argsort(-logits)[:k])
    return classes if label is None else [label, *classes[1:]]


@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 2, 3]),
    st.sampled_from(["linear", "mlp"]),
    st.sampled_from([(4,), (3, 2), (2, 1, 3)]),
)
def test_equals_finite_differences(seed, k, kind, positions):
    """Eq. 1: g_c = d/d delta_c of the sum of the k largest logits of A(z + delta_c), z a whole feature map."""
    rng = np.random.default_rng(seed)
    probe = make_probe(kind, seed)
    features = rng.normal(size=(2, *positions, CHANNELS))
    axes = tuple(range(1, features.ndim - 1))
    pooled = tf.constant(features.mean(axis=axes))
    logits = probe(pooled).numpy()
    classes = [expected_classes(row, k) for row in logits]

    def score(delta):
        shifted = probe(tf.constant((features + delta).mean(axis=axes))).numpy()
        return np.array([row[chosen].sum() for row, chosen in zip(shifted, classes, strict=True)])

    step = 1e-5
    expected = np.stack([(score(step * unit) - score(-step * unit)) / (2 * step) for unit in np.eye(CHANNELS)], axis=1)
    found = relevance(probe, pooled, top_k_class_weights(tf.constant(logits), k))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_linear_probe_in_closed_form(k):
    """A(z) = z W + b, so g = W[:, a] + W[:, b] + ... for the k largest classes a, b, ..."""
    probe, pooled = make_probe("linear"), make_pooled()
    kernel, logits = probe.get_weights()[0], probe(pooled)
    found = relevance(probe, pooled, top_k_class_weights(logits, k))
    expected = [kernel[:, expected_classes(row, k)].sum(axis=1) for row in logits.numpy()]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_mlp_probe_in_closed_form(k):
    """d softplus(5h)/5 = sigmoid(5h) dh, so g = W1 (sigmoid(5h) * (W2[:, a] + W2[:, b] + ...))."""
    probe, pooled = make_probe("mlp"), make_pooled()
    w1, b1, w2, _ = probe.get_weights()
    slope = 1 / (1 + np.exp(-5 * (pooled.numpy() @ w1 + b1)))
    logits = probe(pooled)
    found = relevance(probe, pooled, top_k_class_weights(logits, k))
    summed = np.stack([w2[:, expected_classes(row, k)].sum(axis=1) for row in logits.numpy()])
    np.testing.assert_allclose(found, (slope * summed) @ w1.T, rtol=1e-10)


def test_any_callable_is_a_probe():
    """A(z) = (sum z)^2 in class 0, sum of cubes in class 1: g = 2 sum z, or 3 z^2."""

    def probe(z):
        return tf.stack([tf.reduce_sum(z, -1) ** 2, tf.reduce_sum(z**3, -1)], axis=1)

    pooled = tf.constant([[1.0, 2.0]])
    np.testing.assert_allclose(relevance(probe, pooled, tf.constant([[1.0, 0.0]])), [[6, 6]])
    np.testing.assert_allclose(relevance(probe, pooled, tf.constant([[0.0, 1.0]])), [[3, 12]])


@pytest.mark.parametrize(
    ("k", "label", "expected"),
    [
        (1, None, [0, 0, 1, 0]),
        (2, None, [1, 0, 1, 0]),
        (3, None, [1, 0, 1, 1]),
        (4, None, [1, 1, 1, 1]),
        (1, 1, [0, 1, 0, 0]),  # the label replaces the top-1 class 2
        (2, 1, [1, 1, 0, 0]),
        (2, 2, [1, 0, 1, 0]),  # a label that is top-1 changes nothing
        (2, 0, [2, 0, 0, 0]),  # a label that is second counts twice
        (3, 3, [1, 0, 0, 2]),
    ],
)
def test_class_weights(k, label, expected):
    """Logits 3, 1, 4, 2 rank the classes 2, 0, 3, 1."""
    logits = tf.constant([[3.0, 1.0, 4.0, 2.0]])
    labels = None if label is None else tf.constant([label])
    np.testing.assert_array_equal(top_k_class_weights(logits, k, labels), [expected])


@given(st.integers(0, 10_000), st.integers(1, 7), st.sampled_from([None, "int32", "int64"]))
def test_class_weights_count_the_classes(seed, k, label_type):
    rng = np.random.default_rng(seed)
    logits = rng.permuted(np.tile(np.arange(7.0), (4, 1)), axis=1)  # distinct, so the ranking is unique
    labels = None if label_type is None else rng.integers(0, 7, 4).astype(label_type)
    found = top_k_class_weights(tf.constant(logits), k, None if labels is None else tf.constant(labels))
    expected = [
        np.bincount(expected_classes(row, k, None if labels is None else labels[i]), minlength=7)
        for i, row in enumerate(logits)
    ]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.sum(found, axis=1), k)


def test_class_weights_are_a_constant_to_gradients():
    logits = tf.Variable([[3.0, 1.0, 4.0]])
    with tf.GradientTape() as tape:
        weights = tf.reduce_sum(top_k_class_weights(logits, 2))
    assert tape.gradient(weights, logits) is None


def test_gradient_flows_to_the_probe():
    """Linear probe: sum_c g_c = sum_c sum_k n_k W[c, k], so its gradient to W[c, k] is n_k, summed over the batch."""
    probe, pooled = make_probe("linear"), make_pooled()
    class_weights = tf.constant([[2.0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0]], tf.float64)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(relevance(probe, pooled, class_weights))
    gradient = tape.gradient(total, probe.dense.kernel.value)
    np.testing.assert_allclose(gradient, np.tile([2, 1, 2, 1, 0], (CHANNELS, 1)))


def test_examples_do_not_mix():
    probe, pooled = make_probe("mlp"), make_pooled(batch=4)
    weights = top_k_class_weights(probe(pooled), 2)
    alone = [relevance(probe, pooled[i : i + 1], weights[i : i + 1])[0] for i in range(4)]
    np.testing.assert_allclose(relevance(probe, pooled, weights), alone, rtol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_smooth_gradient_by_hand(k):
    """The value stays; the gradient is that of k softmax(z): of sum_i c_i w_i it is k p * (c - p . c)."""
    rng = np.random.default_rng(k)
    logits, coefficients = tf.constant(rng.normal(size=(4, 5))), rng.normal(size=(4, 5))
    weights = top_k_class_weights(logits, k)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        smooth = with_smooth_gradient(weights, logits)
        total = tf.reduce_sum(smooth * coefficients)
    np.testing.assert_array_equal(smooth, weights)
    p = tf.nn.softmax(logits).numpy()
    expected = k * p * (coefficients - np.sum(p * coefficients, axis=1, keepdims=True))
    np.testing.assert_allclose(tape.gradient(total, logits), expected, rtol=1e-9)
