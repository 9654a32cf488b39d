"""How a client talks to TensorFlow Serving: REST and gRPC behind the same two calls, `signatures` and `run`."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import json
import os
import ssl
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cifs_tf.errors import UserError

HOW_TO_START = "start a server with: python serving/server.py --model_base_path DIR"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of a signature.

    Args:
        dtype: such as `DT_FLOAT` or `DT_STRING`.
        shape: None for a dimension that may be anything; None as a whole if even the rank may.
    """

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    """What one of a model's functions takes and gives, by name."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Which model is asked.

    Args:
        name: of the model.
        version: its version. Default None: the newest, or that of the label.
        label: such as `stable`. Default None.
    """

    name: str
    version: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("model", repr(self.name), "give the name under which it is served")
        if self.version is not None and self.label is not None:
            raise UserError("label", self.label, f"give a label or a version, not both (version {self.version})")
        if self.version is not None and self.version < 0:
            raise UserError("version", self.version, "give a number of 0 or more")

    def blame(self, message: str) -> tuple[str, Any]:
        """Find the argument, and its value, that a "not found" speaks of."""
        if self.label is not None and "label" in message:
            return "label", self.label
        return ("model", self.name) if self.version is None else ("version", f"{self.version} of {self.name}")


class Transport(Protocol):
    """What `Client` needs of a connection."""

    def signatures(self) -> dict[str, Signature]:
        """Ask for the model's signatures by name."""

    def run(self, name: str, signature: Signature, batch: np.ndarray | Sequence[bytes]) -> dict[str, np.ndarray]:
        """Run a signature of one input on a batch, and return its outputs by name."""


class Rest:
    """The REST interface, by default on port 8501.

    Args:
        url: such as `http://127.0.0.1:8501`; a path in front of `/v1` is kept.
        spec: which model.
        timeout: seconds to wait for an answer.
        tls_ca: PEM file of the certificates to trust. Default None: those of the system.

    Raises:
        UserError: for a URL that is none.
    """

    def __init__(self, url: str, spec: ModelSpec, timeout: float = 30.0, tls_ca: str | Path | None = None) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UserError("url", url, f"give such as http://127.0.0.1:8501 ({error})") from error
        if parts.scheme not in ("http", "https") or not host:
            raise UserError("url", url, "give such as http://127.0.0.1:8501")
        self.url, self.spec, self.timeout = url, spec, timeout
        if parts.scheme == "https":
            context = ssl.create_default_context()
            if tls_ca is not None:
                _read_certificates(tls_ca)
                context = ssl.create_default_context(cafile=str(tls_ca))
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=timeout, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(host, port, timeout=timeout)
        self._path = f"{parts.path.rstrip('/')}/v1/models/{urllib.parse.quote(spec.name, safe='')}"
        if spec.version is not None:
            self._path += f"/versions/{spec.version}"
        if spec.label is not None:
            self._path += f"/labels/{urllib.parse.quote(spec.label, safe='')}"

    def signatures(self) -> dict[str, Signature]:
        """Ask for the model's signatures.

        Raises:
            UserError: if no server answers, or it has no such model.
        """
        answer = self._ask("GET", f"{self._path}/metadata")
        try:
            described = answer["metadata"]["signature_def"]["signature_def"]
            return {
                name: Signature(_tensors(signature.get("inputs", {})), _tensors(signature.get("outputs", {})))
                for name, signature in described.items()
            }
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise self._other_language() from error

    def run(self, name: str, signature: Signature, batch: np.ndarray | Sequence[bytes]) -> dict[str, np.ndarray]:
        """Run a signature of one input on a batch.

        Args:
            name: of the signature.
            signature: what it takes and gives.
            batch: an array, or for a string input the bytes of each image.

        Returns:
            outputs by name.

        Raises:
            UserError: with the server's own words.
        """
        values = batch.tolist() if isinstance(batch, np.ndarray) else [_b64(content) for content in batch]
        answer = self._ask("POST", f"{self._path}:predict", {"signature_name": name, "inputs": values})
        try:
            outputs = answer["outputs"]
            if len(signature.outputs) == 1:  # then it comes without its name
                outputs = dict.fromkeys(signature.outputs, outputs)
            return {
                key: np.asarray(outputs[key], np.float32 if tensor.dtype == "DT_FLOAT" else None)
                for key, tensor in signature.outputs.items()
            }
        except (KeyError, TypeError, ValueError) as error:
            raise self._other_language() from error

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        try:
            status, reason, text = self._exchange(method, path, content)
        except TimeoutError as error:
            advice = f"{self.url} did not answer in that time, give more, or fewer images with --batch_size"
            raise UserError("timeout", f"{self.timeout:g} seconds", advice) from error
        except ssl.SSLError as error:
            advice = (
                f"TLS failed ({error}), give --tls_ca with the certificate to trust, or http:// for one without TLS"
            )
            raise UserError("url", self.url, advice) from error
        except OSError as error:
            said = str(error) or type(error).__name__
            raise UserError("url", self.url, f"no server answers there ({said}), {HOW_TO_START}") from error
        except http.client.HTTPException as error:
            raise self._other_language("not HTTP") from error
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError) as error:
            if status == http.HTTPStatus.OK:
                raise self._other_language() from error
            answer = None
        if status == http.HTTPStatus.OK:
            return answer
        message = answer.get("error") if isinstance(answer, dict) else None
        if message is None:
            raise self._other_language(f"{status} {reason}")
        lost = status == http.HTTPStatus.NOT_FOUND or "servable version label" in message
        argument, received = self.spec.blame(message) if lost else ("url", self.url)
        advice = f"the server{_at(self.url, lost)} answered {status} {reason}: {' '.join(message.split())}"
        raise UserError(argument, received, advice)

    def _exchange(self, method: str, path: str, content: bytes | None) -> tuple[int, str, bytes]:
        headers = {} if content is None else {"Content-Type": "application/json"}
        for last in (False, True):
            fresh = self._connection.sock is None
            try:
                self._connection.request(method, path, content, headers)
                response = self._connection.getresponse()
                return response.status, response.reason, response.read()
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                # A server closes a connection that was idle for long; that is no reason to give up.
                if last or fresh or isinstance(error, TimeoutError):
                    raise
        raise AssertionError("unreachable")

    def _other_language(self, answer: str = "something else") -> UserError:
        return UserError("url", self.url, f"what answers there ({answer}) is not TensorFlow Serving's REST interface")


class Grpc:
    """The gRPC interface, by default on port 8500. It needs the package tensorflow-serving-api.

    Args:
        target: such as `127.0.0.1:8500`.
        spec: which model.
        timeout: seconds to wait for an answer.
        tls_ca: PEM file of the certificates to trust. Default None: no TLS.
    """

    def __init__(self, target: str, spec: ModelSpec, timeout: float = 30.0, tls_ca: str | Path | None = None) -> None:
        with _quiet_import():
            import grpc
            import tensorflow  # noqa: F401
        self.target, self.spec, self.timeout = target, spec, timeout
        # Clients refuse answers of more than 4 MB otherwise.
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        if tls_ca is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            credentials = grpc.ssl_channel_credentials(_read_certificates(tls_ca))
            self._channel = grpc.secure_channel(target, credentials, options)

    def signatures(self) -> dict[str, Signature]:
        """Ask for the model's signatures.

        Raises:
            UserError: if no server answers, or it has no such model.
        """
        from tensorflow.core.framework import types_pb2
        from tensorflow_serving.apis import get_model_metadata_pb2

        def tensors(described: Any) -> dict[str, Tensor]:
            return {
                name: Tensor(
                    types_pb2.DataType.Name(info.dtype),
                    None if info.tensor_shape.unknown_rank else _shape(dim.size for dim in info.tensor_shape.dim),
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
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.signature_name = name
        (input_name,) = signature.inputs
        values = batch if isinstance(batch, np.ndarray) else list(batch)
        request.inputs[input_name].CopyFrom(tf.make_tensor_proto(values))
        return {key: tf.make_ndarray(tensor) for key, tensor in self._ask("Predict", request).outputs.items()}

    def _ask(self, method: str, request: Any) -> Any:
        import grpc
        from tensorflow_serving.apis import prediction_service_pb2_grpc

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
                advice = f"{self.target} did not answer in that time, give more, or fewer images with --batch_size"
                raise UserError("timeout", f"{self.timeout:g} seconds", advice) from error
            if code is grpc.StatusCode.UNAVAILABLE and "connect" in message.lower():
                advice = f"no server answers there ({message}), {HOW_TO_START}"
                raise UserError("grpc", self.target, advice) from error
            lost = code is grpc.StatusCode.NOT_FOUND or "servable version label" in message
            argument, received = self.spec.blame(message) if lost else ("grpc", self.target)
            advice = f"the server{_at(self.target, lost)} answered {code.name}: {' '.join(message.split())}"
            raise UserError(argument, received, advice) from error


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Hide what TensorFlow's C++ parts say of missing GPUs while it is imported, before they can be told not to."""
    if "tensorflow" in sys.modules:
        yield
        return
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _b64(content: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(content).decode("ascii")}


def _at(address: str, wanted: bool) -> str:
    return f" at {address}" if wanted else ""


def _shape(sizes: Any) -> tuple[int | None, ...]:
    return tuple(None if int(size) < 0 else int(size) for size in sizes)


def _tensors(described: dict[str, Any]) -> dict[str, Tensor]:
    """Read the inputs or outputs of a signature from JSON, where a 64-bit number is a text."""
    return {
        name: Tensor(
            info["dtype"],
            None
            if info["tensor_shape"].get("unknown_rank")
            else _shape(dim["size"] for dim in info["tensor_shape"].get("dim", ())),
        )
        for name, info in described.items()
    }


def _read_certificates(path: str | Path) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError("tls_ca", path, f"give a readable PEM file of certificates ({error.strerror})") from error
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise UserError("tls_ca", path, "it holds no certificate, give a PEM file of certificates")
    return content
