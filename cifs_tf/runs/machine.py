"""The precision that a run computes in: what this machine is fast in, and float32 without TF32."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TypeVar, get_args

import tensorflow as tf

from cifs_tf.config import Precision, RunConfig
from cifs_tf.hardware import cpu_flags
from cifs_tf.runs.workdir import Workdir

AnyConfig = TypeVar("AnyConfig", bound=RunConfig)
PRECISIONS = get_args(Precision)
AMPERE = (8, 0)  # compute capability from which GPUs have bfloat16


def with_fast_precision(config: AnyConfig, workdir: Workdir) -> AnyConfig:
    """Replace `--precision auto` by what the run in the workdir began with, or by what this machine is fastest in."""
    return with_precision(config, workdir.stored("precision") or fast_precision())


def with_precision(config: AnyConfig, precision: Precision) -> AnyConfig:
    """Return a config with another precision."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))


def fast_precision() -> Precision:
    """`"mixed_bfloat16"` if this machine computes in it faster than in float32, or else `"float32"`."""
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    if gpus:
        fast = all(gpu.get("compute_capability", (0, 0)) >= AMPERE for gpu in gpus)
    else:
        fast = bool({"avx512_bf16", "amx_bf16"} & set(cpu_flags()))
    return "mixed_bfloat16" if fast else "float32"


@contextlib.contextmanager
def exact_factors() -> Iterator[None]:
    """Multiply float32 in full, where a GPU would round factors to ten bits (TF32): whoever judges a network does."""
    is_rounding = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(is_rounding)
