"""FGSM, PGD and C&W by hand; the properties that all attacks have stand in test_properties.py."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from cifs_tf.attacks import PGD, example_seeds, fgsm
from cifs_tf.errors import UserError
from cifs_tf.losses import contract, cross_entropy, cw_margin, head_weights

EPSILON = 0.1
COMMON = {"epsilon": EPSILON, "step_size": 0.04, "num_steps": 3}
ATTACKS = {
    "fgsm": fgsm(EPSILON),
    "pgd": PGD(**COMMON),
    "pgd random start": PGD(**COMMON, random_start=True),
    "pgd restarts": PGD(**COMMON, random_start=True, num_restarts=2),
    "cw": PGD(**COMMON, loss="cw_margin"),
}


def numpy_linear_attack(images, labels, weight, attack, start=None):
    """PGD on the cross-entropy of logits x W by algebra: the gradient is (softmax(x W) - onehot(y)) W^T."""
    x = images if start is None else start
    for _ in range(attack.num_steps):
        logits = x @ weight
        softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
        softmax /= softmax.sum(axis=1, keepdims=True)
        gradient = (softmax - np.eye(weight.shape[1])[labels]) @ weight.T
        x = x + attack.step_size * np.sign(gradient)
        x = np.clip(x, images - attack.epsilon, images + attack.epsilon).clip(*attack.bounds)
    return x


def linear(weight):
    """One-head model of flat images."""
    return lambda x: tf.matmul(x, weight)[:, None]


def run(attack, network, beta=2, heads_fn=None, start=0, stop=64):
    """Attack examples start to stop, seeded by their number in the dataset."""
    return attack(
        heads_fn or network.classifier.heads_fn(),
        network.images[start:stop],
        network.labels[start:stop],
        head_weights=head_weights(beta, 2),
        seed=example_seeds(7, 0, tf.range(start, stop)),
    )


def losses(attack, network, x, beta=2):
    """The attack's own loss, per example."""
    heads = network.classifier(x)
    per_head = {"cross_entropy": cross_entropy, "cw_margin": cw_margin}[attack.loss](heads, network.labels)
    return contract(per_head, head_weights(beta, 2)).numpy()


def verdicts(network, x):
    """Whether the final head is right, per example."""
    return np.argmax(network.classifier(x)[:, 0], axis=1) == network.labels.numpy()


@pytest.mark.parametrize("name", ATTACKS)
def test_uses_the_ball(name, trained):
    """Half of the pixels that the bounds leave room for sit near the ball's surface."""
    x_adv = run(ATTACKS[name], trained)
    moved = np.abs(x_adv - trained.images)
    assert np.mean(moved[trained.images.numpy() > EPSILON] > 0.7 * EPSILON) > 0.5


@pytest.mark.parametrize("beta", [0, "infinity", "infinity-2"])
def test_raises_the_weighted_loss(trained, beta):
    """Each choice of beta raises its own weighting of the heads more than the image's."""
    attack = ATTACKS["pgd"]
    x_adv = run(attack, trained, beta)
    assert losses(attack, trained, x_adv, beta).mean() > losses(attack, trained, trained.images, beta).mean()


def make_linear_problem(seed, batch=3, pixels=6, classes=4):
    rng = np.random.default_rng(seed)
    images, labels = rng.random((batch, pixels)), rng.integers(0, classes, batch)
    return images, labels, rng.normal(size=(pixels, classes))


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 5]), st.sampled_from([(0.0, 1.0), (-1.0, 2.0)]))
def test_linear_model_by_hand(seed, num_steps, bounds):
    """x <- clip(x + step sign((softmax(x W) - onehot(y)) W^T)), see `numpy_linear_attack`."""
    images, labels, weight = make_linear_problem(seed)
    attack = PGD(epsilon=0.2, step_size=0.15, num_steps=num_steps, bounds=bounds)
    found = attack(linear(weight), tf.constant(images), tf.constant(labels), head_weights=[1.0])
    np.testing.assert_allclose(found, numpy_linear_attack(images, labels, weight, attack), rtol=1e-9)


def test_fgsm_is_one_step_of_the_whole_radius():
    """Two classes: softmax - onehot is -c, +c for label 0, so the step is eps sign(W[:, 1] - W[:, 0])."""
    weight = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    images = tf.constant([[0.5, 0.5, 0.5], [0.05, 0.95, 0.5]], tf.float64)
    found = fgsm(0.1)(linear(weight), images, tf.constant([0, 0]), head_weights=[1.0])
    # The third pixel has no gradient; the second image is clipped to [0, 1].
    np.testing.assert_allclose(found, [[0.4, 0.6, 0.5], [0.0, 1.0, 0.5]], rtol=1e-12)


def test_cw_step_by_hand():
    """Margin z_0 - z_1 for label 0 and open hinge: the step is sign(W[:, best other] - W[:, 0])."""
    weight = np.array([[1.0, 0.0, -9.0], [0.0, 2.0, -9.0]])
    images = tf.constant([[0.5, 0.5]], tf.float64)
    attack = PGD(epsilon=0.1, step_size=0.04, num_steps=2, loss="cw_margin")
    found = attack(linear(weight), images, tf.constant([0]), head_weights=[1.0])
    np.testing.assert_allclose(found, [[0.42, 0.58]], rtol=1e-12)


def test_cw_stops_where_the_hinge_closes():
    """kappa 0: an image that is fooled already has no gradient and stays."""
    weight = np.array([[0.0, 1.0]])
    images = tf.constant([[0.5]], tf.float64)
    attack = PGD(epsilon=0.1, step_size=0.05, num_steps=3, loss="cw_margin", kappa=0.0)
    np.testing.assert_array_equal(attack(linear(weight), images, tf.constant([0]), head_weights=[1.0]), images)


def test_head_weights_choose_the_head():
    """Heads of opposite gradient: the weight on head 1 turns the step around."""
    weight = np.array([[1.0, 0.0], [1.0, 0.0]])
    images, labels = tf.constant([[0.5, 0.5]], tf.float64), tf.constant([0])

    def heads_fn(x):
        logits = tf.matmul(x, weight)
        return tf.stack([logits, -logits], axis=1)

    for weights, expected in (([1.0, 0.0], 0.4), ([0.0, 1.0], 0.6), ([0.3, 0.7], 0.6)):
        found = fgsm(0.1)(heads_fn, images, labels, head_weights=weights)
        np.testing.assert_allclose(found, [[expected] * 2], rtol=1e-12)


def test_random_start_is_the_seeds():
    """Same seed, same images; another run seed or step, other images."""
    images, labels, weight = make_linear_problem(0)
    attack = PGD(epsilon=0.2, step_size=0.01, num_steps=1, random_start=True)

    def attacked_with(seed, stream):
        seeds = example_seeds(seed, stream, tf.range(3))
        inputs = tf.constant(images), tf.constant(labels)
        return attack(linear(weight), *inputs, head_weights=[1.0], seed=seeds).numpy()

    np.testing.assert_array_equal(attacked_with(0, 0), attacked_with(0, 0))
    assert np.max(np.abs(attacked_with(0, 0) - attacked_with(1, 0))) > 0.01
    assert np.max(np.abs(attacked_with(0, 0) - attacked_with(0, 1))) > 0.01


@pytest.mark.parametrize("num_restarts", [1, 3])
def test_random_start_without_a_seed(num_restarts):
    images, labels, weight = make_linear_problem(0)
    attack = PGD(**COMMON, random_start=True, num_restarts=num_restarts)
    with pytest.raises(UserError, match=r"^seed: received None;.*example_seeds"):
        attack(linear(weight), tf.constant(images), tf.constant(labels), head_weights=[1.0])


@pytest.mark.parametrize("loss", ["cross_entropy", "cw_margin"])
def test_restarts_are_never_worse_than_one_run(trained, loss):
    """Restart 0 is the single run; after it, an example may only become fooled, or reach a higher loss."""
    single = PGD(epsilon=0.05, step_size=0.04, num_steps=1, random_start=True, loss=loss)
    several = dataclasses.replace(single, num_restarts=3)
    x_single, x_several = run(single, trained), run(several, trained)
    fooled_single, fooled_several = ~verdicts(trained, x_single), ~verdicts(trained, x_several)
    assert np.all(fooled_several >= fooled_single)
    loss_single, loss_several = losses(single, trained, x_single), losses(single, trained, x_several)
    unchanged = fooled_single == fooled_several
    assert np.all(loss_several[unchanged] >= loss_single[unchanged] - 1e-5)
    assert np.mean(loss_several > loss_single + 1e-5) > 0.3, "more restarts must find something"


def test_float64_images_stay_float64():
    images, labels, weight = make_linear_problem(0)
    attack = PGD(**COMMON, random_start=True, num_restarts=2)
    seeds = example_seeds(0, 0, tf.range(3))
    found = attack(linear(weight), tf.constant(images), tf.constant(labels), head_weights=[1.0], seed=seeds)
    assert found.dtype == "float64"


def test_random_network(make_classifier, make_images):
    """An untrained ResNet, wider in channels: the properties hold there too, with both mask gradients."""
    classifier, images = make_classifier(), make_images((4, 8, 8, 3))
    labels, weights = tf.constant([0, 1, 2, 3]), head_weights(2, 2)
    for mask_gradient in ("detached", "full"):
        heads_fn = classifier.heads_fn(mask_gradient)
        x_adv = ATTACKS["fgsm"](heads_fn, images, labels, head_weights=weights)
        before, after = (contract(cross_entropy(heads_fn(x), labels), weights).numpy() for x in (images, x_adv))
        assert after.mean() > before.mean()
        assert np.max(np.abs(x_adv - images)) <= EPSILON + 1e-6


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", -0.1),
        ("epsilon", 8.0),
        ("epsilon", float("nan")),
        ("step_size", 0.0),
        ("step_size", -0.1),
        ("num_steps", -1),
        ("num_restarts", 0),
        ("loss", "dlr"),
    ],
)
def test_errors_name_the_argument_and_the_value(field, value):
    with pytest.raises(UserError, match=rf"^{field}: received {value};"):
        PGD(**{**COMMON, field: value})


def test_fgsm_takes_the_other_fields():
    attack = fgsm(0.25, loss="cw_margin", bounds=(-1.0, 1.0))
    assert (attack.epsilon, attack.step_size, attack.num_steps) == (0.25, 0.25, 1)
    assert (attack.loss, attack.bounds) == ("cw_margin", (-1.0, 1.0))
