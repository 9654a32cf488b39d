"""Residual networks (He et al. 2016): four stages of basic blocks, behind the stem for CIFAR or that for ImageNet."""

import keras

from cifs_tf.models.blocks import apply_activation, apply_bn, apply_conv, apply_head

BLOCKS_PER_STAGE = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


def resnet(
    arch: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    width: int = 64,
    stem: str = "3x3",
    activation: str = "relu",
) -> keras.Model:
    """Build a ResNet-10, -18 or -34 backbone.

    Args:
        arch: `"resnet10"`, `"resnet18"` or `"resnet34"`.
        image_shape: (height, width, channels), sides of at least 8 pixels; images in [0, 1], not normalised.
        num_classes: number of classes, >= 2.
        width: channels of the first stage; the stages have width times 1, 2, 4, 8. Default 64.
        stem: `"3x3"` (default), or `"7x7"`, of stride 2, with a max-pooling of stride 2 behind it.
        activation: `"relu"` (default), or `"silu"`, x sigmoid(x), which is smooth.

    Returns:
        functional model, images -> logits. Block b of stage s ends in the layer `stage{s}_block{b}_out`; these are
        the places to cut.

    Example:
        >>> resnet("resnet18", (32, 32, 3), 10).count_params()
        11183562
    """
    images = keras.Input(image_shape, name="image")
    kernel_size, strides = (3, 1) if stem == "3x3" else (7, 2)
    x = apply_conv(images, width, kernel_size, strides, name="stem_conv")
    x = apply_activation(apply_bn(x, name="stem_bn"), activation, name="stem_out")
    if stem == "7x7":
        # As PyTorch pads; zeros are the least that comes out of a ReLU, and nearly so out of SiLU (-0.28).
        x = keras.layers.ZeroPadding2D(1, name="stem_pad")(x)
        x = keras.layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    for stage, num_blocks in enumerate(BLOCKS_PER_STAGE[arch], start=1):
        for block in range(1, num_blocks + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = apply_basic_block(x, width * 2 ** (stage - 1), strides, activation, name=f"stage{stage}_block{block}")
    return keras.Model(images, apply_head(x, num_classes), name=arch)


def apply_basic_block(x, filters: int, strides: int, activation: str = "relu", *, name: str):
    """Apply two 3x3 convolutions and a shortcut; the last activation after the sum."""
    shortcut = x
    if strides > 1 or x.shape[-1] != filters:
        shortcut = apply_conv(x, filters, 1, strides, name=f"{name}_shortcut_conv")
        shortcut = apply_bn(shortcut, name=f"{name}_shortcut_bn")
    x = apply_conv(x, filters, 3, strides, name=f"{name}_conv1")
    x = apply_activation(apply_bn(x, name=f"{name}_bn1"), activation, name=f"{name}_{activation}1")
    x = apply_bn(apply_conv(x, filters, 3, name=f"{name}_conv2"), name=f"{name}_bn2")
    return apply_activation(keras.layers.Add(name=f"{name}_add")([x, shortcut]), activation, name=f"{name}_out")
