"""Signs that a defense hides its gradients instead of being robust (Athalye et al. 2018; Carlini et al. 2019).

Each check reads the ledger and gives pass, warn, fail or skip, with its number and a sentence. If one fails, the robust
accuracies of this evaluation cannot be trusted.
"""

from __future__ import annotations

import numpy as np

from cifs_tf.evaluation.checks.judging import ADDED, FAIL, INFO, PASS, SKIP, WARN, Check, judge
from cifs_tf.evaluation.checks.sanity_verdicts import sanity_verdicts
from cifs_tf.evaluation.ledger import Ledger
from cifs_tf.evaluation.records import MAIN, TaskRecord

MAX_ZERO_GRADIENTS = 0.05
MAX_SURPRISE = 0.01
MAX_GAIN = 0.02
MAX_LEFT = 0.01


def audit(ledger: Ledger) -> list[Check]:
    """Check the results of the tasks of `cifs_tf.evaluation.suites.audit_tasks` and of the sanity checks.

    Args:
        ledger: of a finished evaluation.

    Returns:
        the checks whose tasks were run; an empty list without an audit.

    Example:
        >>> [check.name for check in audit(ledger) if check.verdict == "fail"]
        []
    """
    sections = {task.section for task in ledger.tasks}
    if not sections & {"audit", "sanity"}:
        return []
    kinds = ("Gradients", "SampledGradients")
    checks = [check for task in ledger.tasks if task.kind in kinds for check in _gradients(ledger, task)]
    checks += [*_stability(ledger), *sanity_verdicts(ledger)]
    square = _adds_nothing(ledger, "square", "Square was not run.", but=("transfer",))
    if "audit" not in sections:
        # Square of a suite that has it; others have a referee.
        return checks + [square] * (square.verdict != SKIP)
    checks += [_single_step(ledger), square, _unlimited(ledger)]
    checks += [_doubling(ledger, "steps"), _doubling(ledger, "restarts")]
    transfer = _adds_nothing(ledger, "transfer", "No surrogate was given (--surrogate FILE).")
    return [*checks, _mask_gradients(ledger), transfer, _flips(ledger)]


def audit_passed(checks: list[Check]) -> bool | None:
    """Return whether no check failed; None without an audit."""
    return all(check.verdict != FAIL for check in checks) if checks else None


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
        verdicts = judge(int(zero[:, head].sum()), len(zero), MAX_ZERO_GRADIENTS), judge(broken, len(zero), 0.0)
        verdict = FAIL if FAIL in verdicts else WARN if WARN in verdicts else PASS
        sentence = (
            f"Of {len(zero)} images, {share:.1%} have a gradient that is zero everywhere"
            + (f" and {broken} one that is not finite" if broken else "")
            + (": attacks that follow it are blind." if verdict == FAIL else ".")
        )
        name = f"gradient of {which}, {task.mask_gradient}"
        checks.append(Check(name, verdict, share, sentence))
    return checks


def _stability(ledger: Ledger) -> list[Check]:
    """Judge what `Stability` found on all images, and `Consistency` on a few."""
    tasks = ("stability", "consistency")
    checks = []
    for value, name, good, bad in (
        ("varies", "same answer twice", "Two calls give the same answers.", "two calls differ, or are not finite"),
        ("leaks", "no label leaks", "The answers do not depend on the label.", "the answer changes with the label"),
    ):
        found = next((values for task in tasks if (values := ledger.values(task, value)).any()), None)
        if found is None:
            measured = any(len(ledger.values(task, value)) for task in tasks)
            verdict, number = (PASS, 0.0) if measured or value == "varies" else (SKIP, None)
            sentence = good if verdict == PASS else "The model takes no labels, so none can leak into it."
            checks.append(Check(name, verdict, number, sentence))
            continue
        images = int(found.sum())
        advice = ": random defenses need other attacks (suite rand)" if value == "varies" else " that is passed along"
        sentence = f"For {images / len(found):.1%} of the images {bad}{advice}."
        verdict = judge(images, len(found), 0.0)
        # Who asks for the suite of chance knows of it.
        known = value == "varies" and verdict == FAIL and ledger.header["about"].get("suite") == "rand"
        checks.append(Check(name, WARN if known else verdict, images / len(found), sentence))
    return checks


def _single_step(ledger: Ledger) -> Check:
    fgsm, pgd = (len(ledger.survivors(pool)) for pool in ("fgsm", "pgd20"))
    verdict = judge(pgd - fgsm, ledger.num_examples, MAX_SURPRISE)
    sentence = f"{fgsm} images survive FGSM and {pgd} PGD-20" + (
        ": twenty small steps should not be weaker than one." if verdict == FAIL else "."
    )
    return Check("FGSM no stronger than PGD-20", verdict, _share(pgd - fgsm, ledger), sentence)


def _adds_nothing(ledger: Ledger, family: str, skipped: str, but: tuple[str, ...] = ()) -> Check:
    """Check that attacks without the model's own gradients break no survivors of the others, some apart."""
    (name, who, blame), beyond = ADDED[family], _broken_beyond(ledger, family, but)
    if beyond is None:
        return Check(name, SKIP, None, skipped)
    verdict, share = judge(beyond, ledger.num_examples, MAX_SURPRISE), _share(beyond, ledger)
    sentence = f"{who} {share:.1%} of the images beyond the other attacks" + (f": {blame}." if verdict == FAIL else ".")
    return Check(name, verdict, share, sentence)


def _unlimited(ledger: Ledger) -> Check:
    curve = ledger.curve("epsilon")
    if not curve:
        return Check("epsilon 1 breaks everything", SKIP, None, "Accuracy was not measured against epsilon.")
    radius, left = curve[-1]
    name = f"epsilon {radius:.4g} breaks everything"
    verdict = judge(len(ledger.survivors("epsilon")), ledger.num_examples, MAX_LEFT)
    sentence = f"At epsilon {radius:g}, where any image may become any other, {left:.1%} of the images survive" + (
        ": the attack does not reach what it must." if verdict == FAIL else "."
    )
    return Check(name, verdict, left, sentence)


def _doubling(ledger: Ledger, pool: str) -> Check:
    name, curve = f"twice the {pool} add little", ledger.curve(pool)
    by_budget = dict(curve)
    after = max(by_budget, default=0.0)
    if after == 0 or after / 2 not in by_budget:
        return Check(name, SKIP, None, f"Accuracy was not measured against {pool}.")
    gained = round((by_budget[after / 2] - by_budget[after]) * ledger.num_examples)
    warned, gain = judge(gained, ledger.num_examples, MAX_GAIN) != PASS, _share(gained, ledger)
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
    warned = judge(gained, ledger.num_examples, MAX_SURPRISE) != PASS
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
