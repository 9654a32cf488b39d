"""Whether a network is a function of each image: of the image alone, the same in every call, and to the end.

An evaluation asks a network thousands of times, in batches, compiled. Its numbers are of use only if whoever asks it
once, with one image, gets the same answers.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from cifs_tf.attacks import PGD
from cifs_tf.attacks.random import uniform
from cifs_tf.evaluation.networks.attacked import AttackedModel
from cifs_tf.evaluation.networks.outputs import HALF_TYPES
from cifs_tf.evaluation.radii import farthest_radius
from cifs_tf.evaluation.tasks import LARGEST_TO_TYPICAL, SAME, SAME_IN_HALF, Task, deciding, differs
from cifs_tf.losses import head_weights

SECTION = "sanity"
# Images that are asked about again and again.
FEW = 32
CALLS = 5
# Share of noise that is mixed into images, to see what a network does off the natural ones.
NUDGE = 0.05
# The same of answers that are written down: at the image, near it, and farther away.
NUDGES = (0.0, NUDGE, 0.3)
# Projections that are written down of each answer, and what is added to the bits of a float32 to write it down.
NUMBERS, BITS = 4, 2**31
# A projection adds up the roundings of several logits.
MANY_ROUNDINGS = 5
# Probabilities in half precision are rounded to 0: logarithms of some are not compared.
LEAST_IN_HALF = -7.0
FIRST, LAST = "answers at the beginning", "answers at the end"


def tolerance_of(precision: str) -> float:
    """Return how far two answers of a network may lie apart, as a share, see `deciding`."""
    return SAME_IN_HALF if precision in HALF_TYPES else SAME


def floored(heads: tf.Tensor, precision: str) -> tf.Tensor:
    """Raise what half precision rounds to the logarithm of 0 to a floor."""
    if precision not in HALF_TYPES:
        return heads
    return tf.maximum(heads, tf.reduce_max(heads, axis=-1, keepdims=True) + LEAST_IN_HALF)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency(Task):
    """Answers that depend on the call, the batch, the label, the loading of the file, or whether TensorFlow compiles.

    Looked at are images, the same with faint noise, and as an attack of a few steps moves them.

    Args:
        epsilon: radius of that attack; None (default) leaves it out.
        norm: of its ball. Default `"linf"`.
    """

    name: str = "consistency"
    section: str = SECTION
    on: str = "all"
    sample: int | None = FEW
    epsilon: float | None = None
    norm: str = "linf"

    is_eager = True

    def compile_key(self) -> Any:
        return ("consistency", self.epsilon, self.norm)

    def measure_fn(self, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        heads_fn = next(iter(model.heads_fns.values()))
        steady_fn, tolerance = model.answered_fn or heads_fn, tolerance_of(model.precision)
        spec = tf.TensorSpec((None, *model.image_shape), tf.float32)
        compiled_fn = tf.function(steady_fn, autograph=False, input_signature=[spec])
        move = self._move_fn(model)

        def measure(images, labels, weights, rank, seed):  # type: ignore[no-untyped-def]
            number = len(images)
            noise = tf.random.stateless_uniform(images.shape, (0, 1))
            points = [images, images + NUDGE * (noise - images), *([move(images, labels)] if move else [])]
            images, labels = tf.concat(points, 0), tf.tile(labels, [len(points)])
            heads = heads_fn(images)

            def any_point(changed: tf.Tensor) -> tf.Tensor:
                return tf.reduce_any(tf.reshape(changed, [len(points), number]), axis=0)

            def other(answers: tf.Tensor) -> tf.Tensor:
                return any_point(differs(heads, answers, tolerance))

            repeated = [other(heads_fn(images)) for _ in range(CALLS - 1)]
            # Before them, after them and between them other images: noise, and nothing at all.
            dark = tf.zeros_like(noise)
            batch = [
                other(tf.concat([heads_fn(images[i : i + 1]) for i in range(len(images))], 0)),
                other(heads_fn(images[::-1])[::-1]),
                other(heads_fn(tf.concat([images, noise], 0))[: len(images)]),
                other(heads_fn(tf.concat([dark, images], 0))[number:]),
            ]
            varies = _any(repeated)
            steady = [floored(answer(images), model.precision) for answer in (steady_fn, compiled_fn)]
            # Where calls differ, nothing is known of what else the answer depends on.
            found = {"varies": varies, "batch": _any(batch) & ~varies}
            found["compiled"] = any_point(differs(*steady, tolerance)) & ~varies
            if model.labelled_heads_fn is not None:
                answers = [model.labelled_heads_fn(images, (labels + shift) % model.num_classes) for shift in (0, 1)]
                found["leaks"] = _any([other(each) for each in answers]) & ~varies
            if model.reload is not None:
                found["reloaded"] = other(next(iter(model.reload().heads_fns.values()))(images)) & ~varies
            return found

        return measure

    def _move_fn(self, model: AttackedModel) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None:
        """Make images as attacks make them; without a gradient noise at the corners of the ball has to do."""
        if self.epsilon is None:
            return None
        if not model.has_gradient:
            inner = self.epsilon / farthest_radius(self.norm, model.image_shape)
            return lambda images, labels: tf.clip_by_value(
                images + inner * tf.sign(tf.random.stateless_uniform(images.shape, (0, 2)) - 0.5), 0.0, 1.0
            )
        heads_fn, weights = next(iter(model.heads_fns.values())), head_weights(0, model.num_probes)
        attack = PGD(epsilon=self.epsilon, norm=self.norm, step_size=self.epsilon / 4, num_steps=10, loss="cw_margin")

        @tf.function(autograph=False)
        def move(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
            return attack(heads_fn, images, labels, head_weights=weights)

        return move


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered(Task):
    """What a network answers to some images and to noisy ones, as numbers: to be compared with those of another time.

    Four random projections of all heads for each, and what their rounding is a share of: the bits of float32 numbers.
    """

    section: str = SECTION
    on: str = "all"
    sample: int | None = FEW

    @property
    def stream(self) -> int:
        return zlib.crc32(b"answers") & 0x7FFFFFFF  # all such tasks look at the same noise

    def compile_key(self) -> Any:
        return ("answered",)

    def measure_fn(self, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        heads_fn = model.answered_fn or next(iter(model.heads_fns.values()))
        size = (1 + model.num_probes) * model.num_classes
        mix = tf.constant(np.random.default_rng(0).standard_normal((size, NUMBERS)) / size**0.5, tf.float64)

        def measure(images, labels, weights, rank, seed):  # type: ignore[no-untyped-def]
            noise = uniform(seed, images.shape[1:], 0.0, 1.0, images.dtype)
            heads = heads_fn(tf.concat([images + share * (noise - images) for share in NUDGES], 0))
            heads, scale, _ = deciding(floored(heads, model.precision), tolerance_of(model.precision))
            rows = tf.reshape(tf.cast(heads, tf.float64), [-1, size])
            found = tf.concat([tf.cast(rows @ mix, tf.float32), tf.reduce_max(scale, axis=1)], axis=1)
            written = tf.cast(tf.bitcast(found, tf.int32), tf.int64) + BITS
            return {"answers": tf.stack(tf.split(written, len(NUDGES)), axis=1)}

        return measure


def answered_alike(one: np.ndarray, other: np.ndarray, precision: str) -> np.ndarray:
    """Compare what two tasks `Answered` wrote down of the same images: bool (n,).

    Args:
        one, other: int (n, points, 1 + projections), n above 0.
        precision: of the network, see `AttackedModel`.
    """
    (first, scale), (second, _) = (_read(each) for each in (one, other))
    share = np.fmax(scale, np.minimum(np.median(scale), LARGEST_TO_TYPICAL * scale))
    with np.errstate(invalid="ignore"):
        near = np.abs(first - second) <= MANY_ROUNDINGS * tolerance_of(precision) * share
    same = near | (first == second) | (np.isnan(first) & np.isnan(second))
    return np.all(same, axis=(1, 2))


def _read(written: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return projections, and what their rounding is a share of."""
    numbers = (written - BITS).astype(np.int32).view(np.float32)
    return numbers[..., :-1], numbers[..., -1:]


def _any(flags: list[tf.Tensor]) -> tf.Tensor:
    return tf.reduce_any(tf.stack(flags), axis=0)
