"""Metadata needed to reproduce a result, for every result file."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from cifs_tf.config import RunConfig
from cifs_tf.extras import versions_of
from cifs_tf.files import now

PACKAGES = ("tensorflow", "keras", "numpy", "tensorflow-datasets", "tf2onnx", "onnxruntime", "keras-tuner")


def describe(config: RunConfig) -> dict[str, Any]:
    """Return the metadata needed to reproduce a result.

    Args:
        config: of the run, with its seed and precision.

    Returns:
        `config`, `versions` of Python and the packages that are installed, git `revision` of the project (None outside
        a checkout), `machine`, and the time at which it `started` (UTC).
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
    """Return the project's git revision; None outside a checkout, or without git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed, perhaps below somebody else's repository
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None
