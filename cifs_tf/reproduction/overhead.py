"""The overhead of CIFS (Section 4.1.1): seconds of an epoch and of an evaluation, measured in interleaved pairs."""

import dataclasses
from pathlib import Path
from typing import Any

from cifs_tf.files import now, read_json
from cifs_tf.reproduction.plan import Job
from cifs_tf.reproduction.scales import Scale
from cifs_tf.runs.provenance import revision
from cifs_tf.runs.recipes import arguments

NAME = "overhead"
TITLE = "training and evaluation time of a vanilla network and of its CIFS-modified version"
# The paper's seconds on ResNet-18, and the images of CIFAR-10 in an epoch and in an evaluation.
IMAGES = {"training": 50_000, "evaluation": 10_000}
PAPER = {"training": {"vanilla": 166.0, "cifs": 172.0}, "evaluation": {"vanilla": 53.0, "cifs": 56.0}}
ROWS = {"training": "PGD-10 training, an epoch", "evaluation": "PGD-20 evaluation, all test images"}
STEPS: dict[str, dict[str, Any]] = {
    "full": {"batch_size": 128},
    "small": {"arch": "resnet10", "width": 16, "image_size": 28, "batch_size": 128, "pairs": 8},
    "smoke": {"arch": "resnet10", "width": 4, "image_size": 8, "batch_size": 2, "num_steps": 1, "pairs": 1},
}


@dataclasses.dataclass(frozen=True)
class Overhead(Job):
    """The benchmark that alternates CIFS and vanilla; its images are random ones.

    Args:
        scale: name of the scale.
    """

    program = "benchmark"
    scale: str

    @property
    def folder(self) -> str:
        return NAME

    @property
    def file(self) -> str:
        """The file that it leaves, below the workdir of the reproduction."""
        return f"{self.folder}/step.json"

    def argv(self, workdir: Path, data_dir: str | None = None) -> list[str]:
        return ["step", *arguments({**STEPS[self.scale], "json": workdir / self.file})]

    def is_done(self, workdir: Path) -> bool:
        return (workdir / self.file).exists()


def build_overhead(job: Overhead, scale: Scale, workdir: Path, command: str) -> dict[str, Any]:
    """Make a table of what the benchmark found: medians for as many images as CIFAR-10 has, and their ratio.

    Returns:
        as `cifs_tf.reproduction.results.build_result` does.
    """
    found = read_json(workdir / job.file)
    return {
        "schema": 1,
        "table": NAME,
        "title": TITLE,
        "scale": scale.name,
        "about": f"Steps of {found['options']['arch']}, width {found['options']['width'] or 'usual'}, PGD-"
        f"{found['options']['num_steps']}, on random images of {found['options']['image_size']} pixels a side, times "
        "their number for as many images as CIFAR-10 has; on another machine than the paper's.",
        "command": command,
        "seeds": 1,
        "unit": "seconds, and percent in the last column",
        "interval": f"95% by bootstrap over {found['options']['pairs']} interleaved pairs",
        "columns": ["Vanilla", "CIFS", "CIFS costs more (%)"],
        "renamed": {},
        "rows": [_row(task, found) for task in ROWS],
        "networks": {},
        "benchmark": {"command": job.command(Path("WORKDIR")), "machine": found["machine"], "revision": revision()},
        "made": now(),
    }


def _row(task: str, found: dict[str, Any]) -> dict[str, Any]:
    measured, paper = found["tasks"][task], PAPER[task]
    batches = IMAGES[task] / found["options"]["batch_size"]
    seconds = [
        {
            "ours": measured[defense]["quartiles_seconds"][1] * batches,
            "interval": None,
            "paper": paper[defense],
            "difference": None,
        }
        for defense in ("vanilla", "cifs")
    ]
    ours, theirs = 100 * (measured["ratio"]["median"] - 1), 100 * (paper["cifs"] / paper["vanilla"] - 1)
    interval = [100 * (bound - 1) for bound in measured["ratio"]["interval"]]
    more = {"ours": ours, "interval": interval, "paper": theirs, "difference": ours - theirs}
    return {"block": "CIFS and vanilla", "name": ROWS[task], "networks": [], "cells": [*seconds, more]}
