"""The base of all attacks: hyper-parameters in the constructor, data in the call."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from cifs_tf.attacks.ball import NORMS, Ball
from cifs_tf.attacks.objective import HeadsFn
from cifs_tf.checks import as_array, check_images, check_labels
from cifs_tf.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack(Ball, abc.ABC):
    """Base class of attacks: a threat model, and a search for adversarial images in it.

    A subclass is a frozen dataclass that adds its hyper-parameters and implements `search`. Where it draws random
    numbers, aims at a class, or knows some norms only, it says so by `needs_seed`, `is_targeted` and `norms`.

    Args:
        epsilon: radius, in the units of the images, see `Ball`.
        norm: `"linf"` (default), `"l2"` or `"l1"`.
        bounds: (lowest, highest) pixel value. Default (0, 1).

    Call arguments:
        heads_fn: images -> heads (batch, 1 + P, classes), in inference mode.
        images: float (batch, height, width, channels) within the bounds.
        labels: int (batch,).
        head_weights: float (1 + P,), see `cifs_tf.losses.head_weights`: the attacker's weighting of the heads.
        seed: int64 (batch, 2), a stateless seed per example, see `example_seeds`; read by attacks that draw random
            numbers. Default None.
        target_rank: read by targeted attacks, which aim at the class of this rank in the natural prediction, from 2
            (default).

    Returns:
        x_adv, like the images.

    Raises:
        UserError: for a hyper-parameter out of range, or a missing seed.
    """

    norms: ClassVar[tuple[str, ...]] = NORMS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in self.norms:
            raise UserError("norm", self.norm, f"give {self.norms[0]}, or another attack for {self.norm}")
        for name in ("num_steps", "num_queries"):
            if getattr(self, name, 0) < 0:
                raise UserError(name, getattr(self, name), "give 0 or more")

    @property
    def needs_seed(self) -> bool:
        """True if a call draws random numbers. Default False."""
        return False

    @property
    def is_targeted(self) -> bool:
        """True if `target_rank` is read. Default False."""
        return False

    @property
    def cost(self) -> float:
        """Forward and backward passes for each image, at most. Default `num_steps`, or 1."""
        return float(getattr(self, "num_steps", 1))

    def __call__(
        self,
        heads_fn: HeadsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        *,
        head_weights: tf.Tensor | np.ndarray,
        seed: tf.Tensor | None = None,
        target_rank: int | tf.Tensor = 2,
    ) -> tf.Tensor:
        """Attack a batch; see the class."""
        if self.needs_seed and seed is None:
            raise UserError("seed", None, "give one per example (example_seeds), the attack draws random numbers")
        if tf.executing_eagerly():
            heads_fn = _checking(heads_fn, labels)
            images, labels = self._checked(images, labels)
        return self.search(heads_fn, images, labels, head_weights, seed, target_rank)

    def _checked(self, images: Any, labels: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Refuse images outside the bounds; return labels as integers. In a graph, whoever built it has checked."""
        low, high = self.bounds
        numbers, pixels = check_labels(labels), as_array(images, "images")
        if (low, high) == (0.0, 1.0) or pixels.dtype.kind in "OUS":
            check_images(images)
        elif (pixels < low).any() or (pixels > high).any():
            raise UserError(
                "images", "pixels outside the bounds", f"give pixels from {low:g} to {high:g}, or other bounds"
            )
        if pixels.ndim == 0 or len(pixels) != len(numbers):
            number = len(pixels) if pixels.ndim else 0
            raise UserError("labels", f"{len(numbers)} labels", f"give one for each of the {number} images")
        # Arrays of NumPy, of whichever precision, are taken as `Model.predict` takes them.
        return images if tf.is_tensor(images) else tf.constant(pixels, tf.float32), tf.constant(numbers)

    @abc.abstractmethod
    def search(
        self,
        heads_fn: HeadsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        head_weights: tf.Tensor | np.ndarray,
        seed: tf.Tensor | None,
        target_rank: int | tf.Tensor,
    ) -> tf.Tensor:
        """Search for adversarial images; see the class for arguments and result."""


def _checking(heads_fn: HeadsFn, labels: tf.Tensor) -> HeadsFn:
    """Refuse labels outside the classes that a network answers with, and float16, when it first answers."""
    unseen = [np.asarray(labels)]

    def checked(images: tf.Tensor) -> tf.Tensor:
        heads = heads_fn(images)
        if unseen:
            if heads.dtype == tf.float16:
                raise UserError("heads_fn", "heads in float16", "small gradients vanish in it; compute in float32")
            check_labels(unseen.pop(), heads.shape[-1])
        return heads

    return checked
