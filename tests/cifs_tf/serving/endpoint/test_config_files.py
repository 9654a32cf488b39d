"""TF Serving's configuration files: what is read, and what is refused with flag, file, line and reason."""

import subprocess
import sys

import pytest
from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from cifs_tf.errors import UserError
from cifs_tf.serving.endpoint.config_files import (
    check_model_config,
    read_batching_parameters,
    read_model_config,
    read_monitoring_config,
    read_ssl_config,
)

KEY = "-----BEGIN PRIVATE KEY-----\\nc2VjcmV0\\n-----END PRIVATE KEY-----\\n"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\\nAAAA\\n-----END CERTIFICATE-----\\n"


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "file.config"
        path.write_text(text)
        return path

    return write


def model(name="cifs", rest="", base_path="/models/cifs", platform="tensorflow"):
    platform = f'model_platform: "{platform}"' if platform else ""
    return f'  config {{\n    name: "{name}"\n    base_path: "{base_path}"\n    {platform} {rest}\n  }}\n'


def models(*configs):
    return "model_config_list {\n" + "".join(configs) + "}\n"


def refused(read, path):
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    return message


def test_models_are_read(write):
    rest = "model_version_policy { specific { versions: 1 versions: 3 } } version_labels { key: 'stable' value: 3 }"
    config = read_model_config(write(models(model(rest=rest), model("vanilla", base_path="relative/folder"))))
    first, second = config.model_config_list.config
    assert (first.name, first.base_path) == ("cifs", "/models/cifs")
    assert list(first.model_version_policy.specific.versions) == [1, 3]
    assert dict(first.version_labels) == {"stable": 3}
    assert second.base_path == "relative/folder"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", None, "names no model"),
        ("model_config_list { }", None, "names no model"),
        ("custom_model_config { }", 1, "give model_config_list"),
        ("model_config_list {\n  config {\n    nme: 'a'\n  }\n}", 3, 'no field named "nme"'),
        ("model_config_list {\n  config {\n    name: 5\n  }\n}", 3, "Expected string"),
        ("model_config_list {\n  config {\n    name: 'a'\n  }\n", 4, 'Expected "}"'),
        (models(model(), model("b"), model("b")), 13, "'b' is there twice"),
        (models(model(), model("")), 7, "model number 2 has no name"),
        (models(model("a/b")), 3, "cannot be part of a URL"),
        (models(model("a:b")), 3, "cannot be part of a URL"),
        (models(model(base_path="")), 3, "base_path is missing"),
        (models(model(platform="")), 3, "model_platform is ''"),
        (models(model(platform="pytorch")), 3, "model_platform is 'pytorch'"),
        (models(model(rest="model_version_policy { latest { num_versions: 0 } }")), 3, "num_versions is 0"),
        (models(model(rest="model_version_policy { latest { num_versions: -1 } }")), 5, "out of range: -1"),
        (models(model(rest="model_version_policy { specific { } }")), 3, "names no version"),
        (models(model(rest="model_version_policy { specific { versions: -2 } }")), 3, "version -2 is negative"),
        (models(model(rest="version_labels { key: 'my-label' value: 1 }")), 3, "label 'my-label' has other characters"),
        (models(model(rest="version_labels { key: '' value: 1 }")), 3, "label '' has other characters"),
        (models(model(rest="version_labels { key: 'stable' value: -1 }")), 3, "version -1"),
        (
            models(
                model(rest="model_version_policy { specific { versions: 1 } } version_labels { key: 's' value: 2 }")
            ),
            3,
            "label 's' stands for version 2, which its policy does not load",
        ),
    ],
)
def test_models_are_refused(write, text, line, reason):
    message = refused(read_model_config, write(text))
    assert message.startswith("--model_config_file: received ")
    assert reason in message
    assert (f", line {line};" in message) if line else (", line" not in message)


def test_a_model_config_of_a_request_is_checked_too():
    config = text_format.Parse(models(model(), model()), ModelServerConfig())
    with pytest.raises(UserError, match="received a request; model 'cifs' is there twice"):
        check_model_config(config)


def test_batching_parameters_are_read(write):
    text = """
    max_batch_size { value: 128 } batch_timeout_micros { value: 0 } max_enqueued_batches { value: 7 }
    num_batch_threads { value: 4 } thread_pool_name { value: "pool" } pad_variable_length_inputs: true
    allowed_batch_sizes: [8, 32] allowed_batch_sizes: 128
    """
    message = read_batching_parameters(write(text))
    assert message.max_batch_size.value == 128
    assert message.HasField("batch_timeout_micros")
    assert message.batch_timeout_micros.value == 0
    assert message.max_enqueued_batches.value == 7
    assert message.num_batch_threads.value == 4
    assert message.thread_pool_name.value == "pool"
    assert message.pad_variable_length_inputs
    assert list(message.allowed_batch_sizes) == [8, 32, 128]


def test_batching_parameters_may_all_be_absent(write):
    message = read_batching_parameters(write("# the server's defaults\n"))
    assert not message.HasField("max_batch_size")
    assert not message.allowed_batch_sizes


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("\nmax_batch_size: 8\n", 2, 'Expected "{"'),
        ("max_batch { value: 8 }", 1, 'no field named "max_batch"'),
        ("max_batch_size { value: 0 }", 1, "max_batch_size is 0, give a number of 1 or more"),
        ("\nnum_batch_threads { value: -1 }", 2, "num_batch_threads is -1"),
        ("max_enqueued_batches { value: 0 }", 1, "max_enqueued_batches is 0"),
        ("batch_timeout_micros { value: -1 }", 1, "batch_timeout_micros is -1, give a number of 0 or more"),
        ("max_batch_size { value: 8 }\nallowed_batch_sizes: 4\n", 2, "is 4, it must equal max_batch_size, which is 8"),
        ("allowed_batch_sizes: 4\n", 1, "max_batch_size, which is 1000"),
        (
            "max_batch_size { value: 8 }\n# allowed_batch_sizes: 1\nallowed_batch_sizes: 8\nallowed_batch_sizes: 8\n",
            4,
            "allowed_batch_sizes has 8 after 8",
        ),
        ("allowed_batch_sizes: 0\n", 1, "allowed_batch_sizes has 0 after 0"),
    ],
)
def test_batching_parameters_are_refused(write, text, line, reason):
    message = refused(read_batching_parameters, write(text))
    assert message.startswith("--batching_parameters_file: received ")
    assert f", line {line};" in message
    assert reason in message


def test_monitoring_config(write):
    message = read_monitoring_config(write('prometheus_config { enable: true path: "/metrics" }'))
    assert message.prometheus_config.enable
    assert message.prometheus_config.path == "/metrics"
    assert not read_monitoring_config(write("")).prometheus_config.enable
    for path in ("metrics", "/v1/metrics"):
        said = refused(read_monitoring_config, write(f'prometheus_config {{ enable: true\n path: "{path}" }}'))
        assert said.startswith("--monitoring_config_file: ")
        assert f"line 2; path is '{path}'" in said


def test_ssl_config(write):
    message = read_ssl_config(write(f'server_key: "{KEY}"\nserver_cert: "{CERTIFICATE}"\n'))
    assert message.server_key == KEY.replace("\\n", "\n")
    assert not message.client_verify


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (f'server_key: "{KEY}"', 1, "server_cert is missing"),
        (f'\nserver_cert: "{CERTIFICATE}"', 2, "server_key is missing"),
        ("", None, "server_key is missing"),
        (f'server_key: "server.key"\nserver_cert: "{CERTIFICATE}"', 1, "server_key holds no PEM private key"),
        (f'server_key: "{KEY}"\nserver_cert: "{KEY}"', 2, "server_cert holds no PEM certificate"),
        (f'server_key: "{KEY}"\nserver_cert: "{CERTIFICATE}"\nclient_verify: true', 3, "needs custom_ca"),
        (f'server_key: "{KEY}"\nserver_crt: "{CERTIFICATE}"', 2, "its fields are server_key, server_cert"),
        (f'server_key: "{KEY.replace(chr(92) + "n", chr(10))}"', 1, "in quotes"),
        (f"server_key: {KEY}", 1, "in quotes"),
        (f"{KEY}", 1, "in quotes"),
    ],
)
def test_ssl_config_is_refused_without_telling_the_key(write, text, line, reason):
    message = refused(read_ssl_config, write(text))
    assert message.startswith("--ssl_config_file: received ")
    assert (f", line {line};" in message) if line else (", line" not in message)
    assert reason in message
    assert "c2VjcmV0" not in message


@pytest.mark.parametrize("read", [read_model_config, read_batching_parameters, read_monitoring_config, read_ssl_config])
def test_files_that_cannot_be_read(read, tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "No such file" in refused(read, tmp_path / "missing")
    assert "Is a directory" in refused(read, tmp_path)
    assert "not UTF-8" in refused(read, tmp_path / "binary")


def test_files_are_read_without_tensorflow(write):
    """A mistake in a file is said at once, not after the seconds that TensorFlow's import takes."""
    path = write(models(model()))
    code = f"import sys; from cifs_tf.serving.endpoint.config_files import *; read_model_config({str(path)!r}); " + (
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
