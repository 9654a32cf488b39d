"""Describe the machine that measures: its processor and devices, and the memory that was used."""

import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("tensorflow", "keras", "numpy")
CPU_FLAGS = ("fma", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")


def cpu_flags() -> list[str]:
    """Return those of `CPU_FLAGS` that the processor has; none where /proc/cpuinfo does not exist."""
    flags = _processor().get("flags", "").split()
    return [flag for flag in CPU_FLAGS if flag in flags]


def usable_cores() -> int:
    """Return how many cores this process may use, in a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def peak_memory() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    if sys.platform == "linux":
        # What getrusage says begins at the size of the process that started this one.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].removesuffix("kB")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe_machine() -> dict[str, Any]:
    """Describe what a measured time depends on: processor, cores, their load, devices, versions; as plain values."""
    import tensorflow as tf

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
    """Return the fields of the first processor in /proc/cpuinfo."""
    information = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    fields = dict(line.split(":", 1) for line in information.split("\n\n")[0].splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in fields.items()}
