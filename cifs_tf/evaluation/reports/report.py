"""From a ledger to a report: numbers in plain types, each computed here and nowhere else."""

import dataclasses
from typing import Any, cast

import numpy as np

from cifs_tf.evaluation.checks.audit import audit, audit_passed
from cifs_tf.evaluation.corrupted import describe_corruptions
from cifs_tf.evaluation.ledger import Ledger
from cifs_tf.evaluation.records import (
    MAIN,
    About,
    Accuracy,
    AttackAccuracy,
    AttackRow,
    CheckRecord,
    ClassRow,
    Paper,
    Report,
    TaskRecord,
)
from cifs_tf.evaluation.reports.distances import describe_distances, distance_curve
from cifs_tf.files import now
from cifs_tf.statistics import wilson_interval

SCHEMA = 1
TOP_K = (1, 2, 3)
CURVES = ("epsilon", "steps", "restarts")


def build_report(ledger: Ledger) -> Report:
    """Compute a report from the ledger of a finished evaluation.

    Two conventions stand side by side. `paper`: the share of all images whose final prediction is right under an
    attack, the lowest over beta_atk for each attack, the lowest of these at last (a minimum of means). `worst_case`:
    the share of images that are right without an attack and under every attack (a mean of minima); never higher.

    Args:
        ledger: what was found.

    Returns:
        plain types only: `about`, `natural`, `paper` (None if the suite has no such attacks), `worst_case`, `gap`,
        `attacks`, `top_k` (Table 4), `matrix` (Table 5), `per_class`, `curves`, `audit`, `broken_by` (for every image
        what broke it first, or None), `tasks`, `wall_clock`, the only part that differs from run to run, and with
        minimal-norm attacks `distances`, with corruptions `corruptions`.

    Example:
        >>> build_report(ledger)["worst_case"]["accuracy"]
        0.554
    """
    about = ledger.header["about"].copy()
    del about["tasks"]
    tasks, count = ledger.tasks, ledger.num_examples
    is_subset = about.get("subset_of") is not None
    broken_by = _broken_by(ledger, tasks)
    worst_case = _accuracy(sum(by is None for by in broken_by.values()), count, is_subset)
    paper = _paper(ledger, tasks, is_subset)
    checks = audit(ledger)
    curves = {pool: curve for pool in CURVES if (curve := ledger.curve(pool))}
    distances = describe_distances(ledger)
    lowest = min((attack["accuracy"] for attack in paper["attacks"].values()), default=None) if paper else None
    report: Report = {
        "schema": SCHEMA,
        "about": about,
        "key": ledger.header["key"],
        "num_examples": count,
        "natural": _accuracy(len(ledger.correct()), count, is_subset),
        "paper": paper,
        "worst_case": worst_case,
        "gap": None if lowest is None else lowest - worst_case["accuracy"],
        "attacks": _attacks(ledger, tasks),
        "top_k": _top_k(ledger, tasks, paper),
        "matrix": _matrix(ledger, tasks),
        "per_class": _per_class(ledger, broken_by, about),
        "curves": curves | ({"distances": distance_curve(distances)} if distances else {}),
        "audit": [cast(CheckRecord, dataclasses.asdict(check)) for check in checks],
        "believable": audit_passed(checks),
        "broken_by": list(broken_by.values()),
        "tasks": [_task(ledger, task) for task in tasks],
        "wall_clock": {
            "reported": now(),
            "seconds": round(ledger.seconds, 1),
            "compile_seconds_of_last_start": round(ledger.compile_seconds, 1),
        },
    }
    if distances:
        report["distances"] = distances
    if corruptions := describe_corruptions(ledger, is_subset):
        report["corruptions"] = corruptions
    return report


def _accuracy(count: int, number: int, is_subset: bool) -> Accuracy:
    interval = list(wilson_interval(count, number)) if is_subset else None
    return {"accuracy": count / number, "count": count, "interval": interval}


def _broken_by(ledger: Ledger, tasks: list[TaskRecord]) -> dict[int, str | None]:
    """Return for every image, in order, the first task that broke it, or None."""
    found: dict[int, str | None] = dict.fromkeys(ledger.ids("natural").tolist())
    for name in ["natural", *(task.name for task in tasks if task.in_pool(MAIN))]:
        for i in ledger.fooled(name).tolist():
            found[i] = found[i] or name
    return found


def _paper(ledger: Ledger, tasks: list[TaskRecord], is_subset: bool) -> Paper | None:
    """Compute the accuracy on all images under each attack at each beta_atk: Table B.3, with the worst values."""
    attacks: dict[str, AttackAccuracy] = {}
    for task in tasks:
        if task.section == "paper":
            accuracy = 1 - len(ledger.fooled(task.name)) / len(ledger.ids(task.name))
            attacks.setdefault(task.family, {"by_beta": {}})["by_beta"][str(task.beta)] = accuracy
    for found in attacks.values():
        found["accuracy"], found["beta"] = min((accuracy, beta) for beta, accuracy in found["by_beta"].items())
    if not attacks:
        return None
    count = ledger.num_examples
    for found in attacks.values():
        found["interval"] = list(wilson_interval(round(found["accuracy"] * count), count)) if is_subset else None
    accuracy, strongest = min((found["accuracy"], name) for name, found in attacks.items())
    return {"robust_accuracy": accuracy, "attack": strongest, "beta": attacks[strongest]["beta"], "attacks": attacks}


def _attacks(ledger: Ledger, tasks: list[TaskRecord]) -> list[AttackRow]:
    """Count by section and family, in order, how many images were broken, and how many survived."""
    rows: dict[tuple[str, str], AttackRow] = {}
    survivors = ledger.correct()
    for task in tasks:
        if not task.in_pool(MAIN):
            continue
        section, attack, fooled = task.section, task.family, ledger.fooled(task.name)
        new: AttackRow = {"section": section, "attack": attack, "runs": 0, "broke_first": 0, "standing": 0}
        row = rows.setdefault((section, attack), new)
        row["runs"] += 1
        row["broke_first"] += len(np.intersect1d(survivors, fooled))
        survivors = np.setdiff1d(survivors, fooled)
        row["standing"] = len(survivors)
    return list(rows.values())


def _top_k(ledger: Ledger, tasks: list[TaskRecord], paper: Paper | None) -> dict[str, dict[str, float]]:
    """Compute top-k accuracies of the final head (Table 4): natural, and under each attack at its worst beta_atk."""
    names = {"natural": "natural"}
    for task in tasks:
        if paper and task.section == "paper" and str(task.beta) == paper["attacks"][task.family]["beta"]:
            names[task.family] = task.name
    return {
        family: {f"top-{k}": float(np.mean(ledger.values(name, "ranks")[:, 0] < k)) for k in TOP_K}
        for family, name in names.items()
    }


def _matrix(ledger: Ledger, tasks: list[TaskRecord]) -> dict[str, Any] | None:
    """Compute accuracies by attack point (beta_atk) and output point (head) under the paper's PGD-20: Table 5.

    CIFS/CIFS: attacks on the raw predictions alone (beta_atk infinity), judged by the last raw prediction; CIFS/Final:
    the same attacks, judged by the final one; Adap/Final: the worst over beta_atk, judged by the final one.
    """
    families = [task.family for task in tasks if task.section == "paper"]
    if not families:
        return None
    family = "pgd20" if "pgd20" in families else families[-1]
    chosen = [task for task in tasks if task.section == "paper" and task.family == family]
    rows = {str(task.beta): (ledger.values(task.name, "ranks") == 0).mean(axis=0).tolist() for task in chosen}
    found = {"attack": family, "rows": rows, "Adap/Final": min(row[0] for row in rows.values())}
    if "infinity" in rows and len(rows["infinity"]) > 1:
        found |= {"CIFS/CIFS": rows["infinity"][-1], "CIFS/Final": rows["infinity"][0]}
    return found


def _per_class(ledger: Ledger, broken_by: dict[int, str | None], about: About) -> list[ClassRow]:
    labels, ids = ledger.values("natural", "labels"), ledger.ids("natural")
    right = ~np.isin(ids, ledger.fooled("natural"))
    survived = np.array([by is None for by in broken_by.values()])
    names = about.get("class_names") or [str(label) for label in range(about["num_classes"])]
    return [
        {
            "class": names[label],
            "num_examples": int(np.sum(labels == label)),
            "natural": float(right[labels == label].mean()),
            "worst_case": float(survived[labels == label].mean()),
            "interval": list(wilson_interval(int(survived[labels == label].sum()), int(np.sum(labels == label)))),
        }
        for label in np.unique(labels).tolist()
    ]


def _task(ledger: Ledger, task: TaskRecord) -> dict[str, Any]:
    measured = {"measured": len(ledger.ids(task.name)), "fooled": len(ledger.fooled(task.name))}
    return {**{key: value for key, value in dataclasses.asdict(task).items() if value is not None}, **measured}
