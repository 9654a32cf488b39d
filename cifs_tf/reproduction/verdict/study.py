"""The study as data: arms, hypotheses, gate and measurement, read from `study.yaml`."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import yaml

FOLDER = Path(__file__).parent
NAME = "verdict"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train, compared with the others.

    Args:
        name: of its files.
        title: in tables.
        run: options of run.py on top of the study's recipe.
        about: what it is, in a few words.
        control: the question that a control answers; empty for the others.
    """

    name: str
    title: str
    run: dict[str, Any]
    about: str = ""
    control: str = ""


@dataclasses.dataclass(frozen=True)
class Term:
    """A summand of a contrast: the verdicts of one arm at one epoch under one protocol, times a coefficient."""

    coefficient: int
    arm: str
    checkpoint: Literal["last", "best"]
    protocol: Literal["natural", "paper", "worst_case"]


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A claim that was written down before the first cell, and the contrasts that judge it.

    Args:
        name: such as `"H1"`.
        claim: one sentence.
        kind: `"greater"` (each contrast is above 0), `"as_well"` (above -margin) or `"gone"` (below margin).
        contrasts: terms by title.
        margin: share of the images, in [0, 1]. Default 0.
        presumes: hypothesis and contrast without which the claim has no sense. Default none.
    """

    name: str
    claim: str
    kind: Literal["greater", "as_well", "gone"]
    contrasts: dict[str, tuple[Term, ...]]
    margin: float = 0.0
    presumes: tuple[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """All of it.

    Args:
        title: of the page.
        recipe: of every run.
        seeds: of every arm, unless more are asked for.
        suite: of evaluate.py.
        examples: class-balanced test images under attack.
        attacks: of the paper's protocol in the suite.
        training_examples: training images on which robust accuracy is measured.
        gate: `training` (robust accuracy on training images) and `decline` (best minus last robust validation
            accuracy) that vanilla must reach before anything is compared.
        arms: by name, in the order in which they are computed.
        hypotheses: in order.
        scale: `"full"`, or `"smoke"`.
    """

    title: str
    recipe: str
    seeds: int
    suite: str
    examples: int
    attacks: tuple[str, ...]
    training_examples: int
    gate: dict[str, float]
    arms: dict[str, Arm]
    hypotheses: tuple[Hypothesis, ...]
    scale: str


@functools.cache
def load_study(scale: str = "full") -> Study:
    """Read the study; at the scale "smoke" it is next to nothing, to show that everything runs.

    Example:
        >>> load_study().arms["permuted"].run["mask_permutation"]
        1
    """
    content = yaml.safe_load((FOLDER / "study.yaml").read_text())
    smoke = content.pop("smoke")
    content |= smoke if scale == "smoke" else {}
    content["attacks"] = tuple(content["attacks"])
    content["arms"] = {name: Arm(name, **entry) for name, entry in content["arms"].items()}
    content["hypotheses"] = tuple(_hypothesis(name, **entry) for name, entry in content["hypotheses"].items())
    return Study(**content, scale=scale)


def _hypothesis(name: str, **entry: Any) -> Hypothesis:
    entry["contrasts"] = {title: tuple(Term(*term) for term in terms) for title, terms in entry["contrasts"].items()}
    if "presumes" in entry:
        entry["presumes"] = tuple(entry["presumes"])
    return Hypothesis(name, **entry)
