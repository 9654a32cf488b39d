"""TensorFlow's tensor messages, from and to NumPy."""

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.framework.tensor_pb2 import TensorProto

from cifs_tf.serving.endpoint.status import Code, StatusError, invalid_argument
from cifs_tf.serving.endpoint.tensor_types import BYTES_OF_A_TEXT

# Where a TensorProto keeps values of a type; clients read these fields by name.
FIELDS = {
    types_pb2.DT_FLOAT: "float_val",
    types_pb2.DT_DOUBLE: "double_val",
    types_pb2.DT_INT64: "int64_val",
    types_pb2.DT_BOOL: "bool_val",
    types_pb2.DT_UINT32: "uint32_val",
    types_pb2.DT_UINT64: "uint64_val",
    types_pb2.DT_STRING: "string_val",
    **dict.fromkeys((types_pb2.DT_INT32, types_pb2.DT_INT16, types_pb2.DT_INT8, types_pb2.DT_UINT8), "int_val"),
}


def read_tensor(name: str, proto: TensorProto, limit: int) -> np.ndarray:
    """Read a tensor within a limit: a small message, with one value for a whole shape, may be a large tensor.

    Args:
        name: of the input, for the message.
        proto: the tensor.
        limit: bytes of the tensor, > 0.

    Returns:
        the values.

    Raises:
        StatusError: INVALID_ARGUMENT if it is malformed, RESOURCE_EXHAUSTED if it is too large.
    """
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in sizes) or proto.dtype == types_pb2.DT_INVALID:
        raise invalid_argument(f"tensor parsing error: {name}")
    num_bytes = 1
    for size in sizes:
        num_bytes *= size
    try:
        dtype = tf.as_dtype(proto.dtype)
        num_bytes *= dtype.size or BYTES_OF_A_TEXT
        if num_bytes > limit:
            raise StatusError(Code.RESOURCE_EXHAUSTED, f"Tensor {name} would take {num_bytes} bytes, more than {limit}")
        if dtype != tf.string and len(proto.tensor_content) == num_bytes:
            return np.frombuffer(proto.tensor_content, dtype.as_numpy_dtype).reshape(sizes)
        # TensorFlow has the rules for too many values, too few and none.
        tensor = tf.io.parse_tensor(proto.SerializeToString(), dtype).numpy()
        return tensor if isinstance(tensor, np.ndarray) else np.array(tensor, dtype.as_numpy_dtype)
    except (tf.errors.OpError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise invalid_argument(f"tensor parsing error: {name}") from error


def write_tensor(tensor: np.ndarray, proto: TensorProto, as_content: bool = False) -> None:
    """Write a tensor into the fields that TF Serving fills, which clients read by name.

    Args:
        tensor: values.
        proto: an empty message.
        as_content: fill `tensor_content` instead, which is faster. Default false.
    """
    dtype = tf.as_dtype(tensor.dtype).as_datatype_enum
    if as_content or dtype not in FIELDS:
        proto.CopyFrom(tf.make_tensor_proto(tensor))
        return
    proto.dtype = dtype
    proto.tensor_shape.SetInParent()
    for size in tensor.shape:
        proto.tensor_shape.dim.add(size=size)
    getattr(proto, FIELDS[dtype]).extend(tensor.reshape(-1).tolist())
