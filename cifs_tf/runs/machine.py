"""The machine that measures: its processor, and the memory that was used."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar, get_args

import tensorflow as tf

from cifs_tf.config import Precision, RunConfig
from cifs_tf.runs.workdir import Workdir

AnyConfig = TypeVar("AnyConfig", bound=RunConfig)
PRECISIONS = get_args(Precision)
PACKAGES = ("tensorflow", "keras", "numpy")
AMPERE = (8, 0)  # compute capability from which GPUs have bfloat16
CPU_FLAGS = ("fma", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")


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


def cpu_flags() -> list[str]:
    """Which of the processor's abilities that matter here it has."""
    flags = _processor().get("flags", "").split()
    return [flag for flag in CPU_FLAGS if flag in flags]


@contextlib.contextmanager
def exact_factors() -> Iterator[None]:
    """Multiply float32 in full, where a GPU would round factors to ten bits (TF32): whoever judges a network does."""
    is_rounding = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(is_rounding)


def peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    if sys.platform == "linux":
        # What getrusage says begins at the size of the process that started this one.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].removesuffix("kB")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe_machine() -> dict:
    """What a time is worth nothing without: processor, cores, their load by others, devices, versions."""
    return {
        "processor": _processor().get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "flags": cpu_flags(),
        "load_average": os.getloadavg(),
        "devices": [device.name for device in tf.config.list_physical_devices()],
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }


def _processor() -> dict[str, str]:
    """What Linux says of the first processor."""
    information = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    fields = dict(line.split(":", 1) for line in information.split("\n\n")[0].splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in fields.items()}
