"""A robustness card, checked against the network and the images that it is of."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from cifs_tf.attacks import Ball
from cifs_tf.config import Ratio
from cifs_tf.data import Split, to_float
from cifs_tf.errors import UserError
from cifs_tf.evaluation.cards.card import Card, relative_lead
from cifs_tf.evaluation.checks.judging import FAIL, INFO, PASS, Check
from cifs_tf.evaluation.engine import code_version, hash_split
from cifs_tf.evaluation.lines import name_images
from cifs_tf.evaluation.networks.attacked import AttackedModel
from cifs_tf.evaluation.records import About, Report
from cifs_tf.evaluation.tasks import SAME, inside
from cifs_tf.statistics import wilson_interval

WHOLE = "1/1"
# As a radius is written: 8/255, 0.1, 1e-05.
NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?(/[0-9]+(\.[0-9]+)?)?")
PixelsOf: TypeAlias = Callable[[int], np.ndarray]


def verify(card: Card, model: AttackedModel, split: Split, batch_size: int = 250) -> list[Check]:
    """Check a card against a network and images, by predictions alone: no attack is run.

    That an image is broken is proved by its adversarial image, which must lie in the ball and be misclassified. That
    no image breaks the survivors nothing can prove: a card shows that robust accuracy is at most what it says.

    Args:
        card: as `Card.read` returns it.
        model: the network that it is of.
        split: the images that it is of.
        batch_size: images per batch. Default 250.

    Returns:
        the checks; the card holds if none fails.

    Example:
        >>> [check.name for check in verify(card, model, test) if check.verdict == "fail"]
        []
    """
    report = card.report
    if report is None:
        raise UserError("card", "no report", "give a card as a finished evaluation leaves it")
    if card.header["shard"] != WHOLE:
        raise UserError("card", f"part {card.header['shard']} of an evaluation", "merge all parts first")
    try:
        return _checks(card, report, model, split, batch_size)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        advice = "give a card as a finished evaluation leaves it"
        raise UserError("card", f"a report that is none ({type(error).__name__}: {error})", advice) from error


def _checks(card: Card, report: Report, model: AttackedModel, split: Split, batch_size: int) -> list[Check]:
    checks = [*_check_identity(card, model, split), _check_numbers(card, report)]
    shapes = {each.values.shape for each in card.shown.values()} - {split.image_shape}
    if len(report["broken_by"]) != len(split) or shapes or any(i >= len(split) for i in card.shown):
        return [*checks, Check("broken", FAIL, None, "the card is of other images.")]
    heads_fn = tf.function(
        next(iter(model.heads_fns.values())),
        input_signature=[tf.TensorSpec((None, *model.image_shape), tf.float32)],
        autograph=False,
    )

    def leads(pixels_of: PixelsOf, ids: np.ndarray) -> np.ndarray:
        """Return the leads of the labels for some images, by batches; they need not fit into memory at once."""
        parts = [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)]
        found = [relative_lead(heads_fn, np.stack([*map(pixels_of, part)]), split.labels[part]) for part in parts]
        return np.concatenate([np.zeros(0), *found])

    def attacked(i: int) -> np.ndarray:
        return card.shown[i].pixels(split.images[i : i + 1][0])

    natural = leads(lambda i: to_float(split.images[i : i + 1])[0].numpy(), np.arange(len(split)))
    ids = np.array(sorted(card.shown), int)
    outside = [
        i for i in ids.tolist() if not _is_in_ball(card.shown[i].task, report, attacked(i), split.images[i : i + 1])
    ]
    inside_ball = f"All {len(ids)} adversarial images lie in their ball"
    checks += [
        _check_natural(report, natural),
        _named("inside the ball", np.array(outside, int), inside_ball, "do not lie in their ball"),
        _check_broken(report, ids, leads(attacked, ids), is_full=card.is_full),
    ]
    eight = sum(card.shown[i].form == "uint8" for i in ids)
    sentence = f"{eight} of them are 8-bit images inside the ball; the others need values between multiples of 1/255."
    return [*checks, Check("8-bit pixels", INFO, None, sentence)]


def _check_identity(card: Card, model: AttackedModel, split: Split) -> list[Check]:
    """Check that network and images are those of the card; and say whether the code is."""
    key, found = card.header["key"], hash_split(split)
    checks = [
        Check(name, PASS if ok else FAIL, None, f"{what} {'the same' if ok else but}.")
        for name, ok, what, but in (
            ("weights", model.fingerprint == key["weights"], "the network is", f"another ({model.fingerprint})"),
            ("images", found == key["data"], "the images are", f"others ({found})"),
        )
    ]
    what = "the same" if code_version() == key["code"] else "another version, which verifying does not depend on"
    return [*checks, Check("code", INFO, None, f"the code of the attacks is {what}.")]


def _check_natural(report: Report, leads: np.ndarray) -> Check:
    """Check which images are right without an attack."""
    wrong = np.array([by == "natural" for by in report["broken_by"]])
    differing = np.flatnonzero((leads < -SAME) & ~wrong | (leads > SAME) & wrong)
    good = f"{np.sum(~wrong)} of {len(wrong)} images are right without an attack"
    return _named("natural predictions", differing, good, "are told otherwise")


def _is_in_ball(task: str, report: Report, pixels: np.ndarray, images: np.ndarray) -> bool:
    """Return whether pixels lie in the ball of a task around the one image given; it is the evaluation's at most."""
    attack = next((each["attack"] for each in report["tasks"] if each["name"] == task), None)
    if not attack:
        return False
    try:
        ball, radius = Ball(epsilon=attack["epsilon"], norm=attack["norm"]), report["about"].get("epsilon")
    except UserError:
        return False
    if ball.norm != report["about"].get("norm", ball.norm) or (radius is not None and ball.epsilon > radius + 1e-9):
        return False
    return bool(inside(ball, tf.constant(pixels[None]), to_float(images))[0])


def _check_broken(report: Report, ids: np.ndarray, leads: np.ndarray, is_full: bool) -> Check:
    """Check that adversarial images are misclassified, and that none is missing that had its place."""
    broken = sum(by not in (None, "natural") for by in report["broken_by"])
    missing = f"; {broken - len(ids)} more are not shown" if broken > len(ids) else ""
    if broken > len(ids) and not is_full:
        sentence = f"{broken - len(ids)} of {broken} broken images are not shown: nothing proves them"
        # No single image would be a proof.
        by_votes = any(task.get("votes") for task in report["tasks"])
        return Check("broken", FAIL, None, sentence + ("; verdicts by votes have no card." if by_votes else "."))
    good = f"{len(ids)} of {broken} broken images are misclassified as told{missing}"
    return _named("broken", ids[leads > SAME], good, "are not misclassified")


def _check_numbers(card: Card, report: Report) -> Check:
    """Check that the numbers of a report are those of its images."""
    broken_by, number = report["broken_by"], report["num_examples"]
    counts = {"natural": sum(by != "natural" for by in broken_by), "worst_case": sum(by is None for by in broken_by)}
    wrong = [name for name, count in counts.items() if report[name]["count"] != count]  # type: ignore[literal-required]
    wrong += [name for name in counts if abs(report[name]["accuracy"] * number - report[name]["count"]) > 1e-6]  # type: ignore[literal-required]
    wrong += [] if number == len(broken_by) else ["num_examples"]
    wrong += [] if report["key"] == card.header["key"] else ["key"]
    last = report["attacks"][-1]["standing"] if report["attacks"] else counts["natural"]
    wrong += [] if _is_written_as(report["about"]) else ["epsilon"]
    wrong += [name for name in counts if report[name]["interval"] not in (None, _interval(counts[name], number))]  # type: ignore[literal-required]
    verdicts = [check["verdict"] for check in report["audit"]]
    believable = FAIL not in verdicts if verdicts else None
    has_checks = any(task["section"] in ("audit", "sanity") for task in report["tasks"])
    wrong += [] if report["believable"] is believable and has_checks == bool(verdicts) else ["believable"]
    wrong += [] if last == counts["worst_case"] else ["attacks"]
    strange = [i for i, each in card.shown.items() if i >= len(broken_by) or broken_by[i] != each.task]
    wrong += [f"broken_by of {name_images(np.array(strange))}"] if strange else []
    if wrong:
        return Check(
            "numbers", FAIL, None, f"{', '.join(dict.fromkeys(wrong))} in the report are not those of its images."
        )
    return Check("numbers", PASS, None, f"{counts['worst_case']} of {number} images survive, as the report says.")


def _is_written_as(about: About) -> bool:
    """Return whether the radius is what its text says, such as 8/255: pages print the text."""
    text, radius = about.get("epsilon_given"), about.get("epsilon")
    if text is None or radius is None:
        return text is None and radius is None
    is_number = isinstance(radius, int | float) and math.isfinite(radius) and NUMBER.fullmatch(text) is not None
    return is_number and math.isclose(float(Ratio(text)), radius, rel_tol=1e-3)


def _interval(count: int, number: int) -> list[float]:
    return list(wilson_interval(count, number))


def _named(name: str, wrong: np.ndarray, good: str, bad: str) -> Check:
    sentence = f"{name_images(wrong)} ({len(wrong)} in all) {bad}" if len(wrong) else good
    return Check(name, FAIL if len(wrong) else PASS, None, f"{sentence}.")
