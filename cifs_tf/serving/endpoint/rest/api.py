"""The REST APIs, TF Serving's and v2, over ASGI: reads a request within its limits, and answers it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
import time
import zlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from google.protobuf import json_format
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from tensorflow_serving.apis.get_model_metadata_pb2 import SignatureDefMap
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusResponse
from tensorflow_serving.apis.model_pb2 import ModelSpec

from cifs_tf.serving.endpoint.json.examples import read_examples_body, write_result
from cifs_tf.serving.endpoint.json.requests import PredictBody, SignatureInputs, find_inputs, read_predict_body
from cifs_tf.serving.endpoint.json.responses import write_predict_body
from cifs_tf.serving.endpoint.models.classification import METHODS, infer
from cifs_tf.serving.endpoint.models.served_models import Target
from cifs_tf.serving.endpoint.models.signatures import json_inputs, narrow, widen
from cifs_tf.serving.endpoint.models.versions import Version
from cifs_tf.serving.endpoint.prediction.predictor import Predictor
from cifs_tf.serving.endpoint.rest.connections import LAST_LOOK_SECONDS
from cifs_tf.serving.endpoint.rest.lane import Lane
from cifs_tf.serving.endpoint.rest.paths import API_PATH, MODEL_PATH, PREDICTION_PATH, read_target
from cifs_tf.serving.endpoint.rest.playground_page import PLAYGROUND_PATH, PlaygroundPage
from cifs_tf.serving.endpoint.rest.responses import TEXT, error_body, error_response, html_response, json_response
from cifs_tf.serving.endpoint.rest.v2 import LARGE_VALUES, V2_PATH, InferenceProtocol
from cifs_tf.serving.endpoint.status import DEFAULT_SIGNATURE, Code, StatusError, invalid_argument

LOGGER = logging.getLogger("serving")
# A target in the form that proxies are sent.
ABSOLUTE = re.compile(r"^https?://[^/]*", re.IGNORECASE)
CORS_HEADERS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET",
    "access-control-allow-headers": "Content-Type",
}
CLOSE = {"connection": "close"}
# What metrics call the methods.
ACTIONS = {"predict": "Predict", "classify": "Classify", "regress": "Regress", "explain": "Predict"}
# A body, or an answer, beyond is read and written by a process; smaller ones take 20 ms at most.
LARGE_BYTES, PACKED_RATIO = 2**18, 20
LARGE_THREADS = 4


class TooLargeError(Exception):
    """A body that is not read to its end."""


class RestApi:
    """The API as an ASGI application.

    Args:
        predictor: answers what was asked.
        threads: where requests are decoded and answered.
        lane: where large bodies are read and written.
        metrics_path: where Prometheus finds the metrics; None (default) for nowhere.
        cors: whether answers allow scripts of other origins. Default false.
        receive_timeout: seconds that a client may take to send a body, > 0. Default 30.
        playground: answers below /playground. Default nobody.
    """

    def __init__(
        self,
        predictor: Predictor,
        threads: ThreadPoolExecutor,
        lane: Lane,
        *,
        metrics_path: str | None = None,
        cors: bool = False,
        receive_timeout: float = 30.0,
        playground: PlaygroundPage | None = None,
    ) -> None:
        self._predictor, self._threads, self._lane = predictor, threads, lane
        self._large_threads = ThreadPoolExecutor(LARGE_THREADS, thread_name_prefix="large")
        self._metrics_path, self._cors, self._receive_timeout = metrics_path, cors, receive_timeout
        self._v2, self._playground = InferenceProtocol(predictor, self._by), playground
        self._active = self._buffered = 0
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http", "neither websockets nor lifespan are configured"
        path = ABSOLUTE.sub("", scope["raw_path"].decode("latin-1"))
        if scope["query_string"]:  # part of the path, as in TF Serving
            path += f"?{scope['query_string'].decode('latin-1')}"
        try:
            response = await self._respond(scope["method"], path, dict(scope["headers"]), receive)
        except ConnectionError:
            return  # the client has gone
        except Exception:
            LOGGER.exception("%s %s failed", scope["method"], path)
            response = error_response(Code.INTERNAL, "The server failed to answer this request; its log says why")
        if self.draining:
            response.headers.update(CLOSE)
        elif (b"connection", b"keep-alive") in scope["headers"]:  # a client of HTTP/1.0 waits for the word
            response.headers.setdefault("connection", "keep-alive")
        await response(scope, receive, send)

    async def _respond(self, method: str, path: str, headers: dict[bytes, bytes], receive: Receive) -> Response:
        if self._active >= self._predictor.options.max_concurrent_requests:
            message = "Too many requests at a time, try again later (--max_concurrent_requests)"
            return error_response(Code.UNAVAILABLE, message, CLOSE)
        self._active += 1
        try:
            # Read to its end whatever is asked: what is left of it would hold the connection.
            async with self._body(headers, receive) as body:
                if path == self._metrics_path:
                    return Response(self._predictor.metrics.page(), headers={"content-type": TEXT})
                answer = asyncio.get_running_loop().run_in_executor
                if self._playground and method in ("GET", "HEAD") and PLAYGROUND_PATH.fullmatch(path):
                    return await answer(self._threads, self._playground.answer, path, headers)
                if not API_PATH.fullmatch(path) and not V2_PATH.fullmatch(path):
                    return html_response(404)
                if method == "OPTIONS":
                    from_page = re.match(rb"https?://", headers.get(b"origin", b""))
                    return self._with_cors(Response(status_code=200 if from_page else 400))
                deadline = time.monotonic() + self._predictor.options.timeout
                if method != "POST":
                    return self._with_cors(self._answer(method, path, headers, b"", deadline))
                is_large = len(body) > (LARGE_BYTES // PACKED_RATIO if _is_packed(headers) else LARGE_BYTES)
                threads = self._large_threads if is_large else self._threads
                return self._with_cors(await answer(threads, self._answer, method, path, headers, body, deadline))
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
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as clock, contextlib.AsyncExitStack() as stack:
                end = loop.call_later(self._receive_timeout, lambda: clock.reschedule(loop.time() + LAST_LOOK_SECONDS))
                stack.callback(end.cancel)
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

    def _answer(self, method: str, path: str, headers: dict[bytes, bytes], body: bytes, deadline: float) -> Response:
        """Find out what is asked and answer it; runs in a thread if it may take long."""
        try:
            text = _unzip(body, self._predictor.options.max_request_bytes) if _is_packed(headers) else body
            if V2_PATH.fullmatch(path):
                return self._v2.answer(method, path, headers, text, len(text) > LARGE_BYTES, deadline)
            if method == "POST" and (found := PREDICTION_PATH.fullmatch(path)):
                target = read_target(found)
                action = found["method"]
                if action in ACTIONS:  # the path may have capitals
                    with self._predictor.count(target.model, ACTIONS[action], "REST"):
                        if action in METHODS:
                            return json_response(200, self._infer(METHODS[action], target, text, deadline))
                        default = DEFAULT_SIGNATURE if action == "predict" else action
                        return json_response(200, self._predict(default, target, text, deadline))
            elif method == "GET" and (found := MODEL_PATH.fullmatch(path)):
                target = read_target(found)
                return json_response(200, self._metadata(target) if found["metadata"] else self._status(target))
            raise invalid_argument(f"Malformed request: {method} {path}")
        except StatusError as error:
            return error_response(error.code, error.message)

    def _use(self, target: Target) -> contextlib.AbstractContextManager[Version]:
        return self._predictor.versions.use(target.model, target.version, target.label)

    def _predict(self, default: str, target: Target, text: bytes, deadline: float) -> str:
        with contextlib.ExitStack() as stack:
            found: dict[str, SignatureInputs | StatusError] | StatusError
            try:
                version = stack.enter_context(self._use(target))
                widens, signatures = version.loaded.widens, version.loaded.signatures
                version.json_inputs = version.json_inputs or {
                    name: json_inputs(signature, widens) for name, signature in signatures.items()
                }
                found = version.json_inputs
            except StatusError as error:
                found = error  # only once the text was parsed: TF Serving's order of errors
            is_large = len(text) > LARGE_BYTES
            lookup = functools.partial(find_inputs, found, default)
            body: PredictBody = self._by(is_large, deadline, read_predict_body, text, lookup)
            name = body.signature_name or default
            inputs = narrow(signatures[name], body.inputs) if widens else body.inputs
            outputs = self._predictor.predict(version, name, inputs, deadline=deadline)
            is_large = sum(tensor.size for tensor in outputs.values()) > LARGE_VALUES
            return self._by(is_large, deadline, write_predict_body, widen(outputs) if widens else outputs, body.by_row)

    def _by(self, is_large: bool, deadline: float, function: Callable, *arguments: Any) -> Any:
        """Call a function here, or in a process if that would hold other threads up."""
        return self._lane.run(deadline, function, *arguments) if is_large else function(*arguments)

    def _infer(self, method: str, target: Target, text: bytes, deadline: float) -> str:
        is_large = len(text) > LARGE_BYTES
        signature_name, examples = self._by(is_large, deadline, read_examples_body, text)
        strict = self._predictor.options.enable_signature_method_name_check
        with self._use(target) as version:
            outputs = infer(version.loaded, signature_name, method, examples, deadline, strict)
        is_large = sum(tensor.size for tensor in outputs.values()) > LARGE_VALUES
        return self._by(is_large, deadline, write_result, outputs)

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


def _is_packed(headers: dict[bytes, bytes]) -> bool:
    return headers.get(b"content-encoding", b"").strip().lower() in (b"gzip", b"deflate")


def _unzip(body: bytes, limit: int) -> bytes:
    """Unpack a body; one that is damaged, or would be too large, is an empty one, as in TF Serving."""
    try:
        unzipper = zlib.decompressobj(32 + zlib.MAX_WBITS)  # finds out which of the two
        text = unzipper.decompress(body, limit)
        return text if unzipper.eof else b""
    except zlib.error:
        return b""


def _message_text(message: object) -> str:
    return json_format.MessageToJson(
        message, always_print_fields_with_no_presence=True, preserving_proto_field_name=True, indent=1
    )
