"""Measure how fast this machine runs the library, and what CIFS costs over a vanilla network.

    python training/benchmark.py step                ResNet-18, batch 64, PGD-10: up to an hour on two cores
    python training/benchmark.py step --width 16 --pairs 5 --json step.json
    python training/benchmark.py attack --recording FILE.npz     our AutoAttack beside the official one's seconds
    python training/benchmark.py serve               REST and gRPC requests beside calls of the model itself
    python training/benchmark.py scale               what sharing a step among devices costs; a projection to 64 GPUs
    python training/benchmark.py precision --run WORKDIR         whether attacks in bfloat16 are as strong
    python training/benchmark.py resources           what the input pipeline delivers; memory of long attacks

FLOPs are counted from the layers' shapes, 2 per multiply-accumulate of every convolution and dense layer.
A forward pass is F; a step of an attack 2 F (forward, and backward to the image); an update 3 F (forward, and
backward to inputs and kernels) without the first layer's gradient to the image (`cifs_tf.models.flops`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from rich import box
from rich.console import Console
from rich.table import Table

from cifs_tf.benchmarks import tables as benchmark_tables
from cifs_tf.benchmarks.options import (
    AttackOptions,
    PrecisionOptions,
    ResourcesOptions,
    ScaleOptions,
    ServeOptions,
    StepOptions,
)
from cifs_tf.benchmarks.scale import scale
from cifs_tf.command_line import parse_options
from cifs_tf.config import ModelConfig
from cifs_tf.errors import UserError
from cifs_tf.runs.recipes import run_program
from cifs_tf.runs.workdir import Workdir, write_json

# Columns of the table of `serve`.
TEXTS = ("{:.1f}", "{:.0f}%", "{:.1f}", "{:.1f}")
FLOAT32: Literal["float32"] = "float32"
DEFENSES: tuple[Literal["cifs", "vanilla"], ...] = ("cifs", "vanilla")


def main(argv: Sequence[str]) -> None:
    """Carry out the command that comes first in `argv`, with the options after it."""
    command, *arguments = argv or ["--help"]
    if command in ("-h", "--help"):
        print(__doc__)
        print("Commands:", ", ".join(COMMANDS), "(each has a --help of its own)")
        return
    if command not in COMMANDS:
        raise UserError("command", command, f"give one of {', '.join(COMMANDS)}")
    options_class, run = COMMANDS[command]
    options = parse_options(options_class, f"benchmark.py {command}", arguments, options_class.__doc__ or "")
    if options.json is not None:
        _check_writable(Path(options.json))
    result = run(options)
    if options.json is not None:
        write_json(Path(options.json), result)
        Console().print(f"Written: {options.json}", soft_wrap=True)


def step(options: StepOptions) -> dict:
    """Measure training steps and evaluations in interleaved pairs and print a table.

    Returns:
        what the JSON file holds.
    """
    # After the options are checked: importing TensorFlow takes seconds, an error should not.
    from cifs_tf import hardware
    from cifs_tf.benchmarks import convolutions
    from cifs_tf.benchmarks import timing as measuring

    console = Console()
    configs = {str(defense): options.run_config(defense) for defense in DEFENSES}
    if options.precision != FLOAT32:
        configs[FLOAT32] = options.run_config("cifs", FLOAT32)
    classifiers = {name: measuring.build(config) for name, config in configs.items()}
    result: dict[str, Any] = {
        "command": "step",
        "options": {**dataclasses.asdict(options), "json": None},
        "machine": hardware.describe_machine(),
        "tasks": {},
    }
    limits = [convolutions.measure_limits(classifiers["vanilla"], options.batch_size, options.precision)]
    for task, make in {"training": measuring.training, "evaluation": measuring.evaluation}.items():
        console.rule(task)
        subjects = {name: make(config, classifiers[name]) for name, config in configs.items()}
        found = measuring.measure_turns(subjects, options.pairs, console.print)
        result["tasks"][task] = {**found, **measuring.ratios_of(found["cifs"], found["vanilla"])}
        if FLOAT32 in found:
            result["tasks"][task]["float32_ratio"] = measuring.ratios_of(found["cifs"], found[FLOAT32])["ratio"]
    # Twice, because the machine may have been slowed down by others the first time.
    limits.append(convolutions.measure_limits(classifiers["vanilla"], options.batch_size, options.precision))
    peak, alone = convolutions.fastest(limits)
    result["convolution_peak"] = peak
    result["convolutions_alone"] = dataclasses.asdict(alone)
    for task, seconds in {
        "training": alone.training_step(options.num_steps),
        "evaluation": alone.evaluation(measuring.EVALUATION_STEPS),
    }.items():
        result["tasks"][task]["convolutions_alone_seconds"] = seconds
    result["peak_memory_bytes"] = hardware.peak_memory()
    console.print(step_table(result))
    for task, found in result["tasks"].items():
        for clock, ratio in {"time": found["ratio"], "processor time": found["cpu_ratio"]}.items():
            interval = "{:.3f} to {:.3f}".format(*ratio["interval"])
            console.print(f"CIFS/vanilla, {clock} of {task}: {ratio['median']:.3f}, 95% interval {interval}")
        if "float32_ratio" in found:
            console.print(benchmark_tables.float32_text(options.precision, {task: found["float32_ratio"]}))
    return result


def step_table(result: dict) -> Table:
    """Lay out what `step` measured: a row for each task and network."""
    options, machine, memory = result["options"], result["machine"], result["peak_memory_bytes"]
    shape, peak = max(result["convolution_peak"].items(), key=lambda item: item[1])
    table = Table(
        title=f"{options['arch']}, width {options['width'] or 'usual'}, {options['precision']}, batches of "
        f"{options['batch_size']} images {options['image_size']} pixels a side,\n"
        f"training with PGD-{options['num_steps']}, evaluation with PGD-20",
        caption=f"{machine['processor']}, {machine['cores']} cores; peak memory {memory / 2**30:.1f} GiB;\n"
        f"convolution peak {peak / 1e9:.3g} GFLOP/s ({shape}); alone: the network's convolutions, each by itself",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("task", no_wrap=True)
    for column in ("first\ncall s", "median\ns", "IQR s", "images/s", "GFLOP/s", "of peak", "alone\ns"):
        table.add_column(column, justify="right", no_wrap=True)
    for task, found in result["tasks"].items():
        for defense in DEFENSES:
            timing = found[defense]
            low_quartile, median, high_quartile = timing["quartiles_seconds"]
            speed = timing["flops"] / median
            table.add_row(
                f"{task} {defense}",
                f"{timing['first_call_seconds']:.3g}",
                f"{median:.3g}",
                f"{high_quartile - low_quartile:.2g}",
                f"{options['batch_size'] / median:.3g}",
                f"{speed / 1e9:.3g}",
                f"{speed / peak:.0%}",
                f"{found['convolutions_alone_seconds']:.3g}",
            )
    return table


def _check_writable(file: Path) -> None:
    """Write beside the file what is gone at once: after an hour of measuring it is too late to find out."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise UserError("--json", file, f"it cannot be written to ({error.strerror})") from error
    if file.is_dir():
        raise UserError("--json", file, "this is a folder, give a file")


def attack(options: AttackOptions) -> dict:
    """Run every attack of a recording, print what it left standing and its seconds beside the official ones.

    Returns:
        what the JSON file holds.
    """
    import tensorflow as tf

    if options.threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    from cifs_tf import hardware
    from cifs_tf.benchmarks.recordings import STANDARD, Recording

    console = Console()
    recording = Recording.load(options.recording)
    robust, seconds = recording.run(batch_size=options.batch_size, report=console.print)
    result = {
        "command": "attack",
        "options": {**dataclasses.asdict(options), "recording": recording.name, "json": None},
        "machine": hardware.describe_machine(),
        "standing": {column: int(found.sum()) for column, found in robust.items()},
        "official_standing": {column: int(found.sum()) for column, found in recording.robust.items()},
        "seconds": seconds,
        "official_seconds": recording.seconds,
    }
    table = Table(
        title=f"{recording.name}: {len(recording.split)} images, epsilon {recording.epsilon:g}",
        caption="The official seconds were taken on another machine; compiling is part of ours.",
        box=box.SIMPLE,
    )
    for heading in ("attack", "standing", "official", "seconds", "compiling", "official"):
        table.add_column(heading, justify="left" if heading == "attack" else "right")
    for column, found in robust.items():
        own = [f"{seconds[key]:.1f}" if key in seconds else "" for key in (column, f"{column}, compiling")]
        theirs = f"{recording.seconds[column]:.1f}" if column in recording.seconds else ""
        table.add_row(column, f"{found.sum()}", f"{recording.robust[column].sum()}", *own, theirs)
    sums = [sum(part[column] for column in STANDARD) for part in (seconds, recording.seconds)]
    compiling = sum(seconds[f"{column}, compiling"] for column in STANDARD)
    table.add_row("the four of standard", "", "", f"{sums[0]:.1f}", f"{compiling:.1f}", f"{sums[1]:.1f}")
    console.print(table)
    return result


def serve(options: ServeOptions) -> dict:
    """Measure throughput and latency of the local server, without and with batching, and print a table.

    Returns:
        what the JSON file holds.
    """
    import numpy as np
    import tensorflow as tf

    from cifs_tf import hardware
    from cifs_tf.benchmarks import serving_load
    from cifs_tf.export import export
    from cifs_tf.models import build_classifier

    console = Console()
    shape = (options.image_size, options.image_size, 3)
    classifier = build_classifier(ModelConfig(arch=options.arch, width=options.width), shape, 10)
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    image, file = (pixels / 255).astype(np.float32), tf.io.encode_png(pixels).numpy()
    found: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        base = Path(folder) / "cifs"
        version = export(classifier, base, formats=("savedmodel",))
        clients: dict[str, list[serving_load.Ask]] = {"direct": [serving_load.direct_client(version, image)]}
        for label, arguments in (("", ()), (", batching", ("--enable_batching",))):
            rest, rpc = stack.enter_context(serving_load.running_server(base, "cifs", *arguments))
            count = range(options.clients)
            clients[f"REST, encoded{label}"] = [serving_load.rest_client(rest, "cifs", file) for _ in count]
            clients[f"gRPC, float{label}"] = [serving_load.grpc_client(rpc, "cifs", image) for _ in count]
        for number in range(options.rounds):
            for name, asking in clients.items():
                found.setdefault(name, []).append(serving_load.measure(asking, options.seconds))
            latest = ", ".join(f"{name} {runs[-1]['requests_per_second']:.1f}" for name, runs in found.items())
            console.print(f"round {number + 1} of {options.rounds}: {latest} requests a second", soft_wrap=True)
    table = Table(
        title=f"{options.arch}, width {options.width}: {options.clients} clients, one process", box=box.SIMPLE
    )
    for heading in ("", "requests/s", "of direct", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right" if heading else "left")
    medians = {
        name: {key: float(np.median([run[key] for run in runs])) for key in runs[0]} for name, runs in found.items()
    }
    rates = {name: np.array([run["requests_per_second"] for run in runs]) for name, runs in found.items()}
    ratios = {name: float(np.median(rate / rates["direct"])) for name, rate in rates.items()}
    for name, median in medians.items():
        numbers = median["requests_per_second"], 100 * ratios[name], median["p50_ms"], median["p99_ms"]
        table.add_row(name, *(text.format(value) for text, value in zip(TEXTS, numbers, strict=True)))
    console.print(table)
    return {
        "command": "serve",
        "options": {**dataclasses.asdict(options), "json": None},
        "machine": hardware.describe_machine(),
        "rounds": found,
        "ratio_to_direct": ratios,
    }


def precision(options: PrecisionOptions) -> dict[str, Any]:
    """Compare attacks in two precisions, and print a table.

    Returns:
        what the JSON file holds.
    """
    from cifs_tf import hardware
    from cifs_tf.benchmarks import precision as precisions

    workdir = Workdir(options.run)
    # Of a path that means nothing on another machine, the name alone.
    named = workdir.path.name if Path(options.run).is_absolute() else options.run
    result = {
        "command": "precision",
        "options": {**dataclasses.asdict(options), "run": named, "json": None},
        "machine": hardware.describe_machine(),
        "attacks": precisions.measure(workdir, options.examples, options.batch_size),
    }
    print(benchmark_tables.precision_table(result))
    return result


def resources(options: ResourcesOptions) -> dict[str, Any]:
    """Measure whether anything but arithmetic could hold a training step up, and print it.

    Returns:
        what the JSON file holds.
    """
    from cifs_tf import hardware
    from cifs_tf.benchmarks import resources as measured

    configs = options.run_configs()
    result = {
        "command": "resources",
        "options": {**dataclasses.asdict(options), "json": None},
        "machine": hardware.describe_machine(),
        "input_images_per_second": measured.input_speed(configs[0], options.batches),
        "attacks": {str(config.attack.num_steps): measured.attack_memory(config) for config in configs},
    }
    print(benchmark_tables.resources_text(result), benchmark_tables.resources_table(result), sep="\n\n")
    return result


COMMANDS: dict[str, tuple[type, Callable]] = {
    "step": (StepOptions, step),
    "attack": (AttackOptions, attack),
    "serve": (ServeOptions, serve),
    "scale": (ScaleOptions, scale),
    "precision": (PrecisionOptions, precision),
    "resources": (ResourcesOptions, resources),
}


def start() -> NoReturn:
    """Run the program on the command line of this process, and exit."""
    run_program(main)
