"""TF Serving's REST API over ASGI: reads a request within its limits, and answers it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import zlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from google.protobuf import json_format
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from tensorflow_serving.apis.get_model_metadata_pb2 import SignatureDefMap
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusResponse
from tensorflow_serving.apis.model_pb2 import ModelSpec

from cifs_tf.serving.endpoint.classification import check_examples_body, check_method
from cifs_tf.serving.endpoint.json_requests import read_predict_body
from cifs_tf.serving.endpoint.json_responses import write_predict_body
from cifs_tf.serving.endpoint.predictor import Predictor
from cifs_tf.serving.endpoint.rest_paths import API_PATH, MODEL_PATH, PREDICTION_PATH, Target, read_target
from cifs_tf.serving.endpoint.rest_responses import TEXT, error_body, error_response, html_response, json_response
from cifs_tf.serving.endpoint.signatures import DEFAULT_SIGNATURE
from cifs_tf.serving.endpoint.status import Code, StatusError, invalid_argument
from cifs_tf.serving.endpoint.versions import Version

LOGGER = logging.getLogger("serving")
# A target in the form that proxies are sent.
ABSOLUTE = re.compile(r"^https?://[^/]*", re.IGNORECASE)
CORS_HEADERS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET",
    "access-control-allow-headers": "Content-Type",
}
CLOSE = {"connection": "close"}


class TooLargeError(Exception):
    """A body that is not read to its end."""


class RestApi:
    """The API as an ASGI application.

    Args:
        predictor: answers what was asked.
        threads: where requests are decoded and answered.
        metrics_path: where Prometheus finds the metrics; None (default) for nowhere.
        cors: whether answers allow scripts of other origins. Default false.
        receive_timeout: seconds that a client may take to send a body, > 0. Default 30.
    """

    def __init__(
        self,
        predictor: Predictor,
        threads: ThreadPoolExecutor,
        *,
        metrics_path: str | None = None,
        cors: bool = False,
        receive_timeout: float = 30.0,
    ) -> None:
        self._predictor, self._threads = predictor, threads
        self._metrics_path, self._cors, self._receive_timeout = metrics_path, cors, receive_timeout
        self._active = self._buffered = 0
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http", "neither websockets nor lifespan are configured"
        path = ABSOLUTE.sub("", scope["raw_path"].decode("latin-1"))
        if scope["query_string"]:  # part of the path, as in TF Serving
            path += f"?{scope['query_string'].decode('latin-1')}"
        started = time.monotonic()
        try:
            response = await self._respond(scope["method"], path, dict(scope["headers"]), receive, started)
        except ConnectionError:
            return  # the client has gone
        except Exception:
            LOGGER.exception("%s %s failed", scope["method"], path)
            response = error_response(Code.INTERNAL, "The server failed to answer this request; its log says why")
        if self.draining:
            response.headers.update(CLOSE)
        await response(scope, receive, send)

    async def _respond(
        self, method: str, path: str, headers: dict[bytes, bytes], receive: Receive, started: float
    ) -> Response:
        if self._active >= self._predictor.options.max_concurrent_requests:
            message = "Too many requests at a time, try again later (--max_concurrent_requests)"
            return error_response(Code.UNAVAILABLE, message, CLOSE)
        self._active += 1
        try:
            # Read to its end whatever is asked: what is left of it would hold the connection.
            async with self._body(headers, receive) as body:
                if path == self._metrics_path:
                    return Response(self._predictor.metrics.page(), headers={"content-type": TEXT})
                if not API_PATH.fullmatch(path):
                    return html_response(404)
                if method == "OPTIONS":
                    from_page = re.match(rb"https?://", headers.get(b"origin", b""))
                    return self._with_cors(Response(status_code=200 if from_page else 400))
                if method != "POST":
                    return self._with_cors(self._answer(method, path, b"", False, started))
                gzipped = headers.get(b"content-encoding", b"").strip().lower() == b"gzip"
                loop = asyncio.get_running_loop()
                return self._with_cors(
                    await loop.run_in_executor(self._threads, self._answer, method, path, body, gzipped, started)
                )
        except TooLargeError as error:
            return json_response(413, error_body(str(error)), CLOSE)
        except TimeoutError:
            message = f"The request was not received within {self._receive_timeout:g} s"
            return json_response(408, error_body(message), CLOSE)
        except StatusError as error:
            return error_response(error.code, error.message, CLOSE)
        finally:
            self._active -= 1

    @contextlib.asynccontextmanager
    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> AsyncIterator[bytes]:
        """Read a body, within the limits of one and of all."""
        limits, size = self._predictor.options, 0
        too_large = TooLargeError(f"The body is larger than {limits.max_request_bytes} bytes (--max_request_bytes)")
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limits.max_request_bytes:
            raise too_large
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(self._receive_timeout):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    chunk = message.get("body", b"")
                    more = message.get("more_body", False)
                    size += len(chunk)
                    self._buffered += len(chunk)
                    chunks.append(chunk)
                    if size > limits.max_request_bytes:
                        raise too_large
                    if self._buffered > limits.max_buffered_bytes:
                        chunks.clear()
                        raise StatusError(Code.UNAVAILABLE, "Too many large requests at a time, try again later")
            yield chunks[0] if len(chunks) == 1 else b"".join(chunks)
        finally:
            self._buffered -= size

    def _answer(self, method: str, path: str, body: bytes, gzipped: bool, started: float) -> Response:
        """Find out what is asked and answer it; runs in a thread if it may take long."""
        try:
            if method == "POST" and (found := PREDICTION_PATH.fullmatch(path)):
                target = read_target(found)
                text = _unzip(body, self._predictor.options.max_request_bytes) if gzipped else body
                action = found["method"]
                if action in ("predict", "classify", "regress"):  # the path may have capitals
                    with self._predictor.count(target.model, action.capitalize(), "REST"):
                        if action != "predict":
                            self._refuse(action, target, text)
                        return json_response(200, self._predict(target, text, started))
            elif method == "GET" and (found := MODEL_PATH.fullmatch(path)):
                target = read_target(found)
                return json_response(200, self._metadata(target) if found["metadata"] else self._status(target))
            raise invalid_argument(f"Malformed request: {method} {path}")
        except StatusError as error:
            return error_response(error.code, error.message)

    def _use(self, target: Target) -> contextlib.AbstractContextManager[Version]:
        return self._predictor.versions.use(target.model, target.version, target.label)

    def _predict(self, target: Target, text: bytes, started: float) -> str:
        with contextlib.ExitStack() as stack:
            version: Version | None = None

            def lookup(signature_name: str) -> dict:
                # After the text was parsed, before it is understood: TF Serving's order of errors.
                nonlocal version
                version = stack.enter_context(self._use(target))
                name = signature_name or DEFAULT_SIGNATURE
                if name not in version.loaded.signatures:
                    raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
                return dict(version.loaded.signatures[name].inputs)

            body = read_predict_body(text, lookup)
            assert version is not None, "reading the body looked the model up"
            outputs = self._predictor.predict(version, body.signature_name, body.inputs, started=started)
            return write_predict_body(outputs, by_row=body.by_row)

    def _refuse(self, method: str, target: Target, text: bytes) -> NoReturn:
        signature_name = check_examples_body(text)
        with self._use(target) as version:
            raise check_method(version.loaded.signatures, signature_name, method)

    def _status(self, target: Target) -> str:
        # Labels are ignored here, as in TF Serving.
        response = GetModelStatusResponse(
            model_version_status=self._predictor.versions.states(target.model, target.version)
        )
        return _message_text(response) + "\n"

    def _metadata(self, target: Target) -> str:
        with self._use(target) as version:
            if version.metadata_text is None:
                version.metadata_text = _metadata_text(version)
            return version.metadata_text

    def _with_cors(self, response: Response) -> Response:
        if self._cors:
            response.headers.update(CORS_HEADERS)
        return response


def _metadata_text(version: Version) -> str:
    spec = ModelSpec(name=version.model)
    spec.version.value = version.number
    signatures = SignatureDefMap()
    for name, signature in version.loaded.signatures.items():
        signatures.signature_def[name].CopyFrom(signature)
    return (
        f'{{\n"model_spec":{_message_text(spec)}\n,\n"metadata": '
        f'{{"signature_def": {_message_text(signatures)}\n}}\n}}\n'
    )


def _unzip(body: bytes, limit: int) -> bytes:
    """Unpack a body; one that is damaged, or would be too large, is an empty one, as in TF Serving."""
    try:
        unzipper = zlib.decompressobj(16 + zlib.MAX_WBITS)
        text = unzipper.decompress(body, limit)
        return text if unzipper.eof else b""
    except zlib.error:
        return b""


def _message_text(message: object) -> str:
    return json_format.MessageToJson(
        message, always_print_fields_with_no_presence=True, preserving_proto_field_name=True, indent=1
    )
