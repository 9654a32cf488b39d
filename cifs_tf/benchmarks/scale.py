"""What it costs to share a training step among devices: `benchmark.py scale`."""

from __future__ import annotations

import dataclasses

from rich.console import Console
from rich.markdown import Markdown

from cifs_tf.benchmarks import projection as scaling
from cifs_tf.benchmarks import tables
from cifs_tf.benchmarks.options import ScaleOptions
from cifs_tf.config import AttackConfig, DataConfig, MachineConfig, ModelConfig, RunConfig


def scale(options: ScaleOptions) -> dict:
    """Measure a step on one device and on several, in turns; predict it on 1 to 64 GPUs; print tables of both.

    Returns:
        what the JSON file holds.
    """
    # After the options are checked: importing TensorFlow takes seconds, an error should not.
    from cifs_tf import hardware
    from cifs_tf.benchmarks import timing as measuring
    from cifs_tf.runs.cluster import ALONE, make_cluster

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
        "machine": hardware.describe_machine(),
        "workload": dataclasses.asdict(measuring.workload(config, classifier)),
        "replicas": found,
        "ratios": {count: measuring.ratios_of(found[count], found["1"]) for count in subjects if count != "1"},
        "projection": _project(),
    }
    _print(result, console)
    return result


def _project() -> dict:
    """The projection for what the paper timed: ResNet-18, images of 32 pixels a side, PGD-10."""
    from cifs_tf.benchmarks import timing as measuring
    from cifs_tf.models.flops import count_flops

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
