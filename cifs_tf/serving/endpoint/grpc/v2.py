"""The Open Inference Protocol (v2) over gRPC: `inference.GRPCInferenceService`, on the port of the other services."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cifs_tf.extras import own_version
from cifs_tf.serving.endpoint import tensor_types as types
from cifs_tf.serving.endpoint.models.served_models import Target
from cifs_tf.serving.endpoint.prediction.predictor import Predictor
from cifs_tf.serving.endpoint.protos import make_messages
from cifs_tf.serving.endpoint.status import invalid_argument
from cifs_tf.serving.endpoint.v2.codec import (
    DATATYPES,
    EXTENSIONS,
    check_shape,
    find_type,
    read_bytes,
    reshape,
    type_of,
    write_bytes,
)
from cifs_tf.serving.endpoint.v2.models import are_all_ready, describe_model, is_ready, run_model

NAME, VERSION = (1, "name", "string"), (2, "version", "string")
MODEL = ((1, "model_name", "string"), (2, "model_version", "string"), (3, "id", "string"))
TENSOR = (NAME, (2, "datatype", "string"), (3, "shape", "repeated int64"))
PARAMETERS = "map InferParameter"
CONTENTS = (5, "contents", "InferTensorContents")
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
# Names, numbers and types are those of the protocol's open_inference_grpc.proto.
MESSAGES = make_messages(
    "inference",
    {
        "ServerLiveRequest": (),
        "ServerLiveResponse": ((1, "live", "bool"),),
        "ServerReadyRequest": (),
        "ServerReadyResponse": ((1, "ready", "bool"),),
        "ModelReadyRequest": (NAME, VERSION),
        "ModelReadyResponse": ((1, "ready", "bool"),),
        "ServerMetadataRequest": (),
        "ServerMetadataResponse": (NAME, VERSION, (3, "extensions", "repeated string")),
        "ModelMetadataRequest": (NAME, VERSION),
        "ModelMetadataResponse": (
            NAME,
            (2, "versions", "repeated string"),
            (3, "platform", "string"),
            (4, "inputs", "repeated ModelMetadataResponse.TensorMetadata"),
            (5, "outputs", "repeated ModelMetadataResponse.TensorMetadata"),
        ),
        "ModelMetadataResponse.TensorMetadata": TENSOR,
        "InferParameter": (
            (1, "bool_param", "oneof parameter_choice bool"),
            (2, "int64_param", "oneof parameter_choice int64"),
            (3, "string_param", "oneof parameter_choice string"),
        ),
        "InferTensorContents": (
            (1, "bool_contents", "repeated bool"),
            (2, "int_contents", "repeated int32"),
            (3, "int64_contents", "repeated int64"),
            (4, "uint_contents", "repeated uint32"),
            (5, "uint64_contents", "repeated uint64"),
            (6, "fp32_contents", "repeated float"),
            (7, "fp64_contents", "repeated double"),
            (8, "bytes_contents", "repeated bytes"),
        ),
        "ModelInferRequest": (
            *MODEL,
            (4, "parameters", PARAMETERS),
            (5, "inputs", "repeated ModelInferRequest.InferInputTensor"),
            (6, "outputs", "repeated ModelInferRequest.InferRequestedOutputTensor"),
            (7, "raw_input_contents", "repeated bytes"),
        ),
        "ModelInferRequest.InferInputTensor": (*TENSOR, (4, "parameters", PARAMETERS), CONTENTS),
        "ModelInferRequest.InferRequestedOutputTensor": (NAME, (2, "parameters", PARAMETERS)),
        "ModelInferResponse": (
            *MODEL,
            (4, "parameters", PARAMETERS),
            (5, "outputs", "repeated ModelInferResponse.InferOutputTensor"),
            (6, "raw_output_contents", "repeated bytes"),
        ),
        "ModelInferResponse.InferOutputTensor": (*TENSOR, (4, "parameters", PARAMETERS), CONTENTS),
    },
    {"GRPCInferenceService": {method: (f"{method}Request", f"{method}Response") for method in METHODS}},
)
SMALL = dict.fromkeys((types.INT8, types.INT16, types.INT32), "int_contents")
SMALL_UNSIGNED = dict.fromkeys((types.UINT8, types.UINT16, types.UINT32), "uint_contents")
# Where values of a type lie that are not sent raw; half precision is sent raw only.
FIELDS = {
    **SMALL,
    **SMALL_UNSIGNED,
    types.BOOL: "bool_contents",
    types.INT64: "int64_contents",
    types.UINT64: "uint64_contents",
    types.FLOAT: "fp32_contents",
    types.DOUBLE: "fp64_contents",
    types.STRING: "bytes_contents",
}


class InferenceService:
    """The methods of the service.

    Args:
        predictor: answers what was asked.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def methods(self) -> dict[str, tuple[Callable[[Any, float], Any], Any]]:
        """Return the methods by name, each with the class of its request."""
        functions = (
            lambda request, deadline: MESSAGES["ServerLiveResponse"](live=True),
            self.server_ready,
            self.model_ready,
            self.server_metadata,
            self.model_metadata,
            self.infer,
        )
        return {name: (function, MESSAGES[f"{name}Request"]) for name, function in zip(METHODS, functions, strict=True)}

    def server_ready(self, request: Any, deadline: float) -> Any:
        """Say whether every model has a version that answers."""
        return MESSAGES["ServerReadyResponse"](ready=are_all_ready(self._predictor.versions))

    def model_ready(self, request: Any, deadline: float) -> Any:
        """Say whether a version of a model answers."""
        ready = is_ready(self._predictor.versions, _target(request.name, request.version))
        return MESSAGES["ModelReadyResponse"](ready=ready)

    def server_metadata(self, request: Any, deadline: float) -> Any:
        """Name the server and its extensions."""
        return MESSAGES["ServerMetadataResponse"](name="cifs-tf", version=own_version(), extensions=EXTENSIONS)

    def model_metadata(self, request: Any, deadline: float) -> Any:
        """Describe inputs and outputs of `serving_default`."""
        described = describe_model(self._predictor, _target(request.name, request.version))
        return MESSAGES["ModelMetadataResponse"](**described)

    def infer(self, request: Any, deadline: float) -> Any:
        """Run a model; the parameter `signature_name` chooses the signature."""
        if request.raw_input_contents and len(request.raw_input_contents) != len(request.inputs):
            raise invalid_argument("raw_input_contents must have one part for each of the inputs")
        parameters = request.parameters
        name = parameters["signature_name"].string_param if "signature_name" in parameters else ""
        target, inputs = _target(request.model_name, request.model_version), {}
        with self._predictor.count(target.model, "Predict", "GRPC"):
            for index, item in enumerate(request.inputs):
                raw = request.raw_input_contents[index] if request.raw_input_contents else None
                if item.name in inputs:
                    raise invalid_argument(f"There are two of input {item.name}")
                inputs[item.name] = _read(item, raw)
            wanted = [output.name for output in request.outputs]
            version, outputs = run_model(self._predictor, target, name, inputs, wanted, deadline)
        response = MESSAGES["ModelInferResponse"](
            model_name=version.model, model_version=str(version.number), id=request.id
        )
        for key, tensor in outputs.items():
            response.outputs.add(name=key, datatype=DATATYPES[type_of(key, tensor)], shape=tensor.shape)
            response.raw_output_contents.append(write_bytes(tensor))
        return response


def _target(model: str, version: str) -> Target:
    if version and not (version.isascii() and version.isdigit() and len(version) < 19):
        raise invalid_argument(f"The version must be a number, received {version}")
    return Target(model, int(version) if version else None, None)


def _read(item: Any, raw: bytes | None) -> np.ndarray:
    where = f"input {item.name}"
    number = find_type(item.datatype, where)
    shape = check_shape(list(item.shape), where)
    if raw is not None:
        return read_bytes(memoryview(raw), number, shape, where)
    if number not in FIELDS:
        raise invalid_argument(f"{where} of type {item.datatype} must be in raw_input_contents")
    found = list(getattr(item.contents, FIELDS[number]))
    values = np.empty(len(found), types.NUMPY_TYPES[number])
    try:
        values[:] = found
    except OverflowError as error:
        raise invalid_argument(f"The contents of {where} are beyond {item.datatype}") from error
    return reshape(values, shape, where)
