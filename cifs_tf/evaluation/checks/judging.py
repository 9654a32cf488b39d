"""How a check is judged: a count of images against a limit, with its interval; and what to do where one fails.

A share over its limit warns; it fails where the whole 95% interval (Wilson) lies over the limit, and not on one image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from cifs_tf.statistics import wilson_interval

PASS, WARN, FAIL, SKIP, INFO = "pass", "warn", "fail", "skip", "info"
# What to do where a check fails, by what its name begins with; of several that fail the first of these comes first.
SEEN_THROUGH = (
    "find what hides the gradient, and evaluate with a stand-in for it (as_attacked(model, backward=...)) or with "
    "--surrogate FILE"
)
NEXT_STEPS = {
    "the pixels' range": "give the network pixels in the range that it was trained on",
    "same answer in any batch": "let each image be answered by itself (layers that look at the batch: inference mode)",
    "same answer twice": "switch off what is random, or evaluate with --suite rand",
    "same answer outside a graph": "find what the network does where `tf.executing_eagerly()` is false",
    "same answer": "find what the network keeps between calls, and give it a fixed state",
    "no label leaks": "take the label away from the network in inference mode",
    "gradient of": SEEN_THROUGH,
    "the gradient": SEEN_THROUGH,
    "a gradient to the end": SEEN_THROUGH,
    "the answer changes gradually": SEEN_THROUGH,
    "epsilon ": SEEN_THROUGH,
    "without a bound": SEEN_THROUGH,
    "FGSM": SEEN_THROUGH,
    "known": SEEN_THROUGH,
    "transfer": "count the images that the surrogate breaks as broken, and find what hides the gradient",
    "": "evaluate with --suite strict; if that fails too, " + SEEN_THROUGH,
}
# Of what attacks without the model's own gradient: the check that it adds nothing, what it does, and what that means.
ADDED = {
    "square": ("square adds nothing", "Square, which sees logits only, breaks", "the gradients mislead"),
    "rays": ("rays add nothing", "RayS, which sees predicted classes only, breaks", "logits and gradients mislead"),
    "grid": (
        "8-bit pixels add nothing",
        "PGD that keeps to multiples of 1/255 breaks",
        "answers for other pixels mislead",
    ),
    "uneven": (
        "uneven steps add nothing",
        "PGD with a radius of its own for each pixel breaks",
        "answers at the corners of the ball mislead",
    ),
    "transfer": ("transfer adds nothing", "Images made on the surrogate break", "the model's own gradients mislead"),
}


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


def next_step(names: Iterable[str]) -> str | None:
    """Return what to do next where checks of these names fail, in one sentence without its end; None without a name.

    Example:
        >>> next_step(["rays add nothing", "same answer twice"])
        'switch off what is random, or evaluate with --suite rand'
    """
    names = list(names)
    return next((step for start, step in NEXT_STEPS.items() if any(name.startswith(start) for name in names)), None)


def judge(images: int, number: int, limit: float) -> str:
    """Judge a count of images against the share that is allowed.

    Args:
        images: how many.
        number: of how many.
        limit: the share, in [0, 1).

    Returns:
        `"pass"` up to the limit; `"fail"` if the share's interval lies over it and it is not one image; else `"warn"`.

    Example:
        >>> [judge(images, 200, limit=0.01) for images in (2, 3, 4, 5)]
        ['pass', 'warn', 'warn', 'fail']
    """
    if number == 0 or images <= limit * number:
        return PASS
    return FAIL if images > 1 and wilson_interval(images, number)[0] > limit else WARN
