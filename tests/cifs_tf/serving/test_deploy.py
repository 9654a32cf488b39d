"""The deployment files: against the schemas of their formats, against each other, and nginx and the probe at work."""

import contextlib
import copy
import dataclasses
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import time
import types
import urllib.error
import urllib.request
import warnings
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import crossplane
import grpc
import kubernetes_validate
import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from cifs_tf.command_line import parse_options
from cifs_tf.serving.endpoint.config_files import (
    DEFAULT_METRICS_PATH,
    read_batching_parameters,
    read_model_config,
    read_monitoring_config,
    read_ssl_config,
)
from cifs_tf.serving.endpoint.metrics import Metrics
from cifs_tf.serving.endpoint.options import ServerOptions
from cifs_tf.serving.publishing.options import ExportOptions

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "serving" / "deploy"
DEPLOYMENT = "kubernetes/base/server/deployment.yaml"
VARIANTS = sorted(path.parent for path in (DEPLOY / "kubernetes").rglob("kustomization.yaml"))
# Those that are whole by themselves, and not laid over others.
MANIFESTS = [
    path
    for name in ("base", "base/server", "ingress", "fill")
    for path in sorted((DEPLOY / "kubernetes" / name).glob("*.yaml"))
    if path.stem != "kustomization"
]
README = (DEPLOY / "README.md").read_text()
KUBERNETES = "1.34"
READY = "/v1/models/cifs/metadata"


def load(name):
    return yaml.safe_load((DEPLOY / name).read_text())


@pytest.fixture(scope="module")
def compose():
    return load("compose.yaml")["services"]


@pytest.fixture(scope="module")
def pod():
    return load(DEPLOYMENT)["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod):
    (container,) = pod["containers"]
    return container


def flags(arguments):
    return dict(argument.removeprefix("--").split("=", 1) for argument in arguments)


def check_compose(*paths):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def check_kubernetes(documents):
    with warnings.catch_warnings(action="error"):
        for document in documents:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


# Schemas.


def test_compose_files_follow_the_specification(tmp_path):
    result = check_compose(DEPLOY / "compose.yaml", DEPLOY / "compose.gpu.yaml")
    assert result.returncode == 0, result.stdout
    misspelt = tmp_path / "compose.yaml"
    misspelt.write_text((DEPLOY / "compose.yaml").read_text().replace("healthcheck:", "heathcheck:"))
    assert "heathcheck" in check_compose(misspelt).stdout


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_follow_kubernetes(path):
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    check_kubernetes(documents)


def test_unknown_fields_of_a_manifest_are_found():
    document = load(DEPLOYMENT)
    document["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        check_kubernetes([document])


@pytest.mark.parametrize("folder", [DEPLOY / "config", *VARIANTS], ids=lambda path: path.name)
def test_kustomizations_name_what_is_there(folder):
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    named = [*content.get("resources", []), *(patch["path"] for patch in content.get("patches", []))]
    named += [file for generator in content.get("configMapGenerator", []) for file in generator["files"]]
    assert named
    for name in named:
        assert (folder / name).exists()
    assert {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"} <= set(named)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds_every_variant():
    built = {}
    for variant in VARIANTS:
        command = ["kubectl", "kustomize", str(variant)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        documents = list(yaml.safe_load_all(text))
        check_kubernetes([document for document in documents if "monitoring.coreos.com" not in document["apiVersion"]])
        found = {(document["kind"], document["metadata"]["name"]): document for document in documents}
        built[variant.name] = found
        for (kind, _), document in found.items():
            if kind in ("Deployment", "Job"):
                names = {
                    volume["configMap"]["name"]
                    for volume in document["spec"]["template"]["spec"]["volumes"]
                    if "configMap" in volume
                }
                assert names == {name for kind, name in found if kind == "ConfigMap"}
    kinds = {kind for kind, _ in built["base"]}
    assert kinds - {kind for kind, _ in built["gpu"]} == {"HorizontalPodAutoscaler"}
    gpu = built["gpu"]["Deployment", "cifs-serving"]["spec"]
    (serving,) = gpu["template"]["spec"]["containers"]
    assert gpu["replicas"] == 2
    assert serving["image"].endswith(":2.21.0-gpu")
    assert serving["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert serving["readinessProbe"]["httpGet"]["path"] == READY  # what was laid over replaced nothing else
    assert len(gpu["template"]["spec"]["volumes"]) == 4
    # A canary is another Deployment, whose pods the Service of the first takes too.
    (canary,) = (document for (kind, _), document in built["canary"].items() if kind == "Deployment")
    stable, service = built["base"]["Deployment", "cifs-serving"], built["base"]["Service", "cifs-serving"]["spec"]
    labels = canary["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    assert not stable["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert canary["spec"]["selector"]["matchLabels"].items() <= labels.items()
    # From object storage: nothing is mounted that there is not, and out goes what DNS and HTTPS need.
    stored = built["object-storage"]
    spec = stored["Deployment", "cifs-serving"]["spec"]["template"]["spec"]
    assert not any("persistentVolumeClaim" in volume for volume in spec["volumes"])
    assert not any(kind == "PersistentVolumeClaim" for kind, _ in stored)
    egress = stored["NetworkPolicy", "cifs-serving"]["spec"]["egress"]
    assert {port["port"] for rule in egress for port in rule["ports"]} == {53, 443}
    for container in (
        *spec["initContainers"],
        *built["fill"]["Job", "cifs-serving-fill"]["spec"]["template"]["spec"]["containers"],
    ):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_configuration_files_are_sound():
    models = read_model_config(DEPLOY / "config" / "models.config").model_config_list.config
    assert [model.name for model in models] == ["cifs", "vanilla"]
    for model in models:
        assert model.base_path == f"/models/{model.name}"  # the real server takes no relative one
        assert set(model.version_labels) == {"stable", "canary"}
    assert read_batching_parameters(DEPLOY / "config" / "batching.config").max_batch_size.value == 32
    monitoring = read_monitoring_config(DEPLOY / "config" / "monitoring.config").prometheus_config
    assert monitoring.enable
    (job,) = load("monitoring/prometheus.yml")["scrape_configs"]
    assert job["metrics_path"] == monitoring.path == DEFAULT_METRICS_PATH
    assert job["static_configs"][0]["targets"] == ["serving:8501"]
    assert not read_ssl_config(DEPLOY / "config" / "ssl.config.example").client_verify


def test_the_canary_differs_in_one_version():
    stable = read_model_config(DEPLOY / "config" / "models.config").model_config_list.config
    canary = read_model_config(DEPLOY / "kubernetes" / "canary" / "models.config").model_config_list.config
    assert stable[1] == canary[1]
    for model, number in ((stable[0], 1), (canary[0], 2)):
        assert list(model.model_version_policy.specific.versions) == [number]
        assert set(model.version_labels.values()) == {number}


def test_the_readme_makes_what_the_config_serves():
    """Its exports: their options, and that models.config names exactly what they write."""
    made = {}
    for line in re.findall(r"^    python \.\./export\.py (.*)$", README, re.MULTILINE):
        options = parse_options(ExportOptions, "serving/export.py", line.split(), "")
        assert options.model_base_path == f"models/{options.defense}"
        made[f"/{options.model_base_path}"] = [options.version]
    models = read_model_config(DEPLOY / "config" / "models.config").model_config_list.config
    assert made == {model.base_path: list(model.model_version_policy.specific.versions) for model in models}


def test_the_readme_fills_a_volume(tmp_path):
    """The line with tar, without a cluster in the middle; what is there, and what is no model, is left alone."""
    line = re.search(
        r"^    tar -C models -c (.*) \| kubectl exec .* -- sh /scripts/publish\.sh /models$", README, re.MULTILINE
    )
    for version in (*line[1].split(), "cifs/2", "cifs/3"):
        (tmp_path / "models" / version).mkdir(parents=True)
        (tmp_path / "models" / version / "saved_model.pb").write_text(version)
    (tmp_path / "models" / "cifs" / "3" / "saved_model.pb").unlink()
    (tmp_path / "volume" / "cifs" / "2").mkdir(parents=True)
    with tarfile.open(tmp_path / "models.tar", "w") as archive:
        for version in (*line[1].split(), "cifs/2", "cifs/3"):
            archive.add(tmp_path / "models" / version, version)
    command = ["sh", DEPLOY / "kubernetes" / "fill" / "publish.sh", tmp_path / "volume"]
    with (tmp_path / "models.tar").open("rb") as archive:
        ended = subprocess.run(command, stdin=archive, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == [f"{version}: published" for version in line[1].split()]
    assert ended.stderr.splitlines() == [
        "cifs/2: it is there already, left out",
        "cifs/3: there is no saved_model.pb, left out",
    ]
    found = {str(path.relative_to(tmp_path / "volume")) for path in (tmp_path / "volume").rglob("*.pb")}
    assert found == {f"{version}/saved_model.pb" for version in line[1].split()}
    assert not (tmp_path / "volume" / ".incoming").exists()


def test_the_readme_names_objects_that_are_there():
    names = {document["metadata"]["name"] for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())}
    names |= {"cifs-serving-canary", "cifs-serving-dashboard"}
    for kind, name in re.findall(r"kubectl .*?\b(deployment|service|job)/([\w-]+)", README):
        assert name in names, kind
    for folder in re.findall(r"apply -k (\S+)", README):
        assert (DEPLOY / folder / "kustomization.yaml").is_file()


# Metrics.


def queries():
    """Every query of alerts and dashboard, in what it stands."""
    for group in load("monitoring/alerts.yml")["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")


@pytest.mark.parametrize(("where", "query"), queries())
def test_queries_ask_for_metrics_that_the_server_has(where, query):
    promql_parser.parse(query)
    metrics = Metrics()
    with metrics.request("m", "Predict", "REST"), metrics.run("m"), metrics.warmup("m"):
        metrics.loaded("m", 1.0)
    page = metrics.page().decode()
    for name, labels in re.findall(r"([:\w]*:[:\w]+|process_\w+)(?:\{(.*?)\})?", query):
        samples = [line for line in page.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        assert samples, name
        for label in re.findall(r"(\w+)=~?\"", labels):
            assert label == "job" or f'{label}="' in samples[0]
    for label in re.findall(r"by \((.*?)\)", query):
        assert all(f'{part.strip()}="' in page for part in label.split(","))


def test_alerts_are_complete_and_the_operators_are_the_same():
    (group,) = load("monitoring/alerts.yml")["groups"]
    for rule in group["rules"]:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+m", rule["for"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
    rules = load("kubernetes/monitoring/prometheusrule.yaml")
    assert (rules["apiVersion"], rules["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rules["spec"]["groups"] == [group]
    assert load("monitoring/prometheus.yml")["rule_files"] == ["alerts.yml"]


def test_the_pod_monitor_finds_the_metrics(container):
    monitor = load("kubernetes/monitoring/podmonitor.yaml")
    labels = load(DEPLOYMENT)["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (scrape,) = monitor["spec"]["podMetricsEndpoints"]
    assert scrape["port"] in {port["name"] for port in container["ports"]}
    assert scrape["path"] == DEFAULT_METRICS_PATH


def test_the_dashboard_is_one_of_grafanas():
    """Read into Grafana's own types and written again, nothing is lost; what it did not know would be."""
    register_default_plugins()
    written = json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text())

    def lost(content):
        read = json.loads(JSONEncoder().encode(Dashboard.from_json(copy.deepcopy(content))))
        return list(differences(content, read))

    def differences(ours, theirs, where=""):
        if isinstance(ours, dict):
            for key, value in ours.items():
                yield from differences(value, theirs.get(key), f"{where}/{key}")
        elif isinstance(ours, list):
            for index, (one, other) in enumerate(zip(ours, theirs or [], strict=False)):
                yield from differences(one, other, f"{where}/{index}")
        elif ours != theirs:
            yield where

    assert lost(written) == []
    written["panels"][0]["gridPoss"] = 1
    assert lost(written) == ["/panels/0/gridPoss"]
    places = load("monitoring/dashboards.yml")["providers"][0]["options"]["path"]
    mounts = {volume["source"]: volume["target"] for volume in load("compose.yaml")["services"]["grafana"]["volumes"]}
    assert mounts["./monitoring/dashboard.json"] == f"{places}/dashboard.json"


def test_the_readme_makes_an_ssl_config(tmp_path):
    """The command of deploy/README.md, run on a key and a certificate."""
    (tmp_path / "tls").mkdir()
    for name, what in (("server.key", "PRIVATE KEY"), ("server.crt", "CERTIFICATE")):
        (tmp_path / "tls" / name).write_text(f"-----BEGIN {what}-----\nAAAA\n-----END {what}-----\n")
    block = re.search(r"^    python -c .*?> ssl\.config$", README, re.DOTALL | re.MULTILINE)
    command = re.sub(r"^    ", "", block[0], flags=re.MULTILINE).replace("python", sys.executable, 1)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    message = read_ssl_config(tmp_path / "ssl.config")
    assert message.server_key == (tmp_path / "tls" / "server.key").read_text()


def test_the_readme_names_every_file():
    for path in DEPLOY.rglob("*"):
        mine = {"models", "tls", "ssl.config"} & set(path.relative_to(DEPLOY).parts)  # of whoever runs it here
        if path.is_file() and path.name != "README.md" and not mine:
            folder = path.parent.relative_to(DEPLOY)
            assert f"`{path.relative_to(DEPLOY)}`" in README or f"`{folder}/`" in README, path


# Against each other.


def test_both_run_the_same_server(compose, container):
    assert compose["serving"]["image"] == container["image"]
    assert load("compose.gpu.yaml")["services"]["serving"]["image"] == f"{container['image']}-gpu"
    (required,) = re.findall(r"^tensorflow==(\d+\.\d+)\.", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert container["image"].startswith(f"tensorflow/serving:{required}.")
    ours, theirs = flags(compose["serving"]["command"]), flags(container["args"])
    assert ours.keys() == theirs.keys() <= {field.name for field in dataclasses.fields(ServerOptions)}
    for name in ours:
        if not name.endswith("_file"):
            assert ours[name] == theirs[name]


def test_configuration_lies_where_the_flags_say(compose, pod, container):
    mounts = {volume["target"]: volume["source"] for volume in compose["serving"]["volumes"]}
    for name, path in flags(compose["serving"]["command"]).items():
        if name.endswith("_file"):
            folder, file = path.rsplit("/", 1)
            assert (DEPLOY / mounts[folder] / file).is_file()
    generated = {g["name"]: g["files"] for g in load("config/kustomization.yaml")["configMapGenerator"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    for name, path in flags(container["args"]).items():
        if name.endswith("_file"):
            folder, file = path.rsplit("/", 1)
            assert file in generated[mounted[folder]["configMap"]["name"]]


def test_compose_gives_no_more_rights_than_needed(compose):
    for service in compose.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys()
        for volume in service["volumes"]:
            assert volume["type"] == "volume" or volume["read_only"] is True
    user, group = map(int, compose["serving"]["user"].split(":"))
    assert user > 0
    assert group > 0
    assert all(port.startswith("127.0.0.1:") for port in compose["serving"]["ports"])


def test_kubernetes_gives_no_more_rights_than_needed(pod, container):
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert all(mount.get("readOnly") or mount["mountPath"] == "/tmp" for mount in container["volumeMounts"])
    policy = load("kubernetes/base/networkpolicy.yaml")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["egress"] == []


def test_probes_and_limits(pod, container):
    for name in ("startupProbe", "readinessProbe"):
        assert container[name]["httpGet"] == {"path": READY, "port": "http"}
    assert container["livenessProbe"]["tcpSocket"] == {"port": "grpc"}
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"grpc": 8500, "http": 8501}
    resources = container["resources"]
    assert (resources["requests"]["memory"], resources["limits"]["memory"]) == ("1Gi", "2Gi")
    threads = flags(container["args"])
    assert threads["tensorflow_intra_op_parallelism"] == resources["limits"]["cpu"]
    timeout = int(threads["rest_api_timeout_in_ms"]) / 1000
    asleep = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert timeout < asleep < pod["terminationGracePeriodSeconds"]


def test_everything_selects_the_pods():
    labels = load(DEPLOYMENT)["spec"]["template"]["metadata"]["labels"]
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text()):
            spec = document["spec"]
            selector = spec.get("podSelector") or spec.get("selector")
            if document["kind"] == "Ingress":
                (rule,) = spec["rules"]
                assert [path["path"] for path in rule["http"]["paths"]] == ["/v1/models"]
                assert rule["http"]["paths"][0]["backend"]["service"]["name"] == "cifs-serving"
                assert spec["tls"][0]["hosts"] == [rule["host"]]
            if selector:
                assert selector.get("matchLabels", selector).items() <= labels.items()
            if document["kind"] == "HorizontalPodAutoscaler":
                assert spec["scaleTargetRef"]["name"] == "cifs-serving"


# At work.


class Echo(BaseHTTPRequestHandler):
    """Answers with what arrived; 404 for every model but `cifs`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps({"method": self.command, "path": self.path, "length": len(content)}).encode()
        self.send_response(200 if self.path.startswith("/v1/models/cifs") else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def rest_port():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield httpd.server_port
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_the_health_check_tells_ready_from_not_ready(compose, rest_port):
    kind, *command = compose["serving"]["healthcheck"]["test"]
    assert kind == "CMD"

    def code(port, path=READY):
        run = [part.replace("8501", str(port)).replace(READY, path) for part in command]
        return subprocess.run(run, capture_output=True, timeout=10, check=False).returncode

    with socket.socket() as bound:  # and nobody listens
        bound.bind(("127.0.0.1", 0))
        assert code(bound.getsockname()[1]) != 0
    assert code(rest_port) == 0
    assert code(rest_port, "/v1/models/other/metadata") != 0


def test_nginx_configuration_parses():
    """Every directive is known, in its place, and has as many arguments as it takes."""
    result = crossplane.parse(str(DEPLOY / "nginx.conf"), single=True)
    assert result["errors"] == []
    (http,) = (block for block in result["config"][0]["parsed"] if block["directive"] == "http")
    # The parser takes the lines of a map for directives.
    of_maps = {line["line"] for block in http["block"] if block["directive"] == "map" for line in block["block"]}
    strict = crossplane.parse(str(DEPLOY / "nginx.conf"), single=True, strict=True)
    assert {error["line"] for error in strict["errors"]} == of_maps


@pytest.fixture(scope="module")
def grpc_port():
    """A gRPC server with three methods of TensorFlow Serving, each of which answers with what arrived."""

    def echo(request, context):
        return request

    # As TensorFlow Serving's, which takes messages of any size.
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
    for service, methods in (
        ("PredictionService", ["Predict"]),
        ("ModelService", ["GetModelStatus", "HandleReloadConfigRequest"]),
    ):
        handlers = {method: grpc.unary_unary_rpc_method_handler(echo) for method in methods}
        handler = grpc.method_handlers_generic_handler(f"tensorflow.serving.{service}", handlers)
        server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory, rest_port, grpc_port):
    """Nginx with deploy/nginx.conf, of which nothing but addresses and paths is changed."""
    nginx, openssl = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"), "openssl"
    if nginx is None or shutil.which(openssl) is None:
        pytest.skip("nginx or openssl is not installed")
    folder = tmp_path_factory.mktemp("nginx")
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    output = ["-keyout", str(folder / "server.key"), "-out", str(folder / "server.crt")]
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *name, *output]
    subprocess.run(command, check=True, capture_output=True)
    with contextlib.closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    text = (DEPLOY / "nginx.conf").read_text()
    for old, new in (
        (" /tmp/", f" {folder}/"),  # first: the folder may be there
        ("serving:8501", f"127.0.0.1:{rest_port}"),
        ("serving:8500", f"127.0.0.1:{grpc_port}"),
        ("listen 8443", f"listen 127.0.0.1:{port}"),
        ("/etc/nginx/tls/", f"{folder}/"),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(text)
    log = folder / "log"
    with log.open("w") as stream:
        # Started by root, nginx would work as someone who may not enter the test's folder.
        options = "daemon off; user root;" if os.geteuid() == 0 else "daemon off;"
        command = [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", options]
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 20
        while not listens(port):
            assert time.monotonic() < end, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield types.SimpleNamespace(address=f"localhost:{port}", ca=folder / "server.crt")
    finally:
        process.terminate()
        process.wait(20)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ask(proxy, path, body=None, **options):
    """Ask over TLS, trusting the test's certificate alone; status and, of 200, what arrived."""
    request = urllib.request.Request(f"https://{proxy.address}{path}", body, **options)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(proxy.ca))),
    )
    try:
        with opener.open(request, timeout=20) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, None


def test_nginx_passes_rest(proxy):
    body = b"x" * 2_000_000
    path = "/v1/models/cifs/labels/stable:predict"
    assert ask(proxy, path, body) == (200, {"method": "POST", "path": path, "length": len(body)})
    assert ask(proxy, READY)[0] == 200
    assert ask(proxy, "/v1/models/other/metadata")[0] == 404


def test_nginx_refuses_what_the_server_should_not_see(proxy):
    path = "/v1/models/cifs:predict"
    assert ask(proxy, path, b"x" * (33 * 2**20))[0] == 413
    assert ask(proxy, path, b"x", headers={"Content-Encoding": "gzip"})[0] == 415
    assert ask(proxy, READY, b"x", method="GET")[0] == 400
    assert ask(proxy, path, b"x", method="PUT")[0] == 403
    assert ask(proxy, DEFAULT_METRICS_PATH)[0] == 404
    assert ask(proxy, "/")[0] == 404


def test_nginx_passes_grpc_but_no_reload(proxy):
    credentials = grpc.ssl_channel_credentials(proxy.ca.read_bytes())
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.secure_channel(proxy.address, credentials, options) as channel:

        def call(method, request=b"image"):
            return channel.unary_unary(f"/tensorflow.serving.{method}")(request, timeout=20)

        assert call("PredictionService/Predict") == b"image"
        large = b"x" * (20 * 2**20)  # as 32 float images of 224x224x3
        assert call("PredictionService/Predict", large) == large
        assert call("ModelService/GetModelStatus") == b"image"
        with pytest.raises(grpc.RpcError) as caught:
            call("ModelService/HandleReloadConfigRequest")
        assert caught.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN)
        with pytest.raises(grpc.RpcError):
            call("PredictionService/Predict", b"x" * (33 * 2**20))
