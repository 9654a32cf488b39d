"""One loaded version of a model, whichever file it came from: signatures, and one method that runs them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import math
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import config_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from cifs_tf.framework_internals import make_session_runner
from cifs_tf.serving.endpoint.status import BY_NUMBER, DEFAULT_SIGNATURE, Code, StatusError

PREDICT_METHOD = "tensorflow/serving/predict"
MAX_SECONDS = 1e6  # a limit beyond is none
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
    "tensor(uint16)": types_pb2.DT_UINT16,
    "tensor(bfloat16)": types_pb2.DT_BFLOAT16,
    "tensor(bool)": types_pb2.DT_BOOL,
    "tensor(string)": types_pb2.DT_STRING,
}
# What is added to the names of inputs, and of outputs, of bfloat16 where they are float instead.
FROM_FLOAT, AS_FLOAT = "__from_float", "__as_float"


class Servable(Protocol):
    """A loaded version of a model.

    Attributes:
        signatures: inputs and outputs of its functions, by name.
        row_wise: signatures whose answer for a row depends on that row alone.
        widens: whether half precision travels as numbers in JSON, which TF Serving refuses.
    """

    signatures: Mapping[str, SignatureDef]
    row_wise: Container[str]
    widens: bool

    def run(
        self, signature_name: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], deadline: float = math.inf
    ) -> dict[str, np.ndarray]:
        """Run a signature.

        Args:
            signature_name: one of `signatures`.
            inputs: tensors by input name, checked against the signature.
            outputs: names of the outputs to compute.
            deadline: in `time.monotonic()`, when the run is to be given up. Default never.

        Returns:
            tensors by output name.

        Raises:
            StatusError: with the reason why the model cannot run on the inputs.
        """

    def close(self) -> None:
        """Release its memory; nothing runs any more."""


def return_memory() -> None:
    """Give the memory of what was closed back to the system, where the C library can."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def seconds_left(deadline: float) -> float:
    """Return the seconds until a time in `time.monotonic()`.

    Raises:
        StatusError: DEADLINE_EXCEEDED if it is past.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise StatusError(Code.DEADLINE_EXCEEDED, "Deadline exceeded before the model could run; the server is busy")
    return left


class SavedModel:
    """A SavedModel in a session, as TF Serving runs it.

    A session does not repeat in Python what signatures say, gives the messages of TF Serving, and ends a run that
    takes too long.

    Args:
        path: folder with `saved_model.pb`.
        tags: of the graph to load. Default `serve`.
        session_config: threads of the session. Default TensorFlow's own.
    """

    row_wise: Container[str] = ()
    widens = False

    def __init__(
        self, path: Path, tags: Sequence[str] = ("serve",), session_config: config_pb2.ConfigProto | None = None
    ) -> None:
        self._lock = threading.Lock()
        self._runners: dict[tuple[str, tuple[str, ...]], Callable] = {}
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=session_config)
        try:
            with self._session.graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(self._session, list(tags), str(path))
        except BaseException:
            self._session.close()
            raise
        self.signatures: Mapping[str, SignatureDef] = dict(meta_graph.signature_def)

    def run(
        self, signature_name: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], deadline: float = math.inf
    ) -> dict[str, np.ndarray]:
        """Run a signature, as `Servable.run`."""
        run = self._runner(signature_name, tuple(outputs))
        left = seconds_left(deadline)
        try:
            milliseconds = 0 if left > MAX_SECONDS else max(1, math.ceil(left * 1000))
            tensors = run([inputs[name] for name in sorted(inputs)], milliseconds)
        except tf.errors.OpError as error:
            message = error.message.partition("\nTraceback")[0]  # of Python, with this machine's paths
            raise StatusError(BY_NUMBER[error.error_code], message) from error
        return dict(zip(outputs, map(_as_tensor, tensors), strict=True))

    def close(self) -> None:
        """Release its memory; nothing runs any more."""
        self._runners.clear()
        self._session.close()
        self._session = None

    def _runner(self, signature_name: str, outputs: tuple[str, ...]) -> Callable:
        """Make, once, the function that runs a signature for some of its outputs."""
        key = signature_name, outputs
        with self._lock:
            if key not in self._runners:
                signature = self.signatures[signature_name]
                feeds = [signature.inputs[name].name for name in sorted(signature.inputs)]
                fetches = [signature.outputs[name].name for name in outputs]
                try:
                    self._runners[key] = make_session_runner(self._session, feeds, fetches)
                except (ValueError, KeyError, TypeError) as error:
                    message = f"The signature {signature_name} names what the graph does not have: {error}"
                    raise StatusError(Code.FAILED_PRECONDITION, message) from error
            return self._runners[key]


def _as_tensor(value: Any) -> np.ndarray:
    """Return what a session fetched as an array; of one text NumPy would drop the zero bytes at its end."""
    return np.array(value, object) if isinstance(value, bytes) else np.asarray(value)


class OnnxModel:
    """An ONNX file in onnxruntime; its inputs and outputs are the signature `serving_default`.

    Args:
        file: the ONNX file.
        num_threads: of a run; 0 (default) leaves it to onnxruntime.
    """

    row_wise: Container[str] = ()
    widens = True

    def __init__(self, file: Path, num_threads: int = 0) -> None:
        import onnxruntime

        self._runtime = onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 4  # errors go into the answer
        make = functools.partial(onnxruntime.InferenceSession, sess_options=options, providers=["CPUExecutionProvider"])
        self._session = make(str(file))
        signature = onnx_signature(self._session)
        self.signatures: Mapping[str, SignatureDef] = {DEFAULT_SIGNATURE: signature}
        infos = [*signature.inputs.items(), *signature.outputs.items()]
        self._bfloat16 = {name for name, info in infos if info.dtype == types_pb2.DT_BFLOAT16}
        if self._bfloat16:  # which onnxruntime neither takes from NumPy nor gives back
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
            self._session = make(_with_floats(file, self._bfloat16))

    def run(
        self, signature_name: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], deadline: float = math.inf
    ) -> dict[str, np.ndarray]:
        """Run the model, as `Servable.run`."""
        left = seconds_left(deadline)
        options = self._runtime.RunOptions()
        stopper = threading.Timer(min(left, MAX_SECONDS), setattr, (options, "terminate", True))
        stopper.daemon = True
        stopper.start()
        try:
            values = {name + FROM_FLOAT * (name in self._bfloat16): _as_onnx(inputs[name]) for name in inputs}
            wanted = [name + AS_FLOAT * (name in self._bfloat16) for name in outputs]
            found = self._session.run(wanted, values, options)
            return {
                name: tensor.astype(ml_dtypes.bfloat16) if name in self._bfloat16 else _encoded(tensor)
                for name, tensor in zip(outputs, found, strict=True)
            }
        except UnicodeDecodeError as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"ONNX takes texts in UTF-8 only: {error}") from error
        # Each kind of failure is a class of its own, whose only base is Exception.
        except Exception as error:
            if options.terminate:
                message = f"The run took longer than {left:.3g} s and was ended"
                raise StatusError(Code.DEADLINE_EXCEEDED, message) from error
            raise StatusError(Code.INVALID_ARGUMENT, str(error)) from error
        finally:
            stopper.cancel()

    def close(self) -> None:
        """Release its memory; nothing runs any more."""
        self._session = None


def _with_floats(file: Path, names: Container[str]) -> bytes:
    """Return an ONNX file with float inputs and outputs beside those of bfloat16, which stay within the graph."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    graph, cast = model.graph, onnx.helper.make_node
    for value in [value for value in graph.output if value.name in names]:
        graph.node.append(cast("Cast", [value.name], [value.name + AS_FLOAT], to=onnx.TensorProto.FLOAT))
        graph.output.add(name=value.name + AS_FLOAT).type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for value in [value for value in graph.input if value.name in names]:
        graph.node.insert(0, cast("Cast", [value.name + FROM_FLOAT], [value.name], to=onnx.TensorProto.BFLOAT16))
        value.name += FROM_FLOAT
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return model.SerializeToString()


def _as_onnx(tensor: np.ndarray) -> np.ndarray:
    if tensor.dtype == ml_dtypes.bfloat16:
        return tensor.astype(np.float32)
    return _each(bytes.decode, tensor) if tensor.dtype == object else tensor


def _encoded(tensor: np.ndarray) -> np.ndarray:
    return _each(str.encode, tensor) if tensor.dtype == object else tensor


def _each(function: Callable, tensor: np.ndarray) -> np.ndarray:
    texts = np.empty(tensor.shape, object)
    texts.reshape(-1)[:] = list(map(function, tensor.reshape(-1).tolist()))
    return texts


def onnx_signature(session: Any) -> SignatureDef:
    """Return the inputs and outputs of a session of onnxruntime as a signature."""
    signature = SignatureDef(method_name=PREDICT_METHOD)
    for values, infos in ((session.get_inputs(), signature.inputs), (session.get_outputs(), signature.outputs)):
        for value in values:
            info = infos[value.name]
            if value.type not in ONNX_TYPES:
                info.composite_tensor.type_spec.type_spec_class_name = value.type
                continue
            info.name, info.dtype = f"{value.name}:0", ONNX_TYPES[value.type]
            # Without a shape, or with that of a scalar: onnxruntime does not tell which.
            info.tensor_shape.unknown_rank = not value.shape
            for size in value.shape:
                info.tensor_shape.dim.add(size=size if isinstance(size, int) else -1)
    return signature
