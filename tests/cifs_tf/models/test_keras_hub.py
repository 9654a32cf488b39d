"""Networks of keras-hub, random weights. It is no requirement of this project: `pip install keras-hub` first."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.layers import CIFS
from cifs_tf.models import defend

SIZE, CLASSES = (64, 64, 3), 10


def resnet(hub, **kwargs):
    return hub.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[2, 2],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=SIZE,
        **kwargs,
    )


def cspnet(hub):
    return hub.CSPNetBackbone(
        stem_filters=16,
        stem_kernel_size=3,
        stem_strides=1,
        stackwise_depth=[1, 1],
        stackwise_strides=[1, 2],
        stackwise_num_filters=[16, 32],
        image_shape=SIZE,
        block_type="dark_block",
        stage_type="dark",
    )


def transformer(hub):
    return hub.MiTBackbone(
        num_layers=2,
        layerwise_depths=[2, 2],
        image_shape=SIZE,
        hidden_dims=[8, 16],
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[8, 4],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
    )


def xception(hub):
    return hub.XceptionBackbone(
        stackwise_conv_filters=[[32, 64], [64, 128], [256, 256]],
        stackwise_pooling=[True, True, False],
        image_shape=SIZE,
    )


MODELS = {
    "classifier": (
        lambda hub: hub.ResNetImageClassifier(backbone=resnet(hub), num_classes=CLASSES),
        "stack1_block1_out",
    ),
    "resnet_v2": (lambda hub: resnet(hub, use_pre_activation=True), "post_relu"),
    "vgg": (lambda hub: hub.VGGBackbone([1, 1], [8, 16], image_shape=SIZE), "block2_pool"),
    "densenet": (lambda hub: hub.DenseNetBackbone([2, 2], growth_rate=8, image_shape=SIZE), "relu"),
    "cspnet": (cspnet, "stage_1_block_0_dark_block_add"),
    "transformer": (transformer, "output_level_1"),
    "xception": (xception, "block3_sepconv2_act"),
}


@pytest.fixture
def hub():
    return pytest.importorskip("keras_hub", reason="needs keras-hub, which is no requirement: pip install it").models


@pytest.mark.soak
@pytest.mark.parametrize("name", MODELS)
def test_features_are_the_models_own_if_importance_is_one(name, hub, make_images):
    make, cut = MODELS[name]
    model = make(hub)
    num_classes = None if name == "classifier" else CLASSES
    classifier = defend(model, {cut: CIFS(importance=tf.ones_like)}, num_classes=num_classes)
    images = make_images((2, *SIZE))
    expected = model(images, training=False)
    if name != "classifier":  # our head on its features
        expected = classifier.backbone.get_layer("logits")(keras.ops.mean(expected, axis=(1, 2)))
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = classifier(images)[:, 0]
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-5)
    assert np.any(tape.gradient(logits, images) != 0)
