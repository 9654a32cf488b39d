"""What a network in training looks at in every batch, however Keras runs its steps; its metrics and its pixels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.adversarial import AdversarialTrainer, Standard
from cifs_tf.errors import UserError
from cifs_tf.losses import head_weights
from cifs_tf.models import Classifier, defend
from cifs_tf.models.metric_labels import labels_for

CLASSES = 3
LABELS = (np.arange(24) % CLASSES).astype(np.int32)
ROWS = np.eye(CLASSES, dtype=np.float32)[LABELS]
# The mean of channel k is greatest in class k.
IMAGES = 0.3 * np.random.default_rng(0).random((24, 4, 4, CLASSES), np.float32)
IMAGES += 0.6 * ROWS[:, None, None]
FIRST = np.arange(24) < 8
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def backbone(begin=lambda image: image, shape=(4, 4, CLASSES)):
    """Right for every image: logits are 100 times the means of the channels."""
    image = keras.Input(shape)
    mean = keras.layers.GlobalAveragePooling2D()(begin(image))
    kernel = keras.initializers.Constant(100 * np.eye(shape[-1], CLASSES))
    return keras.Model(image, keras.layers.Dense(CLASSES, kernel_initializer=kernel)(mean))


def trainer(model=None, **options):
    classifier = model if isinstance(model, Classifier) else Classifier(model or backbone())
    made = AdversarialTrainer(classifier, Standard(head_weights=head_weights(0, 0)))
    made.compile(optimizer=keras.optimizers.SGD(0.0), **options)
    return made


def plain(loss=CROSS_ENTROPY, **options):
    classifier = Classifier(backbone())
    classifier.compile(keras.optimizers.SGD(0.0), loss, **options)
    return classifier


def later(images, labels=LABELS):
    """Batches of 8, of which the first one is as it should be."""
    images = np.where(FIRST[:, None, None, None], IMAGES, images).astype(np.float32)
    labels = labels if labels.ndim > 1 else np.where(FIRST, LABELS, labels)
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)


WRONG = {
    "-1 to 1": (later(2 * IMAGES - 1), "add 1 and divide by 2"),
    "divided twice": (later(IMAGES / 255), "multiply by 255, they seem divided twice"),
    "labels": (later(IMAGES, LABELS + 7), r"labels: received (labels from )?\d+"),
    "rows": (later(IMAGES, np.where(FIRST[:, None], ROWS, 0.5)), "rows that are not one-hot"),
}


@pytest.mark.parametrize(
    "options", [{}, {"run_eagerly": True}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)], ids=str
)
def test_later_batches_are_looked_at_however_a_step_runs(options):
    """XLA drops assertions, and Keras switches it on for one GPU."""
    made = trainer(**options)
    for use in (made.fit, made.evaluate):
        for data, expected in WRONG.values():
            with pytest.raises(UserError, match=expected):
                use(data, verbose=0)
    with pytest.raises(UserError, match="add 1 and divide by 2"):
        made.predict(WRONG["-1 to 1"][0].map(lambda images, _: images), verbose=0)


@pytest.mark.soak
def test_steps_under_xla_take_what_others_take():
    made = plain(jit_compile=True, steps_per_execution=2)
    assert np.isfinite(made.fit(later(IMAGES), verbose=0).history["loss"]).all()
    with pytest.raises(UserError, match="add 1 and divide by 2"):
        made.fit(WRONG["-1 to 1"][0], verbose=0)
    with pytest.raises(UserError, match="divided twice"):
        made.train_on_batch(IMAGES / 255, LABELS)


def test_nearly_black_images_are_no_images_divided_twice():
    dark = np.where(IMAGES > 0.8, np.float32(1 / 255), 0)
    assert dark.max() > 0
    trainer().evaluate(later(dark), verbose=0)


@pytest.fixture(scope="module")
def a_trainer():
    made = trainer()
    made.train_on_batch(IMAGES[:8], LABELS[:8])
    return made


@pytest.mark.parametrize("way", ["train_on_batch", "test_on_batch"])
@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        (IMAGES, ROWS[:, :2], r"labels: received shape \(\d+, 2\); one-hot rows have 3 columns"),
        (IMAGES / 255, LABELS, "divided twice"),
        (IMAGES, LABELS + 1, "labels: received"),
    ],
)
def test_later_single_steps(a_trainer, way, images, labels, expected):
    with pytest.raises(UserError, match=expected):
        getattr(a_trainer, way)(images, labels)


@pytest.mark.parametrize(
    ("way", "options", "expected"),
    [
        ("fit", {"validation_split": 2.0}, "validation_split: received 2.0; give a share of the images"),
        ("fit", {"class_weight": {0: 1.0, 7: 2.0}}, r"class_weight: received \[7\]; give numbers of classes, 0 to 2"),
        ("fit", {"class_weight": [1, 1, 1]}, r"class_weight: received \[1, 1, 1\]"),
        ("fit", {"class_weight": {0: -1.0}}, "class_weight: received -1.0; give numbers of 0 or more"),
        ("evaluate", {"sample_weight": np.ones(7)}, "sample_weight: received shape .*each of the 24 images"),
        ("evaluate", {"sample_weight": -np.ones(24)}, "sample_weight: received -1.0"),
    ],
)
def test_options_of_fit_and_evaluate(a_trainer, way, options, expected):
    with pytest.raises(UserError, match=expected):
        getattr(a_trainer, way)(IMAGES, LABELS, verbose=0, **options)


METRICS = keras.metrics


@pytest.mark.parametrize("labels", [LABELS, LABELS[:, None], ROWS], ids=["numbers", "column", "rows"])
@pytest.mark.parametrize(
    ("metric", "right"),
    [
        (METRICS.CategoricalAccuracy(), 1.0),
        (METRICS.SparseCategoricalAccuracy(), 1.0),
        (METRICS.MeanMetricWrapper(METRICS.categorical_accuracy), 1.0),
        (METRICS.TopKCategoricalAccuracy(), 1.0),
        (METRICS.F1Score(average="macro"), 1.0),
        (METRICS.Precision(top_k=1), 1.0),
        (METRICS.AUC(from_logits=True), 1.0),
        (METRICS.MeanIoU(CLASSES, sparse_y_pred=False), 1.0),
        (METRICS.CategoricalCrossentropy(from_logits=True), 0.0),
        (METRICS.MeanMetricWrapper(keras.losses.SparseCategoricalCrossentropy(from_logits=True)), 0.0),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_metrics_read_labels_in_their_own_form(metric, right, labels):
    """Logits that are right for every image, by far."""
    read = metric._fn if type(metric) is METRICS.MeanMetricWrapper else metric
    metric.reset_state()
    metric.update_state(labels_for(read, tf.constant(labels), CLASSES), tf.constant(100 * ROWS))
    assert float(metric.result()) == pytest.approx(right, abs=1e-3)


@pytest.mark.slow
def test_metrics_of_the_trainer():
    """The network is right for every image; "accuracy" is what the labels make it."""
    made = trainer(metrics=["accuracy", "CategoricalAccuracy"], weighted_metrics=["sparse_categorical_accuracy"])
    found = [made.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)]
    found.append(made.evaluate(IMAGES, ROWS, verbose=0, return_dict=True))
    found.append({name: value[-1] for name, value in made.fit(IMAGES, ROWS, verbose=0).history.items()})
    for each in found:
        assert each.pop("loss") == pytest.approx(0, abs=1e-3)
        assert len(each) == 4
        assert set(each.values()) == {1.0}


def test_metrics_of_plain_fit():
    made = plain(metrics=["CategoricalAccuracy", "accuracy", METRICS.SparseCategoricalCrossentropy(from_logits=True)])
    found = made.evaluate(IMAGES, LABELS, verbose=0)
    assert found == [pytest.approx(0, abs=1e-3), 1.0, 1.0, pytest.approx(0, abs=1e-3)]


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (METRICS.Precision(), "Precision"),
        (METRICS.AUC(), "AUC"),
        (METRICS.MeanSquaredError(), "MeanSquaredError"),
        (METRICS.F1Score(threshold=0.5), "F1Score"),
        (METRICS.sparse_categorical_crossentropy, "SparseCategoricalCrossentropy"),
        (METRICS.BinaryAccuracy(), "BinaryAccuracy"),
        (METRICS.MeanIoU(CLASSES), "MeanIoU"),
    ],
)
def test_metrics_that_would_misread_logits_are_refused(metric, name):
    with pytest.raises(UserError, match=f"metrics: received {name}; it does not read logits"):
        labels_for(metric, tf.constant(LABELS), CLASSES)


@pytest.mark.parametrize(
    ("metric", "expected"), [("mse", "MeanSquaredError; it does not read logits"), ("ce", ".*give metrics of Keras")]
)
def test_metrics_are_refused_in_the_first_step(metric, expected):
    with pytest.raises(UserError, match=f"metrics: received {expected}"):
        trainer(metrics=[metric]).evaluate(IMAGES, LABELS, verbose=0)


def test_metrics_of_ones_own_get_labels_as_they_are():
    def is_row(labels, logits):
        return tf.cast(tf.fill(tf.shape(logits)[:1], len(labels.shape) == 2), tf.float32)

    made = trainer(metrics=[is_row])
    for labels, expected in ((LABELS, 0.0), (ROWS, 1.0)):
        assert made.evaluate(IMAGES, labels, verbose=0, return_dict=True)["is_row"] == expected


@pytest.mark.parametrize("begin", [keras.layers.Rescaling(1 / 255), lambda image: image / 255.0])
def test_a_network_made_for_other_pixels_is_refused_wherever_it_comes_from(begin):
    network = backbone(begin)
    expected = r"the model begins with .* made for pixels of 0 to 255.*defend\(model, preprocessing='raw'\), or \[\] if"
    classifier = Classifier(network)
    classifier.compile("sgd", CROSS_ENTROPY)
    for way in (trainer(network).fit, trainer(network).train_on_batch, classifier.fit, classifier.evaluate):
        with pytest.raises(UserError, match=expected):
            way(IMAGES, LABELS)
    with pytest.raises(UserError, match=expected):
        classifier.predict(IMAGES)


@pytest.mark.parametrize("preprocessing", ["raw", []])
def test_a_network_made_for_other_pixels_is_taken_knowingly(preprocessing):
    network = defend(backbone(keras.layers.Rescaling(1 / 255)), preprocessing=preprocessing)
    network.predict(IMAGES, verbose=0)


def test_a_network_that_brings_its_images_to_its_own_range_is_taken():
    Classifier(backbone(keras.layers.Rescaling(2.0, -1.0))).predict(IMAGES, verbose=0)
