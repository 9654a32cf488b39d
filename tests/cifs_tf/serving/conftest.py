"""The endpoint that the contract is checked on: the local server, or the one that is named on the command line."""

import dataclasses

import grpc
import httpx
import pytest
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from tests.cifs_tf.serving.models import models_config, save_all, save_slow
from tests.cifs_tf.serving.running import running_server

MONITORING = 'prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }'


@dataclasses.dataclass
class Endpoint:
    http: httpx.Client
    channel: grpc.Channel
    external: bool

    def __post_init__(self):
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def predict(self, body, model="plain", **kwargs):
        """POST a body, which is JSON or bytes, to a model."""
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        return self.http.post(f"/v1/models/{model}:predict", **content, **kwargs)


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_all(folder)
    return folder


@pytest.fixture(scope="session")
def endpoint(request, tmp_path_factory):
    url, target = request.config.getoption("--base-url"), request.config.getoption("--grpc-target")
    if (url is None) != (target is None):
        pytest.exit("give both --base-url and --grpc-target, or neither")
    if url:
        with httpx.Client(base_url=url, timeout=60) as http, grpc.insecure_channel(target) as channel:
            yield Endpoint(http, channel, request.config.getoption("--external"))
        return
    folder = request.getfixturevalue("models_folder")
    configs = tmp_path_factory.mktemp("configs")
    (configs / "models.config").write_text(models_config(folder))
    (configs / "monitoring.config").write_text(MONITORING)
    arguments = [
        f"--model_config_file={configs / 'models.config'}",
        f"--monitoring_config_file={configs / 'monitoring.config'}",
        "--allow_version_labels_for_unavailable_models",
        "--enable_grpc_healthcheck_service",
    ]
    with (
        running_server(configs / "log", *arguments) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        yield Endpoint(http, channel, False)


@pytest.fixture(scope="module")
def flagged_endpoint(request, models_folder, tmp_path_factory):
    """A local server with batching, a short timeout and CORS, which serves a slow model and a broken one too."""
    if request.config.getoption("--base-url"):
        pytest.skip("needs --enable_batching, --rest_api_timeout_in_ms and other flags at the server's start")
    folder = tmp_path_factory.mktemp("flagged")
    save_slow(folder / "slow" / "1")
    (folder / "broken" / "3").mkdir(parents=True)
    (folder / "broken" / "3" / "saved_model.pb").write_bytes(b"no model")
    names = {"plain": models_folder, "slow": folder, "broken": folder}
    models = "".join(
        f'config {{ name: "{name}" base_path: "{base / name}" model_platform: "tensorflow" }}\n'
        for name, base in names.items()
    )
    (folder / "models.config").write_text(f"model_config_list {{ {models} }}")
    (folder / "batching.config").write_text(
        "max_batch_size { value: 8 } max_enqueued_batches { value: 1 } num_batch_threads { value: 1 }"
    )
    arguments = [
        f"--model_config_file={folder / 'models.config'}",
        f"--batching_parameters_file={folder / 'batching.config'}",
        "--enable_batching",
        "--rest_api_enable_cors_support",
        "--rest_api_timeout_in_ms=2000",
    ]
    with (
        running_server(folder / "log", *arguments) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        yield Endpoint(http, channel, False)
