"""The Open Inference Protocol (v2) over REST: KServe's and Triton's clients ask the same models by it."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import Response

from cifs_tf.extras import own_version
from cifs_tf.serving.endpoint.models.served_models import Target
from cifs_tf.serving.endpoint.prediction.predictor import Predictor
from cifs_tf.serving.endpoint.rest.paths import read_target
from cifs_tf.serving.endpoint.rest.responses import JSON, json_response
from cifs_tf.serving.endpoint.status import invalid_argument
from cifs_tf.serving.endpoint.v2.codec import (
    EXTENSIONS,
    HEADER_LENGTH,
    InferRequest,
    header_length,
    read_infer_request,
    write_infer_response,
)
from cifs_tf.serving.endpoint.v2.models import are_all_ready, describe_model, is_known, is_ready, run_model

V2_PATH = re.compile(r"/v2/?|/v2/health/.*|/v2/models/.+", re.DOTALL)
_MODEL_PATH = re.compile(
    r"/v2/models/(?P<model>[^/:]+)(?:/versions/(?P<version>\d+))?(?P<label>(?!))?(?:/(?P<action>ready|infer|explain))?",
    re.ASCII,
)
EXPLAIN = "explain"
# Values of an answer beyond which writing them is left to a process.
LARGE_VALUES = 30_000


class InferenceProtocol:
    """Answers requests below `/v2`.

    Args:
        predictor: answers what was asked.
        call: calls a function with arguments, in a process if the first argument says that it may take long, until a
            deadline, its second.
    """

    def __init__(self, predictor: Predictor, call: Callable[..., Any]) -> None:
        self._predictor, self._call = predictor, call

    def answer(
        self, method: str, path: str, headers: Mapping[bytes, bytes], body: bytes, is_large: bool, deadline: float
    ) -> Response:
        """Answer a request.

        Args:
            method: of HTTP.
            path: of the request.
            headers: in small letters.
            body: unpacked.
            is_large: whether reading it may take long.
            deadline: in `time.monotonic()`, when it is to be given up.

        Raises:
            StatusError: with the reason why there is no answer.
        """
        found = _MODEL_PATH.fullmatch(path)
        action = found["action"] if found else None
        if found and method == "POST" and action in ("infer", EXPLAIN):
            target = read_target(found)
            with self._predictor.count(target.model, "Predict", "REST"):
                length = header_length(headers.get(HEADER_LENGTH.encode()))
                request = self._call(is_large, deadline, read_infer_request, body, length)
                return self._infer(target, request, action == EXPLAIN, deadline)
        if method == "GET" and path in ("/v2", "/v2/"):
            return _json({"name": "cifs-tf", "version": own_version(), "extensions": EXTENSIONS})
        if method == "GET" and path == "/v2/health/live":
            return _json({"live": True})
        if method == "GET" and path == "/v2/health/ready":
            ready = are_all_ready(self._predictor.versions)
            return _json({"ready": ready}, 200 if ready else 503)
        if found and method == "GET" and action == "ready":
            target = read_target(found)
            ready = is_ready(self._predictor.versions, target)
            status = 200 if ready else 503 if is_known(self._predictor.versions, target) else 404
            return _json({"name": target.model, "ready": ready}, status)
        if found and method == "GET" and action is None:
            return _json(describe_model(self._predictor, read_target(found)))
        raise invalid_argument(f"Malformed request: {method} {path}")

    def _infer(self, target: Target, request: InferRequest, explain: bool, deadline: float) -> Response:
        name = request.signature_name or (EXPLAIN if explain else "")
        version, outputs = run_model(self._predictor, target, name, request.inputs, request.outputs, deadline)
        head = {"model_name": version.model, "model_version": str(version.number)}
        if request.id:
            head["id"] = request.id
        values = sum(tensor.size for key, tensor in outputs.items() if not request.binary_of.get(key, request.binary))
        arguments = head, outputs, request.binary, request.binary_of
        body, length = self._call(values > LARGE_VALUES, deadline, write_infer_response, *arguments)
        if length is None:
            return Response(body, headers={"content-type": JSON})
        return Response(body, headers={"content-type": "application/octet-stream", HEADER_LENGTH: str(length)})


def _json(content: Mapping[str, Any], status: int = 200) -> Response:
    return json_response(status, json.dumps(content))
