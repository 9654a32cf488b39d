"""Measure how fast this machine runs the library, and what CIFS costs over a vanilla network.

    python training/benchmark.py step                ResNet-18, batch 64, PGD-10: up to an hour on two cores
    python training/benchmark.py step --width 16 --pairs 5 --json step.json
    python training/benchmark.py attack --recording FILE.npz     our AutoAttack beside the official one's seconds
    python training/benchmark.py serve               REST and gRPC requests beside calls of the model itself
    python training/benchmark.py methods             a training step of each method beside one of PGD
    python training/benchmark.py scale               what sharing a step among devices costs
    python training/benchmark.py precision --run WORKDIR         whether attacks in bfloat16 are as strong
    python training/benchmark.py images --folder PATH            files to batches, cold and cached, beside Keras
    python training/benchmark.py resources           what the input pipeline delivers; memory of long attacks

FLOPs are counted from the layers' shapes, 2 per multiply-accumulate of every convolution and dense layer.
A forward pass is F; a step of an attack 2 F (forward, and backward to the image); an update 3 F (forward, and
backward to inputs and kernels) without the first layer's gradient to the image (`cifs_tf.models.flops`).
"""

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cifs_tf.benchmarks.options import (
    AttackOptions,
    BenchmarkOptions,
    ImagesOptions,
    MethodsOptions,
    PrecisionOptions,
    ResourcesOptions,
    ScaleOptions,
    ServeOptions,
    StepOptions,
)
from cifs_tf.benchmarks.tables import TABLES
from cifs_tf.command_line import parse_options
from cifs_tf.errors import UserError
from cifs_tf.files import write_json

# The modules of `cifs_tf.benchmarks` of the same names measure.
COMMANDS: dict[str, type[BenchmarkOptions]] = {
    "step": StepOptions,
    "attack": AttackOptions,
    "serve": ServeOptions,
    "methods": MethodsOptions,
    "scale": ScaleOptions,
    "precision": PrecisionOptions,
    "images": ImagesOptions,
    "resources": ResourcesOptions,
}


def main(argv: Sequence[str]) -> None:
    """Carry out the command that comes first in `argv`, with the options after it."""
    command, *arguments = argv or ["--help"]
    if command in ("-h", "--help"):
        print(__doc__)
        print("Commands:", ", ".join(COMMANDS), "(each has a --help of its own)")
        return
    if command not in COMMANDS:
        raise UserError("command", command, f"give one of {', '.join(COMMANDS)}")
    options_class = COMMANDS[command]
    options = parse_options(options_class, f"benchmark.py {command}", arguments, options_class.__doc__ or "")
    if options.json is not None:
        _check_writable(Path(options.json))
    console = Console()
    # With TensorFlow, which takes seconds to import: an error in the options should not.
    from cifs_tf.hardware import describe_machine

    benchmark: Any = importlib.import_module(f"cifs_tf.benchmarks.{command}")
    result = {"command": command, "options": options.described(), "machine": describe_machine()}
    result |= benchmark.run(options, lambda line: console.print(line, soft_wrap=True, highlight=False))
    console.print("{processor}, {cores} cores".format(**result["machine"]), highlight=False)
    for make_table in TABLES[command]:
        console.print(make_table(result).screen())
    if options.json is not None:
        write_json(Path(options.json), result)
        console.print(f"Written: {options.json}", soft_wrap=True)


def _check_writable(file: Path) -> None:
    """Create and delete a file beside it: after an hour of measuring it is too late to find out."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise UserError("--json", file, f"it cannot be written to ({error.strerror})") from error
    if file.is_dir():
        raise UserError("--json", file, "this is a folder, give a file")
