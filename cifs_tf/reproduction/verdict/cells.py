"""Cells of the study, one arm with one seed: planned as ordinary runs and evaluations, kept as one small file each."""

import dataclasses
import datetime
import functools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cifs_tf.config import RunConfig
from cifs_tf.errors import UserError
from cifs_tf.files import read_results, with_check, write_text
from cifs_tf.reproduction.catalogue import NetworkSpec
from cifs_tf.reproduction.plan import ATTACK_BETAS, Evaluation, Job, Training, plan_training
from cifs_tf.reproduction.scales import SCALES, EvaluationSetup, Scale
from cifs_tf.reproduction.verdict.study import NAME, Arm, Study
from cifs_tf.runs.curves import VALIDATION_STEPS, WATCHED
from cifs_tf.runs.workdir import PLACES

CHECKPOINTS: tuple[Literal["last", "best"], ...] = ("last", "best")
# Where the finished cells lie, in the folder of the page.
CELLS = Path("results") / NAME
# Begins the names of what chose the schedule, which lies there too.
PILOT = "pilot-"
SCHEMA = 1
# Cells are paired by their images.
AGREE = ("images", "labels", "class_names", "schema")
# What the page shows beside verdicts and curves.
SHOWN = {*AGREE, "revisions", "code", "finished"}
CHANNELS = ("natural_negative_share", "adversarial_negative_share", "natural_alignment", "adversarial_alignment")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One arm with one seed.

    Args:
        arm: what is trained.
        seed: of the run and of its evaluation.
        training: the run.
        evaluations: of the last and of the best epoch.
    """

    arm: Arm
    seed: int
    training: Training
    evaluations: tuple[Evaluation, ...]

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.arm.name}-seed{self.seed}"

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Jobs to carry out before it can be written, in order."""
        return self.training, *self.evaluations

    def file(self, docs: Path) -> Path:
        """Return its file, when it is finished, below the folder of the page."""
        return docs / CELLS / f"{self.name}.json"


def scale_of(study: Study, name: str) -> Scale:
    """Say how much is done: `"full"` is the study itself, `"smoke"` next to nothing.

    Raises:
        UserError: for a scale that the study does not have.
    """
    setups = {"paper": EvaluationSetup(study.suite, study.examples, study.attacks)}
    if name == "smoke":
        return dataclasses.replace(SCALES["smoke"], setups=setups, keeps=None)
    if name != "full":
        raise UserError("--scale", name, "the study has one size, full, which two cores carry; or give smoke")
    return Scale(name="full", about="", settings={}, setups=setups)


def plan_cells(study: Study, scale: Scale, seeds: int, arms: Sequence[str] | None = None) -> list[Cell]:
    """List the cells of some arms, or all, in the order in which they are computed: with seed 0, then with seed 1, ...

    Raises:
        UserError: for an arm that the study does not have.

    Example:
        >>> from cifs_tf.reproduction.verdict.study import load_study
        >>> study = load_study()
        >>> plan_cells(study, scale_of(study, "full"), seeds=1)[0].name
        'vanilla-seed0'
    """
    if unknown := set(arms or ()) - set(study.arms):
        raise UserError("--arms", ",".join(sorted(unknown)), f"give some of {', '.join(study.arms)}, or null for all")
    chosen = [arm for name, arm in study.arms.items() if arms is None or name in arms]
    return [_plan_cell(study, arm, scale, seed) for seed in range(seeds) for arm in chosen]


def _plan_cell(study: Study, arm: Arm, scale: Scale, seed: int) -> Cell:
    training = plan_training(NetworkSpec(study.recipe, arm.run, {}), scale, seed)
    setup = scale.setups["paper"]
    evaluations = tuple(Evaluation(training, "verdict", setup, checkpoint) for checkpoint in CHECKPOINTS)
    return Cell(arm, seed, training, evaluations)


def pack_bits(verdicts: np.ndarray) -> str:
    """Write a verdict for each image, bool (images,), as hexadecimal digits, four images each, the first one highest.

    Example:
        >>> pack_bits(np.array([True, False, False, False, True]))
        '88'
    """
    return np.packbits(np.asarray(verdicts, bool)).tobytes().hex()[: -(-len(verdicts) // 4)]


def unpack_bits(text: str, number: int) -> np.ndarray:
    """Read what `pack_bits` wrote: bool (number,).

    Example:
        >>> unpack_bits("88", 5).tolist()
        [True, False, False, False, True]
    """
    content = np.frombuffer(bytes.fromhex(text + "0" * (len(text) % 2)), np.uint8)
    return np.unpackbits(content, count=number).astype(bool)


def write_cell(cell: dict[str, Any], file: Path, study: Study, others: Sequence[dict[str, Any]] = ()) -> None:
    """Write a cell of `measure_cell`, to be compared with others, with a checksum: a line for each part.

    Raises:
        UserError: if it is not the cell of its name, or was measured on other images than these; nothing is written.
    """
    if not _is_whole(cell, file.stem, study):
        raise UserError("--study", file.stem, "what was measured is not that cell; its workdir is another study's")
    check_paired([*others, cell])
    content = with_check(cell).items()
    parts = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}" for key, value in content]
    write_text(file, "{\n" + ",\n".join(parts) + "\n}\n")


def read_cells(docs: Path, study: Study) -> list[dict[str, Any]]:
    """Read the finished cells of the study's arms below the folder of the page, by arm, then by seed.

    Raises:
        UserError: if one is not what its name says or was edited, or they were not measured on the same images; for
            files there that are neither cells nor pilots.
    """
    files = [file for file in sorted((docs / CELLS).glob("*.json")) if not file.name.startswith(PILOT)]
    for file in files:
        name = re.fullmatch(r"(.+)-seed(0|[1-9]\d*)", file.stem)
        if name is None or name[1] not in study.arms:
            advice = f"{file} is no cell, such as vanilla-seed0.json, and no pilot; rename or remove it"
            raise UserError("--study", file.stem, advice)
    cells = [_read_cell(file, study) for file in files]
    check_paired(cells)
    return sorted(cells, key=lambda cell: (list(study.arms).index(cell["arm"]), cell["seed"]))


def _read_cell(file: Path, study: Study) -> dict[str, Any]:
    try:
        cell: dict[str, Any] = read_results(file)
        is_whole = _is_whole(cell, file.stem, study)
    except (UserError, RecursionError):  # damaged, edited, or not readable
        is_whole = False
    if not is_whole:
        advice = f"{file} is not what the study wrote under that name; delete it, and --study computes it again"
        raise UserError("--study", file.stem, advice)
    return cell


def _is_whole(cell: dict[str, Any], name: str, study: Study) -> bool:
    """Say whether a cell is its name's, as long as it should be, and right under all attacks only where under each."""
    try:
        return _is_of_its_name(cell, name, study) and _is_complete(cell, study) and _is_consistent(cell)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError):
        return False


def _is_of_its_name(cell: dict[str, Any], name: str, study: Study) -> bool:
    """Say whether the run was what the study plans under that name, whatever else there is in the cell."""
    arm, seed = study.arms[cell["arm"]], cell["seed"]
    planned = _plan_cell(study, arm, scale_of(study, study.scale), seed).training
    # An option that there was not yet has its default; with any other value it is missing.
    usual, missing = _defaults(), {name for name, _ in planned.config}.difference(cell["config"], PLACES)
    is_named = cell["schema"] == SCHEMA and name == f"{arm.name}-seed{seed}"
    return is_named and all(planned[name] == usual[name] for name in missing) and planned.is_of(cell["config"])


@functools.cache
def _defaults() -> dict[str, Any]:
    return dict(json.loads(json.dumps(RunConfig().flat(), default=str)))


def _is_complete(cell: dict[str, Any], study: Study) -> bool:
    """Say whether a cell has everything that the page shows, of as many images and attacks as the study plans."""
    curve, epochs, classes = cell["curves"][WATCHED], cell["config"]["epochs"], len(cell["class_names"])
    _, per_class = np.unique(cell["labels"], return_counts=True)
    datetime.datetime.fromisoformat(cell["finished"])  # a ValueError, if it is no time
    is_whole = cell.keys() >= SHOWN and None not in curve
    is_whole &= all(isinstance(text, str) and text for text in (cell["code"], *cell["revisions"].values()))
    is_whole &= cell["revisions"].keys() >= {"training", "evaluation"}
    is_whole &= len(cell["labels"]) == study.examples and len(per_class) == classes and np.ptp(per_class) <= 1
    last, best = (cell["checkpoints"][checkpoint] for checkpoint in CHECKPOINTS)
    # The curve is rounded: of several highest epochs any may have been the best.
    is_whole &= last["epoch"] == epochs and best["epoch"] >= 1 and curve[best["epoch"] - 1] == max(curve)
    is_whole &= last["epoch"] != best["epoch"] or last == best
    # Without selection layers there is one beta_atk.
    betas = ["0"] if cell["config"]["defense"] == "vanilla" else list(map(str, ATTACK_BETAS))
    return bool(is_whole) and all(_is_measured(found, study, betas) for found in (last, best))


def _is_measured(found: dict[str, Any], study: Study, betas: list[str]) -> bool:
    """Say whether a network was measured as the study plans, and its audit says what its checks say."""
    training = found["training"]
    return (
        found["channels"].keys() == set(CHANNELS)
        and (training["images"], training["attack"]) == (study.training_examples, f"pgd{VALIDATION_STEPS}")
        and found["audit_passed"] is ("fail" not in found["audit"].values())
        and list(found["paper"]) == list(study.attacks)
        and all(list(by_beta) == betas for by_beta in found["paper"].values())
    )


def _is_consistent(cell: dict[str, Any]) -> bool:
    """Say whether the numbers of a cell can be, and agree: the worst case with each attack, and what broke first."""
    config, number = cell["config"], len(cell["labels"])
    for found in (cell["checkpoints"][checkpoint] for checkpoint in CHECKPOINTS):
        worst, natural = found["worst_case"], found["natural"]
        others = [natural, *(text for by_beta in found["paper"].values() for text in by_beta.values())]
        if not all(re.fullmatch(f"[0-9a-f]{{{-(-number // 4)}}}", text) for text in (worst, *others)):
            return False
        if any(int(worst, 16) & ~int(text, 16) for text in others):
            return False
        broken = int(natural, 16).bit_count() - int(worst, 16).bit_count()
        if broken != sum(found["broke_first"].values()) or min(found["broke_first"].values()) < 0:
            return False
        measured = {name: value for name, value in found["channels"].items() if value is not None}
        measured |= {f"{name}_accuracy": found["training"][name] for name in ("natural", "robust")}
        if not all(_is_possible(name, value) for name, value in measured.items()):
            return False
    curves = cell["curves"].items()
    is_possible = all(_is_possible(name, value) for name, curve in curves for value in curve if value is not None)
    return is_possible and {len(curve) for _, curve in curves} == {config["epochs"]}


def _is_possible(name: str, value: float) -> bool:
    """Say whether a number may be what its name says."""
    ranges = {"accuracy": (0, 1), "share": (0, 1), "alignment": (-1, 1)}
    low, high = ranges.get(name.split("_")[-1], (-math.inf, math.inf))
    return math.isfinite(value) and low <= value <= high


def check_paired(cells: Sequence[dict[str, Any]]) -> None:
    """Refuse cells that cannot be compared image by image.

    Raises:
        UserError: naming one.
    """
    for cell in cells:
        for name in AGREE:
            if cell[name] != cells[0][name]:
                both = [f"{each['arm']}-seed{each['seed']}" for each in (cells[0], cell)]
                advice = f"its {name} is not that of {both[0]}, measure both on the same images"
                raise UserError("--study", both[1], advice)
