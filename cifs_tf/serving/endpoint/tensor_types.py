"""Types of tensors, by the numbers that TensorFlow gives them; TensorFlow is not imported to read JSON."""

from __future__ import annotations

import ml_dtypes
import numpy as np

# Numbers and names of tensorflow/core/framework/types.proto.
FLOAT, DOUBLE, INT32, UINT8, INT16, INT8, STRING, INT64, BOOL = 1, 2, 3, 4, 5, 6, 7, 9, 10
BFLOAT16, UINT16, HALF, UINT32, UINT64 = 14, 17, 19, 22, 23
COMPLEX64, COMPLEX128 = 8, 18
SMALL_FLOATS = "float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz", "float8_e5m2fnuz"
SMALL_TYPES = dict(enumerate((*SMALL_FLOATS, "int4", "uint4", "int2", "uint2"), start=24))
NUMPY_TYPES: dict[int, np.dtype] = {
    FLOAT: np.dtype(np.float32),
    DOUBLE: np.dtype(np.float64),
    INT32: np.dtype(np.int32),
    UINT8: np.dtype(np.uint8),
    INT16: np.dtype(np.int16),
    INT8: np.dtype(np.int8),
    STRING: np.dtype(object),
    INT64: np.dtype(np.int64),
    BOOL: np.dtype(np.bool_),
    BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    UINT16: np.dtype(np.uint16),
    HALF: np.dtype(np.float16),
    UINT32: np.dtype(np.uint32),
    UINT64: np.dtype(np.uint64),
    COMPLEX64: np.dtype(np.complex64),
    COMPLEX128: np.dtype(np.complex128),
    **{number: np.dtype(getattr(ml_dtypes, name)) for number, name in SMALL_TYPES.items()},
}
# Memory of an empty text.
BYTES_OF_A_TEXT = 64
_NUMBERS = {dtype: number for number, dtype in NUMPY_TYPES.items()}
_NAMES = {FLOAT: "float", DOUBLE: "double", HALF: "half", STRING: "string", BOOL: "bool"}


def type_number(dtype: np.dtype) -> int:
    """Return TensorFlow's number of a NumPy type; 0 for one that no tensor of a request has.

    Example:
        >>> type_number(np.dtype("float32"))
        1
    """
    return STRING if dtype.kind in "OSU" else _NUMBERS.get(dtype, 0)


def type_name(number: int) -> str:
    """Return the name of a type in TF Serving's messages.

    Example:
        >>> type_name(19), type_name(14)
        ('half', 'bfloat16')
    """
    return _NAMES.get(number) or (NUMPY_TYPES[number].name if number in NUMPY_TYPES else f"type {number}")
