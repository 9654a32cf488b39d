"""What it costs to share a training step among devices: `benchmark.py scale`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rich.console import Console
from rich.markdown import Markdown

from cifs_tf.config import AttackConfig, DataConfig, MachineConfig, ModelConfig, RunConfig, TrainConfig
from cifs_tf.errors import UserError
from training import benchmark_tables as tables
from training import scaling


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

    arch: Literal["resnet10", "resnet18", "resnet34", "wrn28-10", "wrn34-10"] = "resnet18"
    width: int | None = 16
    batch_size: int = 64
    num_steps: int = 10
    image_size: int = 32
    replicas: tuple[int, ...] = (1, 2, 4)
    pairs: int = 5
    json: str | None = None

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise UserError("--pairs", self.pairs, "give a number of 1 or more")
        if any(count < 1 or self.batch_size % count for count in self.replicas):
            advice = f"give numbers of 1 or more that divide the batch of {self.batch_size}, such as [1,2]"
            raise UserError("--replicas", list(self.replicas), advice)
        self.run_config()

    def run_config(self) -> RunConfig:
        """Return the config of a run that takes such steps."""
        return RunConfig(
            data=DataConfig(image_size=self.image_size),
            model=ModelConfig(arch=self.arch, width=self.width),
            # So small that the weights, and with them the work, stay the same from step to step.
            train=TrainConfig(batch_size=self.batch_size, learning_rate=1e-8),
            attack=AttackConfig(num_steps=self.num_steps),
        )


def scale(options: ScaleOptions) -> dict:
    """Measure a step on one device and on several, in turns; predict it on 1 to 64 GPUs; print tables of both.

    Returns:
        what the JSON file holds.
    """
    # After the options are checked: importing TensorFlow takes seconds, an error should not.
    from training import machine, measuring
    from training.cluster import ALONE, make_cluster

    console, config, counts = Console(), options.run_config(), sorted({1, *options.replicas})
    # The largest first: it divides the processor, the others take some of its parts.
    shared = {
        count: make_cluster(MachineConfig(strategy="mirrored", replicas=count))
        for count in reversed(counts)
        if count > 1
    }
    clusters = {1: ALONE, **shared}
    subjects = {}
    for count in counts:
        with clusters[count].strategy.scope():
            classifier = measuring.build(config)
            subjects[str(count)] = measuring.training(config, classifier)
    found = measuring.measure_turns(subjects, options.pairs, console.print)
    result = {
        "command": "scale",
        "options": {**dataclasses.asdict(options), "json": None},
        "machine": machine.describe_machine(),
        "workload": dataclasses.asdict(measuring.workload(config, classifier)),
        "replicas": found,
        "ratios": {count: measuring.ratios_of(found[count], found["1"]) for count in subjects if count != "1"},
        "projection": _project(),
    }
    _print(result, console)
    return result


def _project() -> dict:
    """The projection for what the paper timed: ResNet-18, images of 32 pixels a side, PGD-10."""
    from cifs_tf.models.flops import count_flops
    from training import measuring

    flops: dict[str, tuple[int, int]] = {}
    for defense in tables.DEFENSES:
        config = RunConfig(
            data=DataConfig(image_size=32),
            model=ModelConfig(arch="resnet18", defense=defense),
            attack=AttackConfig(num_steps=10),
        )
        classifier = measuring.build(config)
        counted = count_flops(classifier)
        flops[defense] = counted.training_step(config.attack.num_steps), counted.evaluation(measuring.EVALUATION_STEPS)
        if defense == "cifs":
            workload = measuring.workload(config, classifier)
    return scaling.project(workload, flops)


def _print(result: dict, console: Console) -> None:
    projection = result["projection"]
    console.rule(f"measured: {tables.machine_text(result['machine'])}")
    parts = [tables.replicas_text(result), tables.replicas_table(result), tables.reduced_text(result["workload"])]
    console.print(Markdown("\n\n".join(parts)))
    console.rule("projection, not measured: ResNet-18 with CIFS, CIFAR-10, PGD-10")
    parts = [
        tables.comparison_table(projection),
        tables.comparison_text(projection),
        tables.reduced_text(projection["workload"]),
        "Strong scaling, one batch for all:",
        tables.scaling_table(projection, "strong"),
        "Weak scaling, as many images for each:",
        tables.scaling_table(projection, "weak"),
        "Speed-ups of other GPUs:",
        tables.cases_table(projection),
    ]
    console.print(Markdown("\n\n".join(parts)))
