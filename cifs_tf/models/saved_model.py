"""SavedModel and ONNX of a classifier, each checked against the live one after it is written."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
from collections.abc import Callable, Container, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.layers import MASK_GRADIENTS
from cifs_tf.models.signature_functions import PredictFn, decode_images, explain_fn, is_decodable, predict_fn
from cifs_tf.sizes import Resize

OPSET = 17
CHECK_BATCH_SIZES = (2, 5)
TOLERANCE = 1e-5


class ExportError(RuntimeError):
    """An export that did not agree with the live model; it was deleted."""


def write_saved_model(
    classifier: keras.Model,
    path: Path,
    *,
    resize: Resize | bool | None = None,
    serve: bool = False,
    verbose: bool = False,
) -> None:
    """Write a SavedModel with all signatures and check it.

    Args:
        classifier: a float32 classifier.
        path: folder to write to.
        resize: how `encoded` resizes images of another size, see `decode_images`. Default None: they are an error.
        serve: whether to add `serve`, the name that Keras gives to `serving_default`. Default False.
        verbose: whether to print the signatures. Default False.

    Raises:
        ExportError: if it differs from the live model.
    """
    predict, image_shape = predict_fn(classifier), classifier.image_shape

    def heads(mask_gradient: str) -> PredictFn:
        heads_fn = classifier.heads_fn(mask_gradient)
        return lambda image: {"heads": heads_fn(tf.ensure_shape(image, (None, *image_shape)))}

    of_images = {
        **({"serve": predict} if serve else {}),
        "serving_default": predict,
        "explain": explain_fn(classifier),
        **{f"heads_{mask_gradient}": heads(mask_gradient) for mask_gradient in MASK_GRADIENTS},
    }
    archive = keras.export.ExportArchive()
    archive.track(classifier)
    for name, function in of_images.items():
        archive.add_endpoint(name, function, [tf.TensorSpec((None, *image_shape), tf.float32, name="image")])
    if is_decodable(image_shape):
        archive.add_endpoint(
            "encoded",
            lambda image_bytes: predict(decode_images(image_bytes, image_shape, resize)),
            [tf.TensorSpec((None,), tf.string, name="image_bytes")],
        )
    archive.write_out(str(path), verbose=verbose)

    loaded = tf.saved_model.load(str(path))  # a reference to its signatures alone would not keep the variables
    for name, function in of_images.items():
        _check(function, image_shape, functools.partial(_call_signature, loaded.signatures[name]), name)
    if is_decodable(image_shape):
        _check(
            lambda image: predict(tf.round(image * 255) / 255),
            image_shape,
            lambda image: loaded.signatures["encoded"](image_bytes=_encode(image)),
            "encoded",
        )


def write_onnx(classifier: keras.Model, path: Path) -> None:
    """Write an ONNX file (opset 17) and check it in onnxruntime.

    Args:
        classifier: a float32 classifier.
        path: file to write.

    Raises:
        ExportError: if it cannot be converted or loaded, or differs from the live model.
    """
    inputs = [tf.TensorSpec((None, *classifier.image_shape), tf.float32, name="image")]

    def check(run: Callable[..., dict[str, np.ndarray]]) -> None:
        _check(predict_fn(classifier), classifier.image_shape, lambda image: run(image=image.numpy()), "ONNX")

    convert_to_onnx(predict_fn(classifier), inputs, path, {"image"}, check)


def convert_to_onnx(
    function: Callable[..., dict[str, tf.Tensor]],
    inputs: Sequence[tf.TensorSpec],
    path: Path,
    batched: Container[str],
    check: Callable[[Callable[..., dict[str, np.ndarray]]], None],
    handlers: dict[str, tuple] | None = None,
) -> None:
    """Write a function as an ONNX file (opset 17), and check it in onnxruntime.

    Args:
        function: named tensors -> named tensors (batch, ...).
        inputs: its arguments.
        path: file to write.
        batched: names of the inputs whose first dimension is the batch.
        check: gets a function, named arrays -> named arrays, that runs the file; raises if it is wrong.
        handlers: of operations that the converter does not know, see tf2onnx' `custom_op_handlers`. Default none.

    Raises:
        ExportError: if it cannot be converted or loaded, or is wrong; no file is left then.
    """
    import onnx
    import onnxruntime
    import tf2onnx

    traced = tf.function(function, input_signature=inputs, autograph=False)
    # The converter reports unsupported operations in its log only, and writes a broken file: the check below decides.
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    try:
        with contextlib.redirect_stderr(log), _only_handler(logging.getLogger("tf2onnx"), handler):
            model, _ = tf2onnx.convert.from_function(
                traced, input_signature=inputs, opset=OPSET, custom_op_handlers=handlers
            )
        for value in (*(each for each in model.graph.input if each.name in batched), *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(path))
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        check(lambda **feeds: dict(zip(names, session.run(None, feeds), strict=True)))
    except Exception as error:
        path.unlink(missing_ok=True)
        reasons = " ".join(dict.fromkeys(re.findall(r"Tensorflow op \[.*?: (\w+)\] is not supported", log.getvalue())))
        unsupported = f" (the converter does not know {reasons})" if reasons else ""
        raise ExportError(f"the export of {path.name} failed and was deleted: {error}{unsupported}") from error


def _check(live: PredictFn, image_shape: tuple[int, int, int], exported: PredictFn, name: str) -> None:
    """Compare exported and live outputs on two batch sizes."""
    for batch_size in CHECK_BATCH_SIZES:
        images = tf.random.stateless_uniform((batch_size, *image_shape), seed=(0, batch_size))
        expected, received = live(images), exported(images)
        if expected.keys() != received.keys():
            raise ExportError(f"{name} has the outputs {sorted(received)} instead of {sorted(expected)}")
        for output, value in expected.items():
            difference = np.max(np.abs(value.numpy() - np.asarray(received[output])))
            limit = TOLERANCE * max(1.0, float(np.max(np.abs(value))))
            if not difference <= limit:
                raise ExportError(
                    f"{name}: {output} differs from the live model by {difference:.2e} on a batch of {batch_size}, "
                    f"more than {limit:.2e}"
                )


def _call_signature(signature: Callable, image: tf.Tensor) -> dict[str, tf.Tensor]:
    return signature(image=image)


def _encode(images: tf.Tensor) -> tf.Tensor:
    """Return images in [0, 1] as PNG files: string (batch,)."""
    return tf.stack([tf.io.encode_png(tf.cast(tf.round(image * 255), tf.uint8)) for image in images])


@contextlib.contextmanager
def _only_handler(logger: logging.Logger, handler: logging.Handler):
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
