"""Referees: attacks of other kinds on the survivors of a suite, which should break nothing more.

Square (Andriushchenko et al. 2020) asks for probabilities only, RayS (Chen & Gu 2020) for labels only, and an attack
on the network of 8-bit pixels finds answers that hold off that grid alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from cifs_tf.attacks import PGD, HeadsFn, RayS, Square
from cifs_tf.evaluation.networks.attacked import AttackedModel
from cifs_tf.evaluation.tasks import Crafted

REFEREES = "referees"
SOME = 100  # images at most: a fault that matters shows on fewer
GRID = 255


def referees(epsilon: float, mask_gradient: str, *, norm: str = "linf", with_square: bool) -> list[Referee]:
    """List the referees of a suite.

    Args:
        epsilon: radius of the ball; in L-infinity the one on the grid takes the whole levels of 1/255 in it, if any.
        mask_gradient: the one that is attacked through.
        norm: of the ball; RayS knows `"linf"` (default) alone.
        with_square: whether to run Square; not where the suite has it.
    """
    attacks: dict[str, Any] = {"square": Square(epsilon=epsilon, norm=norm, num_queries=500)} if with_square else {}
    if norm == "linf":
        attacks["rays"] = RayS(epsilon=epsilon)
    # A hair more, so that 8/255 in float32 is eight levels.
    on_grid = int(epsilon * GRID + 1e-4) / GRID
    if norm != "linf":
        ball = {"epsilon": epsilon, "norm": norm, "step_size": epsilon / 4}
        attacks["grid"] = PGD(**ball, num_steps=20, loss="cw_margin", keep="fooling")  # type: ignore[arg-type]
    elif on_grid:
        step = max(1, round(epsilon * GRID / 4)) / GRID
        attacks["grid"] = PGD(epsilon=on_grid, step_size=step, num_steps=20, loss="cw_margin", keep="fooling")
    return [
        Referee(
            name=f"{family}, referee",
            family=family,
            attack=attack,
            mask_gradient=mask_gradient,
            is_on_grid=family == "grid",
        )
        for family, attack in attacks.items()
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Referee(Crafted):
    """An attack of another kind, on the survivors of the suite: it should break nothing more.

    Args:
        is_on_grid: whether the network sees, and answers for, 8-bit pixels only.
    """

    section: str = "sanity"
    pool: str = REFEREES
    on: str = "unbroken"
    sample: int | None = SOME
    is_on_grid: bool = False

    uses_one_trace = True

    def compile_key(self) -> Any:
        return ("referee", self.attack, self.mask_gradient, self.is_on_grid)

    def craft_fn(self, model: AttackedModel) -> Callable[..., tf.Tensor]:
        craft = super().craft_fn(_on_grid(model) if self.is_on_grid else model)
        if not self.is_on_grid:
            return craft

        def craft_on_grid(images, *arguments):  # type: ignore[no-untyped-def]
            x = craft(images, *arguments)
            if self.attack.norm == "linf":
                return _round_to_grid(x)
            # Towards the image, which keeps to every ball; a hair more, so that whole levels in float32 stay.
            levels = GRID * (x - images)
            return _round_to_grid(images + tf.sign(levels) * tf.floor(tf.abs(levels) + 1e-4) / GRID)

        return craft_on_grid


def _on_grid(model: AttackedModel) -> AttackedModel:
    """Let a model see 8-bit pixels, whose rounding the gradient ignores."""

    def heads_fn(own: HeadsFn) -> HeadsFn:
        return lambda x: own(x + tf.stop_gradient(_round_to_grid(x) - x))

    return dataclasses.replace(model, heads_fns={mask: heads_fn(own) for mask, own in model.heads_fns.items()})


def _round_to_grid(x: tf.Tensor) -> tf.Tensor:
    return tf.round(x * GRID) / GRID
