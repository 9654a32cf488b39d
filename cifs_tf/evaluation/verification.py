"""A robustness card, checked against the network and the images that it is of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from cifs_tf.attacks import Ball
from cifs_tf.data import Split, to_float
from cifs_tf.errors import UserError
from cifs_tf.evaluation.attacked import AttackedModel
from cifs_tf.evaluation.card import Card, relative_lead
from cifs_tf.evaluation.engine import code_version, hash_split
from cifs_tf.evaluation.lines import name_images
from cifs_tf.evaluation.records import Report
from cifs_tf.evaluation.tasks import SAME, inside
from cifs_tf.evaluation.verdicts import FAIL, INFO, PASS, Check


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
    report, key = card.report, card.header["key"]
    if report is None:
        raise UserError("card", "no report", "give a card as a finished evaluation leaves it")
    same = [
        ("weights", model.fingerprint == key["weights"], "the network is", f"another ({model.fingerprint})"),
        ("images", hash_split(split) == key["data"], "the images are", f"others ({hash_split(split)})"),
    ]
    checks = [
        Check(name, PASS if ok else FAIL, None, f"{what} {'the same' if ok else but}.") for name, ok, what, but in same
    ]
    what = "the same" if code_version() == key["code"] else "another version, which verifying does not depend on"
    checks.append(Check("code", INFO, None, f"the code of the attacks is {what}."))
    checks.append(_check_numbers(card, report))
    shapes = {each.values.shape for each in card.shown.values()} - {split.image_shape}
    if len(report["broken_by"]) != len(split) or shapes or any(i >= len(split) for i in card.shown):
        return [*checks, Check("broken", FAIL, None, "the card is of other images.")]
    heads_fn = next(iter(model.heads_fns.values()))
    heads_fn = tf.function(
        heads_fn, input_signature=[tf.TensorSpec((None, *model.image_shape), tf.float32)], autograph=False
    )

    def leads(pixels_of: Callable[[int], np.ndarray], ids: np.ndarray) -> np.ndarray:
        """Return the leads of the labels for some images, by batches; they need not fit into memory at once."""
        parts = [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)]
        found = [relative_lead(heads_fn, np.stack([*map(pixels_of, part)]), split.labels[part]) for part in parts]
        return np.concatenate([np.zeros(0), *found])

    every = np.arange(len(split))
    natural = leads(lambda i: to_float(split.images[i : i + 1])[0].numpy(), every)
    wrong = np.array([by == "natural" for by in report["broken_by"]])
    differs = every[(natural < -SAME) & ~wrong | (natural > SAME) & wrong]
    checks.append(
        _named(
            "natural predictions",
            differs,
            f"{np.sum(~wrong)} of {len(split)} images are right without an attack",
            "are told otherwise",
        )
    )

    ids = np.array(sorted(card.shown), int)

    def attacked(i: int) -> np.ndarray:
        return card.shown[i].pixels(split.images[i : i + 1][0])

    balls = {task["name"]: task["attack"] for task in report["tasks"] if task.get("attack")}
    radius = report["about"].get("epsilon")
    outside = []
    for i in ids.tolist():
        attack = balls.get(card.shown[i].task)
        ball = None if attack is None else Ball(**{name: attack[name] for name in ("epsilon", "norm")})
        natural_image = to_float(split.images[i : i + 1])
        is_inside = ball is not None and bool(inside(ball, tf.constant(attacked(i)[None]), natural_image)[0])
        if ball is None or not is_inside or (radius is not None and ball.epsilon > radius + 1e-9):
            outside.append(i)
    checks.append(
        _named(
            "inside the ball",
            np.array(outside, int),
            f"All {len(ids)} adversarial images lie in their ball",
            "do not lie in their ball",
        )
    )
    kept = ids[leads(attacked, ids) > SAME] if len(ids) else ids
    broken = sum(by not in (None, "natural") for by in report["broken_by"])
    missing = f"; {broken - len(ids)} more are not shown" if broken > len(ids) else ""
    checks.append(
        _named(
            "broken",
            kept,
            f"{len(ids)} of {broken} broken images are misclassified as told{missing}",
            "are not misclassified",
        )
    )
    eight = sum(card.shown[i].form == "uint8" for i in ids)
    checks.append(
        Check(
            "8-bit pixels",
            INFO,
            None,
            f"{eight} of them are 8-bit images inside the ball; the others need values between multiples of 1/255.",
        )
    )
    return checks


def _check_numbers(card: Card, report: Report) -> Check:
    """Check that the numbers of a report are those of its images."""
    broken_by, number = report["broken_by"], report["num_examples"]
    counts = {"natural": sum(by != "natural" for by in broken_by), "worst_case": sum(by is None for by in broken_by)}
    wrong = [name for name, count in counts.items() if report[name]["count"] != count]  # type: ignore[literal-required]
    wrong += [name for name in counts if abs(report[name]["accuracy"] * number - report[name]["count"]) > 1e-6]  # type: ignore[literal-required]
    wrong += [] if number == len(broken_by) else ["num_examples"]
    wrong += [] if report["key"] == card.header["key"] else ["key"]
    last = report["attacks"][-1]["standing"] if report["attacks"] else counts["natural"]
    wrong += [] if last == counts["worst_case"] else ["attacks"]
    strange = [i for i, each in card.shown.items() if i >= len(broken_by) or broken_by[i] != each.task]
    wrong += [f"broken_by of {name_images(np.array(strange))}"] if strange else []
    if wrong:
        return Check(
            "numbers", FAIL, None, f"{', '.join(dict.fromkeys(wrong))} in the report are not those of its images."
        )
    return Check("numbers", PASS, None, f"{counts['worst_case']} of {number} images survive, as the report says.")


def _named(name: str, wrong: np.ndarray, good: str, bad: str) -> Check:
    sentence = f"{name_images(wrong)} ({len(wrong)} in all) {bad}" if len(wrong) else good
    return Check(name, FAIL if len(wrong) else PASS, None, f"{sentence}.")
