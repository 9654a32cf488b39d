"""From a ledger to what a person reads: numbers in plain types, every one computed here and nowhere else."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from cifs_tf.evaluation.audit import FAIL, audit, curve_of
from cifs_tf.evaluation.engine import in_pool
from cifs_tf.evaluation.ledger import Ledger
from cifs_tf.evaluation.tasks import MAIN
from cifs_tf.statistics import wilson_interval

SCHEMA = 1
TOP_K = (1, 2, 3)
CURVES = ("epsilon", "steps", "restarts")


def build_report(ledger: Ledger) -> dict[str, Any]:
    """Compute a report from the ledger of a finished evaluation.

    Two conventions stand side by side. `paper`: the share of all images whose final prediction is right under an
    attack, the lowest over beta_atk for each attack, the lowest of these at last (a minimum of means). `worst_case`:
    the share of images that are right without an attack and under every attack (a mean of minima); never higher.

    Args:
        ledger: what was found.

    Returns:
        plain types only: `about`, `natural`, `paper` (None if the suite has no such attacks), `worst_case`, `gap`,
        `attacks`, `top_k` (Table 4), `matrix` (Table 5), `per_class`, `curves`, `audit`, `broken_by` (for every image
        what broke it first, or None), `tasks`, and `wall_clock`, the only part that differs from run to run.

    Example:
        >>> build_report(ledger)["worst_case"]["accuracy"]
        0.554
    """
    about = dict(ledger.header["about"])
    tasks = about.pop("tasks")
    ids = ledger.ids("natural")
    is_subset = about.get("subset_of") is not None
    broken_by = _broken_by(ledger, tasks)
    num_standing = sum(by is None for by in broken_by.values())
    worst_case = _accuracy(num_standing, len(ids), is_subset)
    paper = _paper(ledger, tasks, is_subset)
    checks = audit(ledger)
    lowest = min((attack["accuracy"] for attack in paper["attacks"].values()), default=None) if paper else None
    return {
        "schema": SCHEMA,
        "about": about,
        "key": ledger.header["key"],
        "num_examples": len(ids),
        "natural": _accuracy(len(ids) - len(ledger.fooled("natural")), len(ids), is_subset),
        "paper": paper,
        "worst_case": worst_case,
        "gap": None if lowest is None else lowest - worst_case["accuracy"],
        "attacks": _attacks(ledger, tasks),
        "top_k": _top_k(ledger, tasks, paper),
        "matrix": _matrix(ledger, tasks),
        "per_class": _per_class(ledger, broken_by, about),
        "curves": {pool: curve_of(ledger, pool) for pool in CURVES if curve_of(ledger, pool)},
        "audit": [dataclasses.asdict(check) for check in checks],
        "believable": None if not checks else all(check.verdict != FAIL for check in checks),
        "broken_by": [broken_by[i] for i in ids.tolist()],
        "tasks": [_task(ledger, task) for task in tasks],
        "wall_clock": {
            "reported": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(ledger.seconds, 1),
            "compile_seconds_of_last_start": round(ledger.compile_seconds, 1),
        },
    }


def _accuracy(count: int, number: int, is_subset: bool) -> dict[str, Any]:
    interval = list(wilson_interval(count, number)) if is_subset else None
    return {"accuracy": count / number, "count": count, "interval": interval}


def _broken_by(ledger: Ledger, tasks: list[dict[str, Any]]) -> dict[int, str | None]:
    found: dict[int, str | None] = dict.fromkeys(ledger.ids("natural").tolist())
    for task in [{"name": "natural"}, *(task for task in tasks if in_pool(task, MAIN))]:
        for i in ledger.fooled(task["name"]).tolist():
            found[i] = found[i] or task["name"]
    return found


def _paper(ledger: Ledger, tasks: list[dict[str, Any]], is_subset: bool) -> dict[str, Any] | None:
    """Accuracy on all images under each attack at each beta_atk: Table B.3, with the worst values."""
    attacks: dict[str, dict[str, Any]] = {}
    for task in tasks:
        if task["section"] == "paper":
            measured = len(ledger.ids(task["name"]))
            accuracy = 1 - len(ledger.fooled(task["name"])) / measured
            attacks.setdefault(task["family"], {"by_beta": {}})["by_beta"][str(task["beta"])] = accuracy
    for found in attacks.values():
        found["accuracy"], found["beta"] = min((accuracy, beta) for beta, accuracy in found["by_beta"].items())
    if not attacks:
        return None
    count = len(ledger.ids("natural"))
    for found in attacks.values():
        found["interval"] = list(wilson_interval(round(found["accuracy"] * count), count)) if is_subset else None
    accuracy, strongest = min((found["accuracy"], name) for name, found in attacks.items())
    return {"robust_accuracy": accuracy, "attack": strongest, "beta": attacks[strongest]["beta"], "attacks": attacks}


def _attacks(ledger: Ledger, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By section and family, in order: how many images were attacked and broken, and how many stood after it."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    left = np.setdiff1d(ledger.ids("natural"), ledger.fooled("natural"))
    for task in tasks:
        if not in_pool(task, MAIN):
            continue
        fooled = ledger.fooled(task["name"])
        key = task["section"], task["family"]
        row = rows.setdefault(key, {"section": key[0], "attack": key[1], "runs": 0, "broke_first": 0})
        row["runs"] += 1
        row["broke_first"] += len(np.intersect1d(left, fooled))
        left = np.setdiff1d(left, fooled)
        row["standing"] = len(left)
    return list(rows.values())


def _top_k(ledger: Ledger, tasks: list[dict[str, Any]], paper: dict[str, Any] | None) -> dict[str, dict[str, float]]:
    """Top-k accuracies of the final head (Table 4): natural, and under each paper attack at its worst beta_atk."""
    names = {"natural": "natural"}
    for task in tasks:
        if paper and task["section"] == "paper" and str(task["beta"]) == paper["attacks"][task["family"]]["beta"]:
            names[task["family"]] = task["name"]
    return {
        family: {f"top-{k}": float(np.mean(ledger.values(name, "ranks")[:, 0] < k)) for k in TOP_K}
        for family, name in names.items()
    }


def _matrix(ledger: Ledger, tasks: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Attack point (a beta_atk) by output point (a head) under the paper's PGD-20, and Table 5's cells of it.

    CIFS/CIFS: attacks on the raw predictions alone (beta_atk infinity), judged by the last raw prediction; CIFS/Final:
    the same attacks, judged by the final one; Adap/Final: the worst over beta_atk, judged by the final one.
    """
    families = [task["family"] for task in tasks if task["section"] == "paper"]
    if not families:
        return None
    family = "pgd20" if "pgd20" in families else families[-1]
    chosen = [task for task in tasks if task["section"] == "paper" and task["family"] == family]
    rows = {str(task["beta"]): (ledger.values(task["name"], "ranks") == 0).mean(axis=0).tolist() for task in chosen}
    found = {"attack": family, "rows": rows, "Adap/Final": min(row[0] for row in rows.values())}
    if "infinity" in rows and len(rows["infinity"]) > 1:
        found |= {"CIFS/CIFS": rows["infinity"][-1], "CIFS/Final": rows["infinity"][0]}
    return found


def _per_class(ledger: Ledger, broken_by: dict[int, str | None], about: dict[str, Any]) -> list[dict[str, Any]]:
    labels, ids = ledger.values("natural", "labels"), ledger.ids("natural")
    right = ~np.isin(ids, ledger.fooled("natural"))
    stands = np.array([broken_by[i] is None for i in ids.tolist()])
    names = about.get("class_names") or [str(label) for label in range(about["num_classes"])]
    return [
        {
            "class": names[label],
            "num_examples": int(np.sum(labels == label)),
            "natural": float(right[labels == label].mean()),
            "worst_case": float(stands[labels == label].mean()),
            "interval": list(wilson_interval(int(stands[labels == label].sum()), int(np.sum(labels == label)))),
        }
        for label in np.unique(labels).tolist()
    ]


def _task(ledger: Ledger, task: dict[str, Any]) -> dict[str, Any]:
    measured = {"measured": len(ledger.ids(task["name"])), "fooled": len(ledger.fooled(task["name"]))}
    return {**{key: value for key, value in task.items() if value is not None}, **measured}
