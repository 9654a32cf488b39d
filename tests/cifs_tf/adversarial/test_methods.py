"""Training methods: one update of each on softmax regression, derived by hand, and their schedules.

With z = x W + b, p = softmax(z(x)) of the natural and q = softmax(z(x')) of the adversarial image, and s any vector,
d/dz sum_i p_i s_i = p (s - <p, s>) for p = softmax(z). From it, with e the one-hot label:

- CE(q, y): d/dz' = q - e.
- KL(p || q) = sum p (log p - log q): d/dz = p (log p - log q - KL), d/dz' = q - p.
- -log(1.0001 - q_r), r the best class but y: d/dz' = q_r (e_r - q) / (1.0001 - q_r).
- KL (1 - p_y): d/dz = (1 - p_y) p (log p - log q - KL) - KL p_y (e - p), d/dz' = (1 - p_y) (q - p).

(The tiny constants of MART's code, 1e-7 and 1e-12, are below the tolerance.) Gradients of W are x^T d/dz + x'^T d/dz',
of b their sums, over N; then one step of SGD with coupled weight decay.
"""

import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.adversarial import (
    FAT,
    MART,
    NFGSM,
    SGD,
    TRADES,
    AdversarialTrainer,
    PGDTraining,
    Standard,
    WeightPerturbation,
    catastrophic_overfitting,
    make_method,
    register_method,
)
from cifs_tf.adversarial.methods import METHODS
from cifs_tf.attacks import PGD, FriendlyPGD, NoisyFGSM, example_seeds
from cifs_tf.attacks.random import normal
from cifs_tf.config import AttackConfig, ModelConfig, RunConfig, TrainConfig
from cifs_tf.errors import UserError
from cifs_tf.layers import BatchNormalization
from cifs_tf.losses import head_weights
from cifs_tf.models import Classifier

SHAPE, CLASSES, COUNT = (4, 4, 1), 4, 8
RATE, DECAY = 0.5, 0.01
EPSILON, STEP = 0.1, 0.06
ONE_HEAD = head_weights(2, 0)


def make_linear(precision="float64"):
    image = keras.Input(SHAPE, dtype=precision)
    flat = keras.layers.Flatten(dtype=precision)(image)
    dense = keras.layers.Dense(CLASSES, dtype=precision, name="logits", kernel_initializer="random_normal")
    classifier = Classifier(keras.Model(image, dense(flat)), dtype=precision)
    rng = np.random.default_rng(0)
    classifier.set_weights([2 * rng.normal(size=weight.shape) for weight in classifier.get_weights()])
    return classifier


def make_data(seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((COUNT, *SHAPE)), rng.integers(0, CLASSES, COUNT).astype(np.int32)


def update(classifier, method, images, labels, **kwargs):
    """Make one update by the trainer; return its logs and the trainer."""
    trainer = AdversarialTrainer(classifier, method, **kwargs)
    trainer.compile(optimizer=SGD(RATE, weight_decay=DECAY), run_eagerly=True)
    return trainer.train_on_batch(images, labels, return_dict=True), trainer


class Numpy:
    """Softmax regression, its weights, and one step of SGD on gradients by hand."""

    def __init__(self, classifier):
        self.weight, self.bias = classifier.get_weights()

    def softmax(self, x):
        logits = x @ self.weight + self.bias
        exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponential / exponential.sum(axis=1, keepdims=True)

    def gradients(self, *terms):
        """Terms: (x, d loss / d z(x)) for each forward pass."""
        return [
            sum(x.T @ to_logits for x, to_logits in terms) / COUNT,
            sum(to_logits.sum(axis=0) for _, to_logits in terms) / COUNT,
        ]

    def step(self, gradients):
        self.weight = self.weight - RATE * (gradients[0] + DECAY * self.weight)
        self.bias = self.bias - RATE * (gradients[1] + DECAY * self.bias)


def project(x_adv, x):
    return np.clip(x_adv, x - EPSILON, x + EPSILON).clip(0, 1)


def gaussian_start(x):
    """The noise of the first optimizer step, of seed 0; the numbers are the generator's, the rest is by hand."""
    seeds = example_seeds(0, 0, tf.range(COUNT))
    return x + 1e-3 * normal(seeds, tf.TensorShape(SHAPE), tf.float64).numpy().reshape(x.shape)


def assert_weights(classifier, expected):
    for found, value in zip(classifier.get_weights(), (expected.weight, expected.bias), strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-7)


def divergence(p, q):
    log_ratio = np.log(p) - np.log(q)
    return log_ratio, np.sum(p * log_ratio, axis=1, keepdims=True)


def test_trades_by_hand():
    """CE(p, y) + 6 KL(p || q), x' climbing KL from Gaussian noise."""
    classifier, (images, labels) = make_linear(), make_data()
    expected, x, onehot = Numpy(classifier), images.reshape(COUNT, -1), np.eye(CLASSES)[labels]
    p, x_adv = expected.softmax(x), gaussian_start(x)
    for _ in range(3):
        x_adv = project(x_adv + STEP * np.sign((expected.softmax(x_adv) - p) @ expected.weight.T), x)
    q = expected.softmax(x_adv)
    log_ratio, kl = divergence(p, q)
    expected.step(expected.gradients((x, p - onehot + 6 * p * (log_ratio - kl)), (x_adv, 6 * (q - p))))

    attack = PGD(
        epsilon=EPSILON, step_size=STEP, num_steps=3, random_start=True, start="gaussian", loss="kl_divergence"
    )
    logs, _ = update(classifier, TRADES(head_weights=ONE_HEAD, attack=attack), images, labels)
    assert_weights(classifier, expected)
    natural = -np.log(p[np.arange(COUNT), labels])
    np.testing.assert_allclose(logs["loss"], np.mean(natural + 6 * kl[:, 0]), rtol=1e-6)


def test_mart_by_hand():
    """CE(q, y) - log(1.0001 - q_r) + 5 KL(p || q) (1 - p_y), x' climbing the cross-entropy from Gaussian noise."""
    classifier, (images, labels) = make_linear(), make_data()
    expected, x, onehot = Numpy(classifier), images.reshape(COUNT, -1), np.eye(CLASSES)[labels]
    p, x_adv = expected.softmax(x), gaussian_start(x)
    for _ in range(3):
        x_adv = project(x_adv + STEP * np.sign((expected.softmax(x_adv) - onehot) @ expected.weight.T), x)
    q = expected.softmax(x_adv)
    runner_up = np.eye(CLASSES)[np.argmax(np.where(onehot, -1, q), axis=1)]
    q_r = np.sum(q * runner_up, axis=1, keepdims=True)
    p_y = np.sum(p * onehot, axis=1, keepdims=True)
    log_ratio, kl = divergence(p, q)
    to_natural = 5 * ((1 - p_y) * p * (log_ratio - kl) - kl * p_y * (onehot - p))
    to_adversarial = q - onehot + q_r * (runner_up - q) / (1.0001 - q_r) + 5 * (1 - p_y) * (q - p)
    expected.step(expected.gradients((x, to_natural), (x_adv, to_adversarial)))

    attack = PGD(epsilon=EPSILON, step_size=STEP, num_steps=3, random_start=True, start="gaussian")
    logs, _ = update(classifier, MART(head_weights=ONE_HEAD, attack=attack), images, labels)
    assert_weights(classifier, expected)
    boosted = -np.log(np.sum(q * onehot, axis=1)) - np.log(1.0001 - q_r[:, 0])
    np.testing.assert_allclose(logs["loss"], np.mean(boosted + 5 * (kl * (1 - p_y))[:, 0]), rtol=1e-5)


@pytest.mark.parametrize("tau", [0, 1])
def test_fat_by_hand(tau):
    """CE on images that stop tau steps after their first wrong prediction."""
    classifier, (images, labels) = make_linear(), make_data()
    expected, x, onehot = Numpy(classifier), images.reshape(COUNT, -1), np.eye(CLASSES)[labels]
    x_adv, stops = x.copy(), []
    for index in range(COUNT):
        left = tau
        for step in range(5):
            q = expected.softmax(x_adv[index : index + 1])[0]
            if q.argmax() != labels[index]:
                if left == 0:
                    stops.append(step)
                    break
                left -= 1
            ahead = x_adv[index] + STEP * np.sign((q - onehot[index]) @ expected.weight.T)
            x_adv[index] = project(ahead, x[index])
    assert len(set(stops)) > 1, "the data should stop early, and not all at once"
    expected.step(expected.gradients((x_adv, expected.softmax(x_adv) - onehot)))

    attack = FriendlyPGD(epsilon=EPSILON, step_size=STEP, num_steps=5, tau=tau)
    update(classifier, FAT(head_weights=ONE_HEAD, attack=attack), images, labels)
    assert_weights(classifier, expected)


def test_label_smoothing_by_hand():
    """The target is 0.8 e + 0.2 / classes."""
    classifier, (images, labels) = make_linear(), make_data()
    expected, x = Numpy(classifier), images.reshape(COUNT, -1)
    target = 0.8 * np.eye(CLASSES)[labels] + 0.2 / CLASSES
    expected.step(expected.gradients((x, expected.softmax(x) - target)))
    update(classifier, Standard(head_weights=ONE_HEAD, label_smoothing=0.2), images, labels)
    assert_weights(classifier, expected)


def test_weight_perturbation_by_hand():
    """The gradient at W + 0.1 ||W|| g / ||g|| (the bias stays) is applied at W."""
    classifier, (images, labels) = make_linear(), make_data()
    expected, moved = Numpy(classifier), Numpy(classifier)
    x, onehot = images.reshape(COUNT, -1), np.eye(CLASSES)[labels]
    gradient, _ = moved.gradients((x, moved.softmax(x) - onehot))
    moved.weight = moved.weight + 0.1 * np.linalg.norm(moved.weight) * gradient / np.linalg.norm(gradient)
    expected.step(moved.gradients((x, moved.softmax(x) - onehot)))
    method = Standard(head_weights=ONE_HEAD)
    update(classifier, method, images, labels, weight_perturbation=WeightPerturbation(gamma=0.1))
    assert_weights(classifier, expected)


def test_weight_perturbation_waits_for_its_epoch_and_leaves_statistics_alone():
    """Before its epoch, an update with it equals one without: batch statistics are counted once."""
    found = []
    for perturbation in (None, WeightPerturbation(gamma=0.1, start_epoch=1)):
        keras.utils.set_random_seed(0)
        image = keras.Input(SHAPE)
        x = BatchNormalization()(keras.layers.Conv2D(3, 3)(image))
        classifier = Classifier(keras.Model(image, keras.layers.Dense(CLASSES)(keras.layers.Flatten()(x))))
        images, labels = make_data()
        update(classifier, Standard(head_weights=ONE_HEAD), images, labels, weight_perturbation=perturbation)
        found.append(classifier.get_weights())
    for without, with_perturbation in zip(*found, strict=True):
        np.testing.assert_allclose(with_perturbation, without, rtol=1e-6)


def test_average_by_hand():
    """After steps 0 and 1 the average has decayed by 1/10 and 2/11: a = 2/11 (w0/10 + 9/10 w1) + 9/11 w2."""
    classifier, (images, labels) = make_linear(), make_data()
    trainer = AdversarialTrainer(classifier, Standard(head_weights=ONE_HEAD), ema_decay=0.9)
    trainer.compile(optimizer=SGD(RATE), run_eagerly=True)
    weights = [classifier.get_weights()[0]]
    for _ in range(2):
        trainer.train_on_batch(images, labels)
        weights.append(classifier.get_weights()[0])
    expected = 2 / 11 * (weights[0] / 10 + 9 / 10 * weights[1]) + 9 / 11 * weights[2]
    np.testing.assert_allclose(trainer.inference_classifier.get_weights()[0], expected, rtol=1e-6)


def test_the_average_is_what_is_validated_and_saved(tmp_path):
    classifier, (images, labels) = make_linear("float32"), make_data()
    trainer = AdversarialTrainer(classifier, Standard(head_weights=ONE_HEAD), ema_decay=0.99)
    trainer.compile(optimizer=SGD(5.0))
    trainer.fit(images, labels, batch_size=4, epochs=2, verbose=0)
    average = trainer.inference_classifier
    assert np.abs(average.get_weights()[0] - classifier.get_weights()[0]).max() > 1e-3
    accuracy = np.mean(average(images).numpy()[:, 0].argmax(axis=1) == labels)
    assert trainer.evaluate(images, labels, verbose=0, return_dict=True)["clean_accuracy"] == pytest.approx(accuracy)
    trainer.save(tmp_path / "average.keras")
    loaded = keras.models.load_model(tmp_path / "average.keras")
    np.testing.assert_array_equal(loaded(images), average(images))
    assert loaded.trainable_variables


def test_average_refuses_a_decay_of_one():
    with pytest.raises(UserError, match="ema_decay: received 1"):
        AdversarialTrainer(make_linear(), Standard(head_weights=ONE_HEAD), ema_decay=1)


@pytest.mark.parametrize("bn_updates", [2, 3])
def test_trades_updates_statistics_two_or_three_times(bn_updates):
    """Running mean with momentum 0.9 from 0, batch means m (x) and m' (x'): x, x', and x again if three."""
    image = keras.Input(SHAPE)
    flat = keras.layers.Flatten()(image)
    classifier = Classifier(keras.Model(image, keras.layers.Dense(CLASSES)(BatchNormalization(name="bn")(flat))))
    images, labels = make_data()
    images = images.astype(np.float32)
    attack = PGD(
        epsilon=EPSILON, step_size=STEP, num_steps=1, random_start=True, start="gaussian", loss="kl_divergence"
    )
    method = TRADES(head_weights=ONE_HEAD, attack=attack, bn_updates=bn_updates)
    seeds = example_seeds(0, 0, tf.range(COUNT))
    x_adv = method.perturb(classifier, tf.constant(images), tf.constant(labels), seeds).numpy()
    running = np.zeros(16)
    for seen in (images, x_adv, images)[:bn_updates]:
        running = 0.9 * running + 0.1 * seen.reshape(COUNT, -1).mean(axis=0)
    update(classifier, method, images, labels)
    np.testing.assert_allclose(classifier.backbone.get_layer("bn").moving_mean, running, rtol=1e-5)


def test_beta_warms_up():
    """Half of the way, beta is 1 of 2: head weights 1/2 and 1/4 twice."""
    config = RunConfig(train=TrainConfig(beta=2, beta_warmup=4))
    method = make_method(config, ModelConfig(), num_probes=2)
    for epoch, expected in ((0, [1, 0, 0]), (2, [1 / 2, 1 / 4, 1 / 4]), (4, [1 / 3] * 3), (9, [1 / 3] * 3)):
        np.testing.assert_allclose(method.at(tf.constant(float(epoch))).head_weights, expected, rtol=1e-6)


def test_epsilon_warms_up():
    config = RunConfig(attack=AttackConfig(epsilon=0.1, step_size=0.1, num_steps=1, epsilon_warmup=4))
    method = make_method(config, ModelConfig(defense="vanilla"), num_probes=0)
    classifier, (images, labels) = make_linear(), make_data()
    images = 0.25 + images / 2
    for epoch, radius in ((0, 0), (1, 0.025), (4, 0.1), (9, 0.1)):
        now = method.at(tf.constant(float(epoch), tf.float64))
        seeds = example_seeds(0, 0, tf.range(COUNT))
        x_adv = now.perturb(classifier, tf.constant(images), tf.constant(labels), seeds)
        np.testing.assert_allclose(np.abs(x_adv - images).max(), radius, atol=1e-7)


def test_tau_follows_fats_schedule():
    """0 in epochs 1 to 50, 1 to 90, then 2."""
    method = make_method(RunConfig(train=TrainConfig(method="fat")), ModelConfig(), num_probes=2)
    taus = [int(method.at(tf.constant(float(epoch))).attack.tau) for epoch in (0, 49, 49.9, 50, 89, 90, 119)]
    assert taus == [0, 0, 0, 1, 1, 2, 2]


def test_nfgsm_trains_on_what_its_attack_makes():
    """One update on softmax regression: CE(q, y) on x', which `NoisyFGSM` makes with the step's seeds."""
    classifier, (images, labels) = make_linear(), make_data()
    expected, onehot = Numpy(classifier), np.eye(CLASSES)[labels]
    attack = NoisyFGSM(epsilon=EPSILON, step_size=EPSILON)
    x_adv = attack(
        classifier.heads_fn(),
        tf.constant(images),
        tf.constant(labels),
        head_weights=ONE_HEAD,
        seed=example_seeds(0, 0, tf.range(COUNT)),
    )
    x_adv = x_adv.numpy().reshape(COUNT, -1)
    expected.step(expected.gradients((x_adv, expected.softmax(x_adv) - onehot)))
    update(classifier, NFGSM(head_weights=ONE_HEAD, attack=attack), images, labels)
    assert_weights(classifier, expected)


@pytest.mark.parametrize(
    ("several", "one", "found"),
    [
        (0.02, 0.8, True),
        (0.0, 0.24, True),
        (0.08, 0.15, False),  # robust overfitting: both are low
        (0.02, 0.1, False),  # a few points may be chance
        (0.24, 0.3, False),
        (None, 0.9, False),  # not validated
        (0.0, None, False),
        (float("nan"), 0.9, False),
        (0.0, float("nan"), False),
    ],
)
def test_catastrophic_overfitting_is_noticed(several, one, found):
    history = [{"loss": 1.0}, {"val_robust_accuracy": several, "val_single_step_accuracy": one}]
    sentence = catastrophic_overfitting(history)
    assert (sentence is not None) == found
    assert catastrophic_overfitting([]) is None
    if found:
        for words in ("after epoch 2", f"{one:.1%} are right under one step", f"{several:.1%} under", "--nfgsm_noise"):
            assert words in sentence


def test_a_config_reaches_its_method():
    train = TrainConfig(
        method="trades", trades_lambda=4, trades_bn_updates=2, label_smoothing=0.1, fat_omega=0.5, mart_lambda=7
    )
    attack = AttackConfig(epsilon=0.2, step_size=0.05, num_steps=3)
    config = RunConfig(train=train, attack=attack)
    trades = make_method(config, ModelConfig(), 2)
    assert (trades.trades_lambda, trades.bn_updates, trades.label_smoothing) == (4, 2, 0.1)
    assert (trades.attack.loss, trades.attack.start, trades.attack.epsilon) == ("kl_divergence", "gaussian", 0.2)
    np.testing.assert_allclose(trades.head_weights, [1 / 3] * 3)
    fat = make_method(dataclasses.replace(config, train=dataclasses.replace(train, method="fat")), ModelConfig(), 2)
    assert (fat.attack.omega, fat.attack.num_steps, fat.attack.step_size) == (0.5, 3, 0.05)
    nfgsm = make_method(
        dataclasses.replace(config, train=TrainConfig(method="nfgsm", nfgsm_noise=1.5)), ModelConfig(), 2
    )
    assert (nfgsm.attack.noise, nfgsm.attack.step_size, nfgsm.attack.num_steps) == (1.5, 0.2, 1)
    mart = TrainConfig(method="mart", mart_lambda=7)
    assert make_method(RunConfig(train=mart), ModelConfig(), 2).mart_lambda == 7


def test_refusals():
    with pytest.raises(UserError, match="--method: received nope; give one of standard, pgd, fat, mart, nfgsm, trades"):
        make_method(RunConfig(train=TrainConfig(method="nope")), ModelConfig(), 0)
    with pytest.raises(UserError, match=r"label_smoothing: received 0\.1"):
        make_method(RunConfig(train=TrainConfig(method="mart", label_smoothing=0.1)), ModelConfig(), 0)
    with pytest.raises(UserError, match="name: received pgd; it is taken"):
        register_method("pgd")
    with pytest.raises(UserError, match="gamma: received -1"):
        WeightPerturbation(gamma=-1)


def test_a_method_of_ones_own():
    @register_method("own")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(PGDTraining):
        def loss(self, classifier, images, x_adv, labels):
            per_example_loss, heads = super().loss(classifier, images, x_adv, labels)
            return 2 * per_example_loss, heads

    try:
        method = make_method(RunConfig(train=TrainConfig(method="own")), ModelConfig(), 2)
        assert isinstance(method, Own)
    finally:
        METHODS.pop("own")


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(compiled):
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE)
    x = BatchNormalization(name="bn")(keras.layers.Flatten()(image))
    classifier = Classifier(keras.Model(image, keras.layers.Dense(CLASSES, name="logits")(x)))
    images, labels = make_data()
    broken = images.copy()
    broken[3, 0, 0, 0] = np.nan
    trainer = AdversarialTrainer(classifier, Standard(head_weights=ONE_HEAD), ema_decay=0.9)
    optimizer = SGD(RATE, momentum=0.9, weight_decay=DECAY)
    crossentropy = keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="crossentropy")
    trainer.compile(optimizer=optimizer, metrics=[crossentropy], run_eagerly=not compiled)
    trainer.train_on_batch(images, labels)
    kept = (*classifier.variables, *trainer.average.variables, *trainer.optimizer.velocities)
    before = [variable.numpy() for variable in kept]
    after_bad = trainer.train_on_batch(broken, labels, return_dict=True)
    assert trainer.skipped_steps == 1
    assert set(trainer.not_finite) == {
        *("x_adv", "heads", "loss", "gradient of bn/gamma", "gradient of bn/beta"),
        *("gradient of logits/kernel", "gradient of logits/bias"),
    }
    assert math.isnan(after_bad["loss"])
    assert np.isfinite(after_bad["crossentropy"])
    assert int(trainer.optimizer.iterations) == 2
    for found, value in zip(kept, before, strict=True):
        np.testing.assert_array_equal(found, value)
    trainer.train_on_batch(images, labels)
    assert trainer.skipped_steps == 1
    assert np.abs(classifier.get_weights()[0] - before[0]).max() > 0
