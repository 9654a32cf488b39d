"""From what a network answers to logits: its last activation taken off, or the exact inverse of it.

Attacks climb a loss of logits. On probabilities the same loss is flat where they are near 0 or 1, and in half precision
it is flat almost everywhere: robust accuracies far too high. Nothing here changes a decision of the network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.attacks import HeadsFn
from cifs_tf.errors import UserError
from cifs_tf.framework_internals import computing_in, graph_of, layers_of, operation_of, run_graph

SMALLEST_PROBABILITY = 1e-30
SMALLEST_COMPLEMENT = 1e-9  # below that of the greatest float32 that is less than 1
HALF_TYPES = ("float16", "bfloat16")
PREFERRED = ("logits", "probabilities", "predictions", "output_0")
# Activations that keep the order of the classes, by name.
KEEP_ORDER = ("softmax", "log_softmax", "sigmoid", "log_sigmoid", "tanh", "softplus", "softsign")
KEEP_SIGN = ("sigmoid", "tanh", "softsign")
NO_GRADIENT = "An operation of the network has no gradient: attacks that need one were blind, only Square speaks."


def probe_images(image_shape: tuple[int, ...]) -> tf.Tensor:
    """Return 16 fixed images to learn from what a network answers: noise, faint noise, and plain grey."""
    noise = tf.random.stateless_uniform((8, *image_shape), seed=(0, 0))
    return tf.concat(
        [noise, 0.4 + 0.2 * noise[:4], tf.ones_like(noise[:4]) * [[[[0.0]]], [[[0.3]]], [[[0.7]]], [[[1.0]]]]], 0
    )


def keras_answers(model: keras.Model, image_shape: tuple[int, ...]) -> tuple[HeadsFn, bool, list[str]]:
    """Make images -> answers (batch, columns) of a Keras model that is no `Classifier`, logits where possible.

    Of several outputs one is chosen. A last activation that keeps the order of the classes is taken off where the model
    is a graph of layers. Layers that compute in half precision compute in float32.

    Args:
        model: of one image input.
        image_shape: (height, width, channels).

    Returns:
        the function, whether its answers are known to be logits, and what to tell about it.

    Raises:
        UserError: if no output has the shape (batch, classes).
    """
    images, limits = probe_images(image_shape), []
    index, names = _choose(model, images)
    half = next((name for name in HALF_TYPES if name in {layer.compute_dtype for layer in layers_of(model)}), None)
    if half:
        limits.append(f"Layers of the network compute in {half}: they were attacked in float32, with the same weights.")

    def precisely() -> contextlib.AbstractContextManager[None]:
        return computing_in(model, "float32") if half else contextlib.nullcontext()

    if len(names) > 1:
        limits.append(f"Of its outputs {', '.join(names)} the output {names[index]} was attacked.")

    def answers(x: tf.Tensor) -> tf.Tensor:
        with precisely():
            return as_rows(keras.tree.flatten(model(x, training=False))[index])

    def bare(x: tf.Tensor) -> tf.Tensor:
        with precisely():
            return as_rows(keras.tree.flatten(_without_end(model, [x], index))[index])

    found, end = answers(images), _end_of(model, index)
    # Of two classes in one column the sign decides, or the side of 0.5.
    if end in (KEEP_SIGN if found.shape[1] == 1 else KEEP_ORDER) and _same_decisions(found, bare(images)):
        limits.append(f"The last activation of the network ({end}) was taken off: the attacks see its logits.")
        return bare, True, limits
    return answers, False, limits


def as_logits(
    function: HeadsFn, image_shape: tuple[int, ...], are_logits: bool = False
) -> tuple[HeadsFn, int, list[str]]:
    """Bring what a network answers with to logits of two classes or more, by the exact inverse of its last function.

    Args:
        function: images -> float (batch, columns): logits, probabilities, log-probabilities, one sigmoid per class, or
            one column for two classes, whose sign or whose side of 0.5 decides.
        image_shape: (height, width, channels).
        are_logits: whether the answers are known to be logits. Default False: it is found out.

    Returns:
        images -> float32 (batch, classes), the number of classes, and what to tell about it.
    """
    found = tf.cast(function(probe_images(image_shape)), tf.float64).numpy()
    are_shares = not are_logits and bool(np.all(found >= 0) and np.all(found <= 1))
    if found.shape[1] == 1:
        column = _logit(function) if are_shares else function
        what = (
            "probability, which decides at 0.5; its logit was attacked" if are_shares else "number, whose sign decides"
        )
        limits = [f"The network answers with one {what}: class 1 above, class 0 below."]
        return lambda images: _two_columns(tf.cast(column(images), tf.float32)), 2, limits
    if are_shares and np.allclose(found.sum(axis=1), 1, atol=1e-3):
        limit = "The network answers with probabilities: their logarithms were attacked, which hides small gradients."
        return (
            lambda images: tf.math.log(tf.maximum(_float(function(images)), SMALLEST_PROBABILITY)),
            found.shape[1],
            [limit],
        )
    if are_shares:
        limit = (
            "The network answers with numbers from 0 to 1, one sigmoid per class: their logits were attacked; where "
            "they are exactly 0 or 1 the network itself has lost its gradient."
        )
        return _logit(function), found.shape[1], [limit]
    return lambda images: _float(function(images)), found.shape[1], []


def differentiable(function: HeadsFn, image_shape: tuple[int, ...]) -> tuple[HeadsFn, list[str]]:
    """Return the function, with zeros for a gradient where an operation has none, and what to tell about it."""
    images = probe_images(image_shape)
    try:
        with tf.GradientTape() as tape:
            tape.watch(images)
            answers = function(images)
        tape.gradient(answers, images, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    except LookupError:
        return lambda x: tf.stop_gradient(function(x)), [NO_GRADIENT]
    return function, []


def lowest_precision(function: HeadsFn, image_shape: tuple[int, ...]) -> str | None:
    """Return `"float16"` or `"bfloat16"` if any operation of a network computes in it, else None."""
    spec = tf.TensorSpec((None, *image_shape), tf.float32)
    definition = tf.function(function, autograph=False).get_concrete_function(spec).graph.as_graph_def()
    nodes = [*definition.node, *(node for each in definition.library.function for node in each.node_def)]
    types = {value.type for node in nodes for key, value in node.attr.items() if key in ("T", "DstT", "dtype")}
    return next((name for name in HALF_TYPES if tf.as_dtype(name).as_datatype_enum in types), None)


def with_scaled_gradient(function: HeadsFn) -> HeadsFn:
    """Keep small gradients of a network in half precision: each example's is scaled to size 1 on its way back.

    Args:
        function: images -> (batch, ...).

    Returns:
        the same function, with the same gradient but for what half precision loses.
    """

    @tf.custom_gradient
    def scaled(images: tf.Tensor) -> tuple[tf.Tensor, Callable[..., tf.Tensor]]:
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(images)
            answers = function(images)

        def gradient(upstream: tf.Tensor, variables: Any = None) -> Any:
            size = tf.reduce_max(tf.abs(upstream), axis=list(range(1, len(upstream.shape))))
            size = tf.where(size > 0, size, tf.ones_like(size))
            rows = [-1] + [1] * (len(upstream.shape) - 1)
            found = tape.gradient(
                answers, images, output_gradients=upstream / tf.reshape(size, rows), unconnected_gradients="zero"
            )
            found *= tf.reshape(size, [-1] + [1] * (len(images.shape) - 1))
            return found if variables is None else (found, [None] * len(variables))

        return answers, gradient

    return scaled


def with_backward(function: HeadsFn, backward: HeadsFn) -> HeadsFn:
    """Answer as a network does, with the gradient of a stand-in (backward pass differentiable approximation).

    Args:
        function: images -> (batch, classes), whose values count.
        backward: images -> (batch, classes), whose gradient counts.

    Returns:
        images -> (batch, classes).
    """

    @tf.custom_gradient
    def joined(images: tf.Tensor) -> tuple[tf.Tensor, Callable[..., tf.Tensor]]:
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(images)
            stand_in = tf.cast(backward(images), tf.float32)

        def gradient(upstream: tf.Tensor, variables: Any = None) -> Any:
            found = tape.gradient(stand_in, images, output_gradients=upstream, unconnected_gradients="zero")
            return found if variables is None else (found, [None] * len(variables))

        return function(images), gradient

    return joined


def as_rows(answers: tf.Tensor) -> tf.Tensor:
    """Bring (batch, 1, ..., classes) to (batch, classes), and (batch,) to (batch, 1)."""
    if len(answers.shape) == 1:
        return answers[:, None]
    return answers if len(answers.shape) == 2 else tf.reshape(answers, [-1, answers.shape[-1]])


def choose_output(shapes: dict[str, tuple[int | None, ...]]) -> str | None:
    """Return which of several outputs holds the classes: by name, the only one of rows, or else the first of them."""
    rows = [name for name, shape in shapes.items() if _are_rows(shape)]
    return next((name for name in PREFERRED if name in rows), rows[0] if rows else None)


def _are_rows(shape: tuple[int | None, ...]) -> bool:
    """Return whether an output is (batch, classes), (batch,), or the former with axes of length 1 between."""
    return len(shape) >= 1 and all(size == 1 for size in shape[1:-1]) and (len(shape) == 1 or shape[-1] is not None)


def _choose(model: keras.Model, images: tf.Tensor) -> tuple[int, list[str]]:
    """Return which output of a model is attacked, and the names of all."""
    outputs = model(images, training=False)
    named: dict[str, Any] = dict(outputs) if isinstance(outputs, dict) else {}
    flat = keras.tree.flatten(outputs)
    names = [next((name for name, value in named.items() if value is each), str(i)) for i, each in enumerate(flat)]
    chosen = choose_output({name: tuple(each.shape) for name, each in zip(names, flat, strict=True)})
    if chosen is None:
        shapes = [tuple(each.shape) for each in flat]
        raise UserError("model", model.name, f"its outputs have the shapes {shapes}, give one with rows of logits")
    return names.index(chosen), names


def _end_of(layer: Any, index: int) -> str | None:
    """Return the name of the last activation of a graph's output that can be taken off."""
    graph = graph_of(layer)
    if graph is None:
        return None
    end = operation_of(graph.outputs[index])
    if graph_of(end) is not None:
        return _end_of(end, 0) if len(graph_of(end).outputs) == 1 else None  # type: ignore[union-attr]
    return _activation_of(end)


def _activation_of(operation: Any) -> str | None:
    if isinstance(operation, keras.layers.Softmax):
        return "softmax" if operation.axis in (-1, 1) else None
    if not isinstance(operation, keras.layers.Layer):
        return {
            "Softmax": "softmax",
            "LogSoftmax": "log_softmax",
            "Sigmoid": "sigmoid",
            "LogSigmoid": "log_sigmoid",
        }.get(type(operation).__name__)
    return getattr(getattr(operation, "activation", None), "__name__", None)


def _without_end(layer: Any, inputs: Any, index: int) -> Any:
    """Run a graph of layers in inference mode, without the activation at the end of an output."""
    graph = graph_of(layer)
    end = operation_of(graph.outputs[index])  # type: ignore[union-attr]

    def call_without(operation: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if operation is end and graph_of(end) is not None:
                return keras.tree.flatten(_without_end(end, args, 0))[0]
            if operation is end and (isinstance(end, keras.layers.Softmax) or not hasattr(end, "activation")):
                return args[0]
            if isinstance(operation, keras.layers.Layer):
                kwargs["training"] = False
            if operation is not end:
                return operation(*args, **kwargs)
            activation, end.activation = end.activation, keras.activations.linear
            try:
                return end(*args, **kwargs)
            finally:
                end.activation = activation

        return call

    return run_graph(graph, inputs, operation_fn=call_without)  # type: ignore[arg-type]


def _same_decisions(answers: tf.Tensor, logits: tf.Tensor) -> bool:
    """Return whether logits put first what the answers put first, but where the answers have ties."""
    best = tf.argmax(logits, axis=-1)
    reached = tf.gather(answers, best, axis=1, batch_dims=1)
    return bool(tf.reduce_all(reached >= tf.reduce_max(answers, axis=-1)))


def _float(answers: tf.Tensor) -> tf.Tensor:
    return tf.cast(answers, tf.float32)


def _logit(function: HeadsFn) -> HeadsFn:
    """Undo a sigmoid in float64, where 1 - p is exact."""

    def logits(images: tf.Tensor) -> tf.Tensor:
        shares = tf.cast(function(images), tf.float64)
        shares = tf.clip_by_value(shares, SMALLEST_PROBABILITY, 1 - SMALLEST_COMPLEMENT)
        return tf.cast(tf.math.log(shares) - tf.math.log1p(-shares), tf.float32)

    return logits


def _two_columns(column: tf.Tensor) -> tf.Tensor:
    return tf.concat([tf.zeros_like(column), column], axis=1)
