"""TF Serving's gRPC API: PredictionService and ModelService.

Calls are received by an event loop, and answered in threads once their message is there: a client that never sends its
message holds no thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from tensorflow_serving.apis import model_service_pb2, prediction_service_pb2
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest, ClassificationResponse
from tensorflow_serving.apis.get_model_metadata_pb2 import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    SignatureDefMap,
)
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, GetModelStatusResponse
from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest, MultiInferenceResponse
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest, ReloadConfigResponse
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse
from tensorflow_serving.apis.regression_pb2 import RegressionRequest, RegressionResponse

from cifs_tf.errors import UserError
from cifs_tf.serving.endpoint.config_files import check_model_config
from cifs_tf.serving.endpoint.grpc.v2 import MESSAGES, InferenceService
from cifs_tf.serving.endpoint.models.classification import (
    CLASSIFY,
    REGRESS,
    infer,
    infer_all,
    result_message,
    serialized_examples,
)
from cifs_tf.serving.endpoint.models.served_models import served_models
from cifs_tf.serving.endpoint.models.versions import Version, Versions
from cifs_tf.serving.endpoint.prediction.predictor import Predictor
from cifs_tf.serving.endpoint.protos import add_file
from cifs_tf.serving.endpoint.status import DEFAULT_SIGNATURE, Code, StatusError, invalid_argument
from cifs_tf.serving.endpoint.tensor_protos import read_tensor, write_tensor

LOGGER = logging.getLogger("serving")
HEALTH_NAMES = ("", "PredictionService", "ModelService", "tensorflow.serving.PredictionService")
# Of a connection: calls at a time, its lifetime, and that of a stalled call; clients connect again by themselves.
CONNECTION_LIMITS = (
    ("grpc.max_concurrent_streams", 256),
    ("grpc.max_connection_age_ms", 600_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
)


class PredictionService:
    """Predict, Classify, Regress, MultiInference and GetModelMetadata.

    Args:
        predictor: answers what was asked.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, request: PredictRequest, deadline: float) -> PredictResponse:
        """Run a model."""
        with self._predictor.count(request.model_spec.name, "Predict", "GRPC"), self._use(request) as version:
            limit = self._predictor.options.max_request_bytes
            as_content = self._predictor.options.enable_serialization_as_tensor_content
            inputs = {name: read_tensor(name, proto, limit) for name, proto in request.inputs.items()}
            spec = request.model_spec
            outputs = self._predictor.predict(
                version, spec.signature_name, inputs, tuple(request.output_filter), deadline
            )
            response = PredictResponse(model_spec=_spec(version, spec.signature_name or DEFAULT_SIGNATURE))
            for name, tensor in outputs.items():
                write_tensor(tensor, response.outputs[name], as_content)
            return response

    def get_model_metadata(self, request: GetModelMetadataRequest, deadline: float) -> GetModelMetadataResponse:
        """Say what a model's signatures are."""
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid_argument(f"Metadata field {field} is not supported")
        with self._use(request) as version:
            signatures = SignatureDefMap()
            for name, signature in version.loaded.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
            response = GetModelMetadataResponse(model_spec=_spec(version))
        response.metadata["signature_def"].Pack(signatures)
        return response

    def classify(self, request: ClassificationRequest, deadline: float) -> ClassificationResponse:
        """Name classes of examples, with scores."""
        spec, result = self._infer(request, CLASSIFY, deadline)
        return ClassificationResponse(model_spec=spec, result=result)

    def regress(self, request: RegressionRequest, deadline: float) -> RegressionResponse:
        """Give examples values."""
        spec, result = self._infer(request, REGRESS, deadline)
        return RegressionResponse(model_spec=spec, result=result)

    def multi_inference(self, request: MultiInferenceRequest, deadline: float) -> MultiInferenceResponse:
        """Classify and regress the same examples."""
        first = request.tasks[0] if request.tasks else None
        if first is None or not first.model_spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        strict = self._predictor.options.enable_signature_method_name_check
        with self._predictor.count(first.model_spec.name, "MultiInference", "GRPC"), self._use(first) as version:
            response = infer_all(version.loaded, request, deadline, strict)
            for result in response.results:
                result.model_spec.version.value = version.number
            return response

    def _infer(self, request: Any, method: str, deadline: float) -> tuple[ModelSpec, Any]:
        api, name = method.rpartition("/")[2].capitalize(), request.model_spec.signature_name
        strict = self._predictor.options.enable_signature_method_name_check
        with self._predictor.count(request.model_spec.name, api, "GRPC"), self._use(request) as version:
            examples = serialized_examples(request.input)
            found = infer(version.loaded, name, method, examples, deadline, strict)
            return _spec(version, name or DEFAULT_SIGNATURE), result_message(found)

    def _use(self, request: Any) -> contextlib.AbstractContextManager[Version]:
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        spec = request.model_spec
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        return self._predictor.versions.use(spec.name, _number(spec), spec.version_label or None)


class ModelService:
    """GetModelStatus and HandleReloadConfigRequest.

    Args:
        versions: the loaded models.
    """

    def __init__(self, versions: Versions) -> None:
        self._versions = versions

    def get_model_status(self, request: GetModelStatusRequest, deadline: float) -> GetModelStatusResponse:
        """Say in which state versions are."""
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        spec = request.model_spec
        return GetModelStatusResponse(model_version_status=self._versions.states(spec.name, _number(spec)))

    def handle_reload_config_request(self, request: ReloadConfigRequest, deadline: float) -> ReloadConfigResponse:
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
        self._versions.configure(served_models(request.config))
        self._versions.poll()
        response = ReloadConfigResponse()
        response.status.SetInParent()
        return response


class _MessageCheck(grpc.aio.ServerInterceptor):
    """Let health and reflection, which read their messages themselves, refuse invalid ones as the others do."""

    async def intercept_service(self, continuation: Callable, handler_call_details: Any) -> Any:
        """Return the handler of a call, which is given bytes."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler

        async def read(content: bytes, context: grpc.aio.ServicerContext) -> Message:
            try:
                return handler.request_deserializer(content)
            except DecodeError as error:
                await context.abort(Code.INVALID_ARGUMENT, f"The message cannot be read: {error}")
            raise AssertionError("abort raises")

        async def read_all(contents: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[Message]:
            async for content in contents:
                yield await read(content, context)

        async def answer(content: bytes, context: grpc.aio.ServicerContext) -> Any:
            return await (handler.unary_unary or handler.unary_stream)(await read(content, context), context)

        async def answer_all(contents: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            async for answered in handler.stream_stream(read_all(contents, context), context):
                yield answered

        return handler._replace(
            request_deserializer=None,
            unary_unary=handler.unary_unary and answer,
            unary_stream=handler.unary_stream and answer,
            stream_stream=handler.stream_stream and answer_all,
        )


async def make_grpc_server(
    predictor: Predictor,
    addresses: Sequence[str],
    *,
    ending: threading.Event,
    answering: set[Any],
    credentials: grpc.ServerCredentials | None = None,
) -> grpc.aio.Server:
    """Bind, but do not start, a server.

    Args:
        predictor: answers what was asked.
        addresses: HOST:PORT, or `unix:PATH`.
        ending: once it is set calls are refused, those that came before are answered: gRPC itself, when it shuts
            down, cancels calls that it has received and not begun.
        answering: holds the calls that are being answered, as long as they are.
        credentials: of TLS, but for UNIX sockets. Default none.

    Returns:
        the server.

    Raises:
        RuntimeError: if an address cannot be bound.
    """
    options = predictor.options
    threads = ThreadPoolExecutor(options.grpc_max_threads, thread_name_prefix="grpc")
    server = grpc.aio.server(
        interceptors=[_MessageCheck()],
        options=[
            ("grpc.max_receive_message_length", options.max_request_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            *CONNECTION_LIMITS,
            *(_channel_argument(argument) for argument in options.grpc_channel_arguments),
        ],
        maximum_concurrent_rpcs=options.max_concurrent_requests,
    )

    def handler(function: Callable[[Any, float], Message], request_class: Any) -> grpc.RpcMethodHandler:
        def call(content: bytes, deadline: float) -> bytes:
            try:
                request = request_class.FromString(content)
            except DecodeError as error:
                raise invalid_argument(f"The message is no {request_class.DESCRIPTOR.full_name}: {error}") from error
            return function(request, deadline).SerializeToString()

        async def answer(content: bytes, context: grpc.aio.ServicerContext) -> bytes:
            if ending.is_set():
                await context.abort(Code.UNAVAILABLE, "The server is ending")
            answering.add(context)
            context.add_done_callback(answering.discard)
            left = context.time_remaining()  # the client's; the server has no limit of its own, as TF Serving
            deadline = math.inf if left is None else time.monotonic() + left
            try:
                return await asyncio.get_running_loop().run_in_executor(threads, call, content, deadline)
            except StatusError as error:
                await context.abort(error.code, error.message)
            except Exception:
                LOGGER.exception("a gRPC call failed")
                await context.abort(Code.INTERNAL, "The server failed to answer this request; its log says why")
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(answer)

    prediction, model = PredictionService(predictor), ModelService(predictor.versions)
    services = {
        "PredictionService": {
            "Predict": handler(prediction.predict, PredictRequest),
            "GetModelMetadata": handler(prediction.get_model_metadata, GetModelMetadataRequest),
            "Classify": handler(prediction.classify, ClassificationRequest),
            "Regress": handler(prediction.regress, RegressionRequest),
            "MultiInference": handler(prediction.multi_inference, MultiInferenceRequest),
        },
        "ModelService": {
            "GetModelStatus": handler(model.get_model_status, GetModelStatusRequest),
            "HandleReloadConfigRequest": handler(model.handle_reload_config_request, ReloadConfigRequest),
        },
    }
    handlers = {f"tensorflow.serving.{name}": methods for name, methods in services.items()}
    inference = InferenceService(predictor).methods()
    handlers["inference.GRPCInferenceService"] = {name: handler(*method) for name, method in inference.items()}
    for name, methods in handlers.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))
    if options.enable_grpc_healthcheck_service:
        servicer = health.aio.HealthServicer()
        for name in HEALTH_NAMES:
            await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        handlers[health.SERVICE_NAME] = {}
    # Clients such as grpcurl ask which services and messages there are.
    pool = MESSAGES["ModelInferRequest"].DESCRIPTOR.file.pool
    for module in (prediction_service_pb2, model_service_pb2, health_pb2, reflection_pb2):
        add_file(pool, module.DESCRIPTOR)
    reflection.enable_server_reflection((*handlers, reflection.SERVICE_NAME), server, pool)
    for address in addresses:
        if credentials and not address.startswith("unix:"):
            server.add_secure_port(address, credentials)
        else:
            server.add_insecure_port(address)
    return server


def _channel_argument(argument: str) -> tuple[str, int | str]:
    name, _, value = argument.partition("=")
    return name.strip(), int(value) if value.strip().lstrip("-").isdigit() else value.strip()


def _number(spec: ModelSpec) -> int | None:
    return spec.version.value if spec.HasField("version") else None


def _spec(version: Version, signature_name: str = "") -> ModelSpec:
    spec = ModelSpec(name=version.model, signature_name=signature_name)
    spec.version.value = version.number
    return spec
