"""TF Serving's gRPC API: PredictionService and ModelService.

Calls are received by an event loop, and answered in threads once their message is there: a client that never sends its
message holds no thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow.core.framework import types_pb2
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest
from tensorflow_serving.apis.get_model_metadata_pb2 import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    SignatureDefMap,
)
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, GetModelStatusResponse
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest, ReloadConfigResponse
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse
from tensorflow_serving.apis.regression_pb2 import RegressionRequest

from cifs_tf.errors import UserError
from cifs_tf.serving.endpoint.classification import check_method
from cifs_tf.serving.endpoint.config_files import check_model_config
from cifs_tf.serving.endpoint.model_configs import to_configs
from cifs_tf.serving.endpoint.predictor import BYTES_OF_A_TEXT, Predictor
from cifs_tf.serving.endpoint.signatures import DEFAULT_SIGNATURE
from cifs_tf.serving.endpoint.status import Code, StatusError, invalid_argument
from cifs_tf.serving.endpoint.versions import Version, Versions

LOGGER = logging.getLogger("serving")
MESSAGE_CHARACTERS = 1024
TRUNCATED = "...TRUNCATED"
HEALTH_NAMES = ("", "PredictionService", "ModelService", "tensorflow.serving.PredictionService")
# Of a connection: calls at a time, how long it lasts, and a call that it stalls; clients connect anew by themselves.
CONNECTION_LIMITS = (
    ("grpc.max_concurrent_streams", 256),
    ("grpc.max_connection_age_ms", 600_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
)
# Where a TensorProto keeps values of a type; clients read these fields by name.
FIELDS = {
    types_pb2.DT_FLOAT: "float_val",
    types_pb2.DT_DOUBLE: "double_val",
    types_pb2.DT_INT64: "int64_val",
    types_pb2.DT_BOOL: "bool_val",
    types_pb2.DT_UINT32: "uint32_val",
    types_pb2.DT_UINT64: "uint64_val",
    types_pb2.DT_STRING: "string_val",
    **dict.fromkeys((types_pb2.DT_INT32, types_pb2.DT_INT16, types_pb2.DT_INT8, types_pb2.DT_UINT8), "int_val"),
}


class PredictionService:
    """Predict and GetModelMetadata; Classify and Regress say why a model cannot.

    Args:
        predictor: answers what was asked.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, request: PredictRequest, started: float) -> PredictResponse:
        """Run a model."""
        with self._count(request.model_spec, "Predict"), self._use(request) as version:
            limit = self._predictor.limits.max_request_bytes
            inputs = {name: read_tensor(name, proto, limit) for name, proto in request.inputs.items()}
            spec = request.model_spec
            outputs = self._predictor.predict(
                version, spec.signature_name, inputs, tuple(request.output_filter), started
            )
            response = PredictResponse(model_spec=_spec(version, spec.signature_name or DEFAULT_SIGNATURE))
            for name, tensor in outputs.items():
                write_tensor(tensor, response.outputs[name])
            return response

    def get_model_metadata(self, request: GetModelMetadataRequest, started: float) -> GetModelMetadataResponse:
        """Say what a model's signatures are."""
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid_argument(f"Metadata field {field} is not supported")
        with self._use(request) as version:
            assert version.servable is not None, "a version in use is loaded"
            signatures = SignatureDefMap()
            for name, signature in version.servable.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
            response = GetModelMetadataResponse(model_spec=_spec(version))
        response.metadata["signature_def"].Pack(signatures)
        return response

    def classify(self, request: ClassificationRequest, started: float) -> Message:
        """Say why a model cannot."""
        return self._refuse(request, "classify")

    def regress(self, request: RegressionRequest, started: float) -> Message:
        """Say why a model cannot."""
        return self._refuse(request, "regress")

    def _refuse(self, request: Any, method: str) -> Message:
        with self._count(request.model_spec, method.capitalize()), self._use(request) as version:
            assert version.servable is not None, "a version in use is loaded"
            raise check_method(version.servable.signatures, request.model_spec.signature_name, method)

    def _use(self, request: Any) -> contextlib.AbstractContextManager[Version]:
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        spec = request.model_spec
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        return self._predictor.versions.use(spec.name, _number(spec), spec.version_label or None)

    def _count(self, spec: ModelSpec, api: str) -> contextlib.AbstractContextManager[None]:
        if spec.name not in self._predictor.versions.configs():
            return contextlib.nullcontext()
        return self._predictor.metrics.request(spec.name, api, "GRPC")


class ModelService:
    """GetModelStatus and HandleReloadConfigRequest.

    Args:
        versions: the loaded models.
    """

    def __init__(self, versions: Versions) -> None:
        self._versions = versions

    def get_model_status(self, request: GetModelStatusRequest, started: float) -> GetModelStatusResponse:
        """Say in which state versions are."""
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        spec = request.model_spec
        return GetModelStatusResponse(model_version_status=self._versions.states(spec.name, _number(spec)))

    def handle_reload_config_request(self, request: ReloadConfigRequest, started: float) -> ReloadConfigResponse:
        """Change labels, policies and which of the server's own models are served; a request names no new folder."""
        if not request.HasField("config") or not request.config.HasField("model_config_list"):
            raise invalid_argument("ReloadConfigRequest has no model_config_list")
        try:
            check_model_config(request.config)
        except UserError as error:
            raise invalid_argument(str(error)) from error
        known = {config.name: config.base_path for config in self._versions.configs().values()}
        for model in request.config.model_config_list.config:
            if known.get(model.name) != Path(model.base_path):
                raise StatusError(
                    Code.PERMISSION_DENIED,
                    f"This server takes the folders of its models from its own command line and files only; "
                    f"{model.name} at {model.base_path} is none of them",
                )
        self._versions.configure(to_configs(request.config))
        self._versions.poll()
        response = ReloadConfigResponse()
        response.status.SetInParent()
        return response


async def make_grpc_server(
    predictor: Predictor,
    addresses: Sequence[str],
    *,
    num_threads: int,
    ending: threading.Event,
    health_service: bool = False,
    credentials: grpc.ServerCredentials | None = None,
) -> grpc.aio.Server:
    """Bind, but do not start, a server.

    Args:
        predictor: answers what was asked.
        addresses: HOST:PORT, or `unix:PATH`.
        num_threads: that decode and answer, >= 1.
        ending: once it is set calls are refused, those that came before are answered. gRPC itself cancels what it has
            received and not begun when it shuts down: a client that was told before calls somebody else.
        health_service: whether to answer gRPC's health checks. Default false.
        credentials: of TLS, but for UNIX sockets. Default none.

    Returns:
        the server.

    Raises:
        RuntimeError: if an address cannot be bound.
    """
    limits, threads = predictor.limits, ThreadPoolExecutor(num_threads, thread_name_prefix="grpc")
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", limits.max_request_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            *CONNECTION_LIMITS,
        ],
        maximum_concurrent_rpcs=limits.max_concurrent_requests,
    )

    def handler(function: Callable[[Any, float], Message], request_class: Any) -> grpc.RpcMethodHandler:
        async def answer(request: Message, context: grpc.aio.ServicerContext) -> Message:
            if ending.is_set():
                await context.abort(Code.UNAVAILABLE, "The server is ending")
            try:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(threads, function, request, time.monotonic())
            except StatusError as error:
                cut = len(error.message) > MESSAGE_CHARACTERS
                await context.abort(error.code, error.message[:MESSAGE_CHARACTERS] + TRUNCATED * cut)
            except Exception:
                LOGGER.exception("a gRPC call failed")
                await context.abort(Code.INTERNAL, "The server failed to answer this request; its log says why")
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(
            answer, request_class.FromString, lambda response: response.SerializeToString()
        )

    prediction, model = PredictionService(predictor), ModelService(predictor.versions)
    services = {
        "PredictionService": {
            "Predict": handler(prediction.predict, PredictRequest),
            "GetModelMetadata": handler(prediction.get_model_metadata, GetModelMetadataRequest),
            "Classify": handler(prediction.classify, ClassificationRequest),
            "Regress": handler(prediction.regress, RegressionRequest),
        },
        "ModelService": {
            "GetModelStatus": handler(model.get_model_status, GetModelStatusRequest),
            "HandleReloadConfigRequest": handler(model.handle_reload_config_request, ReloadConfigRequest),
        },
    }
    for name, methods in services.items():
        generic = grpc.method_handlers_generic_handler(f"tensorflow.serving.{name}", methods)
        server.add_generic_rpc_handlers((generic,))
    if health_service:
        servicer = health.aio.HealthServicer()
        for name in HEALTH_NAMES:
            await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for address in addresses:
        if credentials and not address.startswith("unix:"):
            server.add_secure_port(address, credentials)
        else:
            server.add_insecure_port(address)
    return server


def read_tensor(name: str, proto: TensorProto, limit: int) -> np.ndarray:
    """Read a tensor, as long as it is not much larger than its message: one value may stand for a whole shape.

    Args:
        name: of the input, for the message.
        proto: the tensor.
        limit: bytes of the tensor, > 0.

    Returns:
        the values.

    Raises:
        StatusError: INVALID_ARGUMENT if it is malformed, RESOURCE_EXHAUSTED if it is too large.
    """
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in sizes) or proto.dtype == types_pb2.DT_INVALID:
        raise invalid_argument(f"tensor parsing error: {name}")
    num_bytes = 1
    for size in sizes:
        num_bytes *= size
    try:
        dtype = tf.as_dtype(proto.dtype)
        num_bytes *= dtype.size or BYTES_OF_A_TEXT
        if num_bytes > limit:
            raise StatusError(Code.RESOURCE_EXHAUSTED, f"Tensor {name} would take {num_bytes} bytes, more than {limit}")
        if dtype != tf.string and len(proto.tensor_content) == num_bytes:
            return np.frombuffer(proto.tensor_content, dtype.as_numpy_dtype).reshape(sizes)
        # What TensorFlow makes of too many values, of too few and of none is for TensorFlow to say.
        tensor = tf.io.parse_tensor(proto.SerializeToString(), dtype).numpy()
        return tensor if isinstance(tensor, np.ndarray) else np.array(tensor, dtype.as_numpy_dtype)
    except (tf.errors.OpError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise invalid_argument(f"tensor parsing error: {name}") from error


def write_tensor(tensor: np.ndarray, proto: TensorProto) -> None:
    """Write a tensor into the fields that TF Serving fills, which clients read by name.

    Args:
        tensor: values.
        proto: an empty message.
    """
    dtype = tf.as_dtype(tensor.dtype).as_datatype_enum
    if dtype not in FIELDS:
        proto.CopyFrom(tf.make_tensor_proto(tensor))
        return
    proto.dtype = dtype
    proto.tensor_shape.SetInParent()
    for size in tensor.shape:
        proto.tensor_shape.dim.add(size=size)
    getattr(proto, FIELDS[dtype]).extend(tensor.reshape(-1).tolist())


def _number(spec: ModelSpec) -> int | None:
    return spec.version.value if spec.HasField("version") else None


def _spec(version: Version, signature_name: str = "") -> ModelSpec:
    spec = ModelSpec(name=version.model, signature_name=signature_name)
    spec.version.value = version.number
    return spec
