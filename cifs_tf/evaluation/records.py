"""Types of the files of an evaluation: header and lines of its ledger, its tasks, its report.

Fields have the names of the JSON files, which are part of their format (schema 1). Where the field's word is another,
its comment says so.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NotRequired, TypedDict

import numpy as np

MAIN = "main"


@dataclasses.dataclass(frozen=True)
class TaskRecord:
    """A task as files hold it; see `cifs_tf.evaluation.tasks.Task` for the fields.

    Args:
        kind: class of the task, such as `"Crafted"`.
        attack: class (`kind`) and hyper-parameters; None for a task without an attack.
        surrogate: name of the model that the attack made its images on; None for the attacked one.
        sample, epsilon, norm, is_on_grid: of sanity checks, see `cifs_tf.evaluation.checks.sanity`.
        eot, votes: of networks that answer by chance, see `cifs_tf.evaluation.chance`.
    """

    kind: str
    name: str
    on: str
    pool: str
    counts: bool
    section: str
    family: str
    beta: float | str
    mask_gradient: str
    target_rank: int
    x: float | None
    attack: dict[str, Any] | None = None
    surrogate: str | None = None
    sample: int | None = None
    epsilon: float | None = None
    norm: str | None = None
    is_on_grid: bool | None = None
    eot: int | None = None
    votes: int | None = None

    def in_pool(self, pool: str) -> bool:
        """Return whether an image that the task breaks is no survivor of a pool."""
        return self.pool == pool != MAIN or (pool == MAIN and self.counts)


class Key(TypedDict):
    """Hashes and versions of libraries, which must agree for a ledger to be resumed or merged."""

    weights: str
    data: str
    config: str
    code: str
    versions: dict[str, str]


class About(TypedDict, total=False):
    """Description of an evaluation; further entries are those given to `evaluate(about=)`."""

    network: str  # name of the attacked model
    num_probes: int
    num_classes: int
    mask_gradients: list[str]
    limits: list[str]
    num_examples: int
    seed: int
    precision: str
    tensor_float_32: bool
    suite: str | None
    epsilon: float | None
    epsilon_given: str | None  # as it was written, such as 8/255
    norm: str
    dataset: str | None
    images: str  # hash of all images of the dataset, see `cifs_tf.data.identity.Identity`
    unlike_run: list[str]  # in what they differ from those that the network's run was trained on
    split: NotRequired[str]  # of the dataset, test or validation
    subset_of: int | None
    class_names: list[str] | None
    tasks: list[dict[str, Any]]  # `TaskRecord`s; in the header of a ledger only


class Answers(TypedDict):
    """Answers of a network by which it is known again, see `networks.answers`; None for what is no number."""

    heads: list[list[float | None]]
    gradients: list[list[float | None]] | None


class Header(TypedDict):
    """First line of a ledger, beside the number of the schema."""

    key: Key
    shard: str
    about: About
    answers: NotRequired[Answers | None]


class LedgerLine(TypedDict):
    """Measurements of a task on some images; in the file a checksum of it, `check`, comes last."""

    task: str
    ids: list[int]
    values: dict[str, list[Any]]
    seconds: float


class Accuracy(TypedDict):
    """A share of all images; `interval` is Wilson's at 95%, None if all images of a dataset were measured."""

    accuracy: float
    count: int
    interval: list[float] | None


class AttackAccuracy(TypedDict, total=False):
    """Accuracy under one attack of the paper, at every beta_atk, and the lowest of these."""

    by_beta: dict[str, float]
    accuracy: float
    beta: str
    interval: list[float] | None


class Paper(TypedDict):
    """Robust accuracy by the paper's convention, and the attack and beta_atk that it belongs to."""

    robust_accuracy: float
    attack: str
    beta: str
    attacks: dict[str, AttackAccuracy]


class AttackRow(TypedDict):
    """Tasks of one section and family: how many images they broke that were right before, and what survived."""

    section: str
    attack: str
    runs: int
    broke_first: int
    standing: int  # survivors


ClassRow = TypedDict(
    "ClassRow",
    {"class": str, "num_examples": int, "natural": float, "worst_case": float, "interval": list[float]},
)
"""Natural and worst-case accuracy of one class."""


class Distances(TypedDict):
    """Smallest distances that minimal-norm attacks found: upper bounds, None where none was found.

    `median` and its 95% `interval` are of the images that are right without an attack, also of each attack by itself.
    """

    median: float | None
    interval: list[float | None]
    by_attack: dict[str, float | None]
    smallest: list[float | None]  # of each image, 0 where it is wrong without an attack


class Corruptions(TypedDict):
    """Mean corruption error (the mean of all error rates), its 95% interval for a subset, accuracies by severity."""

    mce: float
    interval: list[float] | None
    kinds: dict[str, list[float]]


class CheckRecord(TypedDict):
    """A check of the audit, see `cifs_tf.evaluation.checks.audit.Check`."""

    name: str
    verdict: str
    number: float | None
    sentence: str


class Example(TypedDict):
    """An image before and after an attack: float arrays (height, width, channels) in [0, 1]."""

    title: str
    image: np.ndarray
    x_adv: np.ndarray


class Report(TypedDict):
    """Result of `cifs_tf.evaluation.build_report`, and content of `report.json`."""

    schema: int
    about: About
    key: Key
    num_examples: int
    natural: Accuracy
    paper: Paper | None
    worst_case: Accuracy
    gap: float | None
    attacks: list[AttackRow]
    top_k: dict[str, dict[str, float]]
    matrix: dict[str, Any] | None
    per_class: list[ClassRow]
    curves: dict[str, list[tuple[float, float]]]
    audit: list[CheckRecord]
    believable: bool | None  # audit passed; None without an audit
    broken_by: list[str | None]
    tasks: list[dict[str, Any]]
    distances: NotRequired[Distances]  # with minimal-norm attacks
    corruptions: NotRequired[Corruptions]  # with the suite of that name
    wall_clock: dict[str, Any]


def is_through_usual_gradients(report: dict[str, Any]) -> bool:
    """Say whether attacks went through the gradients of the mask that the suite takes by itself: the paper's through
    the network's first one, those of `adaptive` and `strict` through every one."""
    about, used = report["about"], dict[str, set[str]]()
    for task in report["tasks"]:
        used.setdefault(task["section"], set()).add(task["mask_gradient"])
    first, paper = set(about["mask_gradients"][:1]), used.get("paper", set())
    if about["suite"] in ("adaptive", "strict"):
        return paper <= first and used.get("adaptive") == set(about["mask_gradients"])
    return paper | used.get("autoattack", set()) <= first
