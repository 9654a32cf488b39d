"""Wide residual networks (Zagoruyko and Komodakis 2016): pre-activation blocks, three stages."""

import keras

from cifs_tf.models.blocks import apply_activation, apply_bn, apply_conv, apply_head

DEPTH_AND_FACTOR = {"wrn28-10": (28, 10), "wrn34-10": (34, 10)}


def wide_resnet(arch: str, image_shape: tuple[int, int, int], num_classes: int, width: int = 16) -> keras.Model:
    """Build a WideResNet-28-10 or -34-10 backbone.

    Args:
        arch: `"wrn28-10"` or `"wrn34-10"`.
        image_shape: (height, width, channels), sides of at least 8 pixels; images in [0, 1], not normalised.
        num_classes: number of classes, >= 2.
        width: channels of the stem; the stages have 10 times width, times 1, 2, 4. Default 16.

    Returns:
        functional model, images -> logits. Block b of stage s makes its convolutions' input in the layer
        `stage{s}_block{b}_relu1`, the last activation is `final_out`; these are the places to cut.

    Example:
        >>> wide_resnet("wrn28-10", (32, 32, 3), 10).count_params()
        36497146
    """
    depth, factor = DEPTH_AND_FACTOR[arch]
    images = keras.Input(image_shape, name="image")
    x = apply_conv(images, width, 3, name="stem_conv")
    for stage in (1, 2, 3):
        for block in range(1, (depth - 4) // 6 + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            filters = width * factor * 2 ** (stage - 1)
            x = apply_preactivation_block(x, filters, strides, name=f"stage{stage}_block{block}")
    x = apply_activation(apply_bn(x, name="final_bn"), "relu", name="final_out")
    return keras.Model(images, apply_head(x, num_classes), name=arch)


def apply_preactivation_block(x, filters: int, strides: int, *, name: str):
    """Normalise and apply ReLU before each of two 3x3 convolutions; the shortcut starts before them if sizes agree."""
    activated = apply_activation(apply_bn(x, name=f"{name}_bn1"), "relu", name=f"{name}_relu1")
    shortcut = x
    if strides > 1 or x.shape[-1] != filters:
        shortcut = apply_conv(activated, filters, 1, strides, name=f"{name}_shortcut_conv")
    x = apply_conv(activated, filters, 3, strides, name=f"{name}_conv1")
    x = apply_activation(apply_bn(x, name=f"{name}_bn2"), "relu", name=f"{name}_relu2")
    x = apply_conv(x, filters, 3, name=f"{name}_conv2")
    return keras.layers.Add(name=f"{name}_out")([x, shortcut])
