"""The trainer: a golden update, and what Keras' fit promises."""

import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.adversarial import SGD, AdversarialTrainer, PGDTraining, Standard
from cifs_tf.attacks import PGD, example_seeds
from cifs_tf.distribute import mirrored_strategy
from cifs_tf.layers import CIFS
from cifs_tf.losses import contract, cross_entropy, head_weights
from cifs_tf.models import Classifier

SHAPE, CLASSES = (4, 4, 1), 3
ATTACK = PGD(epsilon=0.1, step_size=0.06, num_steps=2)


def make_data(count=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((count, *SHAPE), np.float32), rng.integers(0, CLASSES, count).astype(np.int32)


def make_linear(precision="float32"):
    """A dense layer on the flat image: no cuts, one head."""
    image = keras.Input(SHAPE)
    dense = keras.layers.Dense(CLASSES, dtype=precision, name="logits")
    return Classifier(keras.Model(image, dense(keras.layers.Flatten()(image))), dtype=precision)


def make_cifs(seed=0):
    """One cut between a convolution and a dense layer."""
    keras.utils.set_random_seed(seed)
    image = keras.Input(SHAPE)
    x = keras.layers.Conv2D(4, 3, activation="relu", name="features")(image)
    backbone = keras.Model(image, keras.layers.Dense(CLASSES)(keras.layers.Flatten()(x)))
    return Classifier(backbone, {"features": CIFS("mlp")})


def make_trainer(classifier, attack=ATTACK, learning_rate=0.5, seed=0, validation_attack=None, **compile_kwargs):
    weights = head_weights(2, classifier.num_probes)
    method = Standard(head_weights=weights)
    if attack is not None:
        method = PGDTraining(head_weights=weights, attack=attack)
    trainer = AdversarialTrainer(classifier, method, seed=seed, validation_attack=validation_attack)
    trainer.compile(optimizer=SGD(learning_rate, momentum=0.9, weight_decay=0.01), **compile_kwargs)
    return trainer


class NumpyPGDAT:
    """PGD adversarial training of softmax regression, by algebra.

    With p = softmax(x W + b): d CE / d x = (p - onehot(y)) W^T; x <- clip(x + step sign(.)), to the ball and [0, 1];
    d mean(s CE) / d W = x_adv^T (s (p - onehot)) / N, d / d b = the sum of s (p - onehot) / N; then SGD with momentum
    and coupled weight decay.
    """

    def __init__(self, weight, bias, attack=ATTACK):
        self.parameters, self.velocities, self.attack = [weight, bias], [0.0, 0.0], attack

    def residual(self, x, labels):
        logits = x @ self.parameters[0] + self.parameters[1]
        softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
        return softmax / softmax.sum(axis=1, keepdims=True) - np.eye(CLASSES)[labels]

    def perturb(self, x, labels):
        x_adv, epsilon = x, self.attack.epsilon
        for _ in range(self.attack.num_steps):
            sign = np.sign(self.residual(x_adv, labels) @ self.parameters[0].T)
            x_adv = np.clip(x_adv + self.attack.step_size * sign, x - epsilon, x + epsilon).clip(0, 1)
        return x_adv

    def step(self, images, labels, learning_rate, sample_weight=None, adversarial=True):
        x = images.reshape(len(images), -1).astype(np.float64)
        x = self.perturb(x, labels) if adversarial else x
        residual = self.residual(x, labels) / len(x)
        if sample_weight is not None:
            residual *= sample_weight[:, None]
        for index, gradient in enumerate([x.T @ residual, residual.sum(axis=0)]):
            decayed = gradient + 0.01 * self.parameters[index]
            self.velocities[index] = 0.9 * self.velocities[index] + decayed
            self.parameters[index] = self.parameters[index] - learning_rate * self.velocities[index]


def assert_weights(classifier, numpy_model, rtol=1e-4):
    for found, expected in zip(classifier.get_weights(), numpy_model.parameters, strict=True):
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("adversarial", [True, False], ids=["pgd", "standard"])
def test_two_updates_of_a_linear_model_by_hand(adversarial):
    """See `NumpyPGDAT`."""
    classifier = make_linear()
    expected = NumpyPGDAT(*[weight.astype(np.float64) for weight in classifier.get_weights()])
    trainer = make_trainer(classifier, ATTACK if adversarial else None, run_eagerly=True)
    for seed in (0, 1):
        images, labels = make_data(seed=seed)
        trainer.train_on_batch(images, labels)
        expected.step(images, labels, 0.5, adversarial=adversarial)
        assert_weights(classifier, expected)


def test_sample_weight_by_hand():
    """The loss is mean(s CE): an example of weight 0 teaches nothing, one of weight 3 three times as much."""
    classifier, (images, labels) = make_linear(), make_data()
    sample_weight = np.array([0, 3, 1, 1, 0, 2, 1, 0.5], np.float32)
    expected = NumpyPGDAT(*[weight.astype(np.float64) for weight in classifier.get_weights()])
    make_trainer(classifier, run_eagerly=True).fit(images, labels, sample_weight=sample_weight, batch_size=8, verbose=0)
    expected.step(images, labels, 0.5, sample_weight)
    assert_weights(classifier, expected)


def test_compiled_fit_equals_the_hand_derived_update():
    """One epoch of two batches in order, and labels of shape (batch, 1) as Keras' own datasets have them."""
    classifier, (images, labels) = make_linear(), make_data()
    expected = NumpyPGDAT(*[weight.astype(np.float64) for weight in classifier.get_weights()])
    trainer = make_trainer(classifier)
    trainer.fit(images, labels[:, None], batch_size=4, shuffle=False, verbose=0)
    for part in (slice(0, 4), slice(4, 8)):
        expected.step(images[part], labels[part], 0.5)
    assert_weights(classifier, expected)


def test_replicas_add_up_to_one():
    """Two replicas of half the batch make the update of one: no random start, no batch statistics."""
    images, labels = make_data()
    single = make_linear()
    weights = single.get_weights()
    make_trainer(single).fit(images, labels, batch_size=8, shuffle=False, verbose=0)
    strategy = mirrored_strategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        double = make_linear()
        double.set_weights(weights)
        trainer = make_trainer(double)
    trainer.fit(images, labels, batch_size=8, shuffle=False, verbose=0)
    assert strategy.num_replicas_in_sync == 2
    for found, expected in zip(double.get_weights(), single.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_train_step_on_a_cut_network_follows_eq_3():
    """Perturb in inference mode, then one gradient step on mean CE of all heads, weighted 1/3 and 2/3 (beta 2, P 1)."""
    classifier, reference, (images, labels) = make_cifs(), make_cifs(), make_data()
    attack = dataclasses.replace(ATTACK, random_start=True)
    trainer = make_trainer(classifier, attack, seed=5, run_eagerly=True)
    trainer.train_on_batch(images, labels)
    x_adv = attack(
        lambda x: reference(x, training=False),
        tf.constant(images),
        tf.constant(labels),
        head_weights=[1 / 3, 2 / 3],
        seed=example_seeds(5, 0, tf.range(8)),
    )
    with tf.GradientTape() as tape:
        heads = reference(x_adv, labels=tf.constant(labels), training=True)
        losses = [
            keras.losses.sparse_categorical_crossentropy(labels, heads[:, head], from_logits=True) for head in (0, 1)
        ]
        loss = tf.reduce_mean(losses[0] / 3 + losses[1] * 2 / 3)
    gradients = tape.gradient(loss, [weight.value for weight in reference.trainable_weights])
    for found, weight, gradient in zip(
        classifier.trainable_weights, reference.trainable_weights, gradients, strict=True
    ):
        expected = weight - 0.5 * (gradient + 0.01 * weight)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_random_starts_follow_seed_and_step():
    """`perturb` is handed example_seeds(run seed, optimizer step, position)."""
    seen = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Recording(Standard):
        def perturb(self, classifier, images, labels, seed):
            seen.append(seed.numpy())
            return images

    trainer = AdversarialTrainer(make_linear(), Recording(head_weights=head_weights(2, 0)), seed=3)
    trainer.compile(optimizer=SGD(0.1), run_eagerly=True)
    for _ in range(2):
        trainer.train_on_batch(*make_data())
    for step in (0, 1):
        np.testing.assert_array_equal(seen[step], example_seeds(3, step, tf.range(8)))


@pytest.fixture(scope="module")
def fitted():
    """Two epochs with Keras metrics, a callback, and validation under attack: trainer, history, logs per batch."""
    images, labels = make_data(16)
    validation = make_data(6, seed=1)
    batch_logs = []
    trainer = make_trainer(
        make_cifs(),
        dataclasses.replace(ATTACK, random_start=True),
        validation_attack=ATTACK,
        metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")],
    )
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: batch_logs.append(dict(logs)))
    history = trainer.fit(
        images,
        labels,
        batch_size=5,
        epochs=2,
        validation_data=validation,
        validation_batch_size=4,
        callbacks=[callback, keras.callbacks.EarlyStopping(monitor="val_robust_accuracy", mode="max", patience=5)],
        verbose=0,
    )
    return trainer, history.history, batch_logs, validation


def test_fit_logs(fitted):
    _, history, batch_logs, _ = fitted
    training = {"loss", "robust_accuracy", "top2"}
    assert set(history) == training | {"val_loss", "val_clean_accuracy", "val_robust_accuracy", "val_top2"}
    assert [set(logs) for logs in batch_logs] == [training] * 8
    assert all(len(values) == 2 and all(map(math.isfinite, values)) for values in history.values())
    for name in ("robust_accuracy", "val_clean_accuracy", "val_robust_accuracy", "top2"):
        assert all(0 <= value <= 1 for value in history[name])


def test_evaluate_by_hand(fitted):
    """Loss: mean of Eq. 3's weighting on natural images; robust: on images attacked through the final head alone."""
    trainer, _, _, (images, labels) = fitted
    found = trainer.evaluate(images, labels, batch_size=4, verbose=0, return_dict=True)
    classifier, images, labels = trainer.classifier, tf.constant(images), tf.constant(labels)
    heads = classifier(images)
    x_adv = ATTACK(classifier.heads_fn(), images, labels, head_weights=[1.0, 0.0])
    expected = {
        "loss": np.mean(contract(cross_entropy(heads, labels), [1 / 3, 2 / 3])),
        "clean_accuracy": np.mean(np.argmax(heads[:, 0], axis=1) == labels),
        "robust_accuracy": np.mean(np.argmax(classifier(x_adv)[:, 0], axis=1) == labels),
        "top2": np.mean(tf.math.in_top_k(labels, heads[:, 0], 2)),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert math.isclose(found[name], value, rel_tol=1e-4, abs_tol=1e-6), name


def test_call_and_predict_give_the_final_logits(fitted):
    trainer, _, _, (images, _) = fitted
    expected = trainer.classifier(images)[:, 0]
    np.testing.assert_allclose(trainer(images), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(trainer.predict(images, verbose=0), expected, rtol=1e-4, atol=1e-6)


def test_natural_training_logs_accuracy():
    """Without a validation attack there is no robust accuracy to report."""
    images, labels = make_data()
    trainer = make_trainer(make_linear(), attack=None, run_eagerly=True)
    history = trainer.fit(images, labels, validation_data=(images, labels), verbose=0).history
    assert set(history) == {"loss", "clean_accuracy", "val_loss", "val_clean_accuracy"}


def test_evaluation_changes_no_weight(fitted):
    trainer, _, _, (images, labels) = fitted
    before = trainer.classifier.get_weights()
    trainer.evaluate(images, labels, verbose=0)
    for first, second in zip(before, trainer.classifier.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


def batches(start, stop):
    for step in range(start, stop):
        yield make_data(seed=step)


@pytest.mark.slow
def test_resumes_from_a_weights_file(tmp_path):
    """2 + 2 steps equal 4: weights, momentum, schedule and random starts all continue."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.5, 0.05])
    attack = dataclasses.replace(ATTACK, random_start=True, num_steps=1)
    whole = make_trainer(make_cifs(), attack, schedule, run_eagerly=True)
    for images, labels in batches(0, 4):
        whole.train_on_batch(images, labels)
    first = make_trainer(make_cifs(), attack, schedule, run_eagerly=True)
    for images, labels in batches(0, 2):
        first.train_on_batch(images, labels)
    first.save_weights(tmp_path / "step-2.weights.h5")
    second = make_trainer(make_cifs(seed=1), attack, schedule, run_eagerly=True)
    second.optimizer.build(second.trainable_variables)
    second.load_weights(tmp_path / "step-2.weights.h5")
    assert int(second.optimizer.iterations) == 2
    for images, labels in batches(2, 4):
        second.train_on_batch(images, labels)
    for found, expected in zip(second.classifier.get_weights(), whole.classifier.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_does_not_retrace():
    """Python runs through the method once, or a fixed number of times, however many steps follow."""
    traces = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Counting(PGDTraining):
        def loss(self, classifier, images, x_adv, labels):
            traces.append(1)
            return super().loss(classifier, images, x_adv, labels)

    classifier = make_linear()
    method = Counting(head_weights=head_weights(2, 0), attack=ATTACK)
    trainer = AdversarialTrainer(classifier, method)
    trainer.compile(optimizer=SGD(0.1))
    trainer.train_on_batch(*make_data())
    after_first = len(traces)
    for step in range(1, 4):
        trainer.train_on_batch(*make_data(seed=step))
    assert after_first >= 1
    assert len(traces) == after_first


def test_seed_decides_the_weights():
    """Same seed, same weights; another seed starts its attacks elsewhere."""
    found, attack = [], dataclasses.replace(ATTACK, random_start=True, num_steps=1)
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(2)
        trainer = make_trainer(make_linear(), attack, seed=seed, run_eagerly=True)
        for images, labels in batches(0, 2):
            trainer.train_on_batch(images, labels)
        found.append(np.concatenate([weight.ravel() for weight in trainer.classifier.get_weights()]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6, atol=1e-8)
    assert np.max(np.abs(found[0] - found[2])) > 1e-4


def test_float64():
    """The policy of the classifier is that of the trainer: float32 images are raised to it."""
    trainer = make_trainer(make_linear("float64"), dataclasses.replace(ATTACK, random_start=True), run_eagerly=True)
    trainer.train_on_batch(*make_data())
    assert {weight.dtype for weight in trainer.classifier.weights} == {"float64"}
    assert trainer(make_data()[0]).dtype == "float64"


def test_mixed_bfloat16():
    """A step under the mixed policy: finite, the weights move and stay float32."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        classifier = make_cifs()
    finally:
        keras.config.set_dtype_policy("float32")
    before = classifier.get_weights()
    trainer = make_trainer(classifier, run_eagerly=True)
    assert trainer.compute_dtype == "bfloat16"
    logs = trainer.train_on_batch(*make_data(), return_dict=True)
    assert math.isfinite(logs["loss"])
    assert {weight.dtype for weight in classifier.weights} == {"float32"}
    for first, second in zip(before, classifier.get_weights(), strict=True):
        assert np.all(np.isfinite(second))
        assert np.any(first != second)


def test_training_learns(trained):
    """The shared network was trained by `fit`: its raw predictions know digits too."""
    heads = trained.classifier(trained.images).numpy()
    accuracies = np.mean(heads.argmax(axis=-1) == trained.labels.numpy()[:, None], axis=0)
    assert np.all(accuracies > 0.8)


@pytest.mark.slow
def test_compiled_metrics_keep_their_names_and_checkpoints_hold_the_classifier(tmp_path, make_classifier, make_images):
    """A compiled `accuracy` is logged beside the trainer's own, and ModelCheckpoint writes a loadable network."""
    classifier = make_classifier()
    attack = PGD(epsilon=0.1, step_size=0.05, num_steps=1)
    method = PGDTraining(head_weights=head_weights(2, classifier.num_probes), attack=attack)
    trainer = AdversarialTrainer(classifier, method)
    trainer.compile(optimizer=SGD(0.01), metrics=["accuracy"])
    images, labels = make_images((8, 8, 8, 3)), np.arange(8, dtype=np.uint8) % 5
    callback = keras.callbacks.ModelCheckpoint(str(tmp_path / "model.keras"))
    history = trainer.fit(images, labels, batch_size=4, epochs=1, verbose=0, callbacks=[callback]).history
    assert set(history) == {"loss", "accuracy", "robust_accuracy"}
    assert history["accuracy"] == history["robust_accuracy"]
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(images), classifier(images), atol=1e-6)


def test_the_attack_may_be_made_in_another_precision():
    """Another network is attacked, with the weights of the trained one at that step; the update is float32."""
    images, labels = make_data()
    classifier, attacked = make_cifs(seed=0), make_cifs(seed=1)
    seen = []

    class Looking(PGDTraining):
        def perturb(self, classifier, images, labels, seed):
            assert classifier is attacked
            tf.numpy_function(lambda *weights: seen.append(weights), [w.value for w in classifier.weights], [])
            return super().perturb(classifier, images, labels, seed)

    method = Looking(head_weights=head_weights(2, 1), attack=ATTACK)
    trainer = AdversarialTrainer(classifier, method, attack_classifier=attacked)
    trainer.compile(optimizer=SGD(0.5))
    before = classifier.get_weights()
    trainer.fit(images, labels, batch_size=8, verbose=0)
    for weight, expected in zip(seen[0], before, strict=True):
        np.testing.assert_array_equal(weight, expected)
    assert any((a != b).any() for a, b in zip(before, classifier.get_weights(), strict=True))
    assert len(trainer.trainable_variables) == len(classifier.trainable_variables)


def test_no_number_is_no_class_0():
    """Logits that are NaN are right about nothing, and `argmax` would call every image class 0."""
    classifier = make_linear()
    trainer = make_trainer(classifier, validation_attack=ATTACK)
    classifier.set_weights([weights * np.nan for weights in classifier.get_weights()])
    images, _ = make_data()
    found = trainer.evaluate(images, np.zeros(8, np.int32), return_dict=True, verbose=0)
    assert (found["clean_accuracy"], found["robust_accuracy"]) == (0.0, 0.0)
