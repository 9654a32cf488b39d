"""The machine that measures: its processor, its convolution peak, and the memory that was used."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path
from typing import TypeVar

import keras
import tensorflow as tf

from cifs_tf.config import Precision, RunConfig
from cifs_tf.models import Classifier
from training.measuring import timed
from training.workdir import Workdir

AnyConfig = TypeVar("AnyConfig", bound=RunConfig)
KERNEL_SIZE = 3
CHAIN_LENGTH = 8
PEAK_REPEATS = 5
PACKAGES = ("tensorflow", "keras", "numpy")
AMPERE = (8, 0)  # compute capability from which GPUs have bfloat16
CPU_FLAGS = ("fma", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")


def convolution_shapes(classifier: Classifier) -> list[tuple[int, int, int]]:
    """(height, width, channels) of the network's 3x3 convolutions that keep their input's shape."""
    convolutions = [layer for layer in classifier.backbone.layers if isinstance(layer, keras.layers.Conv2D)]
    return sorted(
        {
            layer.output.shape[1:]
            for layer in convolutions
            if layer.kernel_size == (KERNEL_SIZE, KERNEL_SIZE) and layer.input.shape == layer.output.shape
        },
        reverse=True,
    )


def convolution_peak(shapes: list[tuple[int, int, int]], batch_size: int, precision: str) -> dict[str, float]:
    """FLOP/s of compiled chains of convolutions, by shape; the best of several repeats.

    Args:
        shapes: see `convolution_shapes`.
        batch_size: images per batch.
        precision: dtype policy, whose compute dtype is used.
    """
    dtype = keras.DTypePolicy(precision).compute_dtype

    @tf.function(autograph=False)
    def chain(x, kernel):
        for _ in range(CHAIN_LENGTH):
            x = tf.nn.conv2d(x, kernel, 1, "SAME")
        return tf.reduce_max(x)

    peak = {}
    for height, width, channels in shapes:
        x = tf.cast(tf.random.normal((batch_size, height, width, channels)), dtype)
        # Keeps the variance, so that no value overflows, or underflows and is slow.
        spread = (KERNEL_SIZE**2 * channels) ** -0.5
        kernel = tf.random.normal((KERNEL_SIZE, KERNEL_SIZE, channels, channels), stddev=spread)
        kernel = tf.cast(kernel, dtype)
        run = functools.partial(chain.get_concrete_function(x, kernel), x, kernel)
        timed(run)
        flops = CHAIN_LENGTH * 2 * batch_size * height * width * (KERNEL_SIZE * channels) ** 2
        peak[f"{channels}@{height}x{width}"] = flops / min(timed(run)[0] for _ in range(PEAK_REPEATS))
    return peak


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
