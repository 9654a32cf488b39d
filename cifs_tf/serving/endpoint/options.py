"""Options of the server, among them the limits of what a request may cost; TensorFlow is not needed to refuse one."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Literal

from cifs_tf.errors import UserError
from cifs_tf.hardware import usable_cores

CPUS = usable_cores()
MAY_BE_ZERO = (
    "port",
    "rest_api_port",
    "max_num_load_retries",
    "load_retry_interval_micros",
    "file_system_poll_wait_seconds",
    "model_config_file_poll_wait_seconds",
    "num_request_iterations_for_warmup",
    "tensorflow_session_parallelism",
    "per_process_gpu_memory_fraction",
    "tensorflow_intra_op_parallelism",
    "tensorflow_inter_op_parallelism",
)


# Where clouds keep files, and the command that copies a folder from there.
OBJECT_STORAGE = {
    "gs": "gcloud storage rsync --recursive",
    "s3": "aws s3 sync",
    "hdfs": "hdfs dfs -get",
    "az": "az storage blob download-batch",
}


def object_storage_advice(path: str) -> str | None:
    """Return what to do about a path in a cloud; None for any other."""
    scheme, separator, _ = path.partition("://")
    if not separator:
        return None
    copy = OBJECT_STORAGE.get(scheme.lower(), "the provider's client")
    return f"only folders of this machine are read: mount it, or copy it and every new version ({copy} {path} DIR)"


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """Serve exported models with TF Serving's REST and gRPC APIs.

    Args:
        model_base_path: folder of one model's versions, each a folder whose name is a number.
        model_name: by which requests call it.
        model_config_file: several models instead, in TF Serving's text format; the two above are ignored then.
        model_config_file_poll_wait_seconds: read that file again so often; 0 is never.
        backend: tensorflow serves saved_model.pb, onnx serves an ONNX file.
        onnx_file: its name in each version's folder; model.int8.onnx is the 8-bit variant.
        host: address to listen on; 127.0.0.1 is this machine alone, 0.0.0.0 is everybody who can reach it.
        port: of gRPC; 0 is none.
        rest_api_port: of REST; 0 is none.
        rest_api_timeout_in_ms: a REST request that takes longer is answered with an error.
        rest_api_num_threads: that decode and answer REST requests.
        large_body_processes: that read and write JSON of more than 256 KiB, so that small requests need not wait.
        grpc_max_threads: that decode and answer gRPC requests.
        enable_signature_method_name_check: let classify and regress use only signatures made for them, not those of
            Keras that fit.
        rest_api_enable_cors_support: let scripts of other web pages call the API.
        enable_playground: show the playground at /playground of the REST port, with the models that the export wrote.
        grpc_socket_path: a UNIX socket for gRPC, beside the port.
        ssl_config_file: key and certificate of the gRPC port, in TF Serving's text format.
        enable_grpc_healthcheck_service: answer gRPC's health checks.
        monitoring_config_file: where Prometheus finds the metrics, in TF Serving's text format.
        enable_batching: let requests that come at the same time share a run.
        batching_parameters_file: how, in TF Serving's text format.
        enable_model_warmup: run the requests that lie in a version before it is available.
        file_system_poll_wait_seconds: look for new versions so often; 0 is once.
        max_num_load_retries: of a version that cannot be loaded.
        load_retry_interval_micros: between them.
        allow_version_labels_for_unavailable_models: take labels of versions that are not loaded yet.
        num_request_iterations_for_warmup: run each of those requests so often.
        tensorflow_session_config_file: of the session of a SavedModel, TensorFlow's ConfigProto in text format.
        tensorflow_session_parallelism: both of the following; 0 leaves them alone.
        per_process_gpu_memory_fraction: of a GPU, for this process; 0 leaves it to TensorFlow.
        saved_model_tags: of the graph to load from a SavedModel, with commas.
        grpc_channel_arguments: of gRPC, such as grpc.max_connection_age_ms=2000, with commas.
        enable_serialization_as_tensor_content: answer Predict in tensor_content, not in fields such as float_val.
        tensorflow_intra_op_parallelism: threads of one operation; 0 leaves it to TensorFlow.
        tensorflow_inter_op_parallelism: operations at a time; 0 leaves it to TensorFlow.
        max_request_bytes: of one request, also once unpacked.
        max_image_pixels: of all image files of one request together.
        max_run_rows: rows that a model sees at once, if its rows are known not to mix; longer requests run in parts.
        row_wise_models: names of models whose answer for a row depends on that row alone, as it does for what
            serving/export.py writes.
        max_concurrent_requests: of either API; more are refused.
        max_buffered_bytes: of the bodies of all REST requests at a time; more are refused.
        max_connections: of REST; beyond, the one that has been idle longest is closed.
        receive_timeout_in_ms: a client that sends its REST request more slowly is cut off.
        drain_timeout_in_ms: at the end, so long for requests that have come.
    """

    model_base_path: str | None = None
    model_name: str = "default"
    model_config_file: str | None = None
    model_config_file_poll_wait_seconds: float = 0
    backend: Literal["tensorflow", "onnx"] = "tensorflow"
    onnx_file: str = "model.onnx"
    host: str = "127.0.0.1"
    port: int = 8500
    rest_api_port: int = 8501
    rest_api_timeout_in_ms: int = 30000
    rest_api_num_threads: int = 4 * CPUS
    large_body_processes: int = max(1, CPUS // 2)
    grpc_max_threads: int = 4 * CPUS
    enable_signature_method_name_check: bool = False
    rest_api_enable_cors_support: bool = False
    enable_playground: bool = False
    grpc_socket_path: str | None = None
    ssl_config_file: str | None = None
    enable_grpc_healthcheck_service: bool = False
    monitoring_config_file: str | None = None
    enable_batching: bool = False
    batching_parameters_file: str | None = None
    enable_model_warmup: bool = True
    file_system_poll_wait_seconds: float = 1
    max_num_load_retries: int = 5
    load_retry_interval_micros: int = 60_000_000
    allow_version_labels_for_unavailable_models: bool = False
    num_request_iterations_for_warmup: int = 0
    tensorflow_session_config_file: str | None = None
    tensorflow_session_parallelism: int = 0
    per_process_gpu_memory_fraction: float = 0
    saved_model_tags: tuple[str, ...] = ("serve",)
    grpc_channel_arguments: tuple[str, ...] = ()
    enable_serialization_as_tensor_content: bool = False
    tensorflow_intra_op_parallelism: int = 0
    tensorflow_inter_op_parallelism: int = 0
    max_request_bytes: int = 64 * 2**20
    max_image_pixels: int = 2**24
    max_run_rows: int = 64
    row_wise_models: tuple[str, ...] = ()
    max_concurrent_requests: int = 512
    max_buffered_bytes: int = 512 * 2**20
    max_connections: int = 1024
    receive_timeout_in_ms: int = 30000
    drain_timeout_in_ms: int = 30000

    def __post_init__(self) -> None:
        if self.model_base_path is None and self.model_config_file is None:
            raise UserError("--model_base_path", None, "give either it or --model_config_file")
        if advice := object_storage_advice(self.model_base_path or ""):
            raise UserError("--model_base_path", self.model_base_path, advice)
        if (
            self.model_config_file is None
            and self.model_base_path is not None
            and not Path(self.model_base_path).is_dir()
        ):
            advice = "there is no such folder, give the one that holds the versions, such as runs/digits/export/cifs"
            raise UserError("--model_base_path", self.model_base_path, advice)
        if not (self.port or self.rest_api_port or self.grpc_socket_path):
            raise UserError("--port", 0, "give a port here or to --rest_api_port, with none nobody can ask anything")
        if self.enable_playground and not self.rest_api_port:
            raise UserError("--enable_playground", True, "it is shown at --rest_api_port, give one")
        for argument in self.grpc_channel_arguments:
            if not re.fullmatch(r"[^=]+=[^=]+", argument):
                raise UserError("--grpc_channel_arguments", argument, "give NAME=VALUE")
        for name in ("port", "rest_api_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise UserError(f"--{name}", getattr(self, name), "give a port from 1 to 65535, or 0 for none")
        if self.port and self.port == self.rest_api_port:
            raise UserError("--rest_api_port", self.port, "gRPC has it, give another")
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name in MAY_BE_ZERO else 1
            if isinstance(value, int | float) and not isinstance(value, bool) and value < least:
                raise UserError(f"--{field.name}", value, f"give {least} or more")
        if self.batching_parameters_file and not self.enable_batching:
            raise UserError("--batching_parameters_file", self.batching_parameters_file, "give --enable_batching too")

    @property
    def timeout(self) -> float:
        """Seconds for the whole of a request."""
        return self.rest_api_timeout_in_ms / 1000
