"""kubernetes.py: manifests that Kubernetes takes, and pods that would run the right thing."""

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

from cifs_tf.errors import UserError
from cifs_tf.launch import kubernetes
from cifs_tf.launch.worker import tf_config

ROOT = Path(__file__).parents[3]
VERSION = "1.34"
GIVEN = ["--image=registry.example.org:5000/team/cifs:1.0", "--claim=shared"]
PROGRAM = ["training/run.py", "--dataset=digits", "--workdir=/workdir/digits"]
HOSTS = ["cifs-0.cifs:2222", "cifs-1.cifs:2222", "cifs-2.cifs:2222"]
EVERYTHING = ["--gpus=2", "--cpu=3.5", "--memory=16Gi", "--namespace=research", "--name=svhn-1"]


@pytest.fixture
def make(capsys):
    """Manifests by kind."""

    def run(*options, program=PROGRAM):
        kubernetes.main([*GIVEN, *options, "--", *program])
        documents = yaml.safe_load_all(capsys.readouterr().out)
        return {document["kind"]: document for document in documents}

    return run


def pod_of(job):
    return job["spec"]["template"]["spec"]


def container_of(job):
    (container,) = pod_of(job)["containers"]
    return container


def check(document):
    with warnings.catch_warnings(action="error"):
        kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("options", [[], EVERYTHING], ids=["least", "everything"])
def test_manifests_follow_kubernetes(options, make):
    manifests = make(*options)
    assert list(manifests) == ["Service", "NetworkPolicy", "Job"]
    for document in manifests.values():
        check(document)


def test_unknown_fields_are_found(make):
    job = make()["Job"]
    job["spec"]["backoffLimitPerIndices"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="backoffLimitPerIndices"):
        check(job)


def test_names_lead_to_the_pods(make):
    """Pod i of an Indexed Job is called NAME-i, and found under it in the Service that is its subdomain."""
    manifests = make("--workers=3")
    service, job = manifests["Service"], manifests["Job"]
    assert (job["spec"]["completionMode"], job["spec"]["completions"], job["spec"]["parallelism"]) == ("Indexed", 3, 3)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["metadata"]["name"] == pod_of(job)["subdomain"] == "cifs"
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    (port,) = service["spec"]["ports"]
    assert port["port"] == container_of(job)["ports"][0]["containerPort"] == 2222
    assert f"--hosts={','.join(HOSTS)}" in container_of(job)["args"]


def test_only_the_workers_reach_the_workers(make):
    manifests = make()
    spec = manifests["NetworkPolicy"]["spec"]
    labels = manifests["Job"]["spec"]["template"]["metadata"]["labels"]
    assert spec["podSelector"]["matchLabels"].items() <= labels.items()
    assert spec["ingress"] == [{"from": [{"podSelector": spec["podSelector"]}]}]


def expand(argument, variables):
    """What Kubernetes makes of an argument: $$ is a $, $(NAME) is replaced where NAME is known."""
    known = {f"$({name})": value for name, value in variables.items()}
    return re.sub(r"\$\$|\$\(\w+\)", lambda found: known.get(found[0], found[0].replace("$$", "$")), argument)


@pytest.mark.parametrize("workers", [1, 3])
def test_what_the_pods_run(workers, make, tmp_path):
    """The container's own command, with the variable that Kubernetes sets in each pod."""
    program = tmp_path / "program.py"
    program.write_text("import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('TF_CONFIG')]))\n")
    arguments = ["--workdir", "/workdir/a b", "it's $(HOME) $$ $", '"quoted"', "--", ""]
    container = container_of(make(f"--workers={workers}", program=[str(program), *arguments])["Job"])
    assert container["command"] == ["python"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    for index in range(workers):
        variables = {**given, "JOB_COMPLETION_INDEX": str(index)}
        command = [sys.executable, *(expand(argument, variables) for argument in container["args"])]
        environment = {**os.environ, **variables}
        out = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True, timeout=60).stdout
        assert json.loads(out) == [arguments, tf_config(HOSTS, index) if workers > 1 else None]


def action_at(job, code):
    """The first rule that applies when a worker ends with a code."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        if code in rule.get("onExitCodes", {}).get("values", []):
            return rule["action"]
    return "Count"


def test_a_lost_worker_takes_the_others_with_it_and_all_come_back(make):
    job = make("--max_restarts=5")["Job"]
    assert pod_of(job)["restartPolicy"] == "Never"  # of the container: the Job makes a new pod
    assert [action_at(job, code) for code in (2, 75, 137, 1)] == ["FailJob", "Ignore", "Count", "Count"]
    assert job["spec"]["podFailurePolicy"]["rules"][-1]["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert (job["spec"]["backoffLimitPerIndex"], job["spec"]["maxFailedIndexes"]) == (5, 0)


@pytest.mark.parametrize("kubeflow", [False, True])
def test_whoever_is_told_to_go_is_not_done(kubeflow, make):
    """Code 0 would be the end of the training; there is time for a checkpoint before."""
    job = make("--grace_seconds=300", *["--kubeflow"] * kubeflow)["TFJob" if kubeflow else "Job"]
    template = job["spec"]["tfReplicaSpecs"]["Worker"]["template"] if kubeflow else job["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert {"name": "CIFS_PREEMPTED_CODE", "value": "75"} in container["env"]
    assert template["spec"]["terminationGracePeriodSeconds"] == 300


def test_resources(make):
    job = make(*EVERYTHING)["Job"]
    expected = {"cpu": "3.5", "memory": "16Gi", "nvidia.com/gpu": "2"}
    assert container_of(job)["resources"] == {"requests": expected, "limits": expected}
    assert {"name": "TF_NUM_INTRAOP_THREADS", "value": "3"} in container_of(job)["env"]
    assert pod_of(job)["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert job["metadata"]["namespace"] == "research"
    job = make("--cpu=500m")["Job"]
    assert {"name": "TF_NUM_INTRAOP_THREADS", "value": "1"} in container_of(job)["env"]
    job = make()["Job"]
    assert container_of(job)["resources"] == {}
    assert "namespace" not in job["metadata"]


def test_the_workdir_is_shared(make):
    pod = pod_of(make()["Job"])
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["/workdir"]["persistentVolumeClaim"] == {"claimName": "shared"}


def test_no_more_rights_than_needed(make):
    pod = pod_of(make(*EVERYTHING)["Job"])
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    context = pod["containers"][0]["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_kubeflow(make):
    """What its operator looks for: container `tensorflow`, port `tfjob-port`; TF_CONFIG it sets itself."""
    manifests = make("--kubeflow", "--workers=3", *EVERYTHING)
    assert list(manifests) == ["NetworkPolicy", "TFJob"]
    job = manifests["TFJob"]
    assert (job["apiVersion"], job["metadata"]["name"]) == ("kubeflow.org/v1", "svhn-1")
    assert job["spec"]["runPolicy"] == {"backoffLimit": 9, "cleanPodPolicy": "Running"}
    (worker,) = job["spec"]["tfReplicaSpecs"].values()
    assert (worker["replicas"], worker["restartPolicy"]) == (3, "OnFailure")
    (container,) = worker["template"]["spec"]["containers"]
    assert container["name"] == "tensorflow"
    assert container["ports"] == [{"name": "tfjob-port", "containerPort": 2222}]
    assert [*container["command"], *container["args"]] == ["python", *PROGRAM]
    assert not any(variable["name"] == "TF_CONFIG" for variable in container["env"])
    check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": worker["template"]["spec"]})


def test_no_reader_of_yaml_takes_a_text_for_something_else(capsys):
    """PyYAML reads these as texts, but what kubectl reads YAML with does not."""
    texts = ["1e3", "y", "0o17", "1:30"]
    kubernetes.main([*GIVEN, "--name=n", "--", *PROGRAM, *texts])
    out = capsys.readouterr().out
    assert all(f'- "{text}"\n' in out for text in texts)
    assert out.count('  name: "n"\n') == 3


def test_a_file_is_written(tmp_path, capsys):
    kubernetes.main([*GIVEN, "--output", str(tmp_path / "job.yaml"), "--", *PROGRAM])
    assert capsys.readouterr().out == ""
    assert len(list(yaml.safe_load_all((tmp_path / "job.yaml").read_text()))) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers=0"], "workers: received 0"),
        (["--gpus=-1"], "gpus: received -1"),
        (["--name=Cifs"], "name: received Cifs; give small letters"),
        (["--name=1st"], "name: received 1st"),
        (["--name=a-"], "name: received a-"),
        (["--name=a\n"], "name: received a\n"),
        (["--name=" + "a" * 55], "name: received a+; give 54 characters at most"),
        (["--namespace=a.b"], "namespace: received a.b"),
        (["--claim=a_b"], "claim: received a_b"),
        (["--image="], "image: received nothing"),
        (["--image=a b"], "image: received a b"),
        (["--cpu=0"], "cpu: received 0; give cores, such as 4 or 500m"),
        (["--cpu=four"], "cpu: received four"),
        (["--memory=16GB"], "memory: received 16GB; give bytes, such as 16Gi"),
        (["--max_restarts=-1"], "max_restarts: received -1"),
        (["--grace_seconds=0"], "grace_seconds: received 0"),
        (["--output=absent/job.yaml"], "output: received absent/job.yaml; it cannot be written"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        kubernetes.main([*GIVEN, *options, "--", *PROGRAM])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--image=a", "--", *PROGRAM], "claim: received no value"),
        (["--claim=a", "--", *PROGRAM], "image: received no value"),
        (GIVEN, "program: received nothing"),
        ([*GIVEN, "--", "training/run.py"], "program: received training/run.py; give it a --workdir in /workdir"),
        ([*GIVEN, "--", "run.py", "--workdir=/workdirs/x"], "program: received run.py"),
    ],
)
def test_missing_input_is_named(argv, message):
    with pytest.raises(UserError, match=message):
        kubernetes.main(argv)
