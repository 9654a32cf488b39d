"""Options of `benchmark.py`, a class for each of its commands; TensorFlow is not needed to refuse a bad one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from cifs_tf.config import AttackConfig, DataConfig, ModelConfig, Precision, RunConfig, TrainConfig
from cifs_tf.errors import UserError
from cifs_tf.runs.workdir import Workdir

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "reference" / "golden"
Backbone = Literal["resnet10", "resnet18", "resnet34", "wrn28-10", "wrn34-10"]


def _check_positive(options: Any, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}", value, "give a number of 1 or more")


def _run_config(
    options: Any,
    num_steps: int,
    defense: Literal["cifs", "vanilla"] = "cifs",
    precision: Literal["float32", "mixed_bfloat16", "float64"] = "float32",
) -> RunConfig:
    return RunConfig(
        data=DataConfig(image_size=options.image_size),
        model=ModelConfig(arch=options.arch, width=options.width, defense=defense),
        # So small that the weights, and with them the work, stay the same from step to step.
        train=TrainConfig(batch_size=options.batch_size, precision=precision, learning_rate=1e-8),
        attack=AttackConfig(num_steps=num_steps),
    )


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """One PGD-AT training step and one PGD-20 evaluation of a batch, of a CIFS and a vanilla network.

    Args:
        arch: backbone.
        width: channels of the backbone's stem; null is the usual one (64 for resnet, 16 for wrn).
        batch_size: images per batch.
        num_steps: of the training attack.
        image_size: side of the images in pixels.
        pairs: how often both networks are timed, one after the other.
        precision: float32, mixed_bfloat16, or float64; in the latter two, CIFS in float32 is timed beside them.
        json: file for everything that was measured; null for none.
    """

    arch: Backbone = "resnet18"
    width: int | None = None
    batch_size: int = 64
    num_steps: int = 10
    image_size: int = 32
    pairs: int = 10
    precision: Precision = "float32"
    json: str | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "pairs")
        self.run_config("cifs")

    def run_config(self, defense: Literal["cifs", "vanilla"], precision: Precision | None = None) -> RunConfig:
        """Return the config of a run that takes such steps, in another precision if one is given."""
        return _run_config(self, self.num_steps, defense, precision or self.precision)


@dataclasses.dataclass(frozen=True)
class ScaleOptions:
    """The same training step of a CIFS network on one device and shared among several, and a projection to 64 GPUs.

    Without a GPU the devices are parts of one processor: nothing gets faster, what is measured is the cost of sharing.

    Args:
        arch: backbone of the CIFS network.
        width: channels of the backbone's stem; null is the usual one (64 for resnet, 16 for wrn).
        batch_size: images per step, over all devices.
        num_steps: of the training attack.
        image_size: side of the images in pixels.
        replicas: numbers of devices, which divide the batch size; one device alone is always measured.
        pairs: how often every number of devices is timed, in turns.
        json: file for everything that was measured; null for none.
    """

    arch: Backbone = "resnet18"
    width: int | None = 16
    batch_size: int = 64
    num_steps: int = 10
    image_size: int = 32
    replicas: tuple[int, ...] = (1, 2, 4)
    pairs: int = 5
    json: str | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "pairs")
        if any(count < 1 or self.batch_size % count for count in self.replicas):
            advice = f"give numbers of 1 or more that divide the batch of {self.batch_size}, such as [1,2]"
            raise UserError("--replicas", list(self.replicas), advice)
        self.run_config()

    def run_config(self) -> RunConfig:
        """Return the config of a run that takes such steps."""
        return _run_config(self, self.num_steps)


@dataclasses.dataclass(frozen=True)
class ResourcesOptions:
    """Images per second of the input pipeline, and the peak memory of PGD attacks of several lengths.

    Args:
        arch: backbone of a CIFS network, with random weights.
        width: channels of the backbone's stem; null is the usual one (64 for resnet, 16 for wrn).
        batch_size: images per batch.
        image_size: side of the images in pixels.
        num_steps: of the attacks, each made in a process of its own.
        batches: of the input pipeline that are timed.
        json: file for everything that was measured; null for none.
    """

    arch: Backbone = "resnet18"
    width: int | None = 16
    batch_size: int = 64
    image_size: int = 32
    num_steps: tuple[int, ...] = (1, 10, 100)
    batches: int = 500
    json: str | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "batches")
        if not self.num_steps or min(self.num_steps) < 1:
            raise UserError("--num_steps", list(self.num_steps), "give numbers of 1 or more, in brackets")
        self.run_configs()

    def run_configs(self) -> list[RunConfig]:
        """Return the configs of runs with these attacks."""
        return [_run_config(self, num_steps) for num_steps in self.num_steps]


@dataclasses.dataclass(frozen=True)
class AttackOptions:
    """The attacks of AutoAttack, each alone on all images of a recording of the official implementation.

    Args:
        recording: the .npz file, see tests/reference/golden.
        threads: processor threads to use; null leaves it to TensorFlow (and TF_NUM_INTRAOP_THREADS).
        batch_size: images per batch.
        json: file for everything that was measured; null for none.
    """

    recording: str = str(GOLDEN / "autoattack_fashion_mnist.npz")
    threads: int | None = 1
    batch_size: int = 250
    json: str | None = None

    def __post_init__(self) -> None:
        if not Path(self.recording).is_file():
            raise UserError("--recording", self.recording, "there is no such file, give an autoattack_*.npz")
        _check_positive(self, "threads", "batch_size")


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """Requests to serving/server.py, beside calls of the same SavedModel in a loop.

    Args:
        arch: backbone of the CIFS network, with random weights.
        width: channels of the backbone's stem.
        image_size: side of the images in pixels.
        clients: that ask at a time.
        seconds: of each measurement.
        rounds: how often everything is measured, in turns.
        json: file for everything that was measured; null for none.
    """

    arch: Literal["resnet10", "resnet18", "resnet34"] = "resnet18"
    width: int = 32
    image_size: int = 32
    clients: int = 8
    seconds: float = 10
    rounds: int = 3
    json: str | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "width", "image_size", "clients", "rounds")
        if self.seconds <= 0:
            raise UserError("--seconds", self.seconds, "give a number above 0")


@dataclasses.dataclass(frozen=True)
class PrecisionOptions:
    """The training attack and PGD-20 on a trained run, in float32 and in bfloat16, on the same images and starts.

    Args:
        run: workdir of a finished run, whose network is attacked.
        examples: test images, class-balanced.
        batch_size: images per batch.
        json: file for everything that was measured; null for none.
    """

    run: str = "runs/fashion_mnist_small"
    examples: int = 1000
    batch_size: int = 250
    json: str | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "examples", "batch_size")
        if not (Workdir(self.run).path / "config.yaml").is_file():
            raise UserError("--run", self.run, "there is no run, give the workdir of a finished one")
