"""The callback that adds robust accuracy to any `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.adversarial import SGD, AdversarialTrainer, Standard
from cifs_tf.attacks import PGD
from cifs_tf.data import Split
from cifs_tf.errors import UserError
from cifs_tf.evaluation import RobustAccuracy
from cifs_tf.losses import head_weights

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), np.uint8)
IMAGES = (PIXELS / 255).astype(np.float32)
# Class 1 has a mean pixel above 1/2.
LABELS = (IMAGES.mean(axis=(1, 2, 3)) > 0.5).astype(np.int32)
ATTACK = PGD(epsilon=0.02, step_size=0.02, num_steps=1)


def mean_model(activation=None):
    """The exact classifier of `LABELS`: logits (1/2 - mean, mean - 1/2), times 50."""
    dense = keras.layers.Dense(2, activation=activation)
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), dense])
    dense.set_weights([np.tile([-50 / 16, 50 / 16], (16, 1)), np.array([25.0, -25.0])])
    model.compile(keras.optimizers.SGD(0.0), LOSS)
    return model


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_accuracies_by_hand(activation):
    """A step of epsilon moves all pixels towards the other class, within [0, 1]."""
    callback = RobustAccuracy(ATTACK, (IMAGES, LABELS), batch_size=7)
    history = mean_model(activation).fit(IMAGES, LABELS, callbacks=[callback], verbose=0, epochs=2).history
    assert history["val_natural_accuracy"] == [1.0, 1.0]
    x_adv = np.clip(IMAGES + 0.02 * np.where(LABELS, -1, 1)[:, None, None, None], 0, 1)
    robust = np.mean((x_adv.mean(axis=(1, 2, 3)) > 0.5) == LABELS)
    assert 0 < robust < 1
    assert history["val_robust_accuracy"] == pytest.approx([robust] * 2)


@pytest.mark.slow
def test_kinds_of_data_are_one():
    """Arrays, uint8, one-hot labels, a split, and batches with images of weight 0 hold the same examples."""
    weights = np.ones(20, np.float32)
    extra = [np.concatenate([array, np.zeros_like(array[:3])]) for array in (IMAGES, LABELS, weights)]
    kinds = (
        (PIXELS, np.eye(2)[LABELS]),
        (IMAGES, LABELS[:, None]),
        Split(PIXELS, LABELS),
        tf.data.Dataset.from_tensor_slices(tuple(extra)).batch(6),
    )
    found = []
    for data in kinds:
        callback = RobustAccuracy(ATTACK, data)
        found.append(mean_model().fit(IMAGES, LABELS, callbacks=[callback], verbose=0).history["val_robust_accuracy"])
    assert found == [found[0]] * 4
    assert RobustAccuracy(ATTACK, kinds[3], num_examples=5).num_examples == 5
    assert RobustAccuracy(ATTACK, (IMAGES, LABELS), num_examples=5).num_examples == 5


def test_it_is_traced_once_and_stops_early():
    traces = []

    def attack(heads_fn, images, labels, **kwargs):
        traces.append(images.shape)
        return ATTACK(heads_fn, images, labels, **kwargs)

    callbacks = [
        RobustAccuracy(attack, (IMAGES, LABELS), batch_size=8, name="robust"),
        keras.callbacks.EarlyStopping("robust", mode="max", patience=1),
    ]
    history = mean_model().fit(IMAGES, LABELS, epochs=9, callbacks=callbacks, verbose=0).history
    assert len(history["robust"]) == 2  # it does not rise, so patience ends
    assert traces == [(8, 4, 4, 1)]


@pytest.mark.slow
def test_of_a_classifier_and_its_trainer(make_classifier):
    """Both see the same network, with the weights as they are after the epoch."""
    images = np.random.default_rng(0).random((8, 8, 8, 3), np.float32)
    labels = np.arange(8, dtype=np.int32) % 5
    found = []
    for wrap in (False, True):
        classifier = make_classifier()
        model = classifier
        if wrap:
            model = AdversarialTrainer(classifier, Standard(head_weights=head_weights(2, 2)))
        model.compile(SGD(0.1), None if wrap else LOSS)
        callback = RobustAccuracy(ATTACK, (images, labels), beta=2)
        found.append(model.fit(images, labels, batch_size=8, callbacks=[callback], verbose=0).history)
        natural = np.mean(np.argmax(classifier(images)[:, 0], axis=1) == labels)
        assert found[-1]["val_natural_accuracy"] == [pytest.approx(natural)]
    assert found[0]["val_robust_accuracy"] == found[1]["val_robust_accuracy"]


def test_no_number_is_no_class_0():
    """A network whose logits are NaN is right about nothing, and `argmax` would call every image class 0."""
    model = mean_model()
    callback = RobustAccuracy(ATTACK, (IMAGES, np.zeros(20, np.int32)))
    assert callback.measure(model)["val_natural_accuracy"] > 0
    model.layers[-1].kernel.assign(model.layers[-1].kernel * np.nan)
    assert callback.measure(model) == {"val_natural_accuracy": 0.0, "val_robust_accuracy": 0.0}


def test_errors():
    with pytest.raises(UserError, match="at least one image"):
        RobustAccuracy(ATTACK, (IMAGES[:0], LABELS[:0]))
    with pytest.raises(UserError, match="pixels from 0 to 255"):
        RobustAccuracy(ATTACK, (PIXELS.astype(np.float32), LABELS))
