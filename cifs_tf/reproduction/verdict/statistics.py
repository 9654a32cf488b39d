"""Gate, paired differences and judgements of the study; NumPy only, from the verdicts that the cells hold."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from cifs_tf.reproduction.verdict.cells import CHECKPOINTS, unpack_bits
from cifs_tf.reproduction.verdict.study import Hypothesis, Study, Term
from cifs_tf.runs.curves import WATCHED
from cifs_tf.statistics import CONFIDENCE

Cells = Sequence[dict[str, Any]]
REFERENCE = "vanilla"
RESAMPLES = 10_000
SEED = 0
DIGITS = 4
SUPPORTED, CONTRADICTED, UNDECIDED, MIXED, WAITING, MOOT = (
    *("supported", "contradicted", "undecided", "mixed", "not enough cells yet", "moot, there is no effect to lose"),
)


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean over seeds and images of a contrast of verdicts.

    Args:
        mean: share of the images, in [-4, 4].
        low: lower end of the 95% interval.
        high: its upper end.
        seeds: that it is a mean over.
    """

    mean: float
    low: float
    high: float
    seeds: int


class Judged(NamedTuple):
    """A contrast: its difference, None without a seed that all its arms have, and what that says of the hypothesis."""

    difference: Difference | None
    verdict: str


class Judgement(NamedTuple):
    """What is said of a hypothesis, and its contrasts by title."""

    verdict: str
    contrasts: dict[str, Judged]


class Gate(NamedTuple):
    """Whether vanilla reached the regime of robust overfitting; None without a seed of it.

    Args:
        seeds: that the others are means over.
        reached: whether it did.
        training: robust accuracy on training images at the last epoch.
        decline: best minus last robust validation accuracy.
        peaks: epoch of the best, for each seed.
    """

    seeds: int
    reached: bool | None
    training: float = math.nan
    decline: float = math.nan
    peaks: tuple[int, ...] = ()


def verdicts(cell: dict[str, Any], checkpoint: str, protocol: str) -> np.ndarray:
    """Read which images a cell has right: bool (images,).

    Under the protocol `paper` these are the verdicts of the attack and beta_atk that leave the lowest accuracy (a
    minimum of means over all images, Section 4.1).
    """
    number, found = len(cell["labels"]), cell["checkpoints"][checkpoint]
    if protocol != "paper":
        return unpack_bits(found[protocol], number)
    each = [unpack_bits(text, number) for by_beta in found["paper"].values() for text in by_beta.values()]
    return min(each, key=np.sum)


def seeds_of(cells: Cells, terms: Sequence[Term]) -> list[int]:
    """Return the seeds 0, 1, ... that all arms of a contrast have, up to the first that is missing: no choice among
    them."""
    common = set.intersection(*({cell["seed"] for cell in cells if cell["arm"] == term.arm} for term in terms))
    return list(itertools.takewhile(common.__contains__, itertools.count()))


def against_vanilla(arm: str, checkpoint: Literal["last", "best"]) -> tuple[Term, Term]:
    """Return the contrast of an arm with vanilla: the worst case of each image, at the same of the two epochs."""
    return Term(1, arm, checkpoint, "worst_case"), Term(-1, REFERENCE, checkpoint, "worst_case")


def contrast(cells: Cells, terms: Sequence[Term]) -> np.ndarray:
    """Add up the verdicts of a contrast: float (seeds, images), over the seeds of `seeds_of`."""
    by_arm = {term.arm: {cell["seed"]: cell for cell in cells if cell["arm"] == term.arm} for term in terms}
    seeds = seeds_of(cells, terms)
    sums = [
        np.sum(
            [
                term.coefficient * verdicts(by_arm[term.arm][seed], term.checkpoint, term.protocol).astype(float)
                for term in terms
            ],
            axis=0,
        )
        for seed in seeds
    ]
    return np.array(sums)


def bootstrap(values: np.ndarray) -> Difference:
    """Estimate a mean over seeds and images with a hierarchical bootstrap: seeds first, then images.

    In each of 10,000 resamples seeds are drawn with replacement, then images, which all seeds share: an image that is
    drawn twice counts twice in each of them. With one seed the chance in training is not in the interval, with three it
    is there only roughly: were it the only chance, the interval would reach from the lowest seed to the highest, which
    hold the truth in three cases of four. The draws are the same for every contrast of as many seeds and images.

    Args:
        values: float (seeds, images), one of each at least.

    Returns:
        the mean and its 95% percentile interval.

    Example:
        >>> bootstrap(np.ones((3, 50))).low
        1.0
    """
    seeds, images = values.shape
    # How often each is drawn: (resamples, seeds) and (resamples, images).
    drawn_seeds, drawn_images = (_draws(stream, number) for stream, number in enumerate(values.shape))
    means = np.sum(drawn_seeds * (drawn_images @ values.T), axis=1) / (seeds * images)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Difference(float(values.mean()), float(low), float(high), seeds)


@functools.cache
def _draws(stream: int, number: int) -> np.ndarray:
    generator = np.random.default_rng([SEED, stream])
    return generator.multinomial(number, np.full(number, 1 / number), size=RESAMPLES).astype(np.float32)


def gate(cells: Cells, study: Study) -> Gate:
    """Judge whether vanilla reached the regime of robust overfitting, before anything is compared."""
    of_seed = {cell["seed"]: cell for cell in cells if cell["arm"] == REFERENCE}
    found = [of_seed[seed] for seed in itertools.takewhile(of_seed.__contains__, itertools.count())]
    if not found:
        return Gate(0, None)
    training = float(np.mean([cell["checkpoints"]["last"]["training"]["robust"] for cell in found]))
    decline = float(np.mean([max(cell["curves"][WATCHED]) - cell["curves"][WATCHED][-1] for cell in found]))
    training, decline = round(training, DIGITS), round(decline, DIGITS)  # curves are rounded: no threshold by a hair
    reached = training >= study.gate["training"] and decline >= study.gate["decline"]
    return Gate(len(found), reached, training, decline, tuple(map(peak_of, found)))


def peak_of(cell: dict[str, Any]) -> int:
    """Return the epoch of the best robust validation accuracy, counted from 1."""
    return int(np.argmax(cell["curves"][WATCHED])) + 1


def judge_one(kind: str, margin: float, difference: Difference) -> str:
    """Judge a contrast by its interval.

    Returns:
        `"supported"`, `"contradicted"` or `"undecided"`.

    Example:
        >>> judge_one("greater", 0.0, Difference(0.05, 0.01, 0.09, 3))
        'supported'
    """
    low, high = difference.low, difference.high
    if kind == "greater":
        return SUPPORTED if low > 0 else CONTRADICTED if high < 0 else UNDECIDED
    if kind == "as_well":
        return SUPPORTED if low > -margin else CONTRADICTED if high < 0 else UNDECIDED
    return SUPPORTED if high < margin else CONTRADICTED if low > 0 else UNDECIDED


def judge_hypotheses(cells: Cells, study: Study) -> dict[str, Judgement]:
    """Judge every hypothesis, by its name.

    A verdict needs all seeds of the study; before that the differences are told, and not judged. A
    hypothesis that presumes another effect is moot where that is not supported.
    """
    judged: dict[str, Judgement] = {}
    for hypothesis in study.hypotheses:
        contrasts = {
            title: _judged(hypothesis, cells, terms, study.seeds) for title, terms in hypothesis.contrasts.items()
        }
        found = {each.verdict for each in contrasts.values()}
        verdict = found.pop() if len(found) == 1 else WAITING if WAITING in found else MIXED
        if hypothesis.presumes is not None and verdict != WAITING:
            name, title = hypothesis.presumes
            presumed = judged[name].contrasts[title].verdict
            verdict = {SUPPORTED: verdict, WAITING: WAITING}.get(presumed, MOOT)
        judged[hypothesis.name] = Judgement(verdict, contrasts)
    return judged


def _judged(hypothesis: Hypothesis, cells: Cells, terms: Sequence[Term], seeds: int) -> Judged:
    found = seeds_of(cells, terms)
    if not found:
        return Judged(None, WAITING)
    difference = bootstrap(contrast(cells, terms))
    is_enough = len(found) >= seeds
    return Judged(difference, judge_one(hypothesis.kind, hypothesis.margin, difference) if is_enough else WAITING)


def accuracies(cells: Cells, arm: str) -> dict[str, Any] | None:
    """Return means over an arm's seeds, in [0, 1]: what the page's tables show of it.

    Returns:
        `seeds`, and for each checkpoint: the accuracy under each protocol with its interval (a `Difference`),
        `against_vanilla` (of the worst case, paired; None without a seed of both), `training` and `natural_training`
        (accuracies on training images), `channels`, `per_class` (worst case), `audit_failed` (in how many cells)
        and `failed_checks` (names of the audit's checks); None without a cell.
    """
    found = [cell for cell in cells if cell["arm"] == arm]
    if not found:
        return None
    at: dict[str, Any] = {checkpoint: _at(found, checkpoint) for checkpoint in CHECKPOINTS}
    for checkpoint in CHECKPOINTS:
        values = contrast(cells, against_vanilla(arm, checkpoint)) if arm != REFERENCE else np.array([])
        at[checkpoint]["against_vanilla"] = bootstrap(values) if len(values) else None
    return {"seeds": len(found), **at}


def _at(cells: Cells, checkpoint: str) -> dict[str, Any]:
    at = [cell["checkpoints"][checkpoint] for cell in cells]
    worst = np.array([verdicts(cell, checkpoint, "worst_case") for cell in cells]).mean(axis=0)
    labels = np.array(cells[0]["labels"])
    channels = {name: [each["channels"][name] for each in at] for name in at[0]["channels"]}
    return {
        "epochs": [each["epoch"] for each in at],
        **{
            protocol: bootstrap(np.array([verdicts(cell, checkpoint, protocol) for cell in cells], float))
            for protocol in ("natural", "paper", "worst_case")
        },
        "training": float(np.mean([each["training"]["robust"] for each in at])),
        "natural_training": float(np.mean([each["training"]["natural"] for each in at])),
        "channels": {name: None if None in values else float(np.mean(values)) for name, values in channels.items()},
        "per_class": [float(worst[labels == label].mean()) for label in np.unique(labels)],
        "audit_failed": sum(each["audit_passed"] is False for each in at),
        "failed_checks": sorted({name for each in at for name, found in each["audit"].items() if found == "fail"}),
    }
