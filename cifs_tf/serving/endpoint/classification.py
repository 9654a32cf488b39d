"""Classify, Regress and MultiInference: examples to a SavedModel's classes, scores and values, as TF Serving does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tensorflow.core.example.example_pb2 import Example
from tensorflow.core.example.feature_pb2 import Feature
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow_serving.apis.classification_pb2 import ClassificationResult
from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest, MultiInferenceResponse
from tensorflow_serving.apis.input_pb2 import Input
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.regression_pb2 import RegressionResult

from cifs_tf.serving.endpoint.json_parser import Members, parse
from cifs_tf.serving.endpoint.json_requests import read_object, read_signature_name
from cifs_tf.serving.endpoint.json_values import decode_base64, is_array, is_base64, kind_of
from cifs_tf.serving.endpoint.json_writer import Writer, float_texts, quote, string_text
from cifs_tf.serving.endpoint.servables import Servable
from cifs_tf.serving.endpoint.status import DEFAULT_SIGNATURE, Code, StatusError, invalid_argument

MAX_INT64 = 2**63 - 1
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
METHODS = {"classify": CLASSIFY, "regress": REGRESS}
WORDS = {CLASSIFY: "classification", REGRESS: "regression"}
INPUTS, CLASSES, SCORES, VALUES = "inputs", "classes", "scores", "outputs"


def read_examples_body(text: bytes) -> tuple[str, Input]:
    """Read the body of a `:classify` or `:regress` request.

    Args:
        text: JSON.

    Returns:
        (the signature that it names, empty for the default; its examples).

    Raises:
        StatusError: INVALID_ARGUMENT for what is no list of examples.
    """
    root = read_object(parse(text).root)
    signature_name = read_signature_name(root)
    found = Input()
    if has_context := "context" in root.names():
        _fill_example(root.find("context"), found.example_list_with_context.context)
    if "examples" not in root.names():
        raise invalid_argument(
            f"JSON Value: {quote(root)} When method is classify, key 'examples' is expected and was not found"
        )
    examples = root.find("examples")
    if not is_array(examples):
        raise invalid_argument(f"JSON Value: {quote(root)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid_argument(f"JSON Value: {quote(root)} 'examples' value is an empty array")
    kept = found.example_list_with_context if has_context else found.example_list
    for example in examples:
        _fill_example(example, kept.examples.add())
    return signature_name, found


def _fill_example(content: Any, example: Example) -> None:
    """Fill features, which are a value or a list of values of one kind each."""
    if not isinstance(content, Members):
        raise invalid_argument(f"Example must be JSON object but got JSON {kind_of(content)}")
    for name, feature in content:
        example.features.feature[name].CopyFrom(_feature(name, feature if is_array(feature) else [feature]))


def _feature(name: str, values: Sequence[Any]) -> Feature:
    feature = Feature()
    for value in values:
        kind, converted = _feature_value(name, value)
        first = feature.WhichOneof("kind") or kind
        if kind != first:
            raise invalid_argument(
                f"Unexpected element type in feature: {name} expecting type: {first.removesuffix('_list')}"
            )
        getattr(feature, kind).value.append(converted)
    return feature


def _feature_value(name: str, value: Any) -> tuple[str, Any]:
    """Return the list of a feature that holds a value, and what it holds; true and false are integers there."""
    if isinstance(value, float):
        return "float_list", value
    if isinstance(value, int):
        if value > MAX_INT64:
            raise invalid_argument(f"Feature: {name} has uint64 element. Only int64 is supported.")
        return "int64_list", int(value)
    if isinstance(value, str):
        return "bytes_list", value.encode(errors="surrogateescape")
    if not is_base64(value):
        raise invalid_argument(f"Feature: {name} has element with unexpected JSON type: {kind_of(value)}")
    return "bytes_list", decode_base64(value)


def infer(
    servable: Servable,
    signature_name: str,
    method: str,
    examples: Input,
    deadline: float = math.inf,
    strict: bool = False,
) -> Any:
    """Classify examples, or regress.

    Args:
        servable: the loaded model.
        signature_name: empty for `serving_default`.
        method: `CLASSIFY` or `REGRESS`.
        examples: with a context, or without.
        deadline: in `time.monotonic()`, when the run is to be given up. Default never.
        strict: whether the signature must be made for the method. Default false: its inputs and outputs must fit.

    Returns:
        a result for each example.

    Raises:
        StatusError: in TF Serving's words.
    """
    name = signature_name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise invalid_argument(f"No signature was found with the name: {name}")
    signature = servable.signatures[name]
    outputs = _check_signature(signature, method, strict)
    tensor = _serialized(examples)
    found = servable.run(name, {INPUTS: tensor}, outputs, deadline)
    return (_classification if method == CLASSIFY else _regression)(found, len(tensor))


def infer_all(
    servable: Servable, request: MultiInferenceRequest, deadline: float = math.inf, strict: bool = False
) -> MultiInferenceResponse:
    """Answer a MultiInference request, whose tasks share their examples; the caller fills versions in. See `infer`."""
    response, names = MultiInferenceResponse(), set()
    for task in request.tasks:
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise invalid_argument("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        if name in names:
            raise invalid_argument(f"Duplicate evaluation of signature: {name}")
        if name not in servable.signatures:
            raise invalid_argument(f"Requested signature not found in model graph: {name}")
        if task.method_name not in WORDS:
            raise StatusError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        names.add(name)
        result = infer(servable, name, task.method_name, request.input, deadline, strict)
        added = response.results.add(model_spec=ModelSpec(name=task.model_spec.name, signature_name=name))
        getattr(added, f"{WORDS[task.method_name]}_result").CopyFrom(result)
    return response


def _check_signature(signature: SignatureDef, method: str, strict: bool) -> list[str]:
    """Return the outputs to compute, if a signature can do what is asked."""
    word, wanted = WORDS[method], (CLASSES, SCORES) if method == CLASSIFY else (VALUES,)
    outputs = [name for name in wanted if name in signature.outputs]
    fits = list(signature.inputs) == [INPUTS] and outputs and len(signature.outputs) <= len(wanted)
    if signature.method_name != method and (strict or not fits):
        raise invalid_argument(f"Expected {word} signature method_name to be {method}. Was: {signature.method_name}")
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if INPUTS not in signature.inputs:
        raise invalid_argument(f"No {word} inputs found in SignatureDef: {signature}")
    if not fits:
        names = " or ".join(f'"{name}"' for name in wanted)
        raise invalid_argument(f"Expected {word} signature outputs to be {names}. Signature was: {signature}")
    return outputs


def _serialized(examples: Input) -> np.ndarray:
    """Return examples as a model parses them; the features of the context come first in each."""
    kind = examples.WhichOneof("kind")
    kept = getattr(examples, kind) if kind else None
    if kept is None or not kept.examples:
        raise invalid_argument("Input is empty.")
    context = kept.context.SerializeToString() if kind == "example_list_with_context" else b""
    tensor = np.empty(len(kept.examples), object)
    tensor[:] = [context + example.SerializeToString() for example in kept.examples]
    return tensor


def _classification(outputs: dict[str, np.ndarray], count: int) -> ClassificationResult:
    for name, kind, wanted in ((CLASSES, "O", "DT_STRING"), (SCORES, "f", "DT_FLOAT")):
        tensor = outputs.get(name)
        if tensor is None:
            continue
        if tensor.ndim != 2:
            shape = ",".join(map(str, tensor.shape))
            raise invalid_argument(f"Expected Tensor shape: [batch_size num_classes] but got [{shape}]")
        if tensor.dtype.kind != kind:
            raise invalid_argument(f"Expected {name} Tensor of {wanted}. Got: {tensor.dtype}")
        if len(tensor) != count:
            raise invalid_argument(f"Expected {name} output batch size of {count}. Got: {len(tensor)}")
    widths = [tensor.shape[1] for tensor in outputs.values()]
    if len(set(widths)) > 1:
        raise invalid_argument(
            f"Tensors class and score should match in dim_size(1). Got {outputs[CLASSES].shape[1]} vs. "
            f"{outputs[SCORES].shape[1]}"
        )
    result = ClassificationResult()
    for row in range(count):
        classes = result.classifications.add().classes
        for column in range(widths[0]):
            label = outputs[CLASSES][row, column].decode(errors="replace") if CLASSES in outputs else ""
            classes.add(label=label, score=outputs[SCORES][row, column] if SCORES in outputs else 0)
    return result


def _regression(outputs: dict[str, np.ndarray], count: int) -> RegressionResult:
    tensor = outputs[VALUES]
    if tensor.shape not in ((count,), (count, 1)):
        shape = ",".join(map(str, tensor.shape))
        raise invalid_argument(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [{shape}]; the batch "
            f"size is {count}"
        )
    if tensor.dtype != np.float32:
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT. Got: {tensor.dtype}")
    result = RegressionResult()
    for value in tensor.reshape(-1):
        result.regressions.add(value=value)
    return result


def write_result(result: Any) -> str:
    """Write the body of an answer to `:classify` or `:regress`.

    Example:
        >>> print(write_result(RegressionResult(regressions=[{"value": 0.5}])))
        {
            "results": [0.5]
        }
    """
    writer = Writer()
    writer.start(array=False)
    writer.key("results")
    if isinstance(result, RegressionResult):
        writer.single_line = True
        writer.array(float_texts(np.array([each.value for each in result.regressions], np.float32)))
        writer.single_line = False
    else:
        writer.start(array=True)
        for each in result.classifications:
            scores = float_texts(np.array([one.score for one in each.classes], np.float32))
            writer.single_line = True
            writer.start(array=True)
            for one, score in zip(each.classes, scores, strict=True):
                writer.array([string_text(one.label), score])
            writer.end()
            writer.single_line = False
        writer.end()
    writer.end()
    return writer.text()
