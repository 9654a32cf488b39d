"""Wide residual networks: sizes, counts, pre-activation."""

import keras
import numpy as np
import pytest

from cifs_tf.models import wide_resnet


def torch_count(blocks, factor, width, channels, classes):
    """Parameters and buffers of a WideResNet, counted by its definition.

    A block normalises its input and its middle (4 vectors each), has two 3x3 convolutions without bias, and a 1x1
    convolution on the shortcut where the width changes; one batch normalisation and a dense layer follow.
    """
    total, before = channels * width * 9, width
    for stage in range(3):
        filters = width * factor * 2**stage
        for _ in range(blocks):
            total += 4 * before + 4 * filters + before * filters * 9 + filters * filters * 9
            total += before * filters if before != filters else 0
            before = filters
    return total + 4 * before + before * classes + classes


def test_full_size_wrn_28_10_has_the_published_count():
    """36,479,194 trained parameters (in the paper 36.5M) and 2 running values for each of 8,976 channels."""
    assert torch_count(4, 10, 16, 3, 10) == 36_479_194 + 2 * 8_976


@pytest.mark.parametrize(("arch", "blocks"), [("wrn28-10", 4), ("wrn34-10", 5)])
def test_parameter_count_and_sides(arch, blocks):
    model = wide_resnet(arch, (8, 12, 1), 5, width=1)
    assert model.count_params() == torch_count(blocks, 10, 1, 1, 5)
    sides = {1: (8, 12, 10), 2: (4, 6, 20), 3: (2, 3, 40)}
    for stage, shape in sides.items():
        assert model.get_layer(f"stage{stage}_block{blocks}_out").output.shape == (None, *shape)
    assert model.get_layer("final_out").output.shape == (None, 2, 3, 40)
    assert model.output_shape == (None, 5)


def test_identity_shortcut_starts_before_the_activation():
    """With the second convolution at 0, block 2 of a stage gives back its very input, negative values included."""
    model = wide_resnet("wrn28-10", (8, 8, 3), 5, width=1)
    model.get_layer("stage1_block2_conv2").kernel.assign(np.zeros((3, 3, 10, 10)))
    names = ("stage1_block1_out", "stage1_block2_out")
    parts = keras.Model(model.inputs, [model.get_layer(name).output for name in names])
    before, after = parts(np.random.default_rng(0).random((2, 8, 8, 3), np.float32))
    assert np.any(before.numpy() < 0)
    np.testing.assert_array_equal(after, before)


def test_projected_shortcut_starts_behind_the_activation():
    """With the second convolution at 0, block 1 of stage 2 gives the 1x1, stride 2 convolution of relu(bn(x))."""
    model = wide_resnet("wrn28-10", (8, 8, 3), 5, width=1)
    model.get_layer("stage2_block1_conv2").kernel.assign(np.zeros((3, 3, 20, 20)))
    kernel = model.get_layer("stage2_block1_shortcut_conv").kernel.numpy()[0, 0]
    names = ("stage2_block1_relu1", "stage2_block1_out")
    parts = keras.Model(model.inputs, [model.get_layer(name).output for name in names])
    activated, after = parts(np.random.default_rng(0).random((2, 8, 8, 3), np.float32))
    np.testing.assert_allclose(after, activated.numpy()[:, ::2, ::2] @ kernel, rtol=1e-4, atol=1e-6)
