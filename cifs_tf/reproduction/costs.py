"""Estimate what a plan costs: hours, by floating-point operations at a pace that was measured, and disk space."""

from collections.abc import Iterable
from typing import NamedTuple

from cifs_tf.attack_names import SUITE_EXAMPLES, parse_attack_name
from cifs_tf.config import MAXIMUM_VAL_EXAMPLES
from cifs_tf.reproduction import overhead
from cifs_tf.reproduction.overhead import STEPS, Overhead
from cifs_tf.reproduction.plan import ATTACK_BETAS, Analysis, Evaluation, Job, Training
from cifs_tf.runs.curves import VALIDATION_STEPS

BYTES_PER_PARAMETER = 4
# Two checkpoints with momentum, the best epoch's weights, last.keras and best.keras.
COPIES_OF_WEIGHTS = 2 * 2 + 1 + 2
APGD_STEPS, SQUARE_QUERIES, FEW_TARGETS = 100, 5000, 3
# Of the suite `adaptive`: APGD of 50 steps, 27 times on each of three losses and 3 times towards each of two more
# classes; the audit's steps; and queries of Square.
STRICT_STEPS, AUDIT_STEPS, STRICT_QUERIES = 50 * (3 * 27 + 2 * 3), 800, 1_000
SMALL_EPOCH_SECONDS, SMALL_TRAIN, SMALL_STEPS = 115, 10_000, 7


class Size(NamedTuple):
    """FLOPs of a forward pass for one image, and parameters, by `cifs_tf.models.flops.count_flops` (a test checks).

    By architecture, width and pixels a side.
    """

    flops: float
    parameters: int


SIZES = {
    ("resnet18", 64, 32): Size(1_110_989_312, 11_255_646),
    ("wrn28-10", 16, 32): Size(10_486_982_336, 36_659_806),
    ("resnet10", 64, 28): Size(413_868_544, 4_947_166),
    ("resnet10", 16, 32): Size(32_366_080, 321_166),
    ("resnet10", 16, 28): Size(26_054_656, 320_878),
    ("resnet10", 8, 8): Size(514_048, 84_742),
    ("resnet10", 4, 8): Size(135_424, 23_986),
}
# Pixels a side.
SIDES = {"cifar10": 32, "svhn": 32, "fashion_mnist": 28, "digits": 8}
# Training and test images.
IMAGES = {
    "cifar10": (overhead.IMAGES["training"], overhead.IMAGES["evaluation"]),
    "svhn": (73_257, 26_032),
    "fashion_mnist": (60_000, 10_000),
    "digits": (1437, 360),
}
# Forward passes of an update for each image, three being one forward and backward pass; PGD's and FAT's.
UPDATE = 3.0
UPDATES = {"trades": 7.0, "mart": 6.0}


class Pace(NamedTuple):
    """A machine, and its seconds for a floating-point operation of training and of an attack in an evaluation."""

    name: str
    training: float
    evaluation: float


def _passes(num_steps: int) -> int:
    """Return the forward passes that an attack costs for each image: forward and backward in every step."""
    return 2 * num_steps


_RESNET18 = SIZES["resnet18", 64, 32].flops
PAPER_GPU = Pace(
    "the paper's GPU",
    overhead.PAPER["training"]["cifs"] / (overhead.IMAGES["training"] * (_passes(10) + UPDATE) * _RESNET18),
    overhead.PAPER["evaluation"]["cifs"] / (overhead.IMAGES["evaluation"] * (_passes(20) + 1) * _RESNET18),
)
_SMALL_PACE = SMALL_EPOCH_SECONDS / (SMALL_TRAIN * (_passes(SMALL_STEPS) + UPDATE) * SIZES["resnet10", 16, 28].flops)
CPU_CORE = Pace("one core of an AMD EPYC without AVX512", _SMALL_PACE, _SMALL_PACE)


class Cost(NamedTuple):
    """The most that some jobs cost: networks to train, evaluations of them, hours of the machine, bytes on the disk."""

    networks: int
    evaluations: int
    hours: float
    disk: float


def pace_of(scale_name: str) -> Pace:
    """Return the pace of the machine that a scale is meant for."""
    return PAPER_GPU if scale_name == "full" else CPU_CORE


def cost(jobs: Iterable[Job], pace: Pace) -> Cost:
    """Estimate what jobs cost: at most, as if every image survived until the last attack."""
    jobs = list(jobs)
    trainings = [job for job in jobs if isinstance(job, Training)]
    return Cost(
        networks=len(trainings),
        evaluations=sum(isinstance(job, Evaluation) for job in jobs),
        hours=sum(seconds(job, pace) for job in jobs) / 3600,
        disk=sum(COPIES_OF_WEIGHTS * BYTES_PER_PARAMETER * _size(job).parameters for job in trainings),
    )


def seconds(job: Job, pace: Pace) -> float:
    """Estimate the seconds of a job, at most."""
    if isinstance(job, Training):
        images = job["train_examples"] or IMAGES[job["dataset"]][0]
        return training_passes(job, images) * _size(job).flops * pace.training
    if isinstance(job, Evaluation):
        return _evaluation_passes(job) * _size(job.training).flops * pace.evaluation
    if isinstance(job, Analysis):
        images = job.examples or _test_images(job.trainings[0])
        return sum(images * (_passes(20) + 2) * _size(training).flops for training in job.trainings) * pace.evaluation
    if isinstance(job, Overhead):
        return _overhead_seconds(job, pace)
    raise TypeError(f"nothing is known of the cost of {job}")


def training_passes(job: Training, images: int) -> float:
    """Count the forward passes of a training run on so many images, those of its validation included."""
    validation = _validation_images(job, images)
    steps = {"standard": 0, "nfgsm": 1}.get(job["method"], job["num_steps"])
    update = UPDATES.get(job["method"], UPDATE)
    return job["epochs"] * (images * (_passes(steps) + update) + validation * (_passes(VALIDATION_STEPS) + 2))


def _validation_images(job: Training, images: int) -> int:
    return min(MAXIMUM_VAL_EXAMPLES, images // 10) if job["val_examples"] is None else job["val_examples"]


def _evaluation_passes(job: Evaluation) -> float:
    images = job.setup.examples or SUITE_EXAMPLES.get(job.setup.suite) or _test_images(job.training)
    if job.setup.split == "validation":
        images = _validation_images(job.training, job.training["train_examples"] or IMAGES[job.training["dataset"]][0])
    if job.kind in ("paper", "strict", "validation"):
        probes = len(job.training["cuts"] or [1, 2])
        betas = 1 if job.training["defense"] == "vanilla" else len(ATTACK_BETAS) - (2 - probes)
        passes = betas * sum(_passes(parse_attack_name(attack, "attacks")[1]) + 1 for attack in job.setup.attacks)
        return images * (passes + (job.kind == "strict") * (_passes(STRICT_STEPS + AUDIT_STEPS) + STRICT_QUERIES))
    if job.setup.suite == "paper_aa":
        return images * (_passes(APGD_STEPS) + SQUARE_QUERIES)
    return images * _passes(APGD_STEPS) * (1 + FEW_TARGETS)


def _overhead_seconds(job: Overhead, pace: Pace) -> float:
    options = {"arch": "resnet18", "width": 64, "num_steps": 10, "pairs": 10, **STEPS[job.scale]}
    side = SIDES["cifar10" if options["width"] > 4 else "digits"]
    flops = options["batch_size"] * SIZES[options["arch"], options["width"], side].flops
    turns = 2 * (1 + options["pairs"])
    training = (_passes(options["num_steps"]) + UPDATE) * pace.training
    return turns * flops * (training + (_passes(20) + 1) * pace.evaluation)


def _test_images(job: Training) -> int:
    return job["test_examples"] or IMAGES[job["dataset"]][1]


def _size(job: Training) -> Size:
    return SIZES[job["arch"], job["width"], SIDES[job["dataset"]]]
