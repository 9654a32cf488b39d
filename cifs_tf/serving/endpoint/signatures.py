"""Checks of a request against a model's signature, before the model runs: no wrong tensor reaches a kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from cifs_tf.serving.endpoint.status import Code, StatusError, invalid_argument

DEFAULT_SIGNATURE = "serving_default"

_SHORT_NAMES = {types_pb2.DT_FLOAT: "float", types_pb2.DT_DOUBLE: "double", types_pb2.DT_HALF: "half"}


def type_name(dtype: int) -> str:
    """Return the name of a type in TF Serving's messages, such as `float` for `DT_FLOAT`."""
    return _SHORT_NAMES.get(dtype, types_pb2.DataType.Name(dtype).removeprefix("DT_").lower())


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
    """Refuse inputs that are not exactly those of the signature.

    Args:
        signature: of the model.
        sent: names of the request's inputs.

    Raises:
        StatusError: INVALID_ARGUMENT, listing what is too much and what is missing.
    """
    wanted, received = set(signature.inputs), set(sent)
    if wanted == received:
        return

    def listed(names: set[str]) -> str:
        return ",".join(sorted(names))

    raise invalid_argument(
        f"input size does not match signature: {len(received)}!={len(wanted)} len({{{listed(received)}}}) != "
        f"len({{{listed(wanted)}}}). Sent extra: {{{listed(received - wanted)}}}. "
        f"Missing but required: {{{listed(wanted - received)}}}."
    )


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
        dtype = tf.as_dtype(tensor.dtype).as_datatype_enum
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
    return list(output_filter) or sorted(signature.outputs)


def is_batchable(signature: SignatureDef) -> bool:
    """Return whether all inputs and outputs have a free first dimension: then requests can share or split a run."""
    infos = [*signature.inputs.values(), *signature.outputs.values()]
    shapes = [info.tensor_shape for info in infos]
    return all(not shape.unknown_rank and len(shape.dim) > 0 and shape.dim[0].size == -1 for shape in shapes)
