"""Checks of a request against a model's signature, before the model runs: no wrong tensor reaches a kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import struct_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo

from cifs_tf.serving.endpoint.json.requests import SignatureInputs
from cifs_tf.serving.endpoint.status import DEFAULT_SIGNATURE, Code, StatusError, invalid_argument
from cifs_tf.serving.endpoint.tensor_types import BFLOAT16, FLOAT, HALF, NUMPY_TYPES, type_name, type_number


def find_signature(signatures: Mapping[str, SignatureDef], name: str) -> tuple[str, SignatureDef]:
    """Look a signature up as gRPC does.

    Args:
        signatures: of a model, by name.
        name: of one of them; empty for `serving_default`.

    Returns:
        name and signature.

    Raises:
        StatusError: FAILED_PRECONDITION if there is none of that name.
    """
    name = name or DEFAULT_SIGNATURE
    if name not in signatures:
        raise StatusError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    return name, signatures[name]


def check_names(signature: SignatureDef, sent: Sequence[str]) -> None:
    """Refuse inputs that are not exactly those of the signature; those that have a default may be missing.

    Args:
        signature: of the model.
        sent: names of the request's inputs.

    Raises:
        StatusError: INVALID_ARGUMENT, listing what is too much and what is missing.
    """
    wanted, received = set(signature.inputs), set(sent)
    if received <= wanted <= received | set(signature.defaults):
        return

    def listed(names: set[str]) -> str:
        return ",".join(sorted(names))

    raise invalid_argument(
        f"input size does not match signature: {len(received)}!={len(wanted)} len({{{listed(received)}}}) != "
        f"len({{{listed(wanted)}}}). Sent extra: {{{listed(received - wanted)}}}. "
        f"Missing but required: {{{listed(wanted - received)}}}."
    )


def add_defaults(signature: SignatureDef, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the inputs of a request, and for those that it does not give their defaults."""
    missing = [name for name in signature.defaults if name not in inputs]
    return {**inputs, **{name: tf.make_ndarray(signature.defaults[name]) for name in missing}}


def json_inputs(signature: SignatureDef, widens: bool) -> SignatureInputs | StatusError:
    """Return inputs as JSON is read: numbers of half precision as float, if they are taken at all; or why none is."""
    try:
        for name, info in signature.inputs.items():
            check_is_tensor(name, info, "input")
    except StatusError as error:
        return error
    types = {name: info.dtype for name, info in signature.inputs.items()}
    types = {name: FLOAT if widens and dtype in (HALF, BFLOAT16) else dtype for name, dtype in types.items()}
    return SignatureInputs(types, frozenset(signature.defaults))


def narrow(signature: SignatureDef, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Round inputs that were read as float to the half precision that a signature takes."""
    halves = {name: info.dtype for name, info in signature.inputs.items() if info.dtype in (HALF, BFLOAT16)}
    with np.errstate(over="ignore"):  # beyond the type is infinite
        return {
            name: tensor.astype(NUMPY_TYPES[halves[name]]) if name in halves else tensor
            for name, tensor in inputs.items()
        }


def widen(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return outputs with those of half precision as float."""
    return {
        name: tensor.astype(np.float32) if type_number(tensor.dtype) in (HALF, BFLOAT16) else tensor
        for name, tensor in outputs.items()
    }


def check_tensors(signature: SignatureDef, inputs: Mapping[str, np.ndarray]) -> None:
    """Refuse tensors whose type or shape the signature does not allow.

    A model that was exported without `tf.ensure_shape` would not refuse them: a convolution ends the process when it
    meets an image of the wrong rank. The words are those of `tf.ensure_shape`.

    Args:
        signature: of the model.
        inputs: tensors by input name, exactly those of the signature.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    for index, (name, info) in enumerate(sorted(signature.inputs.items())):
        tensor = inputs[name]
        check_is_tensor(name, info, "input")
        dtype = type_number(tensor.dtype)
        if dtype != info.dtype:
            raise invalid_argument(
                f"Expects arg[{index}] to be {type_name(info.dtype)} but {type_name(dtype)} is provided"
            )
        if info.tensor_shape.unknown_rank:
            continue
        expected = [dim.size for dim in info.tensor_shape.dim]
        fits = len(expected) == tensor.ndim and all(
            want in (-1, have) for want, have in zip(expected, tensor.shape, strict=True)
        )
        if not fits:
            shape = ",".join(map(str, tensor.shape))
            wanted = ",".join("?" if size == -1 else str(size) for size in expected)
            node = f"_arg_{info.name.replace(':', '_')}_{index}"
            raise invalid_argument(
                f"Shape of tensor {node} [{shape}] is not compatible with expected shape [{wanted}].\n"
                f"\t [[{{{{function_node __inference_signature_wrapper_0}}}}{{{{node EnsureShape}}}}]]"
            )


def select_outputs(signature: SignatureDef, output_filter: Sequence[str]) -> list[str]:
    """Return the outputs that a request asks for.

    Args:
        signature: of the model.
        output_filter: names of outputs; empty for all.

    Returns:
        names of outputs.

    Raises:
        StatusError: INVALID_ARGUMENT for an unknown name, or one that occurs twice.
    """
    for index, name in enumerate(output_filter):
        if name not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {name} Outputs expected to be in the set "
                f"{{{','.join(sorted(signature.outputs))}}}."
            )
        if name in output_filter[:index]:
            raise invalid_argument(f"duplicate output tensor alias: {name}")
    chosen = list(output_filter) or sorted(signature.outputs)
    for name in chosen:
        check_is_tensor(name, signature.outputs[name], "output")
    return chosen


def check_is_tensor(name: str, info: TensorInfo, what: str) -> None:
    """Refuse what no message of the API can carry.

    Args:
        name: of an input or output.
        info: its part of the signature.
        what: `"input"` or `"output"`.

    Raises:
        StatusError: UNIMPLEMENTED, with what to export instead.
    """
    kind, spec = info.WhichOneof("encoding"), info.composite_tensor.type_spec
    type_of = types_pb2.DataType.Name(info.dtype).removeprefix("DT_").lower()
    if kind == "coo_sparse":
        advice = "a sparse tensor: export tf.sparse.to_dense of it, or its indices and values"
    elif spec.type_spec_class == struct_pb2.TypeSpecProto.RAGGED_TENSOR_SPEC:
        advice = "a ragged tensor: export its to_tensor(), or its flat_values and row_splits"
    elif spec.type_spec_class_name.startswith("tensor("):
        advice = f"{spec.type_spec_class_name}, which onnxruntime does not hand over: export the model with a Cast"
    elif kind == "composite_tensor":
        advice = (
            f"{spec.type_spec_class_name or 'no tensor'}, no tensor: export the model without it; a classifier of "
            "scikit-learn without ZipMap (skl2onnx: options={'zipmap': False})"
        )
    elif type_of in ("variant", "resource"):
        advice = f"a {type_of}, such as a list of tensors or a table: export the tensors that it holds"
    elif info.dtype not in NUMPY_TYPES:
        advice = f"of type {type_of}, which cannot be asked for: export a tensor of numbers or texts"
    else:
        return
    raise StatusError(Code.UNIMPLEMENTED, f"The {what} {name} is {advice}")


def count_rows(signature: SignatureDef, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> int | None:
    """Return the common first dimension of a request's tensors, or None if the signature does not leave it free.

    A free first dimension need not be a batch: frames of a sound or words of a text have one too.
    """
    infos = [*signature.inputs.values(), *(signature.outputs[name] for name in outputs)]
    shapes = [info.tensor_shape for info in infos]
    lengths = {len(tensor) if tensor.ndim else -1 for tensor in inputs.values()}
    if len(lengths) != 1 or any(shape.unknown_rank or not shape.dim or shape.dim[0].size != -1 for shape in shapes):
        return None
    return lengths.pop()


def check_rows(outputs: Mapping[str, np.ndarray], rows: int) -> None:
    """Check that outputs have as many rows as the inputs of a run.

    Raises:
        StatusError: FAILED_PRECONDITION, in TF Serving's words.
    """
    for tensor in outputs.values():
        if not tensor.ndim:
            raise StatusError(Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
        if len(tensor) != rows:
            raise StatusError(
                Code.FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
                "tensors",
            )
