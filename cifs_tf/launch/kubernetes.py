"""Print the YAML of a training on Kubernetes; the program comes after --, as the image calls it.

    python training/launch/kubernetes.py --image IMAGE --claim CLAIM --workers 4 --gpus 1 -- \\
        training/run.py --dataset svhn --workdir /workdir/svhn | kubectl apply -f -

An Indexed Job (Kubernetes 1.29 or later) with a headless Service, by which its pods find each other, or Kubeflow's
TFJob. The image has the project in its working folder, readable for everyone. A worker that is lost takes the others
with it, and all of them start again from the last checkpoint.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml

from cifs_tf.command_line import EXIT_USER_ERROR, names_of, run_program
from cifs_tf.errors import UserError
from cifs_tf.launch.options import check_forms, check_least, parse_command, write
from cifs_tf.launch.worker import PORT
from cifs_tf.runs.preemption import PREEMPTED_CODE, START_AGAIN

WORKDIR = "/workdir"
USER = 10001
MAX_LABEL = 63
LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
# For each option what it has to look like, and how to say so.
FORMS = {
    "name": ("[a-z]([-a-z0-9]*[a-z0-9])?", "small letters, digits and -, a letter first"),
    "namespace": (LABEL, "small letters, digits and -"),
    "claim": (rf"{LABEL}(\.{LABEL})*", "small letters, digits, - and ."),
    "image": (r"[\w.-]+(:\d+)?(/[\w.-]+)*(:[\w.-]+)?(@sha256:[\da-f]{64})?", "[HOST/]NAME[:TAG]"),
    "cpu": (r"(?=.*[1-9])\d+(\.\d+|m)?", "cores, such as 4 or 500m"),
    "memory": (r"(?=.*[1-9])\d+([KMGT]i|[kMGT])?", "bytes, such as 16Gi"),
}


@dataclasses.dataclass(frozen=True)
class KubernetesOptions:
    """A training on Kubernetes.

    Args:
        image: of the containers.
        claim: PersistentVolumeClaim of the folder that all workers share, mounted at /workdir; the access mode must be
            ReadWriteMany, unless they are on one node.
        name: of the Job and of its Service.
        workers: how many pods.
        gpus: of each.
        cpu: cores of each, such as 4; null sets no limit.
        memory: of each, such as 16Gi; null sets no limit.
        namespace: null leaves it to kubectl.
        max_restarts: how often a worker may be lost by its own fault; evictions do not count.
        grace_seconds: to write a checkpoint when a pod has to go.
        kubeflow: print a TFJob, for the operator of Kubeflow, instead.
        output: file to write; null prints.
    """

    image: str
    claim: str
    name: str = "cifs"
    workers: int = 2
    gpus: int = 0
    cpu: str | None = None
    memory: str | None = None
    namespace: str | None = None
    max_restarts: int = 3
    grace_seconds: int = 120
    kubeflow: bool = False
    output: str | None = None

    def __post_init__(self) -> None:
        check_least(self, {"workers": 1, "gpus": 0, "max_restarts": 0, "grace_seconds": 1})
        check_forms(self, FORMS)
        longest = MAX_LABEL - len(f"-worker-{self.workers - 1}")
        for name, length in (("name", longest), ("namespace", MAX_LABEL)):
            if len(getattr(self, name) or "") > length:
                raise UserError(name, getattr(self, name), f"give {length} characters at most")

    @property
    def hosts(self) -> list[str]:
        """HOST:PORT of every pod of the Job."""
        return [f"{self.name}-{index}.{self.name}:{PORT}" for index in range(self.workers)]

    @property
    def metadata(self) -> dict[str, Any]:
        """Of everything that is made."""
        namespace = {"namespace": self.namespace} if self.namespace else {}
        return {"name": self.name, **namespace, "labels": self.labels}

    @property
    def labels(self) -> dict[str, str]:
        """By which the pods are found."""
        return {"app.kubernetes.io/name": "cifs-training", "app.kubernetes.io/instance": self.name}


def main(argv: Sequence[str]) -> None:
    """Parse the command line and print or write."""
    options, program = parse_command(KubernetesOptions, "kubernetes.py", argv, __doc__ or "")
    write(to_yaml(manifests(options, program)), options.output)


def to_yaml(documents: Sequence[dict[str, Any]]) -> str:
    """Return documents as the text of a YAML file."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def manifests(options: KubernetesOptions, program: Sequence[str]) -> list[dict[str, Any]]:
    """Make the manifests of a training.

    Args:
        options: where, and how many.
        program: and its arguments.

    Returns:
        a Service, a NetworkPolicy and a Job; or a NetworkPolicy and a TFJob.

    Raises:
        UserError: if no argument of the program lies in the shared folder.

    Example:
        >>> program = ["training/run.py", "--workdir=/workdir/digits"]
        >>> [each["kind"] for each in manifests(KubernetesOptions("image", "claim"), program)]
        ['Service', 'NetworkPolicy', 'Job']
    """
    if not any(re.search(rf"(^|=){WORKDIR}(/|$)", argument) for argument in program):
        advice = f"give it a --workdir in {WORKDIR}, the folder that the workers share, such as {WORKDIR}/run"
        raise UserError("program", program[0], advice)
    if options.kubeflow:
        return [network_policy(options), tf_job(options, program)]
    return [service(options), network_policy(options), job(options, program)]


def service(options: KubernetesOptions) -> dict[str, Any]:
    """Make the headless Service, which gives each pod of the Job a name that outlives it."""
    spec = {
        "clusterIP": "None",
        # The pods look for each other before one of them is ready.
        "publishNotReadyAddresses": True,
        "selector": options.labels,
        "ports": [{"name": "grpc", "port": PORT}],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": options.metadata, "spec": spec}


def network_policy(options: KubernetesOptions) -> dict[str, Any]:
    """Make the NetworkPolicy: TensorFlow's port obeys whoever reaches it, so only the workers do."""
    spec = {
        "podSelector": {"matchLabels": options.labels},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": options.labels}}]}],
    }
    kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    return {**kind, "metadata": options.metadata, "spec": spec}


def job(options: KubernetesOptions, program: Sequence[str]) -> dict[str, Any]:
    """Make the Indexed Job.

    Args:
        options: where, and how many.
        program: and its arguments.
    """
    name = "training"
    hosts = f"--hosts={','.join(options.hosts)}"
    template = pod_template(options, name, ["training/launch/worker.py", hosts, "--", *program])
    # A new pod for each that failed, by the rules below, on another node if need be.
    template["spec"] |= {"restartPolicy": "Never", "subdomain": options.name}
    rules: list[dict[str, Any]] = [
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": name, "operator": "In", "values": [EXIT_USER_ERROR]},
        },
        # The survivors of a loss, and who was told to go: start again, it was not their fault.
        {"action": "Ignore", "onExitCodes": {"containerName": name, "operator": "In", "values": [START_AGAIN]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    spec = {
        "completionMode": "Indexed",
        "completions": options.workers,
        "parallelism": options.workers,
        # Per worker, because the pause before a restart then grows with the restarts, not with the pods that ended.
        "backoffLimitPerIndex": options.max_restarts,
        "maxFailedIndexes": 0,
        "podFailurePolicy": {"rules": rules},
        "template": template,
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": options.metadata, "spec": spec}


def tf_job(options: KubernetesOptions, program: Sequence[str]) -> dict[str, Any]:
    """Make the TFJob of Kubeflow, whose operator sets TF_CONFIG.

    Args:
        options: where, and how many.
        program: and its arguments.
    """
    # Names that the operator looks for.
    template = pod_template(options, "tensorflow", program, port_name="tfjob-port")
    # Not ExitCode, for which only codes from 128 on are worth another try.
    worker = {"replicas": options.workers, "restartPolicy": "OnFailure", "template": template}
    # The operator counts the restarts of all pods together.
    policy = {"backoffLimit": options.max_restarts * options.workers, "cleanPodPolicy": "Running"}
    spec = {"runPolicy": policy, "tfReplicaSpecs": {"Worker": worker}}
    return {"apiVersion": "kubeflow.org/v1", "kind": "TFJob", "metadata": options.metadata, "spec": spec}


def pod_template(
    options: KubernetesOptions, name: str, arguments: Sequence[str], port_name: str = "grpc"
) -> dict[str, Any]:
    """Make the template of a worker's pod.

    Args:
        options: of the training.
        name: of the container.
        arguments: of its Python.
        port_name: of the port at which the workers meet.
    """
    volumes = _volumes(options)
    container = {
        "name": name,
        "image": options.image,
        "command": ["python"],
        # Kubernetes replaces $(NAME), and makes $$ a $.
        "args": [argument.replace("$", "$$") for argument in arguments],
        "env": [{"name": variable, "value": value} for variable, value in _environment(options).items()],
        "ports": [{"name": port_name, "containerPort": PORT}],
        "resources": _resources(options),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": volume, "mountPath": path} for volume, (path, _) in volumes.items()],
    }
    spec = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": options.grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": volume, **source} for volume, (_, source) in volumes.items()],
    }
    if options.gpus:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return {"metadata": {"labels": options.labels}, "spec": spec}


class _Dumper(yaml.SafeDumper):
    """Quotes what another reader of YAML might take for a number or a truth value, such as 1e3 and y."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if re.fullmatch(r"[A-Za-z/]\S+", text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _volumes(options: KubernetesOptions) -> dict[str, tuple[str, dict[str, Any]]]:
    """Where each volume is mounted, and what it is."""
    volumes: dict[str, tuple[str, dict[str, Any]]] = {
        "workdir": (WORKDIR, {"persistentVolumeClaim": {"claimName": options.claim}}),
        "tmp": ("/tmp", {"emptyDir": {}}),
    }
    if options.gpus:
        # Where NCCL's processes meet; the container's own is 64 MB.
        volumes["shm"] = ("/dev/shm", {"emptyDir": {"medium": "Memory"}})
    return volumes


def _environment(options: KubernetesOptions) -> dict[str, str]:
    # The root file system is read-only: what libraries keep goes where writing is allowed.
    environment = {PREEMPTED_CODE: str(START_AGAIN), "HOME": "/tmp", "PYTHONUNBUFFERED": "1"}
    if options.cpu:
        # TensorFlow would count the cores of the node and be throttled.
        cores = float(options.cpu.removesuffix("m")) / (1000 if options.cpu.endswith("m") else 1)
        environment["TF_NUM_INTRAOP_THREADS"] = str(max(1, int(cores)))
    return environment


def _resources(options: KubernetesOptions) -> dict[str, Any]:
    amounts = {"cpu": options.cpu, "memory": options.memory, "nvidia.com/gpu": str(options.gpus or "")}
    given = {name: amount for name, amount in amounts.items() if amount}
    return {"requests": given, "limits": dict(given)} if given else {}


def start() -> NoReturn:
    """Run the program on the command line of this process, and exit."""
    run_program(main, names_of(KubernetesOptions))
