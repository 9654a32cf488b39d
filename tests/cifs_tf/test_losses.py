"""Head weights and per-head losses against hand-written tables and NumPy."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from cifs_tf.errors import UserError
from cifs_tf.losses import (
    CW_KAPPA,
    PAPER_ATTACK_BETAS,
    attack_betas_for,
    boosted_cross_entropy,
    contract,
    cross_entropy,
    cw_margin,
    dlr,
    head_weights,
    head_weights_in_warm_up,
    kl_divergence,
    margin,
    mart_regulariser,
    targeted_dlr,
    training_loss_factor,
)


def make_heads(batch=4, heads=3, classes=5, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, (batch, heads, classes)), rng.integers(0, classes, batch)


def numpy_cross_entropy(heads, labels):
    """log sum_j exp(z_j - max) + max - z_y."""
    largest = heads.max(axis=-1)
    total = np.log(np.exp(heads - largest[..., None]).sum(axis=-1)) + largest
    return total - np.take_along_axis(heads, labels[:, None, None], axis=-1)[..., 0]


def numpy_cw_margin(heads, labels, kappa):
    """-max(z_y - max_{j != y} z_j + kappa, 0), with loops."""
    found = np.empty(heads.shape[:2])
    for i, label in enumerate(labels):
        for h, logits in enumerate(heads[i]):
            others = max(value for j, value in enumerate(logits) if j != label)
            found[i, h] = -max(logits[label] - others + kappa, 0)
    return found


@pytest.mark.parametrize(
    ("beta", "num_probes", "expected"),
    [
        # [1, beta/P, ..., beta/P] / (1 + beta), Eq. 3
        (0, 1, [1, 0]),
        (0, 2, [1, 0, 0]),
        (0.1, 1, [1 / 1.1, 0.1 / 1.1]),
        (0.1, 2, [1 / 1.1, 0.05 / 1.1, 0.05 / 1.1]),
        (1, 1, [1 / 2, 1 / 2]),
        (1, 2, [1 / 2, 1 / 4, 1 / 4]),
        (1, 3, [1 / 2, 1 / 6, 1 / 6, 1 / 6]),
        (2, 1, [1 / 3, 2 / 3]),
        (2, 2, [1 / 3, 1 / 3, 1 / 3]),
        (2, 3, [1 / 3, 2 / 9, 2 / 9, 2 / 9]),
        (10, 2, [1 / 11, 5 / 11, 5 / 11]),
        (100, 2, [1 / 101, 50 / 101, 50 / 101]),
        (100, 3, [1 / 101, 100 / 303, 100 / 303, 100 / 303]),
        # the raw predictions alone, and one of them
        ("infinity", 1, [0, 1]),
        ("infinity", 2, [0, 1 / 2, 1 / 2]),
        ("infinity", 3, [0, 1 / 3, 1 / 3, 1 / 3]),
        ("infinity-1", 1, [0, 1]),
        ("infinity-1", 2, [0, 1, 0]),
        ("infinity-2", 2, [0, 0, 1]),
        ("infinity-2", 3, [0, 0, 1, 0]),
        ("infinity-3", 3, [0, 0, 0, 1]),
        # as text, from a command line
        ("2", 2, [1 / 3, 1 / 3, 1 / 3]),
        ("0.1", 1, [1 / 1.1, 0.1 / 1.1]),
    ],
)
def test_head_weights(beta, num_probes, expected):
    np.testing.assert_allclose(head_weights(beta, num_probes), expected, rtol=1e-12)


@pytest.mark.parametrize("beta", PAPER_ATTACK_BETAS)
def test_a_vanilla_network_has_one_head_of_weight_one(beta):
    np.testing.assert_array_equal(head_weights(beta, 0), [1])


@given(st.floats(0, 1e9), st.integers(0, 6))
def test_head_weights_are_a_distribution(beta, num_probes):
    weights = head_weights(beta, num_probes)
    assert weights.shape == (1 + num_probes,)
    assert np.all(weights >= 0)
    assert math.isclose(weights.sum(), 1, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("beta", "num_probes"),
    [
        (-1, 2),
        (-0.001, 0),
        (math.nan, 2),
        (math.inf, 2),
        ("two", 2),
        ("", 2),
        ("infinity-", 2),
        ("infinity-x", 2),
        ("infinity-0", 2),
        ("infinity-3", 2),
        ("infinity-2", 1),
        ("-infinity", 2),
        (None, 2),
    ],
)
def test_errors_name_beta_and_the_value(beta, num_probes):
    with pytest.raises(UserError, match=rf"^beta: received {beta};"):
        head_weights(beta, num_probes)


def test_a_layer_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(UserError, match="infinity-1 to infinity-2"):
        head_weights("infinity-3", 2)


@pytest.mark.parametrize(
    ("num_probes", "expected"),
    [
        (0, (0,)),
        (1, (0, 0.1, 1, 2, 10, 100, "infinity", "infinity-1")),
        (2, (0, 0.1, 1, 2, 10, 100, "infinity", "infinity-1", "infinity-2")),
        (3, (0, 0.1, 1, 2, 10, 100, "infinity", "infinity-1", "infinity-2")),
    ],
)
def test_attack_betas_for(num_probes, expected):
    assert attack_betas_for(PAPER_ATTACK_BETAS, num_probes) == expected


@pytest.mark.parametrize(
    ("loss_scale", "defense", "beta", "expected"),
    [
        ("paper", "cifs", 2.0, 1.0),
        ("paper", "cas", 2.0, 1.0),
        ("paper", "vanilla", 2.0, 1.0),
        ("official", "cifs", 2.0, 3.0),
        ("official", "cifs", 0.5, 3.0),
        ("official", "cas", 2.0, 3.0),
        ("official", "cas", 0.5, 1.5),
        ("official", "vanilla", 2.0, 1.0),
    ],
)
def test_training_loss_factor(loss_scale, defense, beta, expected):
    assert training_loss_factor(loss_scale, defense, beta) == expected


@given(st.integers(0, 10_000), st.sampled_from([0.1, 3.0, 30.0]), st.sampled_from(["int32", "int64"]))
def test_cross_entropy(seed, scale, label_type):
    heads, labels = make_heads(scale=scale, seed=seed)
    found = cross_entropy(tf.constant(heads), tf.constant(labels.astype(label_type)))
    assert found.shape == (4, 3)
    np.testing.assert_allclose(found, numpy_cross_entropy(heads, labels), rtol=1e-9, atol=1e-12)


def test_cross_entropy_of_huge_logits():
    """Logits (1e6, 0): 0 for label 0, 1e6 for label 1. Nothing overflows."""
    heads = tf.constant([[[1e6, 0.0]], [[1e6, 0.0]]])
    np.testing.assert_allclose(cross_entropy(heads, tf.constant([0, 1])), [[0], [1e6]], rtol=1e-6)


def test_cross_entropy_gradient():
    """d/dz = softmax(z) - onehot(y), for each head by itself."""
    heads, labels = make_heads()
    heads = tf.constant(heads)
    with tf.GradientTape() as tape:
        tape.watch(heads)
        total = tf.reduce_sum(cross_entropy(heads, tf.constant(labels)))
    exponential = np.exp(heads.numpy())
    expected = exponential / exponential.sum(axis=-1, keepdims=True) - np.eye(5)[labels][:, None]
    np.testing.assert_allclose(tape.gradient(total, heads), expected, rtol=1e-9)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 1.0, 50.0]))
def test_cw_margin(seed, kappa):
    heads, labels = make_heads(seed=seed)
    found = cw_margin(tf.constant(heads), tf.constant(labels), kappa)
    np.testing.assert_allclose(found, numpy_cw_margin(heads, labels, kappa), rtol=1e-12)
    assert np.all(found <= 0)


@pytest.mark.parametrize(
    ("logits", "label", "kappa", "expected"),
    [
        ([3.0, 1.0, 2.0], 0, 0.0, -1.0),  # 3 - 2
        ([3.0, 1.0, 2.0], 0, 5.0, -6.0),
        ([3.0, 1.0, 2.0], 1, 0.0, 0.0),  # fooled: the hinge is closed
        ([3.0, 1.0, 2.0], 1, 1.0, 0.0),  # by 2, more than kappa
        ([3.0, 1.0, 2.0], 1, 2.5, -0.5),
        ([1e6, -1e6, 0.0], 0, 50.0, -1_000_050.0),
        ([1e6, -1e6, 0.0], 1, 50.0, 0.0),
        ([-1e6, -2e6, -3e6], 0, 0.0, -1e6),  # all logits negative: the label's zero in the mask must not win
        ([-5.0, -7.0, -6.0], 1, 50.0, -48.0),
    ],
)
def test_cw_margin_by_hand(logits, label, kappa, expected):
    found = cw_margin(tf.constant([[logits]]), tf.constant([label]), kappa)
    np.testing.assert_allclose(found, [[expected]], rtol=1e-6)


def test_cw_margin_default_is_the_official_kappa():
    assert CW_KAPPA == 50
    heads, labels = make_heads()
    found = cw_margin(tf.constant(heads), tf.constant(labels))
    np.testing.assert_allclose(found, numpy_cw_margin(heads, labels, 50.0), rtol=1e-12)


def test_cw_margin_gradient():
    """Open hinge: -1 at the label, +1 at the best other class; closed: 0."""
    heads = tf.constant([[[3.0, 1.0, 2.0]], [[1.0, 3.0, 2.0]]])
    with tf.GradientTape() as tape:
        tape.watch(heads)
        total = tf.reduce_sum(cw_margin(heads, tf.constant([0, 0]), kappa=0.0))
    np.testing.assert_array_equal(tape.gradient(total, heads), [[[-1, 0, 1]], [[0, 0, 0]]])


def test_contract():
    per_head = np.random.default_rng(0).normal(size=(4, 3))
    found = contract(tf.constant(per_head), [0.5, 0.25, 0.25])
    np.testing.assert_allclose(found, per_head @ [0.5, 0.25, 0.25], rtol=1e-12)


def test_contract_takes_float64_weights_for_float32_losses():
    found = contract(tf.constant([[1.0, 3.0]]), head_weights(2, 1))
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, [7 / 3], rtol=1e-6)


def test_eq_3_in_one_line():
    """l_beta = CE(p) / (1 + beta) + beta / ((1 + beta) P) sum_l CE(p_l), with beta = 0.5 and P = 2."""
    heads, labels = make_heads()
    losses = numpy_cross_entropy(heads, labels)
    expected = losses[:, 0] / 1.5 + 0.5 / (1.5 * 2) * (losses[:, 1] + losses[:, 2])
    found = contract(cross_entropy(tf.constant(heads), tf.constant(labels)), head_weights(0.5, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("label", "target", "expected_margin", "expected_dlr", "expected_targeted"),
    [
        # Logits 4, 2, 1, -1, -3; DLR divides by 4 - 1, targeted DLR by 4 - (1 - 1) / 2.
        (0, 1, 2.0, -2 / 3, -(4 - 2) / 4),
        (0, 4, 2.0, -2 / 3, -(4 + 3) / 4),
        (1, 0, -2.0, 2 / 3, -(2 - 4) / 4),
        (4, 2, -7.0, 7 / 3, -(-3 - 1) / 4),
    ],
)
def test_margin_and_dlr_by_hand(label, target, expected_margin, expected_dlr, expected_targeted):
    """Two heads, the second ten times the first: the margin scales with the logits, the DLR losses do not."""
    logits = np.array([4.0, 2.0, 1.0, -1.0, -3.0])
    heads, labels, targets = tf.constant([[logits, 10 * logits]]), tf.constant([label]), tf.constant([target])
    np.testing.assert_allclose(margin(heads, labels), [[expected_margin, 10 * expected_margin]])
    np.testing.assert_allclose(dlr(heads, labels), [[expected_dlr] * 2], rtol=1e-9)
    np.testing.assert_allclose(targeted_dlr(heads, labels, targets), [[expected_targeted] * 2], rtol=1e-9)


def test_dlr_of_equal_logits_is_finite():
    heads = tf.zeros((1, 1, 4))
    for loss in (dlr(heads, tf.constant([0])), targeted_dlr(heads, tf.constant([0]), tf.constant([1]))):
        np.testing.assert_array_equal(loss, [[0.0]])


def numpy_softmax(heads):
    exponential = np.exp(heads - heads.max(axis=-1, keepdims=True))
    return exponential / exponential.sum(axis=-1, keepdims=True)


def test_label_smoothing_is_keras():
    heads, labels = make_heads()
    found = cross_entropy(tf.constant(heads), tf.constant(labels), 0.3)
    onehot = np.eye(heads.shape[-1])[labels]
    for head in range(heads.shape[1]):
        expected = keras.losses.categorical_crossentropy(onehot, heads[:, head], from_logits=True, label_smoothing=0.3)
        np.testing.assert_allclose(found[:, head], expected, rtol=1e-6)


def test_kl_divergence():
    """sum p (log p - log q), zero from itself, positive otherwise."""
    heads, _ = make_heads()
    other = heads[::-1]
    p, q = numpy_softmax(heads), numpy_softmax(other)
    found = kl_divergence(tf.constant(heads), tf.constant(other))
    np.testing.assert_allclose(found, np.sum(p * (np.log(p) - np.log(q)), axis=-1), rtol=1e-9)
    np.testing.assert_allclose(kl_divergence(tf.constant(heads), tf.constant(heads)), np.zeros(heads.shape[:2]))
    assert np.all(found.numpy()[0] > 0)


def test_kl_divergence_of_far_apart_predictions_is_finite():
    found = kl_divergence(tf.constant([[[0.0, 1e4]]]), tf.constant([[[1e4, 0.0]]]))
    np.testing.assert_allclose(found, [[1e4]])


def test_marts_two_terms():
    """The formulas of mart.py: NLL of log(1.0001 - q) at the best other class, and KL weighted by 1.0000001 - p_y."""
    natural, labels = make_heads()
    adversarial = natural[::-1]
    p, q = numpy_softmax(natural), numpy_softmax(adversarial)
    rows = np.arange(len(labels))
    for head in range(natural.shape[1]):
        order = np.argsort(q[:, head], axis=1)
        other = np.where(order[:, -1] == labels, order[:, -2], order[:, -1])
        boosted = -np.log(q[rows, head, labels]) - np.log(1.0001 - q[rows, head, other] + 1e-12)
        found = boosted_cross_entropy(tf.constant(adversarial), tf.constant(labels))
        np.testing.assert_allclose(found[:, head], boosted, rtol=1e-9)
        divergence = np.sum(p[:, head] * (np.log(p[:, head]) - np.log(q[:, head] + 1e-12)), axis=1)
        found = mart_regulariser(tf.constant(natural), tf.constant(adversarial), tf.constant(labels))
        np.testing.assert_allclose(found[:, head], divergence * (1.0000001 - p[rows, head, labels]), rtol=1e-9)


@pytest.mark.parametrize(("epoch", "beta"), [(0, 0), (2.5, 0.5), (10, 2), (50, 2)])
def test_head_weights_in_warm_up(epoch, beta):
    found = head_weights_in_warm_up(2, 3, tf.constant(float(epoch)), 10)
    np.testing.assert_allclose(found, head_weights(beta, 3), rtol=1e-6)
