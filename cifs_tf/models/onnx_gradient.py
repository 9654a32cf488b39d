"""The gradient of a classifier as an ONNX file, for attacks where there is no TensorFlow: onnxruntime, a browser.

tf2onnx converts forward passes; the handlers here add the operations of TensorFlow's gradients, as plain operators.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.layers.cifs import MASK_GRADIENTS, gradient_shares
from cifs_tf.models.saved_model import TOLERANCE, ExportError, convert_to_onnx
from cifs_tf.models.signature_functions import identifiers

GRADIENT_FILE = "heads_and_gradient.onnx"
# By mask gradient, the input of this name: shares of the gradients through the mask and through the choice of classes.
MASK_GRADIENT_SHARES = {name: tuple(share or 0.0 for share in gradient_shares(name)) for name in MASK_GRADIENTS}
CHECK_BATCH_SIZES = (1, 5)
_NUMBERS = itertools.count()


def heads_and_gradient_fn(classifier: keras.Model) -> tuple[Callable[..., dict[str, tf.Tensor]], list[tf.TensorSpec]]:
    """Return the function behind `heads_and_gradient.onnx`, and its inputs.

    Args:
        classifier: a float32 classifier.

    Returns:
        (the function, the inputs). Inputs: `image` float32 (batch, height, width, channels) in [0, 1]; `label` int32
        (batch,); `head_weights` float32 (1 + P,), see `cifs_tf.losses.head_weights`; `upstream` float32
        (batch, 1 + P, classes); and, if there are selection layers, `mask_gradient` float32 (2,), a value of
        `MASK_GRADIENT_SHARES`. Outputs: `heads` (batch, 1 + P, classes); `gradient`, to the images, of
        sum_h w_h cross_entropy(heads_h, label) + sum(upstream * heads); and as in `explain_fn` `relevance_NAME` and
        `importance_NAME`. With upstream 0 this is the objective of PGD; with weights 0 it is the gradient of any other
        function of the heads, whose own gradient to the heads is `upstream`.

    Example:
        >>> function, inputs = heads_and_gradient_fn(classifier)
        >>> sorted(spec.name for spec in inputs)
        ['head_weights', 'image', 'label', 'mask_gradient', 'upstream']
    """
    num_heads, num_classes = 1 + classifier.num_probes, classifier.num_classes
    names = identifiers(classifier.cuts)

    def heads_and_gradient(image, label, head_weights, upstream, mask_gradient=None):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(image)
            found = classifier.explain(image, mask_gradient)
        heads = found["heads"]
        # Of sum_h w_h cross_entropy_h, to the heads: w_h (softmax - one-hot label).
        error = tf.nn.softmax(heads) - tf.one_hot(label, num_classes)[:, None, :]
        gradient = tape.gradient(heads, image, output_gradients=head_weights[:, None] * error + upstream)
        outputs = {"heads": heads, "gradient": gradient}
        for kind in ("relevance", "importance"):
            outputs |= {f"{kind}_{names[cut]}": values for cut, values in found[kind].items()}
        return outputs

    inputs = [
        tf.TensorSpec((None, *classifier.image_shape), tf.float32, name="image"),
        tf.TensorSpec((None,), tf.int32, name="label"),
        tf.TensorSpec((num_heads,), tf.float32, name="head_weights"),
        tf.TensorSpec((None, num_heads, num_classes), tf.float32, name="upstream"),
    ]
    if classifier.num_probes:
        inputs.append(tf.TensorSpec((2,), tf.float32, name="mask_gradient"))
    return heads_and_gradient, inputs


def write_gradient_onnx(classifier: keras.Model, path: Path) -> None:
    """Write heads and gradient as an ONNX file (opset 17), see `heads_and_gradient_fn`, and check it in onnxruntime.

    Args:
        classifier: a float32 classifier.
        path: file to write.

    Raises:
        ExportError: if an operation has no plain ONNX form, or the file differs from the live model.
    """
    function, inputs = heads_and_gradient_fn(classifier)
    handlers: dict[str, tuple] = {name: (handler, []) for name, handler in _HANDLERS.items()}
    free = {"image", "label", "upstream"}
    convert_to_onnx(function, inputs, path, free, lambda run: _check_gradient(classifier, run), handlers)


def _check_gradient(classifier: keras.Model, run: Callable[..., dict[str, np.ndarray]]) -> None:
    """Compare the file with the live model, whose own attack path makes the expected gradient.

    A ReLU that sits at 0 but for rounding passes the gradient in one runtime only: that of one image may differ.
    """
    rng = np.random.default_rng(0)
    num_heads, num_classes = 1 + classifier.num_probes, classifier.num_classes
    names = identifiers(classifier.cuts)
    for mask_gradient in MASK_GRADIENT_SHARES if classifier.num_probes else ("detached",):
        apart = []
        for batch_size in CHECK_BATCH_SIZES:
            image = rng.random((batch_size, *classifier.image_shape), np.float32)
            label = rng.integers(0, num_classes, batch_size).astype(np.int32)
            weights = rng.random(num_heads, np.float32)
            upstream = rng.normal(size=(batch_size, num_heads, num_classes)).astype(np.float32)
            feeds = {"image": image, "label": label, "head_weights": weights, "upstream": upstream}
            if classifier.num_probes:
                feeds["mask_gradient"] = np.array(MASK_GRADIENT_SHARES[mask_gradient], np.float32)
            received = run(**feeds)
            x = tf.constant(image)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                heads = classifier.heads_fn(mask_gradient)(x)
                cross_entropy = -tf.gather(tf.nn.log_softmax(heads), label[:, None], axis=2, batch_dims=1)[..., 0]
                objective = tf.reduce_sum(cross_entropy * weights) + tf.reduce_sum(heads * upstream)
            expected = {"heads": heads, "gradient": tape.gradient(objective, x)}
            found = classifier.explain(x)
            for kind in ("relevance", "importance"):
                expected |= {f"{kind}_{names[cut]}": values for cut, values in found[kind].items()}
            if received.keys() != expected.keys():
                raise ExportError(f"it has the outputs {sorted(received)} instead of {sorted(expected)}")
            for name, value in expected.items():
                differences = np.abs(value.numpy() - received[name]).reshape(batch_size, -1).max(axis=1)
                limit = TOLERANCE * max(1.0, float(np.max(np.abs(value))))
                wrong = ~(differences <= limit)
                apart += list(wrong) if name == "gradient" else []
                if (wrong.any() and name != "gradient") or sum(apart) > 1:
                    raise ExportError(
                        f"{name} differs from the live model by {differences.max():.2e} (mask gradient "
                        f"{mask_gradient}, batch of {batch_size}), more than {limit:.2e}"
                    )


# What tf2onnx calls for an operation of TensorFlow: (its graph, the node, its name, the rest). Each puts plain ONNX
# nodes in its place. Shapes are known but for the batch, -1.


def _replace(ctx: Any, node: Any, make: Callable[..., str]) -> None:
    """Put what `make(*inputs)` makes in the place of a node of one output."""
    (output,), inputs = node.output, list(node.input)
    shape, dtype = ctx.get_shape(output), ctx.get_dtype(output)
    made = make(*inputs)
    ctx.remove_node(node.name)
    ctx.make_node("Identity", [made], outputs=[output], shapes=[shape], dtypes=[dtype])


def _elementwise(formula: Callable[..., str]) -> Callable[..., None]:
    """Make the handler of an operation whose gradient is a formula of its two inputs."""

    def handler(ctx: Any, node: Any, name: str, args: Any) -> None:
        _replace(ctx, node, lambda *inputs: formula(_Maker(ctx), node, *inputs))

    return handler


def _constant_name() -> str:
    return f"gradient_constant_{next(_NUMBERS)}"


class _Maker:
    """Make nodes as if they were functions: `maker.Mul(a, b)`; numbers become constants of float32."""

    def __init__(self, ctx: Any):
        self._ctx = ctx

    def __getattr__(self, operator: str) -> Callable[..., str]:
        def make(*inputs: Any, **attributes: Any) -> str:
            names = [name if isinstance(name, str) else self.constant(name) for name in inputs]
            return self._ctx.make_node(operator, names, attr=attributes).output[0]

        return make

    def constant(self, value: Any) -> str:
        """Make a constant; what has no dtype becomes float32."""
        array = value if isinstance(value, np.ndarray) else np.array(value, np.float32)
        return self._ctx.make_const(_constant_name(), array).output[0]


def _sigmoid_slope(make: _Maker, y: str) -> str:
    return make.Mul(y, make.Sub(1.0, y))


def _relu6_grad(make: _Maker, node: Any, dy: str, y: str) -> str:
    inside = make.And(make.Greater(y, 0.0), make.Less(y, 6.0))
    return make.Where(inside, dy, 0.0)


def _leaky_relu_grad(make: _Maker, node: Any, dy: str, x: str) -> str:
    return make.Where(make.Greater(x, 0.0), dy, make.Mul(dy, float(node.get_attr_value("alpha", 0.2))))


def _known_shape(ctx: Any, name: str) -> list[int]:
    """Return what a tensor that holds a shape holds; -1 for the batch.

    Raises:
        NotImplementedError: if that cannot be told.
    """
    node = ctx.get_node_by_output(name)
    while node is not None and node.type in ("Cast", "Identity"):
        name = node.input[0]
        node = ctx.get_node_by_output(name)
    if node is not None and node.is_const():
        return [int(size) for size in np.atleast_1d(node.get_tensor_value(as_list=False))]
    shape = ctx.get_shape(node.input[0]) if node is not None and node.type == "Shape" else None
    if shape is None:
        raise NotImplementedError(f"the shape {name} is not known when the network is converted")
    return [-1 if size is None else size for size in shape]


def _shape_n(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Take the shapes of several tensors."""
    pairs = [(source, output, ctx.get_dtype(output)) for source, output in zip(node.input, node.output, strict=True)]
    ctx.remove_node(node.name)
    for source, output, dtype in pairs:
        rank = len(ctx.get_shape(source))
        shape = ctx.make_node("Shape", [source]).output[0]
        ctx.make_node("Cast", [shape], attr={"to": dtype}, outputs=[output], shapes=[[rank]], dtypes=[dtype])


def _broadcast_gradient_args(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Find the axes that were broadcast, over which a gradient is summed."""
    shapes = [_known_shape(ctx, source) for source in node.input]
    outputs = list(node.output)
    ctx.remove_node(node.name)
    rank = max(map(len, shapes))
    first, second = ([1] * (rank - len(shape)) + shape for shape in shapes)
    for output, (mine, other) in zip(outputs, ((first, second), (second, first)), strict=True):
        axes = [axis for axis in range(rank) if mine[axis] == 1 != other[axis]]
        padded = [axis for axis in range(rank) if axis < rank - len(shapes[outputs.index(output)])]
        constant = ctx.make_const(_constant_name(), np.array(sorted({*axes, *padded}), np.int32))
        ctx.make_node(
            "Identity",
            [constant.output[0]],
            outputs=[output],
            shapes=[[len({*axes, *padded})]],
            dtypes=[ctx.get_dtype(constant.output[0])],
        )


def _dynamic_stitch(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Interleave vectors: the element at each place is the last that has its number (tf2onnx keeps all of them)."""
    half = len(node.input) // 2
    numbers = np.concatenate([_known_shape(ctx, source) for source in node.input[:half]])
    last = {int(number): position for position, number in enumerate(numbers)}
    positions = np.array([last[number] for number in sorted(last)], np.int64)
    data = list(node.input[half:])
    make = _Maker(ctx)
    _replace(ctx, node, lambda *_: make.Gather(make.Concat(*data, axis=0), positions, axis=0))


def _to_nchw(make: _Maker, tensor: str) -> str:
    return make.Transpose(tensor, perm=[0, 3, 1, 2])


def _to_nhwc(make: _Maker, tensor: str) -> str:
    return make.Transpose(tensor, perm=[0, 2, 3, 1])


def _spatial(node: Any, name: str, default: int = 1) -> list[int]:
    """Return height and width of an attribute that TensorFlow gives for every axis, channels last."""
    attribute = node.get_attr(name)
    return list(attribute.ints)[1:3] if attribute else [default, default]


def _window(
    node: Any, kernel: list[int], size: list[int], out: list[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return (strides, dilations, pads before, pads after) of a window that slides over an image, per axis.

    Raises:
        NotImplementedError: for channels first.
    """
    if node.get_attr_value("data_format", b"NHWC") not in (b"NHWC", "NHWC"):
        raise NotImplementedError("images with channels first")
    strides, dilations = _spatial(node, "strides"), _spatial(node, "dilations")
    padding = node.get_attr_value("padding")
    if padding in (b"EXPLICIT", "EXPLICIT"):
        pads = list(node.get_attr("explicit_paddings").ints)[2:6]
        return strides, dilations, [pads[0], pads[2]], [pads[1], pads[3]]
    before, after = [], []
    for axis in range(2):
        covered = (out[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        total = max(covered - size[axis], 0) if padding in (b"SAME", "SAME") else 0
        before.append(total // 2)
        after.append(total - total // 2)
    return strides, dilations, before, after


def _transposed(
    make: _Maker, node: Any, dy: str, weights: str, kernel: list[int], size: list[int], out: list[int], group: int
) -> str:
    """Convolve the gradient of an output back to the input: `dy` and the result are channels first."""
    strides, dilations, before, after = _window(node, kernel, size, out)
    # The rows at the end that no window reaches: their gradient is 0.
    unseen = [
        size[axis]
        + before[axis]
        + after[axis]
        - ((out[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1)
        for axis in range(2)
    ]
    # An output padding must be below the stride: what is beyond it is added as zeros.
    padding = [min(unseen[axis], strides[axis] - 1) for axis in range(2)]
    rest = [unseen[axis] - padding[axis] for axis in range(2)]
    result = make.ConvTranspose(
        dy,
        weights,
        group=group,
        strides=strides,
        dilations=dilations,
        kernel_shape=kernel,
        pads=[*before, *after],
        output_padding=padding,
    )
    if any(rest):
        result = make.Pad(result, np.array([0, 0, 0, 0, 0, 0, *rest], np.int64))
    return result


def _conv_grad(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Convolve back: inputs (the image's shape, kernel (h, w, in / group, out), gradient of the output)."""
    shape, kernel, out = _known_shape(ctx, node.input[0]), ctx.get_shape(node.input[1]), ctx.get_shape(node.input[2])
    make, channels = _Maker(ctx), shape[3]

    def convolve(_: str, weights: str, dy: str) -> str:
        if node.type == "DepthwiseConv2dNativeBackpropInput":
            group = channels
            # (h, w, in, multiplier) -> (in * multiplier, 1, h, w)
            flat = make.Reshape(
                make.Transpose(weights, perm=[2, 3, 0, 1]),
                np.array([kernel[2] * kernel[3], 1, *kernel[:2]], np.int64),
            )
        else:
            group = channels // kernel[2]
            # (h, w, in / group, out) -> (out, in / group, h, w)
            flat = make.Transpose(weights, perm=[3, 2, 0, 1])
        dy = _to_nchw(make, dy)
        return _to_nhwc(make, _transposed(make, node, dy, flat, kernel[:2], shape[1:3], out[1:3], group))

    _replace(ctx, node, convolve)


def _average_pool_grad(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Spread the gradient over each window: inputs (the image's shape, gradient of the output)."""
    shape, out = _known_shape(ctx, node.input[0]), ctx.get_shape(node.input[1])
    kernel, channels, make = _spatial(node, "ksize"), shape[3], _Maker(ctx)
    # TensorFlow divides by the pixels that a window covers, without the padding.
    strides, _, before, _ = _window(node, kernel, shape[1:3], out[1:3])
    counts = [
        np.minimum(starts + kernel[axis], shape[1 + axis]) - np.maximum(starts, 0)
        for axis, starts in ((axis, np.arange(out[1 + axis]) * strides[axis] - before[axis]) for axis in range(2))
    ]
    shares = (1 / np.outer(*counts)).astype(np.float32)[None, :, :, None]

    def spread(_: str, dy: str) -> str:
        ones = np.ones((channels, 1, *kernel), np.float32)
        dy = _to_nchw(make, make.Mul(dy, shares))
        transposed = _transposed(make, node, dy, make.constant(ones), kernel, shape[1:3], out[1:3], channels)
        return _to_nhwc(make, transposed)

    _replace(ctx, node, spread)


def _max_pool_grad(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Bring the gradient to the largest pixel of each window: inputs (image, pooled image, gradient of the latter)."""
    shape, out = ctx.get_shape(node.input[0]), ctx.get_shape(node.input[2])
    kernel, make = _spatial(node, "ksize"), _Maker(ctx)
    strides, _, before, after = _window(node, kernel, shape[1:3], out[1:3])

    def scatter(image: str, _: str, dy: str) -> str:
        channels_first = _to_nchw(make, image)
        attributes = {"kernel_shape": kernel, "strides": strides, "pads": [*before, *after]}
        _, places = ctx.make_node("MaxPool", [channels_first], attr=attributes, output_count=2).output
        flat = np.array([-1], np.int64)
        zeros = make.Reshape(make.Mul(channels_first, 0.0), flat)
        summed = make.ScatterElements(
            zeros, make.Reshape(places, flat), make.Reshape(_to_nchw(make, dy), flat), axis=0, reduction="add"
        )
        return _to_nhwc(make, make.Reshape(summed, make.Shape(channels_first)))

    _replace(ctx, node, scatter)


_HANDLERS: dict[str, Callable[..., None]] = {
    "ReluGrad": _elementwise(lambda make, node, dy, y: make.Mul(dy, make.Sign(y))),
    "Relu6Grad": _elementwise(_relu6_grad),
    "LeakyReluGrad": _elementwise(_leaky_relu_grad),
    "EluGrad": _elementwise(lambda make, node, dy, y: make.Mul(dy, make.Add(1.0, make.Min(y, 0.0)))),
    "SigmoidGrad": _elementwise(lambda make, node, y, dy: make.Mul(dy, _sigmoid_slope(make, y))),
    "TanhGrad": _elementwise(lambda make, node, y, dy: make.Mul(dy, make.Sub(1.0, make.Mul(y, y)))),
    "SoftplusGrad": _elementwise(lambda make, node, dy, x: make.Mul(dy, make.Sigmoid(x))),
    "RsqrtGrad": _elementwise(lambda make, node, y, dy: make.Mul(make.Mul(dy, -0.5), make.Mul(y, make.Mul(y, y)))),
    "SqrtGrad": _elementwise(lambda make, node, y, dy: make.Div(make.Mul(dy, 0.5), y)),
    "ReciprocalGrad": _elementwise(lambda make, node, y, dy: make.Neg(make.Mul(dy, make.Mul(y, y)))),
    "ShapeN": _shape_n,
    "BroadcastGradientArgs": _broadcast_gradient_args,
    "DynamicStitch": _dynamic_stitch,
    "Conv2DBackpropInput": _conv_grad,
    "DepthwiseConv2dNativeBackpropInput": _conv_grad,
    "AvgPoolGrad": _average_pool_grad,
    "MaxPoolGrad": _max_pool_grad,
}
