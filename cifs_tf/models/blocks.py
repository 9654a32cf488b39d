"""Blocks of both families of residual networks."""

import keras

from cifs_tf.layers import BatchNormalization


def apply_conv(x, filters: int, kernel_size: int, strides: int = 1, *, name: str):
    """Apply a convolution without bias, padded as PyTorch pads it: (kernel_size - 1) / 2 pixels on each side.

    TensorFlow's "same" puts the odd pixel of a strided convolution on the far side only, which shifts the features.

    A strided 1x1 convolution drops the pixels first (a mean over one pixel, exact): oneDNN's own gives wrong weight
    gradients, another each time, when it has fewer input channels than a vector register holds
    (github.com/uxlfoundation/oneDNN/issues/6035).
    """
    padding = "same"
    if strides > 1 and kernel_size == 1:
        x = keras.layers.AveragePooling2D(1, strides, name=f"{name}_subsample")(x)
        strides = 1
    elif strides > 1:
        x = keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
        padding = "valid"
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides,
        padding=padding,
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        name=name,
    )(x)


def apply_bn(x, *, name: str):
    """Apply batch normalisation with PyTorch's running statistics."""
    return BatchNormalization(name=name)(x)


def apply_activation(x, activation: str, *, name: str):
    """Apply `"relu"` or another activation of Keras, as a layer with a name that can be cut."""
    layer = keras.layers.ReLU(name=name) if activation == "relu" else keras.layers.Activation(activation, name=name)
    return layer(x)


def apply_head(x, num_classes: int):
    """Apply global average pooling and the final dense layer; logits keep full precision under a mixed policy."""
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    dtype = keras.config.dtype_policy().variable_dtype
    return keras.layers.Dense(num_classes, dtype=dtype, name="logits")(x)
