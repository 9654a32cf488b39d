"""A classifier as any Keras model: compile, fit, evaluate, predict, export."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import cifs_tf
from cifs_tf.adversarial import SGD, AdversarialTrainer, Standard
from cifs_tf.data import Split
from cifs_tf.errors import UserError
from cifs_tf.evaluation import as_attacked, make_suite
from cifs_tf.losses import contract, cross_entropy, head_weights
from cifs_tf.models import with_precision

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def data(make_images):
    return make_images((12, 8, 8, 3)).numpy(), np.arange(12) % 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "defense", ["cifs", *(pytest.param(name, marks=pytest.mark.soak) for name in ("vanilla", "cas"))]
)
def test_fit_is_standard_training_with_eq_3(make_classifier, data, defense):
    """The trainer's own method on natural images makes the same step."""
    images, labels = data
    classifier = make_classifier(defense=defense)
    other = with_precision(classifier)
    classifier.compile(SGD(0.1), LOSS, metrics=["accuracy"])
    trainer = AdversarialTrainer(other, Standard(head_weights=head_weights(2, other.num_probes)))
    trainer.compile(SGD(0.1))
    kwargs = {"batch_size": 6, "shuffle": False, "verbose": 0, "epochs": 2}
    found, expected = (model.fit(images, labels, **kwargs).history for model in (classifier, trainer))
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-4)
    for mine, theirs in zip(classifier.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_one_hot_labels_and_sample_weights(make_classifier, data):
    """One-hot labels make the step of class numbers; an image of weight 0 is not trained on."""
    images, labels = data
    weights = np.array([1.0] * 6 + [0.0] * 6)
    results = []
    for loss, targets in ((LOSS, labels), (keras.losses.CategoricalCrossentropy(from_logits=True), np.eye(5)[labels])):
        classifier = make_classifier()
        classifier.compile(SGD(0.1), loss)
        classifier.fit(images, targets, sample_weight=weights, batch_size=12, verbose=0)
        results.append(classifier.get_weights())
    for first, second in zip(*results, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-6)


def test_evaluate_and_predict(make_classifier, data):
    images, labels = data
    classifier = make_classifier()
    classifier.beta = 1.0
    classifier.compile(loss=LOSS, metrics=["accuracy"])
    heads = classifier.predict(images, batch_size=5, verbose=0)
    np.testing.assert_allclose(heads, classifier(images), rtol=1e-4, atol=1e-5)
    loss, accuracy = classifier.evaluate(images, labels, verbose=0)
    expected = contract(cross_entropy(tf.constant(heads), tf.constant(labels)), head_weights(1, 2))
    assert loss == pytest.approx(float(tf.reduce_mean(expected)), rel=1e-4)
    assert accuracy == pytest.approx(np.mean(heads[:, 0].argmax(axis=1) == labels))


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", keras.losses.SparseCategoricalCrossentropy()])
def test_a_loss_of_probabilities_is_refused(make_classifier, data, loss):
    classifier = make_classifier()
    classifier.compile("adam", loss)
    with pytest.raises(UserError, match="the heads are logits"):
        classifier.fit(*data, verbose=0)


def test_logits_model_is_a_keras_model(make_classifier, data, tmp_path):
    images, labels = data
    classifier = make_classifier()
    model = classifier.logits_model()
    logits = classifier(images)[:, 0].numpy()
    np.testing.assert_allclose(model.predict(images, verbose=0), logits, rtol=1e-4, atol=1e-5)
    assert {id(weight) for weight in model.weights} == {id(weight) for weight in classifier.weights}
    model.compile(loss=LOSS, metrics=["accuracy"])
    assert model.evaluate(images, labels, verbose=0)[-1] == pytest.approx(np.mean(logits.argmax(axis=1) == labels))
    model.save(tmp_path / "logits.keras")
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "logits.keras")(images), logits, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_logits_model_is_evaluated(make_classifier):
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    split = Split(images, np.arange(8, dtype=np.int32) % 5)
    victim = as_attacked(make_classifier().logits_model())
    report = cifs_tf.evaluate(victim, split, make_suite("apgd", victim, 0.01, audit=False))
    assert report["num_examples"] == 8


@pytest.mark.slow
def test_export_as_keras_does(make_classifier, data, tmp_path):
    images, _ = data
    classifier = make_classifier()
    expected = tf.nn.softmax(classifier(images)[:, 0])
    classifier.export(tmp_path / "saved_model")
    loaded = tf.saved_model.load(str(tmp_path / "saved_model"))
    for answers in (loaded.serve(images), loaded.signatures["serving_default"](image=tf.constant(images))):
        np.testing.assert_allclose(answers["probabilities"], expected, rtol=1e-4, atol=1e-6)
    assert {"explain", "heads_full", "serve"} <= set(loaded.signatures)

    onnxruntime = pytest.importorskip("onnxruntime")
    classifier.export(str(tmp_path / "model.onnx"), format="onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    np.testing.assert_allclose(session.run(["probabilities"], {"image": images})[0], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="format"):
        classifier.export(tmp_path / "x", format="unknown")
