"""What people hand a trainer: pixels, labels, losses and optimizers of all kinds."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.adversarial import SGD, AdversarialTrainer, PGDTraining, WeightPerturbation
from cifs_tf.attacks import PGD, example_seeds
from cifs_tf.errors import UserError
from cifs_tf.layers import CAS, CIFS
from cifs_tf.losses import head_weights
from cifs_tf.models import Classifier

CLASSES = 3
RNG = np.random.default_rng(0)
LABELS = (np.arange(24) % CLASSES).astype(np.int32)
IMAGES = RNG.random((24, 6, 6, 3), np.float32)


def make_trainer(optimizer=None, cuts=None, weight_perturbation=None, **layer):
    keras.utils.set_random_seed(0)
    image = keras.Input(IMAGES.shape[1:])
    x = keras.layers.Conv2D(4, 3, activation="relu", name="low", **layer)(image)
    logits = keras.layers.Dense(CLASSES)(keras.layers.GlobalAveragePooling2D()(x))
    attack = PGD(epsilon=0.03, step_size=0.01, num_steps=1, random_start=True)
    classifier = Classifier(keras.Model(image, logits), cuts)
    method = PGDTraining(head_weights=head_weights(2, classifier.num_probes), attack=attack)
    trainer = AdversarialTrainer(classifier, method, weight_perturbation=weight_perturbation)
    trainer.compile(optimizer=optimizer or SGD(0.05, momentum=0.9))
    return trainer


def fit(x, y=None, trainer=None, **kwargs):
    trainer = trainer or make_trainer()
    if y is not None:
        kwargs = {"batch_size": 8, **kwargs}
    return trainer.fit(x, y, epochs=1, verbose=0, **kwargs).history


class Batches(keras.utils.PyDataset):
    def __init__(self, images, labels):
        super().__init__()
        self.images, self.labels = images, labels

    def __len__(self):
        return 3

    def __getitem__(self, index):
        part = slice(8 * index, 8 * index + 8)
        return self.images[part], self.labels[part]


FORMS = {
    "arrays": lambda images, labels: {"x": images, "y": labels},
    "tensors": lambda images, labels: {"x": tf.constant(images), "y": tf.constant(labels)},
    "tf.data": lambda images, labels: {"x": tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)},
    "PyDataset": lambda images, labels: {"x": Batches(images, labels)},
    "generator": lambda images, labels: {"x": (Batches(images, labels)[i] for i in range(3)), "steps_per_epoch": 3},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        (IMAGES * 255, LABELS, "images: received float32 pixels from .*divide by 255"),
        ((IMAGES * 255).astype(np.uint8), LABELS, "images: received uint8 pixels from .*divide by 255"),
        (IMAGES * 2 - 1, LABELS, "images: received float32 pixels from -.*add 1 and divide by 2"),
        (IMAGES, LABELS + 1, "labels: received labels from 1 to 3; labels are 0 to 2"),
        (IMAGES, LABELS - 1, "labels: received labels from -1 to 1"),
        (IMAGES, LABELS + 0.7, "labels: received 0.7; labels are whole numbers"),
        (IMAGES, LABELS.astype(str), "labels: received dtype"),
        (IMAGES[:, :4], LABELS, r"images: received shape .*the network takes \(examples, 6, 6, 3\)"),
    ],
)
def test_what_is_not_meant_is_refused_in_a_sentence(form, images, labels, expected):
    with pytest.raises(UserError, match=expected):
        fit(**FORMS[form](images, labels))


@pytest.fixture(scope="module")
def expected():
    """What a step on images and labels as arrays logs."""
    return fit(IMAGES, LABELS, shuffle=False)


FEW_FORMS = ("arrays", "tf.data")


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=[] if form in FEW_FORMS else pytest.mark.slow) for form in FORMS]
)
def test_every_form_of_data_trains_alike(form, expected):
    """No batch is lost to the look at the first one."""
    kwargs = {"shuffle": False} if form in ("arrays", "tensors", "PyDataset") else {}
    assert fit(**FORMS[form](IMAGES, LABELS), **kwargs) == expected


def plain_classifier(loss=None):
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier = make_trainer(cuts={"low": CIFS()}).classifier
    classifier.compile("sgd", loss, metrics=["accuracy"])
    return classifier


WAYS = {
    "evaluate": lambda x, y: make_trainer().evaluate(x, y, verbose=0),
    "validation": lambda x, y: make_trainer().fit(IMAGES, LABELS, validation_data=(x, y), verbose=0),
    "validation batches": lambda x, y: make_trainer().fit(
        IMAGES, LABELS, validation_data=tf.data.Dataset.from_tensor_slices((x, y)).batch(8), verbose=0
    ),
    "train_on_batch": lambda x, y: make_trainer().train_on_batch(x, y),
    "plain fit": lambda x, y: plain_classifier().fit(x, y, verbose=0),
    "plain evaluate": lambda x, y: plain_classifier().evaluate(x, y, verbose=0),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_looks(way):
    for images, labels, expected in (
        (IMAGES * 255, LABELS, "images: received float32 pixels from .*divide by 255"),
        (IMAGES, LABELS - 1, "labels: received labels from -1"),
        (IMAGES, LABELS + 0.7, "labels: received 0.7"),
    ):
        with pytest.raises(UserError, match=expected):
            WAYS[way](images, labels)


@pytest.mark.parametrize("made", [plain_classifier, make_trainer])
def test_predict_looks(made):
    for images, expected in (((IMAGES * 255).astype(np.uint8), "divide by 255"), (IMAGES[:, :4], "the network takes")):
        with pytest.raises(UserError, match=expected):
            made().predict(images, verbose=0)


@pytest.mark.parametrize(
    ("labels", "expected"), [(None, "labels: received None"), (LABELS[:-1], "23 labels; give one")]
)
def test_labels_that_are_missing(labels, expected):
    with pytest.raises(UserError, match=expected):
        make_trainer().fit(IMAGES, labels, verbose=0)


@pytest.mark.parametrize("made", [plain_classifier, pytest.param(make_trainer, marks=pytest.mark.slow)])
def test_later_batches_are_refused_in_a_sentence(made):
    model = made()
    for change_images, change_labels, expected in (
        (lambda x: x, lambda y: y + 1, "labels: received 3; labels are 0 to 2|labels from 3 to 3; labels are 0 to 2"),
        (lambda x: x, lambda y: y - 1, "labels: received -1; labels are 0 to 2|labels from -1 to -1; labels are"),
        (lambda x: x, lambda y: y + 0.5, r"labels: received \d\.5; labels are whole numbers"),
        (lambda x: x * 255, lambda y: y, "images: received float32 pixels from .*divide by 255"),
        (lambda x: x * 2 - 1, lambda y: y, "images: received float32 pixels from -.*add 1 and divide by 2"),
    ):
        is_last = np.arange(24) >= 16
        labels = np.where(is_last, change_labels(LABELS), LABELS).astype(np.float32)
        images = np.where(is_last[:, None, None, None], change_images(IMAGES), IMAGES).astype(np.float32)
        for form in ("tf.data", "PyDataset", "generator") if "255" in expected else ("tf.data",):
            with pytest.raises(UserError, match=expected):
                model.fit(**FORMS[form](images, labels), verbose=0, shuffle=False)
        with pytest.raises(UserError, match=expected):
            model.evaluate(**FORMS["tf.data"](images, labels), verbose=0)


def test_later_batches_of_rows_and_of_predict():
    rows = np.eye(CLASSES, dtype=np.float32)[LABELS]
    rows[20] = 0.9 * rows[20] + 0.1 / 3
    with pytest.raises(UserError, match="labels: received rows that are not one-hot"):
        make_trainer().fit(**FORMS["tf.data"](IMAGES, rows), verbose=0)
    images = np.concatenate([IMAGES[:16], 255 * IMAGES[16:]])
    for model in (make_trainer(), plain_classifier()):
        with pytest.raises(UserError, match="divide by 255"):
            model.predict(tf.data.Dataset.from_tensor_slices(images).batch(8), verbose=0)


WEIGHTS = np.ones(24, np.float32)


@pytest.fixture(scope="module")
def a_trainer():
    return make_trainer()


def without_end():
    return tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(8).repeat()


def batches(*elements):
    return (element for element in elements)


@pytest.mark.parametrize(
    ("x", "kwargs", "expected"),
    [
        ({"image": IMAGES}, {"y": LABELS}, "images: received dict; give one array"),
        ([IMAGES, IMAGES], {"y": LABELS}, "images: received list; give one array"),
        (IMAGES, {"y": LABELS.tolist()}, "labels: received list; give one array"),
        (IMAGES[..., 0], {"y": LABELS}, r"shape \(24, 6, 6\)"),
        (IMAGES[:0], {"y": LABELS[:0]}, "no images"),
        (IMAGES.astype(object), {"y": LABELS}, "dtype object; give an array of floats"),
        (IMAGES.astype(complex), {"y": LABELS}, "dtype complex128; give an array of floats"),
        ((IMAGES > 0.5).astype(np.uint8), {"y": LABELS}, "uint8 pixels from 0 to 1; convert them to floats"),
        (tf.data.Dataset.from_tensor_slices({"image": IMAGES, "label": LABELS}).batch(8), {}, "received dict"),
        (tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(8).take(0), {}, "no batches"),
        (without_end(), {}, "steps_per_epoch: received None; the data have no end"),
        (IMAGES, {"y": LABELS, "validation_data": without_end()}, "validation_steps: received None"),
        (IMAGES, {"y": LABELS, "sample_weight": np.ones((24, 2))}, r"sample_weight: received shape \(24, 2\)"),
        (IMAGES, {"y": LABELS, "sample_weight": WEIGHTS[:5]}, "one number for each of the 24 images"),
        (IMAGES, {"y": LABELS, "sample_weight": -WEIGHTS}, "received -1.0; give numbers of 0 or more"),
        (IMAGES, {"y": LABELS, "sample_weight": WEIGHTS * np.nan}, "received nan; give numbers of 0 or more"),
        (IMAGES, {"y": LABELS, "validation_data": (IMAGES, LABELS, -WEIGHTS)}, "validation sample_weight"),
    ],
)
def test_what_fit_cannot_take_is_a_sentence(a_trainer, x, kwargs, expected):
    with pytest.raises(UserError, match=expected):
        fit(x, trainer=a_trainer, **kwargs)


def test_evaluate_and_predict_refuse_data_without_end(a_trainer):
    for use in (a_trainer.evaluate, lambda data: a_trainer.predict(data.map(lambda images, _: images))):
        with pytest.raises(UserError, match="steps: received None; the data have no end"):
            use(without_end())


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((np.zeros((8, 5, 5, 3), np.float32), LABELS[8:16]), r"batch of shape \(8, 5, 5, 3\); all must have the size"),
        ((IMAGES[8:16], LABELS[8:16], -WEIGHTS[8:16]), "sample_weight: received -1.0"),
    ],
)
def test_a_later_batch_of_another_size_or_weight_is_a_sentence(a_trainer, second, expected):
    first = (IMAGES[:8], LABELS[:8], WEIGHTS[:8])[: len(second)]
    with pytest.raises(UserError, match=expected):
        fit(batches(first, second), trainer=a_trainer, steps_per_epoch=2)


def test_examples_of_several_sizes_are_a_sentence(a_trainer):
    specs = (tf.TensorSpec((None, None, 3)), tf.TensorSpec((), tf.int32))
    data = tf.data.Dataset.from_generator(
        lambda: batches((IMAGES[0], 0), (IMAGES[0, :4], 1)), output_signature=specs
    ).batch(2)
    with pytest.raises(UserError, match="images of several sizes; bring all images to one size"):
        fit(data, trainer=a_trainer)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_said(a_trainer, odd):
    """Training skips their step, though an attack clips an infinite pixel to a finite one; all else refuses them."""
    broken = IMAGES.copy()
    broken[20, 0, 0, 0] = odd
    data = tf.data.Dataset.from_tensor_slices((broken, LABELS)).batch(8)
    with pytest.warns(UserWarning, match="1 of the steps changed nothing, because these were not finite: pixels"):
        fit(broken, LABELS, trainer=a_trainer, shuffle=False)
    for use in (a_trainer.evaluate, lambda data: a_trainer.predict(data.map(lambda images, _: images))):
        with pytest.raises(UserError, match="images: received pixels that are not finite"):
            use(data)


def test_the_plain_fit_wants_labels_as_its_loss_does():
    one_hot = np.eye(CLASSES, dtype=np.float32)[LABELS]
    with pytest.raises(UserError, match=r"give integers .*or compile CategoricalCrossentropy"):
        plain_classifier().fit(IMAGES, one_hot, verbose=0)
    categorical = keras.losses.CategoricalCrossentropy(from_logits=True)
    with pytest.raises(UserError, match=r"give one-hot rows .*or compile Sparse"):
        plain_classifier(categorical).fit(IMAGES, LABELS, verbose=0)
    plain_classifier(categorical).fit(IMAGES, 0.9 * one_hot + 0.1 / 3, verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize("selection", [CIFS, CAS])
def test_accuracy_in_training_is_the_networks_without_labels(selection):
    """Of images of noise it knows nothing, whatever the mask is told; one of 8 images is looked at."""
    trainer = make_trainer(SGD(1e-9), cuts={"low": selection()})
    trainer.compile(optimizer=SGD(1e-9), metrics=["accuracy"])
    history = trainer.fit(IMAGES, LABELS, batch_size=24, shuffle=False, verbose=0).history
    seen = slice(0, 24, 8)
    x_adv = trainer.method.perturb(
        trainer.classifier, tf.constant(IMAGES), tf.constant(LABELS), example_seeds(0, 0, tf.range(24))
    )
    expected = np.mean(trainer.classifier(x_adv[seen])[:, 0].numpy().argmax(axis=1) == LABELS[seen])
    assert history["robust_accuracy"] == history["accuracy"] == [pytest.approx(expected)]


def test_plain_fit_measures_without_labels():
    classifier = plain_classifier()
    classifier.optimizer.learning_rate = 1e-9
    found = classifier.fit(IMAGES, LABELS, batch_size=24, shuffle=False, verbose=0).history["accuracy"]
    expected = np.mean(classifier(IMAGES[::8])[:, 0].numpy().argmax(axis=1) == LABELS[::8])
    assert found == [pytest.approx(expected)]


def test_an_attack_knows_the_classes_from_the_heads():
    classifier = make_trainer().classifier
    attack = PGD(epsilon=0.03, step_size=0.01, num_steps=1, loss="cw_margin")
    for labels, expected in (
        (LABELS + 1, "labels: received labels from 1 to 3; labels are 0 to 2"),
        (LABELS[:-1], "23 labels; give one"),
        (np.eye(4)[LABELS], "one-hot rows have 3 columns"),
        (None, "labels: received dtype object"),
    ):
        with pytest.raises(UserError, match=expected):
            attack(classifier.heads_fn(), tf.constant(IMAGES), labels, head_weights=head_weights(0, 0))


@pytest.mark.slow
def test_one_hot_labels_are_the_labels(expected):
    assert fit(IMAGES, keras.utils.to_categorical(LABELS, CLASSES), shuffle=False) == expected
    assert fit(IMAGES, LABELS[:, None], shuffle=False) == expected


@pytest.mark.parametrize("kwargs", [{"loss": "mse"}, {"loss_weights": [2.0]}])
def test_the_loss_is_the_methods(kwargs):
    trainer = make_trainer()
    with pytest.raises(UserError, match=r"leave it out, PGDTraining has the loss"):
        trainer.compile(optimizer="sgd", **kwargs)


@pytest.mark.slow
def test_the_networks_own_losses_are_minimised_and_not_logged():
    """With an L2 of 1 the gradient gains 2 w, and one step of SGD at rate r moves w to w - r (g + 2 w)."""
    plain, ours = make_trainer(SGD(0.1)), make_trainer(SGD(0.1), kernel_regularizer=keras.regularizers.L2(1.0))
    start = plain.classifier.backbone.get_layer("low").kernel.numpy()
    found = [fit(IMAGES[:8], LABELS[:8], trainer) for trainer in (plain, ours)]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"])
    kernels = [trainer.classifier.backbone.get_layer("low").kernel.numpy() for trainer in (plain, ours)]
    np.testing.assert_allclose(kernels[1], kernels[0] - 0.1 * 2 * start, atol=1e-6)


OPTIMIZERS = {
    "ours": lambda: SGD(0.05, momentum=0.9),
    "ours, averaged": lambda: SGD(0.05, momentum=0.9, use_ema=True, ema_overwrite_frequency=2),
    "ours, accumulated": lambda: SGD(0.05, momentum=0.9, gradient_accumulation_steps=2),
    "adam": lambda: keras.optimizers.Adam(use_ema=True, clipvalue=0.1),
    "adamw": lambda: keras.optimizers.AdamW(weight_decay=0.1, global_clipnorm=1.0, gradient_accumulation_steps=2),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
}


SKIPPING = [*((name, False) for name in OPTIMIZERS), ("ours", True), ("adam", True)]
QUICK = [("ours", False), ("adamw", False), ("adam", True)]


@pytest.mark.parametrize(
    ("optimizer", "awp"), [pytest.param(*way, marks=[] if way in QUICK else pytest.mark.slow) for way in SKIPPING]
)
def test_a_step_that_is_not_finite_changes_nothing(optimizer, awp):
    """Neither a weight nor what the optimizer keeps, with any optimizer; the steps around it count."""
    images = IMAGES.copy()
    images[9] = np.nan
    trainer = make_trainer(OPTIMIZERS[optimizer](), weight_perturbation=WeightPerturbation() if awp else None)

    def state():
        counts = ("iteration", "step_counter", "dynamic_scale")
        kept = [variable for variable in trainer.optimizer.variables if variable.name not in counts]
        return [variable.numpy() for variable in (*trainer.classifier.weights, *kept)]

    fit(images[:8], LABELS[:8], trainer)
    before = state()
    history = fit(images[8:16], LABELS[8:16], trainer)
    for old, new in zip(before, state(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert trainer.skipped_steps == 1
    assert np.isnan([history["loss"], history["robust_accuracy"]]).all()
    assert np.isfinite(fit(images[16:], LABELS[16:], trainer)["loss"]).all()


@pytest.mark.slow
def test_examples_of_weight_0_count_in_no_accuracy():
    weights = np.ones(24, np.float32)
    weights[12:] = 0
    wrong = np.where(weights > 0, LABELS, (LABELS + 1) % CLASSES)
    found = [
        make_trainer().fit(IMAGES, labels, sample_weight=weights, batch_size=24, verbose=0).history
        for labels in (LABELS, wrong)
    ]
    assert found[0]["robust_accuracy"] == found[1]["robust_accuracy"]


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        (IMAGES * 255, LABELS, "divide by 255"),
        (IMAGES * 2 - 1, LABELS, "add 1 and divide by 2"),
        (IMAGES, LABELS - 1, "labels from -1"),
        (IMAGES, LABELS + 0.5, "whole numbers"),
    ],
)
def test_an_attack_called_by_hand_looks_too(images, labels, expected):
    classifier = make_trainer().classifier
    attack = PGD(epsilon=0.03, step_size=0.01, num_steps=1)
    with pytest.raises(UserError, match=expected):
        attack(classifier.heads_fn(), tf.constant(images), tf.constant(labels), head_weights=head_weights(0, 0))


def test_an_attack_called_by_hand_takes_arrays_lists_and_one_hot_labels():
    classifier = make_trainer().classifier
    attack = PGD(epsilon=0.03, step_size=0.01, num_steps=1)
    expected, *found = (
        attack(classifier.heads_fn(), images, labels, head_weights=head_weights(0, 0)).numpy()
        for images, labels in (
            (tf.constant(IMAGES), tf.constant(LABELS)),
            (tf.constant(IMAGES), keras.utils.to_categorical(LABELS, CLASSES)),
            (IMAGES.astype(np.float64), LABELS),
            (IMAGES.tolist(), LABELS.tolist()),
        )
    )
    for each in found:
        np.testing.assert_array_equal(each, expected)


@pytest.mark.parametrize("images", [{"image": IMAGES}, "photograph.png", None])
def test_an_attack_called_by_hand_refuses_what_is_no_image(images):
    with pytest.raises(UserError, match="images: received"):
        PGD(epsilon=0.03, step_size=0.01, num_steps=1)(None, images, LABELS, head_weights=head_weights(0, 0))
