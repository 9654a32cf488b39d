"""TensorFlow Serving's configuration files: text protos read into messages, and checked for what only fails later.

    models.config      ModelServerConfig     --model_config_file           which models, versions and labels
    batching.config    BatchingParameters    --batching_parameters_file    how requests are joined into batches
    monitoring.config  MonitoringConfig      --monitoring_config_file      where Prometheus reads
    ssl.config         SSLConfig             --ssl_config_file             key and certificates of the gRPC port

The same files serve `tensorflow_model_server` and this project's own server.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from cifs_tf.errors import UserError
from cifs_tf.serving.endpoint.options import object_storage_advice
from cifs_tf.serving.endpoint.protos import make_messages

DEFAULT_MAX_BATCH_SIZE = 1000
DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"

# The Python package of TensorFlow Serving leaves these messages out. Names, numbers and types are those of its protos
# servables/tensorflow/session_bundle_config.proto, config/monitoring_config.proto and config/ssl_config.proto.
_MESSAGES = make_messages(
    "tensorflow.serving",
    {
        "BatchingParameters": (
            (1, "max_batch_size", "Int64Value"),
            (2, "batch_timeout_micros", "Int64Value"),
            (3, "max_enqueued_batches", "Int64Value"),
            (4, "num_batch_threads", "Int64Value"),
            (5, "thread_pool_name", "StringValue"),
            (6, "allowed_batch_sizes", "repeated int64"),
            (7, "pad_variable_length_inputs", "bool"),
            (8, "enable_large_batch_splitting", "BoolValue"),
            (9, "max_execution_batch_size", "Int64Value"),
        ),
        "PrometheusConfig": ((1, "enable", "bool"), (2, "path", "string")),
        "MonitoringConfig": ((1, "prometheus_config", "PrometheusConfig"),),
        "SSLConfig": (
            (1, "server_key", "string"),
            (2, "server_cert", "string"),
            (3, "custom_ca", "string"),
            (4, "client_verify", "bool"),
        ),
    },
)


def read_session_config(path: str | Path) -> Any:
    """Read the options of TensorFlow's session.

    Args:
        path: text proto of a `tensorflow.ConfigProto`.

    Returns:
        the message.

    Raises:
        UserError: naming `--tensorflow_session_config_file`, file, line and reason.
    """
    from tensorflow.core.protobuf.config_pb2 import ConfigProto

    return _File("--tensorflow_session_config_file", path).parse(ConfigProto())


def read_model_config(path: str | Path) -> Any:
    """Read and check the list of models to serve.

    Args:
        path: text proto of a `tensorflow.serving.ModelServerConfig`.

    Returns:
        the message: `config.model_config_list.config`, each with `name`, `base_path`, `model_version_policy` and
        `version_labels`.

    Raises:
        UserError: naming `--model_config_file`, file, line and reason.
    """
    # An error in the file is reported at once: TensorFlow, which takes seconds to import, is not needed.
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

    file = _File("--model_config_file", path)
    message = file.parse(ModelServerConfig())
    check_model_config(message, file)
    return message


def read_batching_parameters(path: str | Path) -> Any:
    """Read and check the rules by which requests are joined into batches.

    Args:
        path: text proto of a `tensorflow.serving.BatchingParameters`.

    Returns:
        the message; a parameter that was not given is absent (`HasField`), and the server's default holds.

    Raises:
        UserError: naming `--batching_parameters_file`, file, line and reason.
    """
    file = _File("--batching_parameters_file", path)
    message = file.parse(_MESSAGES["BatchingParameters"]())
    for name, least in (
        ("max_batch_size", 1),
        ("batch_timeout_micros", 0),
        ("max_enqueued_batches", 1),
        ("num_batch_threads", 1),
        ("max_execution_batch_size", 1),
    ):
        if message.HasField(name) and getattr(message, name).value < least:
            raise file.error(name, f"{name} is {getattr(message, name).value}, give a number of {least} or more")
    sizes = list(message.allowed_batch_sizes)
    for number, (before, size) in enumerate(zip([0, *sizes], sizes, strict=False)):
        if size <= before:
            advice = f"allowed_batch_sizes has {size} after {before}, give numbers of 1 or more that increase"
            raise file.error("allowed_batch_sizes", advice, number)
    largest = message.max_batch_size.value if message.HasField("max_batch_size") else DEFAULT_MAX_BATCH_SIZE
    name, most = "max_batch_size", largest
    if message.HasField("max_execution_batch_size") and message.enable_large_batch_splitting.value:
        name, most = "max_execution_batch_size", message.max_execution_batch_size.value
        if most > largest:
            raise file.error(name, f"{name} is {most}, give at most max_batch_size, which is {largest}")
    if sizes and sizes[-1] != most:
        advice = f"the last of allowed_batch_sizes is {sizes[-1]}, it must equal {name}, which is {most}"
        raise file.error("allowed_batch_sizes", advice, len(sizes) - 1)
    return message


def read_monitoring_config(path: str | Path) -> Any:
    """Read and check the path at which Prometheus finds the metrics.

    Args:
        path: text proto of a `tensorflow.serving.MonitoringConfig`.

    Returns:
        the message; an empty `prometheus_config.path` stands for `DEFAULT_METRICS_PATH`.

    Raises:
        UserError: naming `--monitoring_config_file`, file, line and reason.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "monitoring.config")
        >>> _ = path.write_text("prometheus_config { enable: true }")
        >>> read_monitoring_config(path).prometheus_config.enable
        True
    """
    file = _File("--monitoring_config_file", path)
    message = file.parse(_MESSAGES["MonitoringConfig"]())
    where = message.prometheus_config.path
    if where and (not where.startswith("/") or where.lower().startswith("/v1/")):
        advice = f"path is {where!r}, give one that begins with / and is not under /v1/, where the models are"
        raise file.error("path", advice)
    return message


def read_ssl_config(path: str | Path) -> Any:
    """Read and check key and certificates of the gRPC port.

    Args:
        path: text proto of a `tensorflow.serving.SSLConfig`; its texts are PEM contents, not names of files.

    Returns:
        the message.

    Raises:
        UserError: naming `--ssl_config_file`, file, line and reason; the message never quotes the key.
    """
    file = _File("--ssl_config_file", path)
    message = file.parse(_MESSAGES["SSLConfig"](), secret=True)
    for name, what in (("server_key", "PRIVATE KEY"), ("server_cert", "CERTIFICATE"), ("custom_ca", "CERTIFICATE")):
        text = getattr(message, name)
        if not text and name != "custom_ca":
            other = "server_cert" if name == "server_key" else "server_key"
            raise file.error(other, f"{name} is missing, give server_key and server_cert, each as the PEM text itself")
        if text and not re.search(rf"-----BEGIN [A-Z ]*{what}-----", text):
            raise file.error(name, f"{name} holds no PEM {what.lower()}, give the contents of the file, not its name")
    if message.client_verify and not message.custom_ca:
        raise file.error("client_verify", "client_verify needs custom_ca, the certificate that signs those of clients")
    return message


def check_model_config(config: Any, file: _File | None = None) -> None:
    """Check a model configuration for what a server would refuse, or never serve.

    Args:
        config: a `ModelServerConfig`, such as one received by `HandleReloadConfigRequest`.
        file: the file it was read from, to name its lines. Default None: it came in a request.

    Raises:
        UserError: naming the model and the reason.
    """
    file = file or _File("config")
    if config.WhichOneof("config") == "custom_model_config":
        raise file.error("custom_model_config", "custom_model_config is not served here, give model_config_list")
    if not config.model_config_list.config:
        raise file.error("", "it names no model, give model_config_list { config { name: ... base_path: ... } }")
    names: set[str] = set()
    for number, model in enumerate(config.model_config_list.config):
        name, found = f"model {model.name!r}", f"[\"']{re.escape(model.name)}[\"']"
        if not model.name:
            raise file.error(r"\bconfig\b", f"model number {number + 1} has no name, give one", number)
        if not re.fullmatch(r"[^/:\s]+", model.name):
            raise file.error(found, f"{name} cannot be part of a URL, give a name without slash, colon and space")
        if model.name in names:
            raise file.error(found, f"{name} is there twice, give every model a name of its own", 1)
        names.add(model.name)
        for reason in _mistakes_in(model):
            raise file.error(found, f"{name}: {reason}")


def _mistakes_in(model: Any) -> Iterator[str]:
    """List what is wrong with one model beside its name."""
    if not model.base_path:
        yield "base_path is missing, give the folder that holds the numbered versions"
    if advice := object_storage_advice(model.base_path):
        yield f"base_path is {model.base_path!r}, {advice}"
    if model.model_platform != "tensorflow":
        yield f'model_platform is {model.model_platform!r}, give "tensorflow"'
    policy, versions = model.model_version_policy, list(model.model_version_policy.specific.versions)
    kind = policy.WhichOneof("policy_choice")
    if kind == "latest" and policy.latest.num_versions < 1:
        yield "latest.num_versions is 0, give a number of 1 or more"
    if kind == "specific" and not versions:
        yield "specific names no version, give versions: NUMBER once or more"
    if any(version < 0 for version in versions):
        yield f"version {min(versions)} is negative, a version is a number of 0 or more"
    for label, version in sorted(model.version_labels.items()):
        if not re.fullmatch(r"[A-Za-z0-9_]+", label):
            yield f"label {label!r} has other characters than letters, digits and _"
        if version < 0:
            yield f"label {label!r} stands for version {version}, a version is a number of 0 or more"
        if kind == "specific" and version not in versions:
            yield f"label {label!r} stands for version {version}, which its policy does not load"


class _File:
    """A configuration file, and errors that say where in it."""

    def __init__(self, flag: str, path: str | Path | None = None) -> None:
        self.flag, self.path, self.text = flag, path, ""
        if path is None:
            return
        try:
            self.text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise UserError(flag, path, f"give a readable text file ({reason})") from error

    def parse(self, message: Any, secret: bool = False) -> Any:
        """Fill a message from the text."""
        try:
            return text_format.Parse(self.text, message)
        except text_format.ParseError as error:
            reason = re.sub(r"^\d+:\d+\s*:\s*", "", " ".join(str(error).split()))
            if secret:  # the parser quotes what it stopped at, which may be the key
                fields = ", ".join(field.name for field in message.DESCRIPTOR.fields)
                reason = (
                    rf"its fields are {fields}; a PEM text is one text in quotes, with \n for the ends of its lines"
                )
            where = f"{self.path}, line {error.GetLine()}" if error.GetLine() else str(self.path)
            raise UserError(self.flag, where, f"give the text form of {message.DESCRIPTOR.name} ({reason})") from error

    def error(self, pattern: str, advice: str, number: int = 0) -> UserError:
        """Make an error that names the line of the pattern's match of that number, counted from 0."""
        if self.path is None:
            return UserError(self.flag, "a request", advice)
        lines = [line.split("#")[0] for line in self.text.splitlines()]
        found = [index for index, line in enumerate(lines, start=1) if pattern and re.search(pattern, line)]
        where = f", line {found[min(number, len(found) - 1)]}" if found else ""
        return UserError(self.flag, f"{self.path}{where}", advice)
