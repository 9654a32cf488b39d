"""Folding changes no function: the layers one by one are what the network comes to."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.layers import CIFS, BatchNormalization
from cifs_tf.models import Classifier, resnet, with_precision
from cifs_tf.models.folding import convolve_and_normalise, find_pairs


def make_backbone(**conv):
    """A convolution "conv", its normalisation "bn", and logits."""
    image = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, name="conv", **{"use_bias": False, **conv})(image)
    x = BatchNormalization(name="bn")(x)
    return keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))


def scramble(model):
    """Give every weight another value, variances positive ones."""
    generator = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(generator.uniform(0.5, 1.5, weight.shape))


def test_convolution_and_normalisation_by_hand():
    """k = 3, mean 1, variance 4 - epsilon, gamma 2, beta 5: y = (3 x - 1) / 2 * 2 + 5 = 3 x + 4."""
    conv = keras.layers.Conv2D(1, 1, use_bias=False, kernel_initializer=keras.initializers.Constant(3))
    bn = BatchNormalization()
    conv.build((None, 2, 2, 1))
    bn.build((None, 2, 2, 1))
    for weight, value in ((bn.gamma, 2), (bn.beta, 5), (bn.moving_mean, 1), (bn.moving_variance, 4 - bn.epsilon)):
        weight.assign([value])
    images = tf.reshape([0.0, 1.0, -1.0, 0.5], (1, 2, 2, 1))
    found = convolve_and_normalise(conv, bn, images)
    np.testing.assert_allclose(found.numpy().ravel(), [4, 7, 1, 5.5], rtol=1e-6)


def test_every_convolution_of_a_resnet_is_folded():
    backbone = resnet("resnet10", (8, 8, 3), 10, width=4)
    convolutions = [layer.name for layer in backbone.layers if isinstance(layer, keras.layers.Conv2D)]
    assert set(find_pairs(backbone)) == set(convolutions)


def test_outputs_and_gradients_are_those_of_the_layers_one_by_one(make_images):
    backbone = resnet("resnet10", (8, 8, 3), 10, width=4)
    classifier = with_precision(Classifier(backbone, {"stage4_block1_out": CIFS()}), "float64")
    scramble(classifier.backbone)
    images = tf.cast(make_images((2, 8, 8, 3)), tf.float64)

    def answers():
        with tf.GradientTape() as tape:
            tape.watch(images)
            heads = classifier(images, training=False)
            loss = tf.reduce_sum(heads[:, :, 0])
        return heads, tape.gradient(loss, images)

    assert classifier._folded
    folded = answers()
    classifier._folded = {}
    for found, expected in zip(folded, answers(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12 * np.abs(expected).max())


def test_training_uses_and_updates_the_statistics_of_the_batch(make_images):
    classifier = Classifier(make_backbone())
    images = make_images((4, 6, 6, 3))
    assert classifier._folded == {"conv": "bn"}
    before = classifier.backbone.get_layer("bn").moving_mean.numpy()
    outputs = classifier(images, training=True)
    expected = classifier.backbone(images, training=True)
    np.testing.assert_allclose(outputs[:, 0], expected, rtol=1e-5)
    assert (classifier.backbone.get_layer("bn").moving_mean.numpy() != before).any()


@pytest.mark.parametrize("conv", [{"use_bias": True}, {"activation": "relu"}], ids=["bias", "activation"])
def test_other_convolutions_are_left_alone(conv):
    assert find_pairs(make_backbone(**conv)) == {}


def test_a_convolution_that_somebody_else_reads_is_left_alone():
    image = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="conv")(image)
    x = keras.layers.Add()([x, BatchNormalization()(x)])
    assert find_pairs(keras.Model(image, x)) == {}


@pytest.mark.parametrize("cut", ["conv", "bn"])
def test_cuts_see_what_their_layer_makes(cut, make_images):
    """A cut at the convolution keeps its output; one at the normalisation comes after it."""
    backbone = make_backbone()
    scramble(backbone)
    classifier = Classifier(backbone, {cut: CIFS()})
    images = make_images((2, 6, 6, 3))
    assert (classifier._folded == {}) == (cut == "conv")
    features = keras.Model(backbone.input, backbone.get_layer(cut).output)(images, training=False)
    expected = classifier.cuts[cut](features)["relevance"]
    np.testing.assert_allclose(classifier.explain(images)["relevance"][cut], expected, rtol=1e-5)
