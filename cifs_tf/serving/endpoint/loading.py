"""Load a version, and warm it up with the requests that lie in it."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from cifs_tf.serving.endpoint.grpc_tensors import read_tensor
from cifs_tf.serving.endpoint.metrics import Metrics
from cifs_tf.serving.endpoint.options import ServerOptions
from cifs_tf.serving.endpoint.servables import OnnxModel, SavedModel, Servable
from cifs_tf.serving.endpoint.signatures import check_names, check_tensors, find_signature, select_outputs
from cifs_tf.serving.endpoint.status import BY_NUMBER, Code, StatusError

SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")
ONNX_FILE = "model.onnx"
WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
MAX_WARMUP_RECORDS = 1000
MAX_WARMUP_BYTES = 2**30


def load_version(path: Path, options: ServerOptions, metrics: Metrics) -> Servable:
    """Load a version, and run the requests that lie in it, unless `enable_model_warmup` is off.

    Args:
        path: the version's folder.
        options: of the server.
        metrics: note the time of the warm-up.

    Returns:
        the loaded version, ready for the first request.

    Raises:
        StatusError: NOT_FOUND if there is no model in the folder, else the reason why it cannot be loaded.
    """
    servable = _load(path, options)
    if options.enable_model_warmup and (path / WARMUP_FILE).is_file():
        try:
            with metrics.warmup(str(path)):
                warm_up(servable, path / WARMUP_FILE)
        except BaseException:
            servable.close()
            raise
    return servable


def _load(path: Path, options: ServerOptions) -> Servable:
    wanted = SAVED_MODEL_FILES if options.backend == "tensorflow" else (options.onnx_file,)
    if not any((path / name).is_file() for name in wanted):
        found = "model.onnx, use --backend onnx" if (path / ONNX_FILE).is_file() else "no model"
        raise StatusError(Code.NOT_FOUND, f"Could not find {wanted[0]} at {path}: there is {found}")
    threads = options.tensorflow_intra_op_parallelism
    try:
        if options.backend == "onnx":
            return OnnxModel(path / options.onnx_file, options.timeout, threads)
        session_config = config_pb2.ConfigProto(
            intra_op_parallelism_threads=threads,
            inter_op_parallelism_threads=options.tensorflow_inter_op_parallelism,
        )
        return SavedModel(path, options.timeout, session_config)
    except tf.errors.OpError as error:
        raise StatusError(BY_NUMBER[error.error_code], error.message) from error
    except Exception as error:  # whatever a damaged file makes a library raise
        raise StatusError(Code.INVALID_ARGUMENT, f"{type(error).__name__}: {error}") from error


def warm_up(servable: Servable, file: Path) -> None:
    """Run recorded requests, so that no client waits for what happens only once.

    Args:
        servable: to run them with.
        file: TFRecords of `PredictionLog`, at most 1000.

    Raises:
        StatusError: INVALID_ARGUMENT if there are too many, or one is damaged, or whatever the model says to one.
    """
    try:
        for index, record in enumerate(tf.data.TFRecordDataset(str(file)).as_numpy_iterator()):
            if index == MAX_WARMUP_RECORDS:
                raise StatusError(
                    Code.INVALID_ARGUMENT,
                    f"Number of warmup records exceeds the maximum ({MAX_WARMUP_RECORDS}): {file}",
                )
            log = PredictionLog.FromString(record)
            if log.WhichOneof("log_type") != "predict_log":
                raise StatusError(Code.UNIMPLEMENTED, f"Warmup record {index} of {file} is no predict_log")
            request = log.predict_log.request
            # An ONNX file has fewer signatures than the SavedModel beside it.
            if request.model_spec.signature_name not in ("", *servable.signatures):
                continue
            name, signature = find_signature(servable.signatures, request.model_spec.signature_name)
            inputs = {key: read_tensor(key, proto, MAX_WARMUP_BYTES) for key, proto in request.inputs.items()}
            check_names(signature, list(inputs))
            check_tensors(signature, inputs)
            servable.run(name, inputs, select_outputs(signature, tuple(request.output_filter)))
    except (tf.errors.OpError, ValueError) as error:  # a damaged file, or record
        raise StatusError(Code.INVALID_ARGUMENT, f"The warmup file {file} is damaged: {error}") from error
