"""Measure how fast this machine runs the library, and what CIFS costs over a vanilla network.

    python training/benchmark.py step                ResNet-18, batch 64, PGD-10: up to an hour on two cores
    python training/benchmark.py step --width 16 --pairs 5 --json step.json

FLOPs are counted from the layers' shapes, 2 per multiply-accumulate of every convolution and dense layer.
A forward pass is F; a step of an attack 2 F (forward, and backward to the image); an update 3 F (forward, and
backward to inputs and kernels) without the first layer's gradient to the image (`cifs_tf.models.flops`).
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich import box
from rich.console import Console
from rich.table import Table

from cifs_tf.config import AttackConfig, DataConfig, ModelConfig, RunConfig, TrainConfig
from cifs_tf.errors import UserError
from training.cli import explain, run_program, with_underscores
from training.workdir import write_json

DEFENSES: tuple[Literal["cifs", "vanilla"], ...] = ("cifs", "vanilla")


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
        precision: float32, mixed_bfloat16, or float64.
        json: file for everything that was measured; null for none.
    """

    arch: Literal["resnet10", "resnet18", "resnet34", "wrn28-10", "wrn34-10"] = "resnet18"
    width: int | None = None
    batch_size: int = 64
    num_steps: int = 10
    image_size: int = 32
    pairs: int = 10
    precision: Literal["float32", "mixed_bfloat16", "float64"] = "float32"
    json: str | None = None

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise UserError("--pairs", self.pairs, "give a number of 1 or more")
        self.run_config("cifs")

    def run_config(self, defense: Literal["cifs", "vanilla"]) -> RunConfig:
        """Return the config of a run that takes such steps."""
        return RunConfig(
            data=DataConfig(image_size=self.image_size),
            model=ModelConfig(arch=self.arch, width=self.width, defense=defense),
            # So small that the weights, and with them the work, stay the same from step to step.
            train=TrainConfig(batch_size=self.batch_size, precision=self.precision, learning_rate=1e-8),
            attack=AttackConfig(num_steps=self.num_steps),
        )


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
    run(parse_options(options_class, f"benchmark.py {command}", arguments))


def parse_options(options_class: type, program: str, argv: Sequence[str]):
    """Parse a command line into a dataclass whose fields are the options.

    Raises:
        UserError: naming the option, what was received and the way out.
        SystemExit: after `--help`, with code 0.
    """
    description = (options_class.__doc__ or "").splitlines()[0]
    parser = ArgumentParser(prog=program, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(options_class)
    arguments = [with_underscores(argument) for argument in argv]
    try:
        parsed = parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        raise explain(str(error), [options_class], arguments) from error
    return options_class(**vars(parsed))


def step(options: StepOptions) -> dict:
    """Measure training steps and evaluations in interleaved pairs, print a table and write the JSON file.

    Returns:
        what the JSON file holds.

    Raises:
        UserError: if the JSON file cannot be written; nothing has been measured then.
    """
    if options.json is not None:
        _check_writable(Path(options.json))
    # After the options are checked: importing TensorFlow takes seconds, an error should not.
    from training import machine, measuring

    console = Console()
    classifiers = {defense: measuring.build(options.run_config(defense)) for defense in DEFENSES}
    shapes = machine.convolution_shapes(classifiers["vanilla"])
    result: dict[str, Any] = {
        "command": "step",
        "options": dataclasses.asdict(options),
        "machine": machine.describe_machine(),
        "tasks": {},
    }
    peaks = [machine.convolution_peak(shapes, options.batch_size, options.precision)]
    for task, make in {"training": measuring.training, "evaluation": measuring.evaluation}.items():
        console.rule(task)
        subjects = {str(name): make(options.run_config(name), classifiers[name]) for name in DEFENSES}
        result["tasks"][task] = measuring.measure_pairs(subjects, options.pairs, console.print)
    # Twice, because the machine may have been slowed down by others the first time.
    peaks.append(machine.convolution_peak(shapes, options.batch_size, options.precision))
    result["convolution_peak"] = {shape: max(peak[shape] for peak in peaks) for shape in peaks[0]}
    result["peak_memory_bytes"] = machine.peak_memory()
    console.print(step_table(result))
    for task, found in result["tasks"].items():
        for clock, ratio in {"time": found["ratio"], "processor time": found["cpu_ratio"]}.items():
            interval = "{:.3f} to {:.3f}".format(*ratio["interval"])
            console.print(f"CIFS/vanilla, {clock} of {task}: {ratio['median']:.3f}, 95% interval {interval}")
    if options.json is not None:
        write_json(Path(options.json), result)
        console.print(f"Written: {options.json}", soft_wrap=True)
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
        f"convolution peak {peak / 1e9:.3g} GFLOP/s ({shape})",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("task", no_wrap=True)
    for column in ("first\ncall s", "median\ns", "IQR s", "images/s", "GFLOP/s", "of peak"):
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


COMMANDS: dict[str, tuple[type, Callable]] = {"step": (StepOptions, step)}


if __name__ == "__main__":
    run_program(main)
