"""From what a network answers to logits: its last functions taken off, or the exact inverse of them.

Attacks climb a loss of logits. On probabilities the same loss is flat where they are near 0 or 1, and in half precision
it is flat almost everywhere: robust accuracies far too high. Nothing here changes a decision of the network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.attacks import HeadsFn
from cifs_tf.errors import UserError
from cifs_tf.framework_internals import computing_in, layers_of

SMALLEST_PROBABILITY = 1e-37  # nearly that of the smallest normal float32, whose inverse is finite
SMALLEST_COMPLEMENT = 1e-9  # below that of the greatest float32 that is less than 1
# How far a class is raised that the answers decide for and what comes before them does not, of the largest logit.
ABOVE = 1e-3
HALF_TYPES = ("float16", "bfloat16")
PREFERRED = ("logits", "probabilities", "predictions", "output_0")
# Operations of TensorFlow: those that keep a number's side of the decision between two classes, and those that keep the
# order of the classes; what stands between may change its form, or shift and scale all classes of an image alike.
KEEP_SIGN = ("Sigmoid", "Tanh", "Softsign", "StopGradient")
KEEP_ORDER = (*KEEP_SIGN, "Softmax", "LogSoftmax", "Softplus", "Exp", "Log", "Round", "Rint", "Floor")
KEEP_ALL = ("Identity", "Cast", "Reshape", "Squeeze", "EnsureShape")
TAKE_TWO = ("AddV2", "Sub", "Mul", "RealDiv", "Minimum", "Maximum")
NO_GRADIENT = "An operation of the network has no gradient: attacks that need one were blind, only Square speaks."


def probe_images(image_shape: tuple[int, ...]) -> tf.Tensor:
    """Return 16 fixed images to learn from what a network answers: noise, faint noise, and plain grey."""
    noise = tf.random.stateless_uniform((8, *image_shape), seed=(0, 0))
    return tf.concat(
        [noise, 0.4 + 0.2 * noise[:4], tf.ones_like(noise[:4]) * [[[[0.0]]], [[[0.3]]], [[[0.7]]], [[[1.0]]]]], 0
    )


def keras_answers(model: keras.Model, image_shape: tuple[int, ...]) -> tuple[HeadsFn, list[str]]:
    """Make images -> answers (batch, columns) of a Keras model that is no `Classifier`.

    Of several outputs one is chosen. Layers that compute in half precision compute in float32.

    Args:
        model: of one image input.
        image_shape: (height, width, channels).

    Returns:
        the function, and what to tell about it.

    Raises:
        UserError: if no output has the shape (batch, classes).
    """
    limits = []
    with explained("be called"):
        index, names = _choose(model, probe_images(image_shape))
    half = next((name for name in HALF_TYPES if name in {layer.compute_dtype for layer in layers_of(model)}), None)
    if half:
        limits.append(f"Layers of the network compute in {half}: they were attacked in float32, with the same weights.")
    if len(names) > 1:
        limits.append(f"Of its outputs {', '.join(names)} the output {names[index]} was attacked.")

    def answers(x: tf.Tensor) -> tf.Tensor:
        with computing_in(model, "float32") if half else contextlib.nullcontext():
            return as_rows(keras.tree.flatten(model(x, training=False))[index])

    return answers, limits


def check_answers(function: HeadsFn, image_shape: tuple[int, ...]) -> None:
    """Refuse what does not answer each image with a row of numbers, in and outside a graph.

    Raises:
        UserError: saying what came instead.
    """
    images = probe_images(image_shape)
    spec = tf.TensorSpec((None, *image_shape), tf.float32)
    for how, call in (
        ("be called", function),
        ("be compiled", tf.function(function, autograph=False, input_signature=[spec])),
    ):
        with explained(how):
            found = call(images)
        kind = found.dtype.name if isinstance(found, tf.Tensor) else type(found).__name__
        if not kind.startswith(("float", "bfloat", "int", "uint")):
            raise UserError("model", f"answers of {kind}", "give one that answers with a row of numbers for each image")
        if len(found) != len(images):
            received = f"{len(found)} answers to {len(images)} images"
            raise UserError("model", received, "give one that answers each image of a batch")


@contextlib.contextmanager
def explained(how: str) -> Iterator[None]:
    """Say in a sentence what a network of somebody else raises."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        advice = "its call must use TensorFlow's or Keras' operations alone, on batches of any size"
        raise UserError("model", f"a network that cannot {how} ({reason})", advice) from error


def as_logits(
    function: HeadsFn, image_shape: tuple[int, ...], *, is_half: bool = False
) -> tuple[HeadsFn, HeadsFn, int, list[str]]:
    """Bring what a network answers with to logits of two classes or more; no decision changes.

    The last functions that keep the order of the classes are taken off where the network's graph shows them. Where it
    does not (a loaded SavedModel, a call outside any graph) their exact inverse is taken.

    Args:
        function: images -> float (batch, columns): logits, probabilities, log-probabilities, one sigmoid per class, or
            one column for two classes, whose sign or whose side of 0.5 decides.
        image_shape: (height, width, channels).
        is_half: whether it computes in half precision, where small gradients are lost unless they are scaled.

    Returns:
        images -> float32 (batch, classes); the same by the inverse alone, which is computed alike in and outside a
        graph; the number of classes; and what to tell about it.
    """
    scaled = with_scaled_gradient if is_half else lambda function: function
    answers = scaled(function)
    found = tf.cast(function(probe_images(image_shape)), tf.float64).numpy()
    are_shares, columns = bool(np.all(found >= 0) and np.all(found <= 1)), found.shape[1]
    if columns == 1:
        what = "probability, which decides at 0.5" if are_shares else "number, whose sign decides"
        limit = f"The network answers with one {what}: class 1 above, class 0 below."
    elif are_shares and np.allclose(found.sum(axis=1), 1, atol=1e-3):
        limit = "The network answers with probabilities: their logarithms were attacked, which hides small gradients."
    elif are_shares:
        limit = (
            "The network answers with numbers from 0 to 1, one sigmoid per class: their logits were attacked; where "
            "they are exactly 0 or 1 the network itself has lost its gradient."
        )
    else:
        limit = ""

    def inverse(images: tf.Tensor) -> tf.Tensor:
        if "logarithms" in limit:
            return tf.math.log(tf.maximum(_float(answers(images)), SMALLEST_PROBABILITY))
        return _logit(answers(images)) if are_shares else _float(answers(images))

    kept = KEEP_SIGN if columns == 1 else KEEP_ORDER
    names = _last_operations(function, image_shape, kept)

    def before_end(images: tf.Tensor) -> tf.Tensor:
        answers = function(images)
        found = _float(as_rows(_before_end(answers, kept)[0]))
        return found if columns == 1 else _deciding_as(answers, found)

    bare = scaled(before_end)

    def logits(images: tf.Tensor) -> tf.Tensor:
        # Outside a graph nothing can be taken off, and what the network does in Python is done at each call.
        return bare(images) if names and not tf.executing_eagerly() else inverse(images)

    limits = [limit] if limit and (columns == 1 or not names) else []
    if names:
        what = ", ".join(names)
        limits.insert(0, f"The last functions of the network ({what}) were taken off: the attacks see its logits.")
    if columns == 1:
        return lambda images: _two_columns(logits(images)), lambda images: _two_columns(inverse(images)), 2, limits
    return logits, inverse, columns, limits


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
        the same function in float32, with the same gradient but for what half precision loses.
    """

    @tf.custom_gradient
    def scaled(images: tf.Tensor) -> tuple[tf.Tensor, Callable[..., tf.Tensor]]:
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(images)
            answers = _float(function(images))

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


def _last_operations(function: HeadsFn, image_shape: tuple[int, ...], kept: tuple[str, ...]) -> list[str]:
    """Return which operations can be taken off the end of a network, the last one first."""
    names: list[str] = []

    def keeps(images: tf.Tensor) -> tf.Tensor:
        answers = function(images)
        before, found = _before_end(answers, kept)
        if before.shape.rank is None or (rows := as_rows(before)).shape[-1] != answers.shape[-1]:
            return tf.constant(False)
        names.extend(found)
        reached = tf.gather(answers, tf.argmax(rows, axis=-1), axis=1, batch_dims=1)
        return tf.reduce_all(reached >= tf.reduce_max(answers, axis=-1))

    return names if tf.function(keeps, autograph=False)(probe_images(image_shape)) else []


def _before_end(answers: tf.Tensor, kept: tuple[str, ...]) -> tuple[tf.Tensor, list[str]]:
    """Walk back through a graph: return what comes before the last operations that keep decisions, and their names."""
    before, tensor = answers, answers
    names: list[str] = []
    passed: list[str] = []
    while True:
        kind, inputs = tensor.op.type, list(tensor.op.inputs)
        if kind in TAKE_TWO and kept is KEEP_ORDER:
            # The other operand is a number, or one for each image.
            wide = [each for each in inputs if each.shape.rank != 0 and each.shape[-1:] != [1]]
            inputs = wide if len(wide) == 1 and (wide[0] is inputs[0] or kind not in ("Sub", "RealDiv")) else []
        elif kind not in (*kept, *KEEP_ALL):
            inputs = []
        if not inputs:
            return before, names
        tensor = inputs[0]
        if kind in kept:
            passed.append(kind)
            # A logarithm alone leads to probabilities, which lose their gradient: with what makes these of logits only.
            before, names = (before, names) if kind == "Log" else (tensor, list(passed))


def _deciding_as(answers: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Let logits decide as the answers do: where these have ties, the lowest of the classes is raised to the highest.

    What comes before the end may decide otherwise: the end multiplies by a number below 0, or overflows. The class of
    the answers is raised above the others then, and answers that are no numbers make the logits such.
    """
    # No argmax: TensorFlow takes it of what comes before a monotonic function, where there are no ties.
    is_best = answers >= tf.reduce_max(answers, axis=-1, keepdims=True)
    decided = is_best & (tf.cumsum(tf.cast(is_best, tf.int32), axis=-1) == 1)
    highest = tf.stop_gradient(tf.reduce_max(logits, axis=-1, keepdims=True))
    agree = tf.reduce_any(is_best & (logits >= highest), axis=-1, keepdims=True)
    least = tf.where(agree, highest, highest + ABOVE * tf.maximum(tf.abs(highest), 1.0))
    found = tf.where(decided, least + (logits - tf.stop_gradient(logits)), logits)
    is_none = tf.reduce_any(tf.math.is_nan(answers), axis=-1, keepdims=True)
    return tf.where(is_none, tf.constant(float("nan"), found.dtype), found)


def _float(answers: tf.Tensor) -> tf.Tensor:
    return tf.cast(answers, tf.float32)


def _logit(shares: tf.Tensor) -> tf.Tensor:
    """Undo a sigmoid in float64, where 1 - p is exact."""
    shares = tf.clip_by_value(tf.cast(shares, tf.float64), SMALLEST_PROBABILITY, 1 - SMALLEST_COMPLEMENT)
    return tf.cast(tf.math.log(shares) - tf.math.log1p(-shares), tf.float32)


def _two_columns(column: tf.Tensor) -> tf.Tensor:
    # Of opposite signs: the gradient of the cross-entropy fades for one class no sooner than for the other.
    return tf.concat([-column / 2, column / 2], axis=1)


def last_features(function: HeadsFn, image_shape: tuple[int, ...]) -> HeadsFn | None:
    """Make images -> features (batch, D), what the last layer of a network reads, if its graph shows a linear one.

    Args:
        function: images -> answers (batch, columns), or heads, of which the first is meant.
        image_shape: (height, width, channels).

    Returns:
        the function; None where the answers do not come of one product with a matrix.
    """

    def features(images: tf.Tensor) -> tf.Tensor:
        found = _before_matrix(function(images))
        if found is None:
            raise LookupError
        return _float(found)

    spec = [tf.TensorSpec((None, *image_shape), tf.float32)]
    traced = tf.function(features, input_signature=spec, autograph=False)
    try:
        traced.get_concrete_function()
    except LookupError:
        return None
    return differentiable(traced, image_shape)[0]


def _before_matrix(answers: tf.Tensor) -> tf.Tensor | None:
    """Walk back from answers to what the last matrix is multiplied with."""
    tensor = answers
    while tensor.op.type != "MatMul":
        inputs = list(tensor.op.inputs)
        if tensor.op.type in TAKE_TWO:
            wide = [each for each in inputs if each.shape.rank == 2 and each.shape[0] is None and each.shape[1] != 1]
            inputs = wide if len(wide) == 1 else []
        elif tensor.op.type not in (*KEEP_ORDER, *KEEP_ALL, "BiasAdd", "Pack"):
            inputs = []
        if not inputs:
            return None
        tensor = inputs[0]
    is_plain = not tensor.op.get_attr("transpose_a") and tensor.op.inputs[0].shape[-1] is not None
    return tensor.op.inputs[0] if is_plain else None
