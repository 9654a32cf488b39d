"""Residual networks: sizes, counts, padding, shortcuts."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.models import resnet
from cifs_tf.models.blocks import apply_conv
from cifs_tf.models.resnets import BLOCKS_PER_STAGE


def torch_count(blocks, width, channels, classes):
    """Parameters and buffers of a CIFAR ResNet, counted by its definition.

    Convolutions have no bias; batch normalisation has 4 vectors (2 trained, 2 running); a block whose stride or width
    changes has a 1x1 convolution and a batch normalisation on its shortcut.
    """
    total, before = channels * width * 9 + 4 * width, width
    for stage, num_blocks in enumerate(blocks):
        filters = width * 2**stage
        for block in range(num_blocks):
            total += before * filters * 9 + filters * filters * 9 + 8 * filters
            if before != filters or (stage > 0 and block == 0):
                total += before * filters + 4 * filters
            before = filters
    return total + before * classes + classes


def test_full_size_resnet18_has_the_published_count():
    """11,173,962 trained parameters (kuangliu/pytorch-cifar) and 2 running values for each of 4,800 channels."""
    assert torch_count((2, 2, 2, 2), 64, 3, 10) == 11_173_962 + 2 * 4_800


@pytest.mark.parametrize(
    ("arch", "width", "channels", "classes"), [("resnet10", 4, 3, 5), ("resnet18", 6, 1, 2), ("resnet34", 1, 3, 5)]
)
def test_parameter_count(arch, width, channels, classes):
    model = resnet(arch, (8, 8, channels), classes, width=width)
    assert model.count_params() == torch_count(BLOCKS_PER_STAGE[arch], width, channels, classes)


@pytest.mark.parametrize(
    ("image_shape", "sides"),
    [
        ((32, 32, 3), [(32, 32), (16, 16), (8, 8), (4, 4)]),
        ((28, 28, 1), [(28, 28), (14, 14), (7, 7), (4, 4)]),  # PyTorch: floor((7 + 2 - 3) / 2) + 1 = 4
        ((8, 12, 3), [(8, 12), (4, 6), (2, 3), (1, 2)]),
    ],
)
def test_stages_halve_the_sides_and_double_the_channels(image_shape, sides):
    model = resnet("resnet10", image_shape, 5, width=4)
    for stage, side in enumerate(sides, start=1):
        assert model.get_layer(f"stage{stage}_block1_out").output.shape == (None, *side, 4 * 2 ** (stage - 1))
    assert model.output_shape == (None, 5)


def test_strided_convolution_is_padded_on_both_sides():
    """A 3x3 kernel with a one in its centre picks pixels 0, 2, 4, ... as PyTorch's padding=1 does, on any side."""
    for side in (6, 7):
        image = tf.reshape(tf.range(side * side, dtype=tf.float32), (1, side, side, 1))
        inputs = keras.Input((side, side, 1))
        model = keras.Model(inputs, apply_conv(inputs, 1, 3, strides=2, name="conv"))
        kernel = np.zeros((3, 3, 1, 1), np.float32)
        kernel[1, 1] = 1
        model.set_weights([kernel])
        np.testing.assert_array_equal(model(image), image[:, ::2, ::2])


def test_block_adds_its_shortcut():
    """With gamma of the second batch normalisation at 0 the residual is 0: relu(x + 0) = x, x being behind a ReLU."""
    model = resnet("resnet10", (8, 8, 3), 5, width=4)
    model.get_layer("stage1_block1_bn2").gamma.assign(np.zeros(4))
    parts = keras.Model(model.inputs, [model.get_layer(name).output for name in ("stem_out", "stage1_block1_out")])
    stem, out = parts(np.random.default_rng(0).random((2, 8, 8, 3), np.float32))
    assert np.any(stem)
    np.testing.assert_array_equal(out, stem)


def test_silu_takes_the_place_of_every_relu():
    model = resnet("resnet10", (8, 8, 3), 5, width=4, activation="silu")
    assert not [layer.name for layer in model.layers if isinstance(layer, keras.layers.ReLU)]
    parts = keras.Model(model.inputs, [model.get_layer(name).output for name in ("stem_bn", "stem_out")])
    before, after = parts(np.random.default_rng(0).random((2, 8, 8, 3), np.float32))
    np.testing.assert_allclose(after, before / (1 + np.exp(-before)), rtol=1e-5, atol=1e-6)


def test_logits_are_a_dense_layer_on_the_spatial_mean():
    model = resnet("resnet10", (16, 16, 3), 5, width=4)
    kernel, bias = model.get_layer("logits").get_weights()
    parts = keras.Model(model.inputs, [model.get_layer("stage4_block1_out").output, model.output])
    features, logits = parts(np.random.default_rng(0).random((2, 16, 16, 3), np.float32))
    expected = np.mean(features, axis=(1, 2)) @ kernel + bias
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)


def test_cut_places_end_in_a_relu():
    model = resnet("resnet10", (8, 8, 3), 5, width=4)
    for stage in (1, 2, 3, 4):
        assert isinstance(model.get_layer(f"stage{stage}_block1_out"), keras.layers.ReLU)


GRADIENTS = """
import sys, keras, numpy as np, tensorflow as tf
from cifs_tf.models import resnet
keras.utils.set_random_seed(0)
model = resnet("resnet10", (8, 8, 1), 10, width=4)
images, labels = np.random.default_rng(0).random((16, 8, 8, 1), "float32"), np.arange(16) % 10

@tf.function
def gradients():
    with tf.GradientTape() as tape:
        logits = model(images, training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    return tape.gradient(loss, model.trainable_variables)

np.save(sys.argv[1], [np.concatenate([g.numpy().ravel() for g in gradients()]) for _ in range(30)])
"""


@pytest.mark.slow
def test_gradients_are_right_and_repeat_with_and_without_onednn(tmp_path):
    """oneDNN's strided 1x1 convolution of few channels has wrong weight gradients, others each time (oneDNN #6035)."""
    gradients = []
    for onednn in "01":
        file = tmp_path / f"{onednn}.npy"
        environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": onednn}
        subprocess.run([sys.executable, "-c", GRADIENTS, str(file)], env=environment, check=True)
        gradients.append(np.load(file))
    for repeated in gradients:
        np.testing.assert_array_equal(repeated, np.broadcast_to(repeated[0], repeated.shape))
    without, with_onednn = gradients[0][0], gradients[1][0]
    np.testing.assert_allclose(with_onednn, without, atol=1e-4 * np.abs(without).max())
