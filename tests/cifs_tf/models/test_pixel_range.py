"""`defend` finds what a network does to pixels first, wherever that stands, and which pixels it is made for."""

import keras
import numpy as np
import pytest

from cifs_tf.errors import UserError
from cifs_tf.models import defend

LAYERS = keras.layers
SHAPE = (16, 16, 3)


def network(*before, shape=SHAPE):
    image = keras.Input(shape)
    x = image
    for each in before:
        x = each(x)
    x = LAYERS.Conv2D(4, 3, activation="relu", name="low")(x)
    return keras.Model(image, LAYERS.Dense(3)(LAYERS.GlobalAveragePooling2D()(x)))


def adapted(layer, low, high):
    """Statistics of pixels from `low` to `high`."""
    layer.adapt(np.random.default_rng(0).uniform(low, high, (64, *SHAPE)).astype(np.float32))
    return layer


def preprocess(name):
    return getattr(keras.applications, name).preprocess_input


def batch_normalisation(mean, variance):
    layer = LAYERS.BatchNormalization()
    layer.build((None, *SHAPE))
    layer.moving_mean.assign([mean] * 3)
    layer.moving_variance.assign([variance] * 3)
    return layer


FOR_255 = {
    "first": lambda: [LAYERS.Rescaling(1 / 255)],
    "behind augmentation": lambda: [LAYERS.RandomFlip(), LAYERS.RandomRotation(0.1), LAYERS.Rescaling(1 / 255)],
    "behind resizing": lambda: [LAYERS.Resizing(8, 8), LAYERS.Rescaling(1 / 127.5, -1)],
    "behind padding and cropping": lambda: [
        LAYERS.ZeroPadding2D(2),
        LAYERS.RandomCrop(16, 16),
        LAYERS.Rescaling(1 / 255),
    ],
    "in a Sequential": lambda: [keras.Sequential([keras.Input(SHAPE), LAYERS.RandomFlip(), LAYERS.Rescaling(1 / 255)])],
    "Lambda": lambda: [LAYERS.Lambda(lambda x: x / 255)],
    "an operator": lambda: [lambda x: x / 255.0],
    "operators": lambda: [lambda x: x * (1 / 127.5) - 1.0],
    "keras.ops": lambda: [lambda x: keras.ops.divide(keras.ops.cast(x, "float32"), 255)],
    "preprocess_input, tf": lambda: [preprocess("mobilenet_v2")],
    "preprocess_input, torch": lambda: [preprocess("densenet")],
    "preprocess_input, caffe": lambda: [preprocess("vgg16")],
    "Normalization": lambda: [adapted(LAYERS.Normalization(), 0, 255)],
    "Normalization of all": lambda: [adapted(LAYERS.Normalization(axis=None), 0, 255)],
    "BatchNormalization": lambda: [batch_normalisation(120.0, 60.0**2)],
}


@pytest.mark.parametrize("kind", FOR_255)
def test_networks_for_0_to_255(kind):
    model = network(*FOR_255[kind]())
    with pytest.raises(UserError, match=r"preprocessing: received None; .* pixels of 0 to 255, .*give 'raw', or \[\]"):
        defend(model)
    defend(model, preprocessing="raw")
    defend(model, preprocessing=[])


@pytest.mark.parametrize("before", [LAYERS.Rescaling(0.5, 0.5), lambda x: (x + 1) * 127.5])
def test_networks_for_minus_1_to_1(before):
    model = network(before)
    with pytest.raises(UserError, match=r"pixels of -1 to 1, .*give 'tf'"):
        defend(model)
    defend(model, preprocessing="tf")


@pytest.mark.parametrize("preprocessing", ["tf", "torch"])
def test_a_name_that_does_not_fit_is_refused_too(preprocessing):
    with pytest.raises(UserError, match=rf"received {preprocessing}; .* pixels of 0 to 255"):
        defend(network(LAYERS.Rescaling(1 / 255)), preprocessing=preprocessing)


@pytest.mark.parametrize(
    "before",
    [
        [],
        [LAYERS.Rescaling(2.0, -1.0)],
        [LAYERS.Rescaling(255.0)],
        [lambda x: x - 0.5],
        [LAYERS.Lambda(lambda x: (x - 0.45) / 0.22)],
        [LAYERS.RandomFlip(), LAYERS.ZeroPadding2D(1)],
        [LAYERS.BatchNormalization()],
    ],
)
def test_networks_for_0_to_1(before):
    defend(network(*before))


def test_statistics_of_0_to_1():
    defend(network(adapted(LAYERS.Normalization(), 0, 1)))
