"""Signs that a defence hides its gradients instead of being robust (Athalye et al. 2018; Carlini et al. 2019).

Each check reads the ledger and gives pass, warn, fail or skip, with its number and a sentence. One failure means that
the robust accuracies of this evaluation are not to be believed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from cifs_tf.evaluation.engine import in_pool, standing
from cifs_tf.evaluation.ledger import Ledger

PASS, WARN, FAIL, SKIP, INFO = "pass", "warn", "fail", "skip", "info"
MAX_ZERO_GRADIENTS = 0.05
MAX_SURPRISE = 0.01
MAX_GAIN = 0.02
MAX_LEFT = 0.01


@dataclasses.dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Args:
        name: of the check.
        verdict: `"pass"`, `"warn"`, `"fail"`, `"skip"`, or `"info"` for a number without a limit.
        number: what was measured, a share in [0, 1]; None if nothing was.
        sentence: what it means.
    """

    name: str
    verdict: str
    number: float | None
    sentence: str


def audit(ledger: Ledger) -> list[Check]:
    """Judge what the tasks of `cifs_tf.evaluation.suites.audit_tasks` found.

    Args:
        ledger: of a finished evaluation.

    Returns:
        the checks whose tasks were carried out, or an empty list without an audit.

    Example:
        >>> [check.name for check in audit(ledger) if check.verdict == "fail"]
        []
    """
    tasks = ledger.header["about"]["tasks"]
    if not any(task["section"] == "audit" for task in tasks):
        return []
    checks = [check for task in tasks if task["kind"] == "Gradients" for check in _gradients(ledger, task)]
    checks += _stability(ledger)
    checks += [_single_step(ledger), _square(ledger), _unlimited(ledger)]
    checks += [_doubling(ledger, "steps"), _doubling(ledger, "restarts")]
    checks += [_mask_gradients(ledger), _transfer(ledger), _flips(ledger)]
    return checks


def _too_many(images: int, share: float, ledger: Ledger) -> bool:
    """Whether so many images are over a share of all; a single one is no evidence, however few there are in all."""
    return images > max(1.0, share * len(ledger.ids("natural")))


def _share(images: int, ledger: Ledger) -> float:
    return images / max(1, len(ledger.ids("natural")))


def _gradients(ledger: Ledger, task: dict[str, Any]) -> list[Check]:
    zero, not_finite = (ledger.values(task["name"], name) for name in ("zero", "not_finite"))
    if len(zero) == 0:
        name = f"gradient of every head, {task['mask_gradient']}"
        return [Check(name, SKIP, None, "No image is right without an attack: there is nothing to defend.")]
    checks = []
    for head in range(zero.shape[1]):
        which = "the final head" if head == 0 else f"raw prediction {head}"
        share, broken = float(zero[:, head].mean()), int(not_finite[:, head].sum())
        failed = share > MAX_ZERO_GRADIENTS or broken > 0
        sentence = (
            f"Of {len(zero)} images, {share:.1%} have a gradient that is zero everywhere"
            + (f" and {broken} one that is not finite" if broken else "")
            + (": attacks that follow it are blind." if failed else ".")
        )
        name = f"gradient of {which}, {task['mask_gradient']}"
        checks.append(Check(name, FAIL if failed else PASS, share, sentence))
    return checks


def _stability(ledger: Ledger) -> list[Check]:
    varies, leaks = ledger.values("stability", "varies"), ledger.values("stability", "leaks")
    share = float(varies.mean()) if len(varies) else 0.0
    sentence = "Two calls give the same answers."
    if share > 0:
        sentence = (
            f"For {share:.1%} of the images two calls differ, or are not finite: random defences need other attacks."
        )
    checks = [Check("same answer twice", FAIL if share > 0 else PASS, share, sentence)]
    if len(leaks) == 0:
        return [*checks, Check("no label leaks", SKIP, None, "The network takes no labels, so none can leak into it.")]
    share = float(leaks.mean())
    sentence = "The answers do not depend on the label."
    if share > 0:
        sentence = f"For {share:.1%} of the images the answer changes with the label that is passed along."
    return [*checks, Check("no label leaks", FAIL if share > 0 else PASS, share, sentence)]


def _single_step(ledger: Ledger) -> Check:
    fgsm, pgd = (len(standing(ledger, pool)) for pool in ("fgsm", "pgd20"))
    failed = _too_many(pgd - fgsm, MAX_SURPRISE, ledger)
    sentence = f"FGSM leaves {fgsm} images standing and PGD-20 {pgd}" + (
        ": twenty small steps should not be weaker than one." if failed else "."
    )
    return Check("FGSM no stronger than PGD-20", FAIL if failed else PASS, _share(pgd - fgsm, ledger), sentence)


def _adds_nothing(
    ledger: Ledger, family: str, *, who: str, blame: str, skipped: str, but: tuple[str, ...] = ()
) -> Check:
    """Whether attacks that do not use the network's gradients break what the others leave standing."""
    name, beyond = f"{family} adds nothing", _broken_beyond(ledger, family, but)
    if beyond is None:
        return Check(name, SKIP, None, skipped)
    failed, share = _too_many(beyond, MAX_SURPRISE, ledger), _share(beyond, ledger)
    sentence = f"{who} {share:.1%} of the images beyond the other attacks" + (f": {blame}." if failed else ".")
    return Check(name, FAIL if failed else PASS, share, sentence)


def _square(ledger: Ledger) -> Check:
    return _adds_nothing(
        ledger,
        "square",
        who="Square, which sees logits only, breaks",
        blame="the gradients mislead",
        skipped="Square was not run.",
        but=("transfer",),
    )


def _transfer(ledger: Ledger) -> Check:
    return _adds_nothing(
        ledger,
        "transfer",
        who="Images made on the surrogate break",
        blame="the network's own gradients mislead",
        skipped="No surrogate was given (--surrogate FILE).",
    )


def _unlimited(ledger: Ledger) -> Check:
    name, curve = "epsilon 1 breaks everything", curve_of(ledger, "epsilon")
    if not curve:
        return Check(name, SKIP, None, "Accuracy was not measured against epsilon.")
    radius, left = curve[-1]
    failed = _too_many(len(standing(ledger, "epsilon")), MAX_LEFT, ledger)
    sentence = f"At epsilon {radius:g}, where any image may become any other, {left:.1%} of the images still stand" + (
        ": the attack does not reach what it must." if failed else "."
    )
    return Check(name, FAIL if failed else PASS, left, sentence)


def _doubling(ledger: Ledger, pool: str) -> Check:
    name, curve = f"twice the {pool} add little", curve_of(ledger, pool)
    by_budget = dict(curve)
    after = max(by_budget, default=0.0)
    if after == 0 or after / 2 not in by_budget:
        return Check(name, SKIP, None, f"Accuracy was not measured against {pool}.")
    gained = round((by_budget[after / 2] - by_budget[after]) * len(ledger.ids("natural")))
    warned, gain = _too_many(gained, MAX_GAIN, ledger), _share(gained, ledger)
    sentence = f"From {after / 2:g} to {after:g} {pool} PGD breaks another {gain:.1%} of the images" + (
        ": the attack has not converged, more would break more." if warned else "."
    )
    return Check(name, WARN if warned else PASS, gain, sentence)


def _mask_gradients(ledger: Ledger) -> Check:
    name = "the mask hides nothing"
    pools = {task["pool"] for task in ledger.header["about"]["tasks"]}
    if not {"mask detached", "mask full"} <= pools:
        return Check(name, SKIP, None, "There are not two mask gradients to compare.")
    found = {
        mask: len(standing(ledger, f"mask {mask}"))
        for mask in ("detached", "full", "smoothed")
        if f"mask {mask}" in pools
    }
    gained = found["detached"] - found["full"]
    warned = _too_many(gained, MAX_SURPRISE, ledger)
    numbers = ", ".join(f"{mask} {_share(left, ledger):.1%}" for mask, left in found.items())
    sentence = f"APGD through each mask gradient leaves standing: {numbers}" + (
        ". The gradient through the mask matters: go by `full`." if warned else "."
    )
    return Check(name, WARN if warned else PASS, _share(gained, ledger), sentence)


def _flips(ledger: Ledger) -> Check:
    flips = ledger.values("flips", "flips")
    if len(flips) == 0 and "flips" in {task["name"] for task in ledger.header["about"]["tasks"]}:
        return Check("top-k set under attack", SKIP, None, "No image is right without an attack.")
    if len(flips) == 0:
        return Check("top-k set under attack", SKIP, None, "The network has no selection layer.")
    shares = ", ".join(f"{share:.1%}" for share in flips.mean(axis=0))
    sentence = f"PGD-20 changes the classes that make the mask for {shares} of the images, layer by layer."
    return Check("top-k set under attack", INFO, float(flips.mean()), sentence)


def curve_of(ledger: Ledger, pool: str) -> list[tuple[float, float]]:
    """Points (x, share of all images still standing) of a cumulative curve, one for each x.

    Args:
        ledger: of a finished evaluation.
        pool: `"steps"`, `"restarts"` or `"epsilon"`.

    Returns:
        the points, by increasing x; from x = 0, the natural accuracy; empty if the curve was not measured.
    """
    tasks = [task for task in ledger.header["about"]["tasks"] if task["pool"] == pool and task["x"] is not None]
    if not tasks:
        return []
    count = max(1, len(ledger.ids("natural")))
    left = np.setdiff1d(ledger.ids("natural"), ledger.fooled("natural"))
    points = {0.0: len(left) / count}
    for task in tasks:
        left = np.setdiff1d(left, ledger.fooled(task["name"]))
        points[float(task["x"])] = len(left) / count
    return sorted(points.items())


def _broken_beyond(ledger: Ledger, family: str, but: tuple[str, ...] = ()) -> int | None:
    """How many images the tasks of a family broke beyond all others of the pool `main`, but for some families."""
    tasks = [task for task in ledger.header["about"]["tasks"] if in_pool(task, "main")]
    own = [ledger.fooled(task["name"]) for task in tasks if task["family"] == family]
    if not own:
        return None
    others = [ledger.fooled(task["name"]) for task in tasks if task["family"] not in (family, *but)]
    natural = np.setdiff1d(ledger.ids("natural"), ledger.fooled("natural"))
    beyond = np.setdiff1d(np.intersect1d(natural, np.concatenate(own)), np.concatenate([np.array([], int), *others]))
    return len(beyond)
