"""Sanity checks of every evaluation: cheap measurements, on a sample of the images, that tell whether it can be true.

Sources: Athalye et al. 2018 and Carlini et al. 2019 on gradient masking, Pintor et al. 2022 on indicators of attack
failure, Wang et al. 2019 on first-order stationarity (FOSC), AutoAttack's warnings. `sanity_verdicts` judges what they
find. Nothing here counts in the worst case: results of the suites stay what they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from cifs_tf.attacks import HeadsFn
from cifs_tf.attacks.objective import fooled
from cifs_tf.attacks.random import fold_in, uniform
from cifs_tf.evaluation.checks.binarisation import Binarised
from cifs_tf.evaluation.checks.consistency import LAST, SECTION, Answered, Consistency
from cifs_tf.evaluation.checks.referees import SOME, referees
from cifs_tf.evaluation.networks.attacked import AttackedModel
from cifs_tf.evaluation.radii import farthest_radius
from cifs_tf.evaluation.tasks import Gradients, Task
from cifs_tf.losses import margin

# Images of a sample whose gradients are taken once; others have `SOME`.
MANY = 250
DIRECTIONS = 8
# Shares of epsilon over which a gradient should predict.
NEAR = (0.01, 0.03, 0.1)
FAR = (0.1, 0.3, 1.0)
STEPS = 40
LAST_STEPS = 4
# Share of the ball's radius that each pixel of `Trajectory` has at least.
LEAST_RADIUS = 0.8
BISECTIONS = 18
# Shares from which on an image counts: of a change that the gradient does not explain, of the lead that is lost in a
# jump (masks jump too, where what they select changes), of what a step can gain that is left at the end.
UNEXPLAINED, JUMP, NOT_STATIONARY = 0.5, 1.25, 0.5


def entrance_tasks(
    mask_gradients: tuple[str, ...], *, epsilon: float | None = None, norm: str = "linf", with_gradients: bool
) -> list[Task]:
    """List the checks of any network; see `sanity_tasks`, and `Consistency` for what the radius is for."""
    tasks: list[Task] = [Answered(name=LAST), Consistency(epsilon=epsilon, norm=norm), Ranges()]
    if with_gradients:
        tasks += [SampledGradients(name=f"gradients, {mask}, sample", mask_gradient=mask) for mask in mask_gradients]
    return tasks


def sanity_tasks(
    epsilon: float,
    mask_gradients: tuple[str, ...],
    image_shape: Sequence[int],
    *,
    norm: str = "linf",
    with_gradients: bool,
    with_square: bool,
    with_features: bool = False,
) -> list[Task]:
    """List the checks that are part of every suite for networks that answer alike each time.

    Args:
        epsilon: radius of the ball. In L2 and L1 the checks that know the L-infinity ball alone look at the largest one
            inside.
        mask_gradients: those that are attacked through.
        image_shape: (height, width, channels).
        norm: of the ball. Default `"linf"`.
        with_gradients: whether to look for zero gradients; not where the audit does it on all images.
        with_square: whether to run Square; not where the suite has it.
        with_features: whether to attack the network's features with another last layer. Default False.

    Returns:
        the tasks; they read what stands at their place in a suite, so they come last.
    """
    first = mask_gradients[0]
    inner = epsilon / farthest_radius(norm, image_shape)
    tasks = entrance_tasks(mask_gradients, epsilon=epsilon, norm=norm, with_gradients=with_gradients)
    tasks += [Faithful(epsilon=inner, mask_gradient=first), Boundary(mask_gradient=first)]
    tasks += [Binarised(epsilon=inner, mask_gradient=first)] if with_features else []
    return [
        *tasks,
        Trajectory(epsilon=inner, mask_gradient=first),
        *referees(epsilon, first, norm=norm, with_square=with_square),
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranges(Task):
    """Correct predictions for pixels in [0, 1], times 255, and times 2 minus 1."""

    name: str = "ranges"
    section: str = SECTION
    on: str = "all"
    sample: int | None = SOME

    is_eager = True

    def compile_key(self) -> Any:
        return ("ranges",)

    def measure_fn(self, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        heads_fn = next(iter(model.heads_fns.values()))

        def measure(images, labels, weights, rank, seed):  # type: ignore[no-untyped-def]
            ranges = (images, 255 * images, 2 * images - 1)
            return {"right": tf.stack([~fooled(heads_fn(x), labels) for x in ranges], axis=1)}

        return measure


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampledGradients(Gradients):
    """`Gradients`, on a sample."""

    section: str = SECTION
    sample: int | None = MANY

    uses_one_trace = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faithful(Task):
    """How well the gradient of the label's lead predicts the lead nearby: of images, and of as many with noise on them.

    Args:
        epsilon: radius of the ball, whose fractions are the steps.
    """

    name: str = "faithful"
    section: str = SECTION
    on: str = "correct"
    sample: int | None = SOME
    epsilon: float

    uses_one_trace = True

    def compile_key(self) -> Any:
        return ("faithful", self.mask_gradient, self.epsilon)

    def measure_fn(self, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        heads_fn = model.heads_fns[self.mask_gradient]

        def measure(images, labels, weights, rank, seed):  # type: ignore[no-untyped-def]
            # A gradient may be right at natural images, and nowhere else: every second one is moved inside the ball.
            noise = uniform(fold_in(seed, DIRECTIONS), images.shape[1:], -1.0, 1.0, images.dtype)
            is_moved = tf.cast(
                uniform(fold_in(seed, DIRECTIONS + 1), [1, 1, 1], 0.0, 1.0, images.dtype) < 0.5, images.dtype
            )
            images = tf.clip_by_value(images + is_moved * self.epsilon * noise, 0.0, 1.0)
            lead, gradient = _lead_and_gradient(heads_fn, images, labels)

            def change(step):  # type: ignore[no-untyped-def]
                """Return what the gradient says of a step, and what comes."""
                direction, size = step
                random = uniform(fold_in(seed, direction), images.shape[1:], -1.0, 1.0, images.dtype)
                signs = tf.where(direction < DIRECTIONS, tf.sign(random), -tf.sign(gradient))
                x = tf.clip_by_value(images + size * signs, 0.0, 1.0)
                return _sum(gradient * (x - images)), _lead(heads_fn, x, labels) - lead

            # One trace of the network for all steps. The direction after the random ones is downhill.
            steps = [(i, share * self.epsilon) for share in NEAR for i in range(DIRECTIONS)]
            steps += [(i, share * self.epsilon) for share in FAR for i in range(DIRECTIONS + 1)]
            directions, sizes = (tf.constant(each) for each in zip(*steps, strict=True))
            said, real = tf.map_fn(
                change,
                (directions, tf.cast(sizes, images.dtype)),
                fn_output_signature=(images.dtype, images.dtype),
                parallel_iterations=1,
            )
            nearby, batch = DIRECTIONS * len(NEAR), tf.shape(images)[0]
            squares = [
                tf.reduce_sum(tf.reshape(tf.square(each[:nearby]), [len(NEAR), DIRECTIONS, batch]), axis=1)
                for each in (real - said, real)
            ]
            unexplained = tf.math.divide_no_nan(*squares)
            far = tf.reshape(real[nearby:], [len(FAR), DIRECTIONS + 1, batch])
            blind = tf.reduce_all(far[:, DIRECTIONS] >= tf.reduce_min(far[:, :DIRECTIONS], axis=1), axis=0)
            return {"unexplained": tf.reduce_min(unexplained, axis=0) > UNEXPLAINED, "blind": blind}

        return measure

    @property
    def cost(self) -> float:
        return 3 + 0.5 * DIRECTIONS * (len(NEAR) + len(FAR))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boundary(Task):
    """How far the label's lead jumps where the prediction changes, found by bisection on the way to another image.

    The lead of a continuous network vanishes there. Hard labels jump by all of it: they lead nobody there.
    """

    name: str = "boundary"
    section: str = SECTION
    on: str = "correct"
    sample: int | None = SOME

    uses_one_trace = True

    def compile_key(self) -> Any:
        return ("boundary", self.mask_gradient)

    def measure_fn(self, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        heads_fn = model.heads_fns[self.mask_gradient]

        def measure(images, labels, weights, rank, seed):  # type: ignore[no-untyped-def]
            lead = _lead(heads_fn, images, labels)
            noise = uniform(seed, images.shape[1:], 0.0, 1.0, images.dtype)
            far, reached = noise, tf.zeros_like(labels, tf.bool)
            for candidate in (1 - images, noise, tf.zeros_like(images), tf.ones_like(images), 0.5 * (images + noise)):
                now = ~reached & (_lead(heads_fn, candidate, labels) < 0)
                far, reached = tf.where(now[:, None, None, None], candidate, far), reached | now

            def halve(index, near, far):  # type: ignore[no-untyped-def]
                middle = 0.5 * (near + far)
                still = (_lead(heads_fn, middle, labels) > 0)[:, None, None, None]
                return index + 1, tf.where(still, middle, near), tf.where(still, far, middle)

            _, near, far = tf.while_loop(lambda index, *_: index < BISECTIONS, halve, (0, images, far))
            jump = tf.math.divide_no_nan(_lead(heads_fn, near, labels) - _lead(heads_fn, far, labels), lead)
            return {"reached": reached, "jumps": reached & (jump > JUMP)}

        return measure

    @property
    def cost(self) -> float:
        return 0.5 * BISECTIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory(Task):
    """How an attack of 40 steps on the label's lead ends: whether it has converged, and whether it passed success by.

    Each pixel has a radius and steps of its own, a little less than those of the ball: a network that recognises images
    at the ball's corners, as other attacks make them, meets images that lie elsewhere. What this attack breaks, the
    others should. The same without a bound should break every image.

    Args:
        epsilon: radius of the ball.
    """

    name: str = "trajectory"
    section: str = SECTION
    on: str = "correct"
    sample: int | None = SOME
    epsilon: float

    uses_one_trace = True

    def compile_key(self) -> Any:
        return ("trajectory", self.mask_gradient, self.epsilon)

    def measure_fn(self, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        heads_fn = model.heads_fns[self.mask_gradient]

        def measure(images, labels, weights, rank, seed):  # type: ignore[no-untyped-def]
            # One loop for both: every image within epsilon, and once more without a bound.
            number, own = tf.shape(images)[0], tf.concat([labels, labels], 0)
            shares = uniform(seed, images.shape[1:], LEAST_RADIUS, 1.0, images.dtype)
            radius = tf.concat([self.epsilon * shares, tf.ones_like(images)], 0)
            start = tf.concat([images, images], 0)
            low, high = tf.maximum(start - radius, 0.0), tf.minimum(start + radius, 1.0)

            def step(index, x, best, before, lowest):  # type: ignore[no-untyped-def]
                lead, gradient = _lead_and_gradient(heads_fn, x, own)
                lowest = tf.minimum(lowest, lead)
                before = tf.where(index < STEPS - LAST_STEPS, lowest, before)
                best = tf.where((lead <= lowest)[:, None, None, None], x, best)
                # Ever smaller steps, so that an attack that can converge does.
                size = 0.5 * radius * (1 - tf.cast(index, tf.float32) / STEPS)
                return index + 1, tf.clip_by_value(x - size * tf.sign(gradient), low, high), best, before, lowest

            first = _lead(heads_fn, start, own)
            state = (tf.constant(0), start, start, first, first)
            found = tf.while_loop(lambda index, *_: index < STEPS, step, state, parallel_iterations=1)[1:]
            unreached = found[3][number:] >= 0
            first, low, high = first[:number], low[:number], high[:number]
            last, best, before, lowest = (each[:number] for each in found)
            gradient = _lead_and_gradient(heads_fn, best, labels)[1]
            # FOSC: what the gradient says a step to the far side of the ball would still gain, of the most there is.
            gain = _sum(tf.abs(gradient) * tf.where(gradient > 0, best - low, high - best))
            whole = _sum(tf.abs(gradient) * tf.where(gradient > 0, images - low, high - images))
            broken = lowest < 0
            return {
                "broken": broken,
                "silent": broken & (_lead(heads_fn, last, labels) > 0),
                "moving": ~broken & (gain > NOT_STATIONARY * whole),
                "gone": ~broken & (whole == 0),
                "unreached": unreached,
                "unfinished": ~broken & (before - lowest > 0.1 * (first - lowest)),
            }

        return measure

    @property
    def cost(self) -> float:
        return 2 * STEPS + 2.0


def _lead(heads_fn: HeadsFn, x: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    return margin(heads_fn(x), labels)[:, 0]


def _lead_and_gradient(heads_fn: HeadsFn, x: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        lead = _lead(heads_fn, x, labels)
    gradient = tape.gradient(lead, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    gradient.set_shape(x.shape)
    return lead, tf.where(tf.math.is_finite(gradient), gradient, tf.zeros_like(gradient))


def _sum(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(values, axis=[1, 2, 3])
