"""The paths of TF Serving's REST API."""

import re
from urllib.parse import unquote_to_bytes

from cifs_tf.serving.endpoint.models.served_models import MAX_VERSION, Target
from cifs_tf.serving.endpoint.status import invalid_argument

API_PATH = re.compile(r"/v1/.*", re.IGNORECASE | re.DOTALL)
_VERSION = r"(?:(?:/versions/(?P<version>\d+))|(?:/labels/(?P<label>[^/:]+)))?"
PREDICTION_PATH = re.compile(
    rf"/v1/models/(?P<model>[^/:]+){_VERSION}:(?P<method>classify|regress|predict|explain)", re.IGNORECASE | re.ASCII
)
MODEL_PATH = re.compile(
    rf"/v1/models(?:/(?P<model>[^/:]+))?{_VERSION}(?:/(?P<metadata>metadata))?", re.IGNORECASE | re.ASCII
)


def read_target(found: re.Match[str]) -> Target:
    """Read the model and version that a path names.

    Args:
        found: match of `PREDICTION_PATH` or `MODEL_PATH`.

    Raises:
        StatusError: INVALID_ARGUMENT if it names no model, or no possible version.
    """
    if not found["model"]:
        raise invalid_argument("Missing model name in request.")
    version = None
    if found["version"]:
        version = int(found["version"][:30])
        if version > MAX_VERSION:
            raise invalid_argument(f"Failed to convert version: {found['version']} to numeric.")
    return Target(_unquote(found["model"]), version, _unquote(found["label"]) if found["label"] else None)


def _unquote(text: str) -> str:
    return unquote_to_bytes(text).decode(errors="surrogateescape")
