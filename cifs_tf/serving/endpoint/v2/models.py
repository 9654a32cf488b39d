"""What the Open Inference Protocol asks of models: whether they answer, what they take, and to run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus

from cifs_tf.serving.endpoint.models.served_models import Target
from cifs_tf.serving.endpoint.models.signatures import find_signature, narrow
from cifs_tf.serving.endpoint.models.versions import Version, Versions
from cifs_tf.serving.endpoint.prediction.predictor import Predictor
from cifs_tf.serving.endpoint.status import DEFAULT_SIGNATURE, StatusError
from cifs_tf.serving.endpoint.v2.codec import DATATYPES

PLATFORMS = {"tensorflow": "tensorflow_savedmodel", "onnx": "onnx_onnxv1"}
AVAILABLE = ModelVersionStatus.AVAILABLE


def is_ready(versions: Versions, target: Target) -> bool:
    """Return whether a version of a model, or any if none is named, answers."""
    try:
        states = versions.states(target.model, target.version)
    except StatusError:
        return False
    return any(state.state == AVAILABLE for state in states)


def is_known(versions: Versions, target: Target) -> bool:
    """Return whether there is such a model and, if one is named, such a version, in whichever state."""
    try:
        return target.model in versions.configs() and (
            target.version is None or bool(versions.states(target.model, target.version))
        )
    except StatusError:
        return False


def choose_signature(signatures: Mapping[str, SignatureDef], name: str) -> tuple[str, SignatureDef]:
    """Look a signature up; without a name it is `serving_default`, or the only one that a model has.

    Raises:
        StatusError: FAILED_PRECONDITION if there is none of that name.
    """
    own = [each for each in signatures if not each.startswith("__")]  # beside TensorFlow's __saved_model_init_op
    return find_signature(signatures, name or (own[0] if len(own) == 1 else DEFAULT_SIGNATURE))


def describe_model(predictor: Predictor, target: Target) -> dict[str, Any]:
    """Describe the inputs and outputs of a model's `serving_default`, or only signature.

    Raises:
        StatusError: if there is no such version, or signature.
    """
    with predictor.versions.use(target.model, target.version) as version:
        _, signature = choose_signature(version.loaded.signatures, "")
        states = predictor.versions.states(target.model)
        return {
            "name": target.model,
            "versions": [str(number) for number in sorted(s.version for s in states if s.state == AVAILABLE)],
            "platform": PLATFORMS[predictor.options.backend],
            "inputs": _describe(signature.inputs),
            "outputs": _describe(signature.outputs),
        }


def are_all_ready(versions: Versions) -> bool:
    """Return whether every model has a version that answers."""
    return all(is_ready(versions, Target(name, None, None)) for name in versions.configs())


def run_model(
    predictor: Predictor,
    target: Target,
    signature_name: str,
    inputs: Mapping[str, np.ndarray],
    wanted: Sequence[str],
    deadline: float,
) -> tuple[Version, dict[str, np.ndarray]]:
    """Run a signature on what a request holds, see `Predictor.predict`; return the version, and its answer."""
    with predictor.versions.use(target.model, target.version) as version:
        name, signature = choose_signature(version.loaded.signatures, signature_name)
        inputs = narrow(signature, inputs) if version.loaded.widens else inputs
        return version, predictor.predict(version, name, inputs, wanted, deadline)


def _describe(infos: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "datatype": DATATYPES.get(info.dtype, "unsupported"),
            "shape": [-1] if info.tensor_shape.unknown_rank else [dim.size for dim in info.tensor_shape.dim],
        }
        for name, info in sorted(infos.items())
    ]
