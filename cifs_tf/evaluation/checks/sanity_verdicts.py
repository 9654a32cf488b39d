"""What the sanity checks of an evaluation found, judged."""

from __future__ import annotations

import dataclasses

import numpy as np

from cifs_tf.evaluation.checks.consistency import FIRST, LAST, answered_alike
from cifs_tf.evaluation.checks.judging import ADDED, FAIL, INFO, PASS, SKIP, WARN, Check, judge
from cifs_tf.evaluation.checks.referees import REFEREES
from cifs_tf.evaluation.checks.sanity import DIRECTIONS, LAST_STEPS, STEPS
from cifs_tf.evaluation.ledger import Ledger
from cifs_tf.evaluation.records import MAIN, TaskRecord
from cifs_tf.statistics import wilson_interval

MAX_UNFAITHFUL = 0.1
# Masks that change what they select jump as well, for some images; hard labels for all.
MAX_JUMPS, HARD_LABELS = 0.1, 0.6
MAX_GONE = 0.05
# Of images that are right in another range of pixels, to those in the given one; beside intervals that lie apart.
BETTER = 1.1
MAX_BEYOND = 0.02
MAX_UNFINISHED = 0.25
MAX_UNREACHED = 0.1
MAX_MISSED = 0.05
RANGES = ("in [0, 1]", "times 255", "times 2 minus 1")


def sanity_verdicts(ledger: Ledger) -> list[Check]:
    """Judge what the tasks of `cifs_tf.evaluation.checks.sanity` found.

    Args:
        ledger: of a finished evaluation.

    Returns:
        the checks whose tasks were run.
    """
    tasks = {task.name: task for task in ledger.tasks if task.section == "sanity"}
    checks = [*_consistency(ledger), *_ranges(ledger)] if "consistency" in tasks else []
    checks += _faithful(ledger) if "faithful" in tasks else []
    checks += _trajectory(ledger) if "trajectory" in tasks else []
    checks += [_binarised(ledger)] if "binarised" in tasks else []
    checks += [_referee(ledger, task) for task in tasks.values() if task.pool == REFEREES]
    return [*checks, *_single_calls(ledger)]


def _consistency(ledger: Ledger) -> list[Check]:
    checks = []
    for value, name, good, bad in (
        (
            "batch",
            "same answer in any batch",
            "An image alone and among others gets the same answer.",
            "the answer changes with the other images of the batch: the accuracies hold for this batch size only, "
            "and an attacker chooses the others",
        ),
        (
            "reloaded",
            "same answer after loading again",
            "The file, loaded again, answers the same.",
            "the model answers otherwise after it is loaded again: chance needs other attacks (suite rand)",
        ),
        (
            "compiled",
            "same answer outside a graph",
            "The network answers the same whether TensorFlow has compiled it or not.",
            "the network answers otherwise when TensorFlow has compiled it: attacks measured another network than a "
            "plain call asks",
        ),
    ):
        found = ledger.values("consistency", value)
        if len(found):
            images = int(found.sum())
            sentence = f"For {images} of {len(found)} images {bad}." if images else good
            checks.append(Check(name, judge(images, len(found), 0.0), images / len(found), sentence))
    if any(ledger.values("consistency", cause).any() for cause in ("varies", "batch")):
        return checks  # of which the others say nothing
    first, last = (ledger.values(task, "answers") for task in (FIRST, LAST))
    if len(first) and len(last):
        what = "the network answers otherwise at the evaluation's end than at its beginning"
        precision = ledger.header["about"].get("precision") or "float32"
        changed = ~answered_alike(last, first, precision)
        checks.append(_counted("same answer to the end", changed, 0.0, what, "it changes while it is measured"))
    return checks


def _ranges(ledger: Ledger) -> list[Check]:
    right = ledger.values("ranges", "right")
    if len(right) == 0:
        return []
    name, number, counts = "the pixels' range", len(right), right.sum(axis=0)
    best = int(np.argmax(counts[1:])) + 1
    share = float(counts[0] / number)
    (_, high), (low, _) = wilson_interval(int(counts[0]), number), wilson_interval(int(counts[best]), number)
    if low > high and counts[best] > BETTER * counts[0]:
        sentence = (
            f"{counts[0]} of {number} images are right with pixels {RANGES[0]}, {counts[best]} with pixels "
            f"{RANGES[best]}: put this scaling in front of the network."
        )
        return [Check(name, FAIL, share, sentence)]
    chance = 1 / ledger.header["about"].get("num_classes", 2)
    if wilson_interval(int(counts[0]), number)[0] <= chance:
        sentence = f"{counts[0]} of {number} images are right without an attack: no better than chance, in any range."
        return [Check(name, WARN, share, sentence)]
    return [Check(name, PASS, share, f"{counts[0]} of {number} images are right with pixels {RANGES[0]}.")]


def _faithful(ledger: Ledger) -> list[Check]:
    unexplained, blind = ledger.values("faithful", "unexplained"), ledger.values("faithful", "blind")
    if any(task.counts for task in ledger.tasks):  # which led no attack astray that broke the image
        survives = np.isin(ledger.ids("faithful"), ledger.survivors(MAIN))
        unexplained, blind = unexplained[survives[: len(unexplained)]], blind[survives[: len(blind)]]
    predicts = _counted(
        "the gradient predicts the answer",
        unexplained,
        MAX_UNFAITHFUL,
        "the gradient explains less than half of what small steps in random directions change",
        "attacks that follow it are led astray",
    )
    # Activations of whole numbers change in steps, which no gradient predicts.
    is_rounded = str(ledger.header["about"].get("precision")).startswith("int")
    return [
        _at_most_warned(predicts) if is_rounded else predicts,
        _counted(
            "the gradient leads downhill",
            blind,
            MAX_UNFAITHFUL,
            f"a step along the gradient lowers the label's lead less than the best of {DIRECTIONS} random steps",
            "attacks that follow it are led astray",
        ),
        _gradual(ledger.values("boundary", "jumps")[ledger.values("boundary", "reached") > 0]),
    ]


def _gradual(jumps: np.ndarray) -> Check:
    """Judge how many answers jump: most of them are hard labels, a part of them may be what a mask selects."""
    name, what = "the answer changes gradually", "the label's lead jumps to its opposite where the prediction changes"
    blind = "logits do not show where the boundary is; RayS, which needs none, is the only witness"
    most = _counted(name, jumps, HARD_LABELS, f"{what}, as that of hard labels does", blind)
    mask = "so does a mask that changes what it selects; Square and RayS, which need no gradient, are the witnesses"
    return most if most.verdict == FAIL else _at_most_warned(_counted(name, jumps, MAX_JUMPS, what, mask))


def _trajectory(ledger: Ledger) -> list[Check]:
    broken = ledger.values("trajectory", "broken") > 0
    silent = ledger.values("trajectory", "silent")
    moving, unfinished, gone = (ledger.values("trajectory", name)[~broken] for name in ("moving", "unfinished", "gone"))
    attack = f"an attack of {STEPS} steps"
    checks = [
        _counted(
            "no success is passed by",
            silent,
            MAX_UNFINISHED,
            f"{attack} was misclassified on the way and not at its end",
            "a last iterate says too much",
        ),
        _counted(
            "attacks end where nothing is left to gain",
            moving,
            MAX_UNFINISHED,
            f"of those that survive it, the gradient at the end of {attack} promises over half of what it could (FOSC)",
            "more steps or restarts may break more",
        ),
        _counted(
            "attacks have come to rest",
            unfinished,
            MAX_UNFINISHED,
            f"of those that survive it, {attack} gained over a tenth of its whole way in its last {LAST_STEPS}",
            "more steps would break more",
        ),
    ]
    checks = [_at_most_warned(check) for check in checks]
    what = f"of those that survive it, {attack} ends where the gradient is zero everywhere"
    checks.append(_counted("a gradient to the end", gone, MAX_GONE, what, "attacks that follow it go blind"))
    what, blame = f"{attack} without a bound does not reach another class", "it does not reach what it must"
    unreached = ledger.values("trajectory", "unreached")
    checks.append(_counted("without a bound everything breaks", unreached, MAX_UNREACHED, what, blame))
    if not any(task.counts for task in ledger.tasks):
        return checks
    beyond = np.intersect1d(ledger.ids("trajectory")[broken], ledger.survivors(MAIN))
    return [*checks, _adds_nothing("uneven", len(beyond), len(broken) or 1)]


def _binarised(ledger: Ledger) -> Check:
    """Judge how many of the adversarial examples that are known to be there an attack misses."""
    name, asked = "known adversarial examples are found", ledger.values("binarised", "asked") > 0
    number, found = int(asked.sum()), int(ledger.values("binarised", "found")[asked].sum())
    if number == 0:
        sentence = (
            "No image can be asked: no linear last layer is seen, or it reads over 8,192 features, or none that tell "
            "points of the ball apart."
        )
        return Check(name, SKIP, None, sentence)
    verdict, (low, high) = judge(number - found, number, MAX_MISSED), wilson_interval(found, number)
    sentence = (
        f"With a last layer for which an adversarial example is known, PGD finds one for {found} of {number} images "
        f"({low:.1%} to {high:.1%})"
    ) + (": the network's features blind attacks that follow its gradient." if verdict == FAIL else ".")
    return Check(name, verdict, 1 - found / number, sentence)


def _at_most_warned(check: Check) -> Check:
    """Turn a failure into a warning: what may come of a weak attack, or of a mask, proves no false number."""
    return dataclasses.replace(check, verdict=WARN if check.verdict == FAIL else check.verdict)


def _single_calls(ledger: Ledger) -> list[Check]:
    """Say how often one call is right, of a network that answers by chance: without an attack, and under the worst."""
    asked = [task for task in ledger.tasks if task.votes and task.pool != REFEREES]
    names = [task.name for task in asked if len(ledger.ids(task.name))]
    if not names:
        return []
    ids, number = ledger.ids("natural"), ledger.num_examples
    shares = ledger.values("natural", "right").mean(axis=1)
    lowest = shares.copy()
    for name in names:
        places = np.searchsorted(ids, ledger.ids(name))
        lowest[places] = np.minimum(lowest[places], ledger.values(name, "right").mean(axis=1))
    told = [
        "{:.1%} ({:.1%} to {:.1%})".format(float(each.mean()), *wilson_interval(round(float(each.sum())), number))
        for each in (shares, lowest)
    ]
    sentence = (
        f"One call is right on {told[0]} of the images without an attack, and on {told[1]} under the worst of them."
    )
    return [Check("accuracy of a single call", INFO, float(lowest.mean()), sentence)]


def _counted(name: str, flags: np.ndarray, limit: float, what: str, consequence: str) -> Check:
    """Judge how many images have a flag, and say so."""
    number, images = len(flags), int(np.sum(flags))
    if number == 0:
        return Check(name, SKIP, None, "There is no image to look at.")
    verdict = judge(images, number, limit)
    sentence = f"For {images} of {number} images {what}" + (f": {consequence}." if verdict == FAIL else ".")
    return Check(name, verdict, images / number, sentence)


def _referee(ledger: Ledger, task: TaskRecord) -> Check:
    return _adds_nothing(task.family, len(ledger.fooled(task.name)), min(task.sample or 0, ledger.num_examples) or 1)


def _adds_nothing(family: str, broken: int, sampled: int) -> Check:
    """Judge how many images an attack of another kind breaks beyond those of the suite."""
    name, who, blame = ADDED[family]
    verdict = judge(broken, sampled, MAX_BEYOND)
    sentence = f"{who} {broken} of {sampled} images that no attack of the suite breaks" + (
        f": {blame}, or the suite is weak." if verdict == FAIL else "."
    )
    return Check(name, verdict, broken / sampled, sentence)
