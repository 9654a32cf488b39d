"""Load a version, and warm it up with the requests that lie in it."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from cifs_tf.files import CARD_FILE, WARMUP_FILE
from cifs_tf.serving.endpoint.config_files import read_session_config
from cifs_tf.serving.endpoint.metrics import Metrics
from cifs_tf.serving.endpoint.models.classification import CLASSIFY, REGRESS, infer, infer_all, serialized_examples
from cifs_tf.serving.endpoint.models.servables import OnnxModel, SavedModel, Servable
from cifs_tf.serving.endpoint.models.signatures import (
    add_defaults,
    check_is_tensor,
    check_names,
    check_tensors,
    find_signature,
    select_outputs,
)
from cifs_tf.serving.endpoint.options import ServerOptions
from cifs_tf.serving.endpoint.status import BY_NUMBER, Code, StatusError
from cifs_tf.serving.endpoint.tensor_protos import read_tensor

LOGGER = logging.getLogger("serving")
SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")
ONNX_FILE = "model.onnx"
CARD_SCHEMA = 1
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
    try:
        _tell_what_is_no_tensor(path, servable)
        if options.enable_model_warmup and (path / WARMUP_FILE).is_file():
            with metrics.warmup(str(path)):
                warm_up(servable, path / WARMUP_FILE, max(1, options.num_request_iterations_for_warmup))
    except BaseException:
        servable.close()
        raise
    return servable


def _load(path: Path, options: ServerOptions) -> Servable:
    wanted = SAVED_MODEL_FILES if options.backend == "tensorflow" else (options.onnx_file,)
    file = next((path / name for name in wanted if (path / name).is_file()), None)
    if file is None:
        found = "model.onnx, use --backend onnx" if (path / ONNX_FILE).is_file() else "no model"
        raise StatusError(Code.NOT_FOUND, f"Could not find {wanted[0]} at {path}: there is {found}")
    threads = options.tensorflow_intra_op_parallelism or options.tensorflow_session_parallelism
    servable: SavedModel | OnnxModel
    try:
        if options.backend == "onnx":
            servable = OnnxModel(file, threads)
        else:
            servable = SavedModel(path, options.saved_model_tags or ("serve",), _session_config(options, threads))
    except tf.errors.OpError as error:
        raise StatusError(BY_NUMBER[error.error_code], error.message) from error
    except Exception as error:  # whatever a damaged file makes a library raise
        raise StatusError(Code.INVALID_ARGUMENT, f"{type(error).__name__}: {error}") from error
    if is_our_export(file):
        servable.row_wise = frozenset(servable.signatures)
    return servable


def _session_config(options: ServerOptions, threads: int) -> config_pb2.ConfigProto:
    """Return the options of a session: the file's, but for what the command line says."""
    file = options.tensorflow_session_config_file
    config = config_pb2.ConfigProto() if file is None else read_session_config(file)
    operations = options.tensorflow_inter_op_parallelism or options.tensorflow_session_parallelism
    config.intra_op_parallelism_threads = threads or config.intra_op_parallelism_threads
    config.inter_op_parallelism_threads = operations or config.inter_op_parallelism_threads
    if options.per_process_gpu_memory_fraction:
        config.gpu_options.per_process_gpu_memory_fraction = options.per_process_gpu_memory_fraction
    return config


def is_our_export(file: Path) -> bool:
    """Return whether this project wrote a model, as the card beside it says: rows of a classifier never mix."""
    try:
        card = json.loads((file.parent / CARD_FILE).read_text(encoding="utf-8"))
        known = card["schema"] == CARD_SCHEMA and card["files"][file.name]["sha256"]
        return bool(known == hashlib.sha256(file.read_bytes()).hexdigest())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _tell_what_is_no_tensor(path: Path, servable: Servable) -> None:
    for name, signature in servable.signatures.items():
        if name.startswith("__"):  # TensorFlow's __saved_model_init_op
            continue
        for what, infos in (("input", signature.inputs), ("output", signature.outputs)):
            for tensor, info in infos.items():
                try:
                    check_is_tensor(tensor, info, what)
                except StatusError as error:
                    LOGGER.warning("%s, signature %s: %s", path, name, error.message)


def warm_up(servable: Servable, file: Path, times: int = 1) -> None:
    """Run recorded requests, so that no client waits for what happens only once.

    Args:
        servable: to run them with.
        times: to run each. Default 1.
        file: TFRecords of `PredictionLog`, at most 1000; those of a kind that cannot be run are skipped with a line in
            the log.

    Raises:
        StatusError: INVALID_ARGUMENT if there are too many, or one is damaged, or whatever the model says to one.
    """
    skipped: dict[str, int] = {}
    try:
        for index, record in enumerate(tf.data.TFRecordDataset(str(file)).as_numpy_iterator()):
            if index == MAX_WARMUP_RECORDS:
                raise StatusError(
                    Code.INVALID_ARGUMENT,
                    f"Number of warmup records exceeds the maximum ({MAX_WARMUP_RECORDS}): {file}",
                )
            log = PredictionLog.FromString(record)
            kinds = {_run_record(servable, log) for _ in range(times)}
            for kind in filter(None, kinds):
                skipped[kind] = skipped.get(kind, 0) + 1
    except (tf.errors.OpError, ValueError, DecodeError) as error:  # a damaged file, or record
        raise StatusError(Code.INVALID_ARGUMENT, f"The warmup file {file} is damaged: {error}") from error
    for kind, count in skipped.items():
        LOGGER.warning("%d warm-up records of %s are skipped: %s", count, file, kind)


def _run_record(servable: Servable, log: PredictionLog) -> str | None:
    """Run a record; return why it is skipped, if it is."""
    kind = log.WhichOneof("log_type")
    request: Any = getattr(getattr(log, kind), "request", None) if kind else None
    if kind == "multi_inference_log":
        infer_all(servable, request)
    elif kind in ("classify_log", "regress_log"):
        method = CLASSIFY if kind == "classify_log" else REGRESS
        infer(servable, request.model_spec.signature_name, method, serialized_examples(request.input))
    elif kind == "predict_log":
        # An ONNX file has fewer signatures than the SavedModel beside it.
        if request.model_spec.signature_name not in ("", *servable.signatures):
            return f"there is no signature {request.model_spec.signature_name}"
        name, signature = find_signature(servable.signatures, request.model_spec.signature_name)
        inputs = {key: read_tensor(key, proto, MAX_WARMUP_BYTES) for key, proto in request.inputs.items()}
        check_names(signature, list(inputs))
        inputs = add_defaults(signature, inputs)
        check_tensors(signature, inputs)
        servable.run(name, inputs, select_outputs(signature, tuple(request.output_filter)))
    else:
        return f"their kind is {kind or 'not known'}"
    return None
