"""SavedModel and ONNX: written under a temporary name, checked against the live model, then published.

A published version is a folder BASE/N with `saved_model.pb` (TF Serving reads BASE) and `model.onnx`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.errors import UserError
from cifs_tf.files import check_version, publish_version
from cifs_tf.layers import MASK_GRADIENTS
from cifs_tf.models import Classifier, with_precision

OPSET = 17
CHECK_BATCH_SIZES = (2, 5)
TOLERANCE = 1e-5
FORMATS = ("savedmodel", "onnx")
DECODABLE_CHANNELS = (1, 3, 4)

PredictFn = Callable[[tf.Tensor], dict[str, tf.Tensor]]


class ExportError(RuntimeError):
    """An export that did not agree with the live model; it was deleted."""


def export(
    classifier: Classifier,
    base: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    formats: Sequence[str] = FORMATS,
    version: int | None = None,
    resize: bool = False,
    add_files: Sequence[Callable[[Path], object]] = (),
) -> Path:
    """Publish a classifier as BASE/VERSION, in float32 whatever the training precision.

    SavedModel signatures: `serving_default` (`image` float32 (batch, height, width, channels) in [0, 1] -> `logits`,
    `probabilities`, `probe_logits`), `encoded` (`image_bytes`, whole image files, see `decode_images` -> the same; only
    for 1, 3 or 4 channels), `explain` (`image` -> what the selection layers saw and did, see `explain_fn`), and
    `heads_detached`, `heads_full`, `heads_smoothed` (`image` -> `heads`), equal in value, which differ in the gradient
    through the mask and can be differentiated after `tf.saved_model.load`. ONNX (opset 17): `image` -> `logits`,
    `probabilities`, `probe_logits`, free dimension `batch`. A network without selection layers has no `probe_logits`.

    Args:
        classifier: what to export; left alone.
        base: folder of the versions.
        class_names: written to `labels.json`; None (default) numbers the classes.
        formats: which of `"savedmodel"` and `"onnx"`. Default both.
        version: number of the version, >= 1; None (default) takes the one after the highest there.
        resize: whether `encoded` resizes images of another size. Default False: they are an error.
        add_files: each is called with the folder, in order and before it is published, to add files of its own; an
            error there publishes nothing. Default none.

    Returns:
        the published folder.

    Raises:
        UserError: if the version exists, a format is unknown, there are too few or too many class names, or the base
            cannot be written to.
        ExportError: if an exported file does not load, or differs from the live model by more than 1e-5 on one of two
            batch sizes; nothing is left behind.

    Example:
        >>> path = export(classifier, "export/cifs")
        >>> loaded = tf.saved_model.load(str(path))  # keep a reference to it
        >>> loaded.signatures["serving_default"](image=images)["probabilities"]
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError("formats", name, f"give some of {', '.join(FORMATS)}")
    if not formats:
        raise UserError("formats", list(formats), f"give some of {', '.join(FORMATS)}")
    names = list(map(str, range(classifier.num_classes)) if class_names is None else class_names)
    if len(names) != classifier.num_classes:
        raise UserError("class_names", names, f"give {classifier.num_classes}, one for each class")
    check_version(Path(base), version)
    classifier = with_precision(classifier, "float32")

    def write(path: Path) -> None:
        # ONNX first: writing a SavedModel into the folder leaves other files alone.
        if "onnx" in formats:
            write_onnx(classifier, path / "model.onnx")
        if "savedmodel" in formats:
            write_saved_model(classifier, path, resize=resize)
        (path / "labels.json").write_text(json.dumps(names, ensure_ascii=False, indent=1) + "\n")
        for add_file in add_files:
            add_file(path)

    return publish_version(base, write, version)


def predict_fn(classifier: Classifier) -> PredictFn:
    """What a served model answers: images (batch, height, width, channels) -> named outputs.

    Args:
        classifier: a float32 classifier.

    Returns:
        a function to a dict of `logits`, `probabilities` (batch, classes) and `probe_logits` (batch, P, classes).
    """

    def predict(image: tf.Tensor) -> dict[str, tf.Tensor]:
        # Checked here: a convolution kills the process on an image of the wrong rank.
        heads = classifier(tf.ensure_shape(image, (None, *classifier.image_shape)), training=False)
        outputs = {"logits": heads[:, 0], "probabilities": tf.nn.softmax(heads[:, 0])}
        return {**outputs, "probe_logits": heads[:, 1:]} if classifier.num_probes else outputs

    return predict


def explain_fn(classifier: Classifier) -> PredictFn:
    """What the selection layers saw and did: images (batch, height, width, channels) -> named outputs.

    Args:
        classifier: a float32 classifier.

    Returns:
        a function to a dict of `probabilities` (batch, classes), `heads` (batch, 1 + P, classes), for each cut NAME
        `relevance_NAME` and `importance_NAME` (batch, channels), and `disagreement` (batch,), see `disagreement`;
        without cuts only the first two. Characters of NAME that no identifier has become `_`.
    """
    names = _identifiers(classifier.cuts)

    def explain(image: tf.Tensor) -> dict[str, tf.Tensor]:
        found = classifier.explain(tf.ensure_shape(image, (None, *classifier.image_shape)))
        heads = found["heads"]
        outputs = {"probabilities": tf.nn.softmax(heads[:, 0]), "heads": heads}
        for kind in ("relevance", "importance"):
            outputs |= {f"{kind}_{names[cut]}": values for cut, values in found[kind].items()}
        return {**outputs, "disagreement": disagreement(heads)} if classifier.num_probes else outputs

    return explain


def disagreement(heads: tf.Tensor) -> tf.Tensor:
    """How far the raw predictions are from the final one: a sign of tampering that is worth watching, not a proof.

    Args:
        heads: float (batch, 1 + P, classes), P >= 1.

    Returns:
        (batch,), in [0, 1]: the largest total-variation distance between the softmax of the final prediction and that
        of a raw one.

    Example:
        >>> disagreement(tf.constant([[[9.0, -9.0], [9.0, -9.0]], [[9.0, -9.0], [-9.0, 9.0]]])).numpy().round(3)
        array([0., 1.], dtype=float32)
    """
    probabilities = tf.nn.softmax(heads)
    distances = 0.5 * tf.reduce_sum(tf.abs(probabilities[:, 1:] - probabilities[:, :1]), axis=-1)
    return tf.reduce_max(distances, axis=-1)


def decode_images(image_bytes: tf.Tensor, image_shape: tuple[int, int, int], resize: bool = False) -> tf.Tensor:
    """Decode image files: PNG (16 bits are read as 8) or JPEG (for 1 or 3 channels); for 3 channels GIF and BMP too.

    Grey, colour and alpha become the model's channels; of an animation the first frame counts.

    Args:
        image_bytes: string (batch,), whole files.
        image_shape: (height, width, channels) of the result.
        resize: whether an image of another size is resized (bilinear, antialiased). Default False: it is an error.

    Returns:
        float32 (batch, height, width, channels) in [0, 1].
    """

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(encoded, channels=image_shape[2], expand_animations=False)
        image = tf.cast(image, tf.float32) / 255.0
        if resize:
            image.set_shape((None, None, image_shape[2]))  # unknown to the decoder, which might find an animation
            image = tf.clip_by_value(tf.image.resize(image, image_shape[:2], antialias=True), 0.0, 1.0)
        return tf.ensure_shape(image, image_shape)

    return tf.map_fn(decode, image_bytes, fn_output_signature=tf.TensorSpec(image_shape, tf.float32))


def is_decodable(image_shape: tuple[int, ...]) -> bool:
    """Whether an image file can hold such an image: not a signal, nor a volume.

    Args:
        image_shape: (height, width, channels), or another number of sizes.

    Returns:
        whether there is a signature `encoded` for it.
    """
    return len(image_shape) == 3 and image_shape[2] in DECODABLE_CHANNELS


def write_saved_model(classifier: Classifier, path: Path, resize: bool = False) -> None:
    """Write a SavedModel with all signatures and check it.

    Args:
        classifier: a float32 classifier.
        path: folder to write to.
        resize: see `export`.

    Raises:
        ExportError: if it differs from the live model.
    """
    predict, image_shape = predict_fn(classifier), classifier.image_shape

    def heads(mask_gradient: str) -> PredictFn:
        heads_fn = classifier.heads_fn(mask_gradient)
        return lambda image: {"heads": heads_fn(tf.ensure_shape(image, (None, *image_shape)))}

    of_images = {
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
    archive.write_out(str(path), verbose=False)

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


def write_onnx(classifier: Classifier, path: Path) -> None:
    """Write an ONNX file (opset 17) and check it in onnxruntime.

    Args:
        classifier: a float32 classifier.
        path: file to write.

    Raises:
        ExportError: if it cannot be converted or loaded, or differs from the live model.
    """
    import onnx
    import onnxruntime
    import tf2onnx

    signature = [tf.TensorSpec((None, *classifier.image_shape), tf.float32, name="image")]
    function = tf.function(predict_fn(classifier), input_signature=signature, autograph=False)
    # The converter reports unsupported operations in its log only, and writes a broken file: the check below decides.
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    try:
        with contextlib.redirect_stderr(log), _only_handler(logging.getLogger("tf2onnx"), handler):
            model, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(path))
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def run(image: tf.Tensor) -> dict:
            return dict(zip(names, session.run(None, {"image": image.numpy()}), strict=True))

        _check(predict_fn(classifier), classifier.image_shape, run, "ONNX")
    except Exception as error:
        path.unlink(missing_ok=True)
        reasons = " ".join(line for line in log.getvalue().splitlines() if "not supported" in line)
        raise ExportError(f"the ONNX export failed and was deleted: {error} {reasons}".rstrip()) from error


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


def _identifiers(names: Iterable[str]) -> dict[str, str]:
    """Names as parts of identifiers, by name; those that would become equal are numbered."""
    found: dict[str, str] = {}
    for name in names:
        plain = identifier = re.sub(r"\W", "_", name, flags=re.ASCII)
        number = 2
        while identifier in found.values():
            identifier, number = f"{plain}_{number}", number + 1
        found[name] = identifier
    return found


def _call_signature(signature: Callable, image: tf.Tensor) -> dict[str, tf.Tensor]:
    return signature(image=image)


def _encode(images: tf.Tensor) -> tf.Tensor:
    """Images in [0, 1] as PNG files: string (batch,)."""
    return tf.stack([tf.io.encode_png(tf.cast(tf.round(image * 255), tf.uint8)) for image in images])


@contextlib.contextmanager
def _only_handler(logger: logging.Logger, handler: logging.Handler):
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
