"""The gRPC interface of TensorFlow Serving, as a client speaks it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

from cifs_tf.errors import UserError
from cifs_tf.serving.client.transport import (
    HOW_TO_START,
    ModelSpec,
    Signature,
    Tensor,
    read_certificates,
    shape_of,
    too_slow,
)


class Grpc:
    """The gRPC interface, by default on port 8500, for the arguments of `Client`; it needs tensorflow-serving-api."""

    def __init__(self, target: str, spec: ModelSpec, timeout: float = 30.0, tls_ca: str | Path | None = None) -> None:
        self.target, self.spec, self.timeout = target, spec, timeout
        # Clients refuse answers of more than 4 MB otherwise.
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        if tls_ca is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            credentials = grpc.ssl_channel_credentials(read_certificates(tls_ca))
            self._channel = grpc.secure_channel(target, credentials, options)

    def signatures(self) -> dict[str, Signature]:
        """Ask for the model's signatures.

        Raises:
            UserError: if no server answers, or it has no such model.
        """

        def tensors(described: Any) -> dict[str, Tensor]:
            return {
                name: Tensor(
                    types_pb2.DataType.Name(info.dtype),
                    None if info.tensor_shape.unknown_rank else shape_of(dim.size for dim in info.tensor_shape.dim),
                )
                for name, info in described.items()
            }

        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        response = self._ask("GetModelMetadata", request)
        described = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(described)
        return {
            name: Signature(tensors(signature.inputs), tensors(signature.outputs))
            for name, signature in described.signature_def.items()
        }

    def run(self, name: str, signature: Signature, batch: np.ndarray | Sequence[bytes]) -> dict[str, np.ndarray]:
        """Run a signature of one input on a batch; as `Rest.run`."""
        request = predict_pb2.PredictRequest()
        request.model_spec.signature_name = name
        (input_name,) = signature.inputs
        values = batch if isinstance(batch, np.ndarray) else list(batch)
        request.inputs[input_name].CopyFrom(tf.make_tensor_proto(values))
        return {key: tf.make_ndarray(tensor) for key, tensor in self._ask("Predict", request).outputs.items()}

    def _ask(self, method: str, request: Any) -> Any:
        request.model_spec.name = self.spec.name
        if self.spec.version is not None:
            request.model_spec.version.value = self.spec.version
        if self.spec.label is not None:
            request.model_spec.version_label = self.spec.label
        stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        try:
            return getattr(stub, method)(request, timeout=self.timeout)
        except grpc.RpcError as error:
            code, message = error.code(), error.details() or "no reason given"  # type: ignore[attr-defined]
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise too_slow(self.target, self.timeout) from error
            if code is grpc.StatusCode.UNAVAILABLE and "connect" in message.lower():
                advice = f"no server answers there ({message}), {HOW_TO_START}"
                raise UserError("grpc", self.target, advice) from error
            not_found = code is grpc.StatusCode.NOT_FOUND
            raise self.spec.refused("grpc", self.target, code.name, message, not_found) from error
