"""One loaded version of a model, whichever file it came from: signatures, and one method that runs them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import config_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from cifs_tf.framework_internals import make_callable
from cifs_tf.serving.endpoint.signatures import DEFAULT_SIGNATURE
from cifs_tf.serving.endpoint.status import BY_NUMBER, Code, StatusError

PREDICT_METHOD = "tensorflow/serving/predict"
# Types of ONNX by the names that onnxruntime gives them.
ONNX_TYPES = {
    "tensor(float)": types_pb2.DT_FLOAT,
    "tensor(double)": types_pb2.DT_DOUBLE,
    "tensor(float16)": types_pb2.DT_HALF,
    "tensor(int8)": types_pb2.DT_INT8,
    "tensor(uint8)": types_pb2.DT_UINT8,
    "tensor(int16)": types_pb2.DT_INT16,
    "tensor(int32)": types_pb2.DT_INT32,
    "tensor(int64)": types_pb2.DT_INT64,
    "tensor(uint32)": types_pb2.DT_UINT32,
    "tensor(uint64)": types_pb2.DT_UINT64,
    "tensor(bool)": types_pb2.DT_BOOL,
    "tensor(string)": types_pb2.DT_STRING,
}


class Servable(Protocol):
    """A loaded version of a model.

    Attributes:
        signatures: inputs and outputs of its functions, by name.
    """

    signatures: Mapping[str, SignatureDef]

    def run(
        self, signature_name: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Run a signature.

        Args:
            signature_name: one of `signatures`.
            inputs: tensors by input name, checked against the signature.
            outputs: names of the outputs to compute.

        Returns:
            tensors by output name.

        Raises:
            StatusError: with the reason why the model cannot run on the inputs.
        """

    def close(self) -> None:
        """Release its memory; nothing runs any more."""


class SavedModel:
    """A SavedModel in a session, as TF Serving runs it.

    A session does not repeat in Python what signatures say, gives the messages of TF Serving, and ends a run that
    takes too long.

    Args:
        path: folder with `saved_model.pb`.
        timeout: seconds after which a run ends with DEADLINE_EXCEEDED, > 0.
        session_config: threads of the session. Default TensorFlow's own.
    """

    def __init__(self, path: Path, timeout: float, session_config: config_pb2.ConfigProto | None = None) -> None:
        self._run_options = config_pb2.RunOptions(timeout_in_ms=max(1, round(timeout * 1000)))
        self._lock = threading.Lock()
        self._callables: dict[tuple[str, tuple[str, ...]], object] = {}
        self._graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=self._graph, config=session_config)
        try:
            with self._graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(path))
        except BaseException:
            self._session.close()
            raise
        self.signatures: Mapping[str, SignatureDef] = dict(meta_graph.signature_def)

    def run(
        self, signature_name: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Run a signature, as `Servable.run`."""
        call = self._callable(signature_name, tuple(outputs))
        try:
            tensors = call(*(inputs[name] for name in sorted(inputs)))  # type: ignore[operator]
        except tf.errors.OpError as error:
            raise StatusError(BY_NUMBER[error.error_code], error.message) from error
        return dict(zip(outputs, tensors, strict=True))

    def close(self) -> None:
        """Release its memory; nothing runs any more."""
        self._callables.clear()
        self._session.close()

    def _callable(self, signature_name: str, outputs: tuple[str, ...]) -> object:
        """Make, once, the function that runs a signature for some of its outputs."""
        key = signature_name, outputs
        with self._lock:
            if key not in self._callables:
                signature = self.signatures[signature_name]
                self._callables[key] = make_callable(
                    self._session,
                    config_pb2.CallableOptions(
                        feed=[signature.inputs[name].name for name in sorted(signature.inputs)],
                        fetch=[signature.outputs[name].name for name in outputs],
                        run_options=self._run_options,
                    ),
                )
            return self._callables[key]


class OnnxModel:
    """An ONNX file in onnxruntime; its inputs and outputs are the signature `serving_default`.

    Args:
        file: the ONNX file.
        timeout: seconds after which a run ends with DEADLINE_EXCEEDED, > 0.
        num_threads: of a run; 0 (default) leaves it to onnxruntime.
    """

    def __init__(self, file: Path, timeout: float, num_threads: int = 0) -> None:
        import onnxruntime

        self._failures = (
            onnxruntime.capi.onnxruntime_pybind11_state.Fail,
            onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument,
            onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
            onnxruntime.capi.onnxruntime_pybind11_state.EPFail,
        )
        self._runtime, self._timeout = onnxruntime, timeout
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 4  # errors go into the answer
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.signatures: Mapping[str, SignatureDef] = {DEFAULT_SIGNATURE: onnx_signature(self._session)}

    def run(
        self, signature_name: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Run the model, as `Servable.run`."""
        options = self._runtime.RunOptions()
        stopper = threading.Timer(self._timeout, setattr, (options, "terminate", True))
        stopper.daemon = True
        stopper.start()
        try:
            tensors = self._session.run(list(outputs), dict(inputs), options)
        except self._failures as error:
            if options.terminate:
                message = f"The run took longer than {self._timeout:g} s and was ended"
                raise StatusError(Code.DEADLINE_EXCEEDED, message) from error
            raise StatusError(Code.INVALID_ARGUMENT, str(error)) from error
        finally:
            stopper.cancel()
        return dict(zip(outputs, tensors, strict=True))

    def close(self) -> None:
        """Release its memory; nothing runs any more."""
        self._session = None


def onnx_signature(session: Any) -> SignatureDef:
    """Return the inputs and outputs of a session of onnxruntime as a signature."""
    signature = SignatureDef(method_name=PREDICT_METHOD)
    for values, infos in ((session.get_inputs(), signature.inputs), (session.get_outputs(), signature.outputs)):
        for value in values:
            infos[value.name].name = f"{value.name}:0"
            infos[value.name].dtype = ONNX_TYPES[value.type]
            for size in value.shape:
                infos[value.name].tensor_shape.dim.add(size=size if isinstance(size, int) else -1)
    return signature
