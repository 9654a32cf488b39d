"""training/launch/kubernetes and kubeflow: manifests that Kubernetes takes, and pods that would run the right thing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from cifs_tf.command_line import EXIT_USER_ERROR
from cifs_tf.launch.worker import PORT, tf_config
from cifs_tf.runs.preemption import PREEMPTED_CODE, START_AGAIN

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "training" / "launch" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
VERSION = "1.34"
WORKERS = 4
HOSTS = [f"cifs-{index}.cifs:{PORT}" for index in range(WORKERS)]


def load(name):
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.fixture
def job():
    return load("job.yaml")


@pytest.fixture
def pod(job):
    return job["spec"]["template"]["spec"]


@pytest.fixture
def container(pod):
    (container,) = pod["containers"]
    return container


@pytest.fixture
def tf_job():
    return load("../kubeflow/tfjob.yaml")


def check(document):
    with warnings.catch_warnings(action="error"):
        kubernetes_validate.validate(document, VERSION, strict=True)


def environment_of(container):
    return {variable["name"]: variable["value"] for variable in container["env"]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_manifests_follow_kubernetes(path):
    check(yaml.safe_load(path.read_text()))


def test_unknown_fields_are_found(job):
    job["spec"]["backoffLimitPerIndices"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="backoffLimitPerIndices"):
        check(job)


def test_nothing_is_missing():
    kinds = {yaml.safe_load(path.read_text())["kind"] for path in FILES}
    assert kinds == {"Job", "Service", "NetworkPolicy", "PersistentVolumeClaim"}


def test_names_lead_to_the_pods(job, pod, container):
    """Pod i of an Indexed Job is called NAME-i, and found under it in the Service that is its subdomain."""
    spec, service = job["spec"], load("service.yaml")
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", WORKERS, WORKERS)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert job["metadata"]["name"] == service["metadata"]["name"] == pod["subdomain"] == "cifs"
    labels = spec["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/instance"] == "cifs"
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["spec"]["ports"][0]["port"] == container["ports"][0]["containerPort"] == PORT
    assert f"--hosts={','.join(HOSTS)}" in container["args"]


def test_only_the_workers_reach_the_workers(job):
    spec = load("networkpolicy.yaml")["spec"]
    assert spec["podSelector"]["matchLabels"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert spec["ingress"] == [{"from": [{"podSelector": spec["podSelector"]}]}]


def expand(argument, variables):
    """What Kubernetes makes of an argument: $$ is a $, $(NAME) is replaced where NAME is known."""
    known = {f"$({name})": value for name, value in variables.items()}
    return re.sub(r"\$\$|\$\(\w+\)", lambda found: known.get(found[0], found[0].replace("$$", "$")), argument)


def test_what_the_pods_run(container, tmp_path):
    """The container's own command, with the variable that Kubernetes sets in each pod."""
    program = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['TF_CONFIG']]))\n"
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "launch").symlink_to(ROOT / "training" / "launch")
    (tmp_path / "training" / "run.py").write_text(program)
    assert container["command"] == ["python"]
    for index in range(WORKERS):
        variables = {**environment_of(container), "JOB_COMPLETION_INDEX": str(index)}
        command = [sys.executable, *(expand(argument, variables) for argument in container["args"])]
        environment = {**os.environ, **variables}
        out = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True, timeout=60).stdout
        assert json.loads(out) == [["--dataset=svhn", "--workdir=/workdir/svhn"], tf_config(HOSTS, index)]


def action_at(job, code):
    """The first rule that applies when a worker ends with a code."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        if code in rule.get("onExitCodes", {}).get("values", []):
            return rule["action"]
    return "Count"


def test_a_lost_worker_takes_the_others_with_it_and_all_come_back(job, pod, container):
    assert pod["restartPolicy"] == "Never"  # of the container: the Job makes a new pod
    codes = (EXIT_USER_ERROR, START_AGAIN, 137, 1)
    assert [action_at(job, code) for code in codes] == ["FailJob", "Ignore", "Count", "Count"]
    rules = job["spec"]["podFailurePolicy"]["rules"]
    named = {rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule}
    assert named == {container["name"]}
    assert rules[-1]["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert (job["spec"]["backoffLimitPerIndex"], job["spec"]["maxFailedIndexes"]) == (3, 0)


def test_whoever_is_told_to_go_is_not_done(pod, container):
    """Code 0 would be the end of the training; there is time for a checkpoint before."""
    assert environment_of(container)[PREEMPTED_CODE] == str(START_AGAIN)
    assert pod["terminationGracePeriodSeconds"] == 120


def test_resources(pod, container):
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    assert environment_of(container)["TF_NUM_INTRAOP_THREADS"] == resources["limits"]["cpu"]
    assert resources["limits"]["nvidia.com/gpu"] == "1"
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_the_workdir_is_shared(pod, container):
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    claim = load("persistentvolumeclaim.yaml")
    assert mounts["/workdir"]["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert any(argument.startswith("--workdir=/workdir/") for argument in container["args"])


def test_no_more_rights_than_needed(pod, container):
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    context = container["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_kubeflow(tf_job, job, pod, container):
    """What its operator looks for: container `tensorflow`, port `tfjob-port`; TF_CONFIG it sets itself."""
    assert (tf_job["apiVersion"], tf_job["kind"]) == ("kubeflow.org/v1", "TFJob")
    assert tf_job["metadata"] == job["metadata"]
    restarts = WORKERS * job["spec"]["backoffLimitPerIndex"]
    assert tf_job["spec"]["runPolicy"] == {"backoffLimit": restarts, "cleanPodPolicy": "Running"}
    (worker,) = tf_job["spec"]["tfReplicaSpecs"].values()
    assert (worker["replicas"], worker["restartPolicy"]) == (WORKERS, "OnFailure")
    assert worker["template"]["metadata"] == job["spec"]["template"]["metadata"]
    spec = worker["template"]["spec"]
    check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec})
    # All else is as in the pods of the Job.
    (tensorflow,) = spec.pop("containers")
    program = container["args"][container["args"].index("--") + 1 :]
    names = {"name": "tensorflow", "ports": [{"name": "tfjob-port", "containerPort": PORT}]}
    assert tensorflow == {**container, **names, "args": program}
    assert spec == {key: value for key, value in pod.items() if key in spec}
    assert pod.keys() - spec.keys() == {"containers", "restartPolicy", "subdomain"}
