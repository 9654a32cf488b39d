"""The functions that an exported classifier answers with: predictions, explanations, and decoding of image files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import keras
import tensorflow as tf

from cifs_tf.data import resizing, to_float
from cifs_tf.data.decoding.graph import decode_image
from cifs_tf.sizes import Resize

DECODABLE_CHANNELS = (1, 3, 4)

PredictFn = Callable[[tf.Tensor], dict[str, tf.Tensor]]


def predict_fn(classifier: keras.Model) -> PredictFn:
    """Return what answers requests for a prediction: images (batch, height, width, channels) -> named outputs.

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


def explain_fn(classifier: keras.Model) -> PredictFn:
    """Return what explains predictions: images (batch, height, width, channels) -> what selection layers saw and did.

    Args:
        classifier: a float32 classifier.

    Returns:
        a function to a dict of `probabilities` (batch, classes), `heads` (batch, 1 + P, classes), for each cut NAME
        `relevance_NAME` and `importance_NAME` (batch, channels), and `disagreement` (batch,), see `disagreement`;
        without cuts only the first two. Characters of NAME that no identifier has become `_`.
    """
    names = identifiers(classifier.cuts)

    def explain(image: tf.Tensor) -> dict[str, tf.Tensor]:
        found = classifier.explain(tf.ensure_shape(image, (None, *classifier.image_shape)))
        heads = found["heads"]
        outputs = {"probabilities": tf.nn.softmax(heads[:, 0]), "heads": heads}
        for kind in ("relevance", "importance"):
            outputs |= {f"{kind}_{names[cut]}": values for cut, values in found[kind].items()}
        return {**outputs, "disagreement": disagreement(heads)} if classifier.num_probes else outputs

    return explain


def disagreement(heads: tf.Tensor) -> tf.Tensor:
    """Measure how far raw predictions are from the final one: a sign of tampering that is worth watching, not a proof.

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


def decode_images(
    image_bytes: tf.Tensor, image_shape: tuple[int, int, int], resize: Resize | bool | None = None
) -> tf.Tensor:
    """Decode image files: PNG (16 bits are read as 8), or JPEG for 1 or 3 channels; for 3 also GIF, WebP and BMP.

    Grey, colour and alpha become the model's channels; of an animation the first frame counts; photographs are turned
    upright as EXIF says, as those of a folder are that is trained on.

    Args:
        image_bytes: string (batch,), whole files.
        image_shape: (height, width, channels) of the result.
        resize: how an image of another size is resized, `"crop"`, `"stretch"` or `"pad"`, see
            `cifs_tf.data.resizing.resize`; True is `"stretch"`. Default None, or False: it is an error.

    Returns:
        float32 (batch, height, width, channels) in [0, 1].
    """

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        if resize:
            size, mode = image_shape[:2], "stretch" if resize is True else resize
            image = resizing.resize(decode_image(encoded, image_shape[2], size, mode), size, mode)
        else:
            image = decode_image(encoded, image_shape[2])
        return tf.ensure_shape(to_float(image), image_shape)

    return tf.map_fn(decode, image_bytes, fn_output_signature=tf.TensorSpec(image_shape, tf.float32))


def is_decodable(image_shape: tuple[int, ...]) -> bool:
    """Tell whether an image file can hold such an image: not a signal, nor a volume.

    Args:
        image_shape: (height, width, channels), or another number of sizes.

    Returns:
        True if there is a signature `encoded` for it.
    """
    return len(image_shape) == 3 and image_shape[2] in DECODABLE_CHANNELS


def identifiers(names: Iterable[str]) -> dict[str, str]:
    """Make names parts of identifiers, by name; those that would become equal are numbered.

    Args:
        names: of layers.

    Returns:
        the identifier by name.

    Example:
        >>> identifiers(["conv.1", "conv_1"])
        {'conv.1': 'conv_1', 'conv_1': 'conv_1_2'}
    """
    found: dict[str, str] = {}
    for name in names:
        plain = identifier = re.sub(r"\W", "_", name, flags=re.ASCII)
        number = 2
        while identifier in found.values():
            identifier, number = f"{plain}_{number}", number + 1
        found[name] = identifier
    return found
