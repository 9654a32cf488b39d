"""Load a version, and warm it up with the requests that lie in it."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from cifs_tf.serving.endpoint.grpc_services import read_tensor
from cifs_tf.serving.endpoint.metrics import Metrics
from cifs_tf.serving.endpoint.servables import ONNX_FILE, Servable, load_servable
from cifs_tf.serving.endpoint.signatures import check_names, check_tensors, find_signature, select_outputs
from cifs_tf.serving.endpoint.status import Code, StatusError

WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
MAX_WARMUP_RECORDS = 1000
MAX_WARMUP_BYTES = 2**30


class Loader:
    """Makes servables, ready for the first request.

    Args:
        backend: `"tensorflow"` or `"onnx"`.
        timeout: seconds after which a run ends, > 0.
        metrics: where the time is noted.
        warmup: run the requests that lie in the version. Default true.
        session_config: threads of a run. Default the backend's own.
        onnx_file: name of the ONNX file in a version. Default `model.onnx`.
    """

    def __init__(
        self,
        backend: str,
        timeout: float,
        metrics: Metrics,
        *,
        warmup: bool = True,
        session_config: config_pb2.ConfigProto | None = None,
        onnx_file: str = ONNX_FILE,
    ) -> None:
        self._backend, self._timeout, self._metrics = backend, timeout, metrics
        self._warmup, self._session_config, self._onnx_file = warmup, session_config, onnx_file

    def __call__(self, path: Path) -> Servable:
        """Load a version's folder.

        Raises:
            StatusError: with what is wrong with it.
        """
        servable = load_servable(path, self._backend, self._timeout, self._session_config, self._onnx_file)
        if self._warmup and (path / WARMUP_FILE).is_file():
            try:
                with self._metrics.warmup(str(path)):
                    warm_up(servable, path / WARMUP_FILE)
            except BaseException:
                servable.close()
                raise
        return servable


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
