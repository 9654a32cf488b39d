"""Where a result comes from: what every result file says beside its numbers."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from cifs_tf.config import RunConfig
from cifs_tf.extras import versions_of

PACKAGES = ("tensorflow", "keras", "numpy", "tensorflow-datasets", "tf2onnx", "onnxruntime", "keras-tuner")


def describe(config: RunConfig) -> dict[str, Any]:
    """What a result is worth nothing without.

    Args:
        config: of the run, with its seed and precision.

    Returns:
        `config`, `versions` of Python and packages, git `revision` of the project (None outside a checkout), `machine`,
        and the time at which it `started` (UTC).
    """
    return {
        "config": config.flat(),
        "versions": {
            "python": platform.python_version(),
            **versions_of(PACKAGES),
        },
        "revision": revision(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "started": now(),
    }


def revision() -> str | None:
    """The project's git revision; None outside a checkout, or without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


def now() -> str:
    """The time, as result files have it: UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
