"""Warm-up requests: what a server runs before it answers, so that the first client does not wait for it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog, PredictLog

from cifs_tf.errors import UserError
from cifs_tf.export import is_decodable
from cifs_tf.files import WARMUP_FILE

# TF Serving refuses to load a model with more than 1000 requests, and each size makes two.
MAXIMUM_SIZES = 500


def write_warmup(
    path: Path, image_shape: tuple[int, int, int], *, batch_sizes: Sequence[int] = (1,), model_name: str = "model"
) -> Path:
    """Write warm-up requests for `serving_default` and `encoded` into a version's folder.

    Args:
        path: folder of the version.
        image_shape: (height, width, channels) of the model.
        batch_sizes: one request of each signature for each size, >= 1. Default 1; where a server batches, give what it
            allows.
        model_name: name in the requests. Default `"model"`.

    Returns:
        the file, a TFRecord of `PredictionLog`.

    Raises:
        UserError: for a size below 1, or too many of them.
    """
    if not batch_sizes or min(batch_sizes) < 1 or len(batch_sizes) > MAXIMUM_SIZES:
        raise UserError("warmup_batch_sizes", list(batch_sizes), f"give 1 to {MAXIMUM_SIZES} numbers of 1 or more")
    file = path / WARMUP_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for request in make_requests(image_shape, batch_sizes, model_name):
            log = PredictionLog(predict_log=PredictLog(request=request))
            writer.write(log.SerializeToString())
    return file


def make_requests(
    image_shape: tuple[int, int, int], batch_sizes: Sequence[int], model_name: str = "model"
) -> list[PredictRequest]:
    """Make requests of noise images, the same every time; without `encoded` where no file has so many channels."""
    requests = []
    for batch_size in batch_sizes:
        pixels = np.random.default_rng(0).integers(0, 256, (batch_size, *image_shape), dtype=np.uint8)
        inputs = {"serving_default": ("image", tf.make_tensor_proto(pixels.astype(np.float32) / np.float32(255)))}
        if is_decodable(image_shape):
            files = [tf.io.encode_png(image).numpy() for image in pixels]
            inputs["encoded"] = ("image_bytes", tf.make_tensor_proto(files))
        for signature, (name, tensor) in inputs.items():
            request = PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = model_name, signature
            request.inputs[name].CopyFrom(tensor)
            requests.append(request)
    return requests
