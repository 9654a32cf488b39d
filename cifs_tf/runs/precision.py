"""What `auto` means for a run, `--precision auto` on this machine; and float32 without TF32."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar, get_args

import tensorflow as tf

from cifs_tf.config import Precision, RunConfig
from cifs_tf.data.resizing import mode_of
from cifs_tf.hardware import cpu_flags
from cifs_tf.runs.cluster import Cluster
from cifs_tf.runs.workdir import BEFORE, Workdir

AnyConfig = TypeVar("AnyConfig", bound=RunConfig)
PRECISIONS = get_args(Precision)
AMPERE = (8, 0)  # compute capability from which GPUs have bfloat16


def resolve_auto(config: AnyConfig, workdir: Workdir, cluster: Cluster) -> AnyConfig:
    """Replace `auto` of precision and resizing by what the run in the workdir began with.

    A new run takes the precision that the chief is fastest in, and crops photographs.

    Args:
        config: whose other values are returned as they are.
        workdir: of the run.
        cluster: the workers of the run, whose machines may differ.
    """
    if config.data.resize == "auto":
        resize: Any = mode_of(config.data)
        if workdir.config_file.exists():
            resize = workdir.stored("resize") or BEFORE["resize"]
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, resize=resize))
    if config.train.precision != "auto":
        return config
    index = cluster.from_chief(PRECISIONS.index(workdir.stored("precision") or fast_precision()))
    return dataclasses.replace(config, train=dataclasses.replace(config.train, precision=PRECISIONS[index]))


def fast_precision() -> Precision:
    """Return `"mixed_bfloat16"` if this machine computes in it faster than in float32, or else `"float32"`."""
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    if gpus:
        fast = all(gpu.get("compute_capability", (0, 0)) >= AMPERE for gpu in gpus)
    else:
        fast = bool({"avx512_bf16", "amx_bf16"} & set(cpu_flags()))
    return "mixed_bfloat16" if fast else "float32"


@contextlib.contextmanager
def tf32_disabled() -> Iterator[None]:
    """Disable TF32 during evaluation.

    With it a GPU rounds the factors of float32 products to ten bits, so that a network would be judged by other logits
    than its own.
    """
    is_enabled = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(is_enabled)
