"""The REST interface of TensorFlow Serving, as a client speaks it."""

import base64
import http.client
import json
import ssl
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

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


class Rest:
    """The REST interface, by default on port 8501, for the arguments of `Client`; a path in front of `/v1` is kept.

    Raises:
        UserError: for a malformed URL.
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
                read_certificates(tls_ca)
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
        """Run a signature of one input on a batch, and return its outputs by name; as `Transport.run`."""
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
            raise too_slow(self.url, self.timeout) from error
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
        raise self.spec.refused("url", self.url, f"{status} {reason}", message, status == http.HTTPStatus.NOT_FOUND)

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


def _b64(content: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(content).decode("ascii")}


def _tensors(described: dict[str, Any]) -> dict[str, Tensor]:
    """Read the inputs or outputs of a signature from JSON, where a 64-bit number is a text."""
    return {
        name: Tensor(
            info["dtype"],
            None
            if info["tensor_shape"].get("unknown_rank")
            else shape_of(dim["size"] for dim in info["tensor_shape"].get("dim", ())),
        )
        for name, info in described.items()
    }
