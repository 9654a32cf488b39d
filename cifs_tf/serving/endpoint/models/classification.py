"""Classify, Regress and MultiInference: examples to a SavedModel's classes, scores and values, as TF Serving does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow_serving.apis.classification_pb2 import ClassificationResult
from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest, MultiInferenceResponse
from tensorflow_serving.apis.input_pb2 import Input
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.regression_pb2 import RegressionResult

from cifs_tf.serving.endpoint.json.examples import CLASSES, SCORES, VALUES, label_text
from cifs_tf.serving.endpoint.models.servables import Servable
from cifs_tf.serving.endpoint.status import DEFAULT_SIGNATURE, Code, StatusError, invalid_argument

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
METHODS = {"classify": CLASSIFY, "regress": REGRESS}
WORDS = {CLASSIFY: "classification", REGRESS: "regression"}
INPUTS = "inputs"


def infer(
    servable: Servable,
    signature_name: str,
    method: str,
    examples: Sequence[bytes],
    deadline: float = math.inf,
    strict: bool = False,
) -> dict[str, np.ndarray]:
    """Classify examples, or regress.

    Args:
        servable: the loaded model.
        signature_name: empty for `serving_default`.
        method: `CLASSIFY` or `REGRESS`.
        examples: each a `tf.train.Example` as bytes.
        deadline: in `time.monotonic()`, when the run is to be given up. Default never.
        strict: whether the signature must be made for the method. Default false: its inputs and outputs must fit.

    Returns:
        the outputs `classes`, `scores` or both, or `outputs`, with a row for each example.

    Raises:
        StatusError: in TF Serving's words.
    """
    name = signature_name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise invalid_argument(f"No signature was found with the name: {name}")
    signature = servable.signatures[name]
    outputs = _check_signature(signature, method, strict)
    if not examples:
        raise invalid_argument("Input is empty.")
    tensor = np.empty(len(examples), object)
    tensor[:] = examples
    found = servable.run(name, {INPUTS: tensor}, outputs, deadline)
    if method == CLASSIFY:
        _check_classes(found, len(tensor))
    else:
        _check_values(found[VALUES], len(tensor))
    return found


def infer_all(
    servable: Servable, request: MultiInferenceRequest, deadline: float = math.inf, strict: bool = False
) -> MultiInferenceResponse:
    """Answer a MultiInference request, whose tasks share their examples; the caller fills versions in. See `infer`."""
    response, names, examples = MultiInferenceResponse(), set(), serialized_examples(request.input)
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
        result = result_message(infer(servable, name, task.method_name, examples, deadline, strict))
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


def serialized_examples(examples: Input) -> list[bytes]:
    """Return examples as a model parses them; the features of the context come first in each."""
    kind = examples.WhichOneof("kind")
    if not kind:
        return []
    kept = getattr(examples, kind)
    context = kept.context.SerializeToString() if kind == "example_list_with_context" else b""
    return [context + example.SerializeToString() for example in kept.examples]


def _check_classes(outputs: Mapping[str, np.ndarray], count: int) -> None:
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
    if len({tensor.shape[1] for tensor in outputs.values()}) > 1:
        raise invalid_argument(
            f"Tensors class and score should match in dim_size(1). Got {outputs[CLASSES].shape[1]} vs. "
            f"{outputs[SCORES].shape[1]}"
        )


def _check_values(tensor: np.ndarray, count: int) -> None:
    if tensor.shape not in ((count,), (count, 1)):
        shape = ",".join(map(str, tensor.shape))
        raise invalid_argument(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [{shape}]; the batch "
            f"size is {count}"
        )
    if tensor.dtype != np.float32:
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT. Got: {tensor.dtype}")


def result_message(outputs: Mapping[str, np.ndarray]) -> ClassificationResult | RegressionResult:
    """Return what `infer` found as gRPC says it."""
    if VALUES in outputs:
        return RegressionResult(regressions=[{"value": value} for value in outputs[VALUES].reshape(-1).tolist()])
    result, (count, width) = ClassificationResult(), next(iter(outputs.values())).shape
    for row in range(count):
        classes = result.classifications.add().classes
        for column in range(width):
            label = label_text(outputs[CLASSES][row, column]) if CLASSES in outputs else ""
            classes.add(label=label, score=outputs[SCORES][row, column] if SCORES in outputs else 0)
    return result
