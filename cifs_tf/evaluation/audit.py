"""Signs that a defence hides its gradients instead of being robust (Athalye et al. 2018; Carlini et al. 2019).

Each check reads the ledger and gives pass, warn, fail or skip, with its number and a sentence. If one fails, the robust
accuracies of this evaluation cannot be trusted.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from cifs_tf.evaluation.ledger import Ledger
from cifs_tf.evaluation.records import MAIN, TaskRecord

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
    """Check the results of the tasks of `cifs_tf.evaluation.suites.audit_tasks`.

    Args:
        ledger: of a finished evaluation.

    Returns:
        the checks whose tasks were run; an empty list without an audit.

    Example:
        >>> [check.name for check in audit(ledger) if check.verdict == "fail"]
        []
    """
    if not any(task.section == "audit" for task in ledger.tasks):
        return []
    checks = [check for task in ledger.tasks if task.kind == "Gradients" for check in _gradients(ledger, task)]
    checks += _stability(ledger)
    checks += [_single_step(ledger), _square(ledger), _unlimited(ledger)]
    checks += [_doubling(ledger, "steps"), _doubling(ledger, "restarts")]
    checks += [_mask_gradients(ledger), _transfer(ledger), _flips(ledger)]
    return checks


def audit_passed(checks: list[Check]) -> bool | None:
    """Return whether no check failed; None without an audit."""
    return all(check.verdict != FAIL for check in checks) if checks else None


def _too_many(images: int, share: float, ledger: Ledger) -> bool:
    """Return whether so many images are over a share of all; a single one is no evidence, however few there are."""
    return images > max(1.0, share * ledger.num_examples)


def _share(images: int, ledger: Ledger) -> float:
    return images / max(1, ledger.num_examples)


def _gradients(ledger: Ledger, task: TaskRecord) -> list[Check]:
    zero, not_finite = (ledger.values(task.name, name) for name in ("zero", "not_finite"))
    if len(zero) == 0:
        name = f"gradient of every head, {task.mask_gradient}"
        return [Check(name, SKIP, None, "No image is classified correctly without an attack.")]
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
        name = f"gradient of {which}, {task.mask_gradient}"
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
        return [*checks, Check("no label leaks", SKIP, None, "The model takes no labels, so none can leak into it.")]
    share = float(leaks.mean())
    sentence = "The answers do not depend on the label."
    if share > 0:
        sentence = f"For {share:.1%} of the images the answer changes with the label that is passed along."
    return [*checks, Check("no label leaks", FAIL if share > 0 else PASS, share, sentence)]


def _single_step(ledger: Ledger) -> Check:
    fgsm, pgd = (len(ledger.survivors(pool)) for pool in ("fgsm", "pgd20"))
    failed = _too_many(pgd - fgsm, MAX_SURPRISE, ledger)
    sentence = f"{fgsm} images survive FGSM and {pgd} PGD-20" + (
        ": twenty small steps should not be weaker than one." if failed else "."
    )
    return Check("FGSM no stronger than PGD-20", FAIL if failed else PASS, _share(pgd - fgsm, ledger), sentence)


def _adds_nothing(
    ledger: Ledger, family: str, *, who: str, blame: str, skipped: str, but: tuple[str, ...] = ()
) -> Check:
    """Check that attacks without the model's own gradients break no survivors of the others."""
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
        blame="the model's own gradients mislead",
        skipped="No surrogate was given (--surrogate FILE).",
    )


def _unlimited(ledger: Ledger) -> Check:
    name, curve = "epsilon 1 breaks everything", ledger.curve("epsilon")
    if not curve:
        return Check(name, SKIP, None, "Accuracy was not measured against epsilon.")
    radius, left = curve[-1]
    failed = _too_many(len(ledger.survivors("epsilon")), MAX_LEFT, ledger)
    sentence = f"At epsilon {radius:g}, where any image may become any other, {left:.1%} of the images survive" + (
        ": the attack does not reach what it must." if failed else "."
    )
    return Check(name, FAIL if failed else PASS, left, sentence)


def _doubling(ledger: Ledger, pool: str) -> Check:
    name, curve = f"twice the {pool} add little", ledger.curve(pool)
    by_budget = dict(curve)
    after = max(by_budget, default=0.0)
    if after == 0 or after / 2 not in by_budget:
        return Check(name, SKIP, None, f"Accuracy was not measured against {pool}.")
    gained = round((by_budget[after / 2] - by_budget[after]) * ledger.num_examples)
    warned, gain = _too_many(gained, MAX_GAIN, ledger), _share(gained, ledger)
    sentence = f"From {after / 2:g} to {after:g} {pool} PGD breaks another {gain:.1%} of the images" + (
        ": the attack has not converged, more would break more." if warned else "."
    )
    return Check(name, WARN if warned else PASS, gain, sentence)


def _mask_gradients(ledger: Ledger) -> Check:
    name = "the mask hides nothing"
    pools = {task.pool for task in ledger.tasks}
    if not {"mask detached", "mask full"} <= pools:
        return Check(name, SKIP, None, "There are not two mask gradients to compare.")
    found = {
        mask: len(ledger.survivors(f"mask {mask}"))
        for mask in ("detached", "full", "smoothed")
        if f"mask {mask}" in pools
    }
    gained = found["detached"] - found["full"]
    warned = _too_many(gained, MAX_SURPRISE, ledger)
    numbers = ", ".join(f"{mask} {_share(left, ledger):.1%}" for mask, left in found.items())
    sentence = f"Robust accuracy under APGD through each mask gradient: {numbers}" + (
        ". The gradient through the mask matters: go by `full`." if warned else "."
    )
    return Check(name, WARN if warned else PASS, _share(gained, ledger), sentence)


def _flips(ledger: Ledger) -> Check:
    flips = ledger.values("flips", "flips")
    if len(flips) == 0 and "flips" in {task.name for task in ledger.tasks}:
        return Check("top-k set under attack", SKIP, None, "No image is classified correctly without an attack.")
    if len(flips) == 0:
        return Check("top-k set under attack", SKIP, None, "The model has no selection layer.")
    shares = ", ".join(f"{share:.1%}" for share in flips.mean(axis=0))
    sentence = f"PGD-20 changes the classes that make the mask for {shares} of the images, layer by layer."
    return Check("top-k set under attack", INFO, float(flips.mean()), sentence)


def _broken_beyond(ledger: Ledger, family: str, but: tuple[str, ...] = ()) -> int | None:
    """Count the images that only this family of the pool `main` broke, some others apart; None if it was not run."""
    tasks = [task for task in ledger.tasks if task.in_pool(MAIN)]
    own = [ledger.fooled(task.name) for task in tasks if task.family == family]
    if not own:
        return None
    others = [ledger.fooled(task.name) for task in tasks if task.family not in (family, *but)]
    broken = np.intersect1d(ledger.correct(), np.concatenate(own))
    beyond = np.setdiff1d(broken, np.concatenate([np.array([], int), *others]))
    return len(beyond)
