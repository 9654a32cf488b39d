"""How long a step of adversarial training takes on 1 to 64 GPUs: a model with its assumptions, not a measurement.

A step is the sum of its parts. Nothing overlaps: no gradient is used before all of them are known to be finite.

- Computing: the step's FLOPs on a device's share of the batch, at a share of the device's peak. The share is what the
  paper's seconds per epoch imply (`compare_with_paper`), and falls when the batch of a device gets small.
- Gradients: one all-reduce, in a ring inside each node and in a ring of nodes.
- Batch normalisation over the global batch: small all-reduces, in the pass that trains only; the attack runs in
  inference mode and needs none.
- Bookkeeping: what the devices have to agree on, such as whether everything was finite.

The module needs no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cifs_tf.errors import UserError

NUM_DEVICES = (1, 2, 4, 8, 16, 32, 64)
HALF_BATCHES = (4.0, 16.0, 64.0)
# Mean and variance of a layer, each reduced forward and its gradient backward.
BATCH_NORM_REDUCTIONS = 4
# Is the batch divided evenly, is everything finite: counted in a traced step. Among several workers also the sum and
# the count of two logged values, whether there is another batch, and whether a worker was asked to end.
BOOKKEEPING_REDUCTIONS = 8
BOOKKEEPING_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a training step does, whatever it runs on.

    Args:
        flops: floating-point operations of a training step for one image.
        parameter_bytes: size of all gradients together.
        batch_norm_bytes: for each batch-norm layer, the size of one value per channel.

    Example:
        >>> Workload(flops=10**9, parameter_bytes=4000, batch_norm_bytes=(256, 512)).reduced_bytes
        7104
    """

    flops: int
    parameter_bytes: int
    batch_norm_bytes: tuple[int, ...]

    @property
    def collectives(self) -> dict[str, list[int]]:
        """Bytes of every all-reduce of a step, by what it is for."""
        return {
            "gradients": [self.parameter_bytes],
            "batch_norm": [size for size in self.batch_norm_bytes for _ in range(BATCH_NORM_REDUCTIONS)],
            "bookkeeping": [BOOKKEEPING_BYTES] * BOOKKEEPING_REDUCTIONS,
        }

    @property
    def reduced_bytes(self) -> int:
        """Bytes that every device brings to the all-reduces of a step."""
        return sum(map(sum, self.collectives.values()))


@dataclasses.dataclass(frozen=True)
class Link:
    """What joins the members of a ring.

    Args:
        name: shown in tables.
        bandwidth: in one direction, bytes per second, from the vendor's data sheet.
        latency: seconds that a collective takes at least, for each doubling of the members; an assumption.
        share: of the bandwidth that a collective reaches, in (0, 1]; an assumption. Default 0.8.
    """

    name: str
    bandwidth: float
    latency: float
    share: float = 0.8


@dataclasses.dataclass(frozen=True)
class Device:
    """A GPU, and how it is joined to the others of its node.

    Args:
        name: shown in tables.
        peak: floating-point operations per second, from the vendor's data sheet.
        link: to the other GPUs of the node.
        relative_efficiency: share of the peak that it reaches, over the share that the paper's GPU reached in float32;
            an assumption. Tensor cores reach a smaller share of a much higher peak. Default 1.
    """

    name: str
    peak: float
    link: Link
    relative_efficiency: float = 1.0


PCIE3 = Link("PCIe 3.0 x16", bandwidth=16e9, latency=20e-6)
NVLINK2 = Link("NVLink 2", bandwidth=150e9, latency=10e-6)
NVLINK3 = Link("NVLink 3", bandwidth=300e9, latency=10e-6)
NVLINK4 = Link("NVLink 4", bandwidth=450e9, latency=10e-6)

V100 = Device("V100 SXM2, float32", peak=15.7e12, link=NVLINK2)
DEVICES = {
    "v100": V100,
    "v100_pcie": Device("V100 PCIe, float32", peak=14e12, link=PCIE3),
    "a100": Device("A100 SXM, float32", peak=19.5e12, link=NVLINK3),
    "a100_bfloat16": Device("A100 SXM, bfloat16", peak=312e12, link=NVLINK3, relative_efficiency=0.4),
    "h100_bfloat16": Device("H100 SXM, bfloat16", peak=989e12, link=NVLINK4, relative_efficiency=0.25),
}
NETWORKS = {
    "ethernet": Link("25 Gbit/s Ethernet", bandwidth=25e9 / 8, latency=100e-6),
    "infiniband": Link("200 Gbit/s InfiniBand", bandwidth=200e9 / 8, latency=20e-6),
}


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What is known of the speed of one GPU, and what is guessed.

    Args:
        efficiency: share of its float32 peak that `reference` reaches with batches of `reference_batch`, in (0, 1].
        reference: the device that it was found on. Default V100.
        reference_batch: images. Default 128, the paper's.
        half_batch: b_half: with b images `reference` reaches b / (b + b_half) of what it reaches with very many. It is
            the same as a fixed time per step, about 50 ms for ResNet-18 and PGD-10, in which thousands of small
            kernels start; faster devices are given the same time. A guess. Default 16 images.
        gpus_per_node: that share a machine and its network. Default 8.
    """

    efficiency: float
    reference: Device = V100
    reference_batch: int = 128
    half_batch: float = 16.0
    gpus_per_node: int = 8

    @property
    def highest_efficiency(self) -> float:
        """Share of its peak that `reference` would reach with very many images."""
        return self.efficiency * (self.reference_batch + self.half_batch) / self.reference_batch


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of a training step, by what they are spent on.

    Args:
        num_devices: that share a batch.
        batch_size: images, over all devices.
        compute: seconds of forward and backward passes.
        gradients: seconds of their all-reduce.
        batch_norm: seconds of its all-reduces.
        bookkeeping: seconds of the other all-reduces.
    """

    num_devices: int
    batch_size: int
    compute: float
    gradients: float
    batch_norm: float
    bookkeeping: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.compute + self.communication

    @property
    def communication(self) -> float:
        """Seconds in which devices wait for each other."""
        return self.gradients + self.batch_norm + self.bookkeeping

    @property
    def images_per_second(self) -> float:
        """Over all devices."""
        return self.batch_size / self.seconds


def step_time(
    workload: Workload, device: Device, network: Link, num_devices: int, batch_size: int, assumptions: Assumptions
) -> StepTime:
    """Predict the time of a training step.

    Args:
        workload: what the step does.
        device: every GPU.
        network: between the nodes; a node's GPUs share its link.
        num_devices: GPUs; one node's at most, or all GPUs of several nodes.
        batch_size: images over all devices, a multiple of their number.
        assumptions: about the speed of a GPU.

    Returns:
        the seconds, by what they are spent on.

    Raises:
        UserError: for a number of devices that does not fill its nodes, or does not divide the batch.

    Example:
        >>> workload = Workload(flops=25 * 10**9, parameter_bytes=45 * 10**6, batch_norm_bytes=(256,) * 20)
        >>> step_time(workload, V100, NETWORKS["infiniband"], 1, 128, Assumptions(efficiency=0.5)).communication
        0.0
    """
    if num_devices > assumptions.gpus_per_node and num_devices % assumptions.gpus_per_node:
        advice = f"give a multiple of {assumptions.gpus_per_node}, the GPUs of a node, or fewer"
        raise UserError("num_devices", num_devices, advice)
    if batch_size % num_devices:
        raise UserError("batch_size", batch_size, f"give a multiple of {num_devices}, the devices that share it")
    communication = {
        purpose: sum(
            all_reduce_time(size, num_devices, device.link, network, assumptions.gpus_per_node) for size in sizes
        )
        for purpose, sizes in workload.collectives.items()
    }
    compute = compute_time(workload.flops, device, batch_size / num_devices, assumptions)
    return StepTime(num_devices, batch_size, compute, **communication)


def compute_time(flops: int, device: Device, images: float, assumptions: Assumptions) -> float:
    """Seconds that one device computes: in proportion to its images, and a fixed time that all devices need.

    Args:
        flops: operations for one image.
        device: the GPU.
        images: its share of the batch.
        assumptions: about the speed of a GPU.
    """
    on_reference = flops / (assumptions.reference.peak * assumptions.highest_efficiency)
    faster = device.peak * device.relative_efficiency / assumptions.reference.peak
    return on_reference * (images / faster + assumptions.half_batch)


def all_reduce_time(num_bytes: int, num_devices: int, inside: Link, between: Link, gpus_per_node: int) -> float:
    """Seconds of an all-reduce, inside every node and then between the nodes.

    Args:
        num_bytes: that every device brings.
        num_devices: GPUs.
        inside: the link of the GPUs of a node.
        between: the link of a node.
        gpus_per_node: at most so many devices in a node.
    """
    members = min(num_devices, gpus_per_node)
    return ring_time(num_bytes, members, inside) + ring_time(num_bytes, num_devices // members, between)


def ring_time(num_bytes: int, members: int, link: Link) -> float:
    """Seconds of an all-reduce in a ring: each member sends 2 (n - 1) / n of the bytes; none if it is alone."""
    sent = 2 * (members - 1) / members * num_bytes
    return sent / (link.bandwidth * link.share) + link.latency * math.ceil(math.log2(members))


def strong_scaling(
    workload: Workload,
    device: Device,
    network: Link,
    assumptions: Assumptions,
    num_devices: Iterable[int] = NUM_DEVICES,
) -> list[StepTime]:
    """Predict steps on more and more devices that share one batch of `assumptions.reference_batch` images."""
    batch_size = assumptions.reference_batch
    return [step_time(workload, device, network, count, batch_size, assumptions) for count in num_devices]


def weak_scaling(
    workload: Workload,
    device: Device,
    network: Link,
    assumptions: Assumptions,
    num_devices: Iterable[int] = NUM_DEVICES,
) -> list[StepTime]:
    """Predict steps on more and more devices of which each has `assumptions.reference_batch` images."""
    each = assumptions.reference_batch
    return [step_time(workload, device, network, count, each * count, assumptions) for count in num_devices]


Scaling = Callable[[Workload, Device, Link, Assumptions], list[StepTime]]


@dataclasses.dataclass(frozen=True)
class Published:
    """Seconds that the paper reports (Section 4.1.1: ResNet-18, CIFAR-10) of a GPU that it does not name.

    Args:
        training: of an epoch of PGD-10 training on 50,000 images in batches of 128.
        evaluation: of PGD-20 on 10,000 images.
    """

    training: float
    evaluation: float


PAPER = {"vanilla": Published(training=166, evaluation=53), "cifs": Published(training=172, evaluation=56)}
TRAINING_IMAGES, EVALUATION_IMAGES = 50_000, 10_000


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the paper's seconds say about our FLOPs, for one network.

    Args:
        efficiency: share of the peak that its seconds of training imply.
        predicted_evaluation: seconds of its evaluation at that share, which nothing was fitted to.
        published: what the paper measured.
    """

    efficiency: float
    predicted_evaluation: float
    published: Published


def compare_with_paper(flops: Mapping[str, tuple[int, int]], device: Device = V100) -> dict[str, Comparison]:
    """Find the efficiency that the paper's seconds imply, and predict those that were not used for it.

    Args:
        flops: by defense, operations per image of a training step with PGD-10 and of an evaluation with PGD-20.
        device: what the paper is taken to have measured on. Default V100.

    Returns:
        the comparison of each defense.

    Example:
        >>> compare_with_paper({"vanilla": (25 * 10**9, 45 * 10**9)})["vanilla"].efficiency
        0.479...
    """
    comparisons = {}
    for defense, (training, evaluation) in flops.items():
        speed = TRAINING_IMAGES * training / PAPER[defense].training
        predicted = EVALUATION_IMAGES * evaluation / speed
        comparisons[defense] = Comparison(speed / device.peak, predicted, PAPER[defense])
    return comparisons


def project(workload: Workload, flops: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Predict every device with every network, for the network and the recipe that the paper timed.

    Args:
        workload: a training step of the CIFS network.
        flops: as for `compare_with_paper`, of `"cifs"` and `"vanilla"`.

    Returns:
        plain values for a JSON file: `workload`, `flops`, `comparison` by defense, `assumptions`, `devices` and
        `networks` by name; `cases`, of which each has a `device`, a `network`, and under `strong` and `weak` the fields
        of `StepTime` for each of `NUM_DEVICES`; and `guesses`, the `strong` scaling of a V100 for several `half_batch`.
    """
    comparison = compare_with_paper(flops)
    assumptions = Assumptions(efficiency=comparison["cifs"].efficiency)

    def plain(scaling: Scaling, device: Device, network: Link, assumptions: Assumptions = assumptions) -> list[dict]:
        return [dataclasses.asdict(step) for step in scaling(workload, device, network, assumptions)]

    cases = [
        {
            "device": name,
            "network": joined_by,
            "strong": plain(strong_scaling, device, network),
            "weak": plain(weak_scaling, device, network),
        }
        for name, device in DEVICES.items()
        for joined_by, network in NETWORKS.items()
    ]
    guesses = [dataclasses.replace(assumptions, half_batch=guess) for guess in HALF_BATCHES]
    return {
        "workload": dataclasses.asdict(workload),
        "flops": {defense: list(counts) for defense, counts in flops.items()},
        "comparison": {defense: dataclasses.asdict(found) for defense, found in comparison.items()},
        "assumptions": dataclasses.asdict(assumptions),
        "devices": {name: dataclasses.asdict(device) for name, device in DEVICES.items()},
        "networks": {name: dataclasses.asdict(network) for name, network in NETWORKS.items()},
        "cases": cases,
        "guesses": [
            {"half_batch": guess.half_batch, "strong": plain(strong_scaling, V100, NETWORKS["infiniband"], guess)}
            for guess in guesses
        ],
    }
