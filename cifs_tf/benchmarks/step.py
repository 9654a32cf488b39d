"""Time training steps and evaluations of a CIFS network beside a vanilla one: `benchmark.py step`."""

import dataclasses
from typing import Any, Literal

from cifs_tf.benchmarks import convolutions, timing
from cifs_tf.benchmarks.options import StepOptions
from cifs_tf.benchmarks.timing import Say
from cifs_tf.hardware import peak_memory

FLOAT32: Literal["float32"] = "float32"
DEFENSES: tuple[Literal["cifs", "vanilla"], ...] = ("cifs", "vanilla")


def run(options: StepOptions, report: Say) -> dict[str, Any]:
    """Time both networks in interleaved pairs, and the convolutions that they are made of.

    Returns:
        `tasks`, by name what `time_in_turns` returns with the ratios of CIFS to vanilla; `convolution_peak`, FLOP/s by
        shape; `convolutions_alone`, seconds by pass; and `peak_memory_bytes`.
    """
    steps = options.num_steps
    configs = {str(defense): options.run_config(steps, defense, options.precision) for defense in DEFENSES}
    if options.precision != FLOAT32:
        configs[FLOAT32] = options.run_config(steps, "cifs", FLOAT32)
    classifiers = {name: timing.build_network(config) for name, config in configs.items()}
    limits = [convolutions.measure_limits(classifiers["vanilla"], options.batch_size, options.precision)]
    tasks: dict[str, Any] = {}
    for task, make in {"training": timing.training_step, "evaluation": timing.evaluation}.items():
        report(f"{task}:")
        subjects = {name: make(config, classifiers[name]) for name, config in configs.items()}
        found = timing.time_in_turns(subjects, options.pairs, report)
        tasks[task] = {**found, **timing.ratios_of(found["cifs"], found["vanilla"])}
        if FLOAT32 in found:
            tasks[task]["float32_ratio"] = timing.ratios_of(found["cifs"], found[FLOAT32])["ratio"]
    # Twice, because the machine may have been slowed down by others the first time.
    limits.append(convolutions.measure_limits(classifiers["vanilla"], options.batch_size, options.precision))
    peak, alone = convolutions.fastest(limits)
    tasks["training"]["convolutions_alone_seconds"] = alone.training_step(steps)
    tasks["evaluation"]["convolutions_alone_seconds"] = alone.evaluation(timing.EVALUATION_STEPS)
    memory = peak_memory()
    report(f"peak memory {memory / 2**30:.1f} GiB")
    return {
        "tasks": tasks,
        "convolution_peak": peak,
        "convolutions_alone": dataclasses.asdict(alone),
        "peak_memory_bytes": memory,
    }
