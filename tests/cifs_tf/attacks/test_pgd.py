"""One table of attacks, the properties that all must have; then each feature by hand."""

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


@pytest.fixture(scope="module", params=ATTACKS)
def attacked(request, trained):
    """Of each attack: itself, x_adv, and the variables before and after."""
    before = [variable.numpy() for variable in trained.classifier.variables]
    x_adv = run(ATTACKS[request.param], trained)
    after = [variable.numpy() for variable in trained.classifier.variables]
    return ATTACKS[request.param], x_adv, before, after


def test_stays_in_the_ball_and_the_bounds(attacked, trained):
    _, x_adv, _, _ = attacked
    assert x_adv.shape == trained.images.shape
    assert x_adv.dtype == trained.images.dtype
    assert np.all(np.isfinite(x_adv))
    assert np.max(np.abs(x_adv - trained.images)) <= EPSILON + 1e-6
    assert np.min(x_adv) >= 0
    assert np.max(x_adv) <= 1


def test_uses_the_ball(attacked, trained):
    """Half of the pixels that the bounds leave room for sit near the ball's surface."""
    _, x_adv, _, _ = attacked
    moved = np.abs(x_adv - trained.images)
    assert np.mean(moved[trained.images.numpy() > EPSILON] > 0.7 * EPSILON) > 0.5


def test_loss_does_not_fall(attacked, trained):
    """In the mean, and for nine examples in ten: a sign step may overshoot where an example is lost already."""
    attack, x_adv, _, _ = attacked
    before, after = losses(attack, trained, trained.images), losses(attack, trained, x_adv)
    assert after.mean() > before.mean()
    assert np.mean(after >= before - 1e-6) >= 0.9


def test_accuracy_falls(attacked, trained):
    _, x_adv, _, _ = attacked
    clean = verdicts(trained, trained.images).mean()
    assert clean > 0.85, "the network of this test must have learnt something"
    assert verdicts(trained, x_adv).mean() < clean - 0.2


def test_changes_no_variable(attacked):
    _, _, before, after = attacked
    for first, second in zip(before, after, strict=True):
        np.testing.assert_array_equal(first, second)


def run_linear(attack, images):
    """Attack a linear model of 4 classes on flat images."""
    weight = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
    labels, seed = tf.range(len(images)) % 4, example_seeds(7, 0, tf.range(len(images)))
    return attack(
        lambda x: linear(weight)(tf.reshape(x, (-1, 64))), images, labels, head_weights=[1.0], seed=seed
    ).numpy()


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_epsilon_zero_returns_the_input(attack, make_images):
    images = make_images((8, 8, 8, 1))
    np.testing.assert_array_equal(run_linear(dataclasses.replace(attack, epsilon=0.0), images), images)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_zero_steps_return_the_start(attack, make_images):
    """The input, or a random point of the ball: not the same one for every image, and not a corner."""
    images = make_images((8, 8, 8, 1))
    x_adv = run_linear(dataclasses.replace(attack, num_steps=0), images)
    if not attack.random_start:
        np.testing.assert_array_equal(x_adv, images)
        return
    noise = x_adv - images.numpy()
    assert np.max(np.abs(noise)) <= EPSILON + 1e-6
    assert len(np.unique(noise.reshape(8, -1), axis=0)) == 8
    assert 0.01 < np.mean(np.abs(noise) < EPSILON / 2) < 0.99


def test_verdicts_do_not_depend_on_the_batch(trained):
    """Batches of 7 and of 64, compiled: at most one verdict in 500 may differ by float rounding, so none of these 320.

    Random starts are seeded by example, so they fall under the same rule.
    """
    different = 0
    specs = [tf.TensorSpec((None, 8, 8, 1)), tf.TensorSpec((None,), tf.int32), tf.TensorSpec((None, 2), tf.int64)]
    seeds, heads_fn, weights = example_seeds(7, 0, tf.range(64)), trained.classifier.heads_fn(), head_weights(2, 2)
    for attack in ATTACKS.values():

        @tf.function(input_signature=specs, autograph=False)
        def compiled(images, labels, seed, attack=attack):
            return attack(heads_fn, images, labels, head_weights=weights, seed=seed)

        found = []
        for size in (7, 64):
            dataset = tf.data.Dataset.from_tensor_slices((trained.images, trained.labels, seeds)).batch(size)
            found.append(verdicts(trained, tf.concat([compiled(*batch) for batch in dataset], axis=0)))
        different += np.sum(found[0] != found[1])
    assert different == 0


@pytest.mark.parametrize("attack", [ATTACKS["pgd random start"], ATTACKS["cw"]], ids=["pgd", "cw"])
def test_a_label_affects_only_its_own_loss(attack, trained):
    """Another label for example 0 moves example 0 and no other; in inference nothing else knows labels.

    A heads_fn that is given wrong labels on the side makes the same images as one that is given none.
    """
    images, labels, seed = trained.images[:4], trained.labels[:4], example_seeds(7, 0, tf.range(4))
    weights = head_weights(2, 2)
    other = tf.tensor_scatter_nd_update(labels, [[0]], [(labels[0] + 1) % 10])
    first = attack(trained.classifier.heads_fn(), images, labels, head_weights=weights, seed=seed)
    second = attack(trained.classifier.heads_fn(), images, other, head_weights=weights, seed=seed)
    np.testing.assert_array_equal(first[1:], second[1:])
    assert np.any(first[0] != second[0])

    def heads_fn(x):
        return trained.classifier(x, labels=(labels + 3) % 10, training=False)

    third = attack(heads_fn, images, labels, head_weights=weights, seed=seed)
    np.testing.assert_array_equal(third, first)


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
