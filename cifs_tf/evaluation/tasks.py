"""Tasks: what an evaluation measures on a batch of images. Each is a pure function of images, labels and seeds.

A task belongs to a pool. The survivors of a pool are the images that are correct without an attack and that none of its
tasks breaks; the pool `main` holds every attack inside the threat model, so its survivors are the worst case over all.
"""

from __future__ import annotations

import abc
import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, ClassVar

import tensorflow as tf

from cifs_tf.attacks import PGD, Ball, HeadsFn
from cifs_tf.attacks.objective import choose, fooled
from cifs_tf.evaluation.networks.attacked import AttackedModel
from cifs_tf.evaluation.records import MAIN
from cifs_tf.losses import cross_entropy, head_weights, margin

# float32 rounding of a point on the surface of the ball.
SLACK = 1e-6
# Of two calls of the same network.
SAME, SAME_IN_HALF = 1e-4, 2e-2
# Logits below the highest that are compared, and what a network typically answers to what it does here, at most.
DEPTH, LARGEST_TO_TYPICAL = 20.0, 1000.0
# Of a logit, beside a share of the lead: some units in its last place, in half precision those of bfloat16.
ROUNDING = {SAME: 1e-6, SAME_IN_HALF: 8e-3}
# Parts of a distance of 1 in which a ledger counts distances, rounded up.
DISTANCE_UNITS = 10**6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """One measurement.

    Args:
        name: unique in an evaluation; the ledger's and the report's name for it, and what its random draws depend on.
        on: which images: `"all"`, `"correct"` (without an attack), `"standing"` (the pool's survivors so far), or
            `"unbroken"` (the survivors of the pool `main`).
        pool: see the module. Default `"main"`.
        counts: whether the images that it breaks count in the pool `main` too. Default False.
        section: the part of the report that it belongs to.
        family: what tasks that differ in beta, mask gradient or target have in common, such as `"pgd20"`.
        beta: of the head weights, see `cifs_tf.losses.head_weights`. Default 0.
        mask_gradient: see `AttackedModel.heads_fns`.
        target_rank: of attacks with a target: the rank of the class aimed at, from 2.
        x: place on the axis of a curve, or None.
    """

    name: str
    on: str = "standing"
    pool: str = MAIN
    counts: bool = False
    section: str = "natural"
    family: str = ""
    beta: float | str = 0
    mask_gradient: str = "exact"
    target_rank: int = 2
    x: float | None = None

    is_eager: ClassVar[bool] = False
    """Whether it is not compiled: its own calls of the network count."""
    uses_one_trace: ClassVar[bool] = False
    """Whether the network is traced once for all such tasks, which is cheaper than anew for each of its calls."""

    @property
    def sample(self) -> int | None:
        """Measure only those among so many of all images, always the same; None measures all of `on`."""
        return None

    @property
    def stream(self) -> int:
        """Number of the random stream, see `cifs_tf.attacks.example_seeds`."""
        return zlib.crc32(self.name.encode()) & 0x7FFFFFFF

    @property
    def cost(self) -> float:
        """Forward and backward passes for each image, at most."""
        return 1.0

    @abc.abstractmethod
    def compile_key(self) -> Any:
        """Return a key; tasks of the same key share one trace."""

    @abc.abstractmethod
    def measure_fn(self, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        """Make the function that the engine compiles.

        Call arguments of the function: images float32 (batch, height, width, channels), labels int32 (batch,), weights
        float32 (1 + P,), rank int32 (), seed int64 (batch, 2).

        Returns:
            arrays (batch, ...) of integers or booleans, by name; `x_adv`, for the card, is of floats.
        """

    def describe(self) -> dict[str, Any]:
        """Return everything about the task in plain types."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"kind": type(self).__name__, **fields}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Natural(Task):
    """The predictions on natural images."""

    name: str = "natural"
    on: str = "all"

    def compile_key(self) -> Any:
        return ("natural",)

    def measure_fn(self, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        heads_fn = next(iter(model.heads_fns.values()))
        return lambda images, labels, weights, rank, seed: {
            "ranks": label_ranks(heads_fn(images), labels),
            "labels": labels,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crafted(Task):
    """The predictions on adversarial images.

    Args:
        attack: see `cifs_tf.attacks`.
        surrogate: another model, on which the attack makes the images (a transfer attack); None for the attacked one.
    """

    attack: Any
    surrogate: AttackedModel | None = None

    @property
    def cost(self) -> float:
        return float(getattr(self.attack, "cost", 1))

    def describe(self) -> dict[str, Any]:
        attack = {"kind": type(self.attack).__name__, **dataclasses.asdict(self.attack)}
        return {**super().describe(), "attack": attack, "surrogate": self.surrogate and self.surrogate.name}

    def compile_key(self) -> Any:
        transfer = self.surrogate and (self.surrogate.fingerprint, self.beta)
        return ("crafted", self.attack, self.mask_gradient, transfer)

    def craft_fn(self, model: AttackedModel) -> Callable[..., tf.Tensor]:
        """Make (images, labels, weights, rank, seed) -> x_adv."""
        source = self.surrogate or model
        heads_fn, attack = source.heads_fns[self.mask_gradient], self.attack
        is_targeted = getattr(attack, "is_targeted", False)

        def craft(images, labels, weights, rank, seed):  # type: ignore[no-untyped-def]
            target = {"target_rank": rank} if is_targeted else {}
            if self.surrogate is not None:
                weights = head_weights(self.beta, source.num_probes)
            return attack(heads_fn, images, labels, head_weights=weights, seed=seed, **target)

        return craft

    def measure_fn(self, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        craft, heads_fn = self.craft_fn(model), model.heads_fns[self.own_mask_gradient(model)]

        def measure(images, labels, weights, rank, seed):  # type: ignore[no-untyped-def]
            return self._judged(heads_fn, images, labels, craft(images, labels, weights, rank, seed))

        return measure

    def _judged(
        self, heads_fn: HeadsFn, images: tf.Tensor, labels: tf.Tensor, x_adv: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Judge images by the attacked model, and only inside the ball, whatever the attack says."""
        ranks = label_ranks(heads_fn(x_adv), labels)
        return {"ranks": ranks, "outside": ~inside(self.attack, x_adv, images), "x_adv": x_adv}

    def goes_on_from(self, first: Task) -> bool:
        """Return whether this attack begins with all the steps of another one on all images: one run gives both."""
        if not (type(self) is type(first) is Crafted and type(self.attack) is type(first.attack) is PGD):
            return False
        alike = [
            (task.on, task.beta, task.mask_gradient, task.surrogate, dataclasses.replace(task.attack, num_steps=1))
            for task in (self, first)
        ]
        own = self.attack
        is_plain = own.keep == "last" and own.num_restarts == 1 and not own.random_start and self.on == "all"
        return is_plain and alike[0] == alike[1] and self.surrogate is None and first.attack.num_steps < own.num_steps

    def measure_both_fn(self, first: Crafted, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        """Make what `measure_fn` makes, also for an attack that this one goes on from: its names begin with `first`."""
        heads_fn = model.heads_fns[self.mask_gradient]

        def measure(images, labels, weights, rank, seed):  # type: ignore[no-untyped-def]
            after = (first.attack.num_steps, self.attack.num_steps)
            short, long = self.attack.iterates(heads_fn, images, labels, weights, after)
            begun = first._judged(heads_fn, images, labels, short)
            return {
                **{f"first {name}": value for name, value in begun.items()},
                **self._judged(heads_fn, images, labels, long),
            }

        return measure

    def own_mask_gradient(self, model: AttackedModel) -> str:
        """Return a mask gradient that the model has, where the attack's is a surrogate's; heads do not depend on it."""
        return self.mask_gradient if self.mask_gradient in model.heads_fns else model.mask_gradients[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nearest(Crafted):
    """The nearest misclassified point that an attack finds, at whatever distance; within its epsilon it counts.

    Args:
        attack: a `cifs_tf.attacks.MinimalNorm`.
    """

    on: str = "correct"

    def compile_key(self) -> Any:
        return ("nearest", self.attack, self.mask_gradient)

    def measure_fn(self, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        heads_fn, attack = model.heads_fns[self.mask_gradient], self.attack

        def measure(images, labels, weights, rank, seed):  # type: ignore[no-untyped-def]
            x, _ = attack.nearest(heads_fn, images, labels, weights, rank)
            distance, (lowest, highest) = attack.distance(x, images), attack.bounds
            in_bounds = tf.reduce_all((x >= lowest) & (x <= highest), axis=[1, 2, 3])
            return {
                "distance": tf.cast(tf.math.ceil(tf.cast(distance, tf.float64) * DISTANCE_UNITS), tf.int64),
                "reached": fooled(heads_fn(x), labels) & in_bounds,
                **self._judged(heads_fn, images, labels, choose(distance <= attack.epsilon, x, images)),
            }

        return measure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gradients(Task):
    """Heads whose gradient to the image is zero everywhere, or not finite: of the cross-entropy less the label's lead.

    The cross-entropy alone has none where logits are large; attacks on DLR or the lead find their way there.
    """

    section: str = "audit"
    on: str = "correct"

    def compile_key(self) -> Any:
        return ("gradients", self.mask_gradient)

    def measure_fn(self, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        heads_fn = model.heads_fns[self.mask_gradient]

        def measure(images, labels, weights, rank, seed):  # type: ignore[no-untyped-def]
            zero, broken = [], []
            for head in range(1 + model.num_probes):
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(images)
                    heads = heads_fn(images)
                    loss = (cross_entropy(heads, labels) - margin(heads, labels))[:, head]
                gradient = tape.gradient(loss, images, unconnected_gradients=tf.UnconnectedGradients.ZERO)
                zero.append(tf.reduce_all(gradient == 0, axis=[1, 2, 3]))
                broken.append(~tf.reduce_all(tf.math.is_finite(gradient), axis=[1, 2, 3]))
            return {"zero": tf.stack(zero, axis=1), "not_finite": tf.stack(broken, axis=1)}

        return measure

    @property
    def cost(self) -> float:
        return 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stability(Task):
    """Predictions that differ between two calls, or, where the model takes labels, with the label."""

    name: str = "stability"
    section: str = "audit"
    on: str = "all"

    def compile_key(self) -> Any:
        return ("stability",)

    def measure_fn(self, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        heads_fn = next(iter(model.heads_fns.values()))

        def measure(images, labels, weights, rank, seed):  # type: ignore[no-untyped-def]
            heads = heads_fn(images)
            found = {"varies": differs(heads, heads_fn(images))}
            if model.labelled_heads_fn is not None:
                answers = [model.labelled_heads_fn(images, (labels + shift) % model.num_classes) for shift in (0, 1)]
                found["leaks"] = differs(heads, answers[0]) | differs(answers[0], answers[1])
            return found

        return measure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flips(Crafted):
    """Changes, by an attack, of the set of top-k classes from which a selection layer makes its mask."""

    section: str = "audit"
    on: str = "correct"

    def compile_key(self) -> Any:
        return ("flips", self.attack, self.mask_gradient)

    def measure_fn(self, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        craft, heads_fn = self.craft_fn(model), model.heads_fns[self.mask_gradient]

        def choices(heads: tf.Tensor) -> list[tf.Tensor]:
            chosen = [tf.math.top_k(heads[:, 1 + i], k=k).indices for i, k in enumerate(model.top_k)]
            return [tf.sort(classes, axis=1) for classes in chosen]

        def measure(images, labels, weights, rank, seed):  # type: ignore[no-untyped-def]
            before = choices(heads_fn(images))
            after = choices(heads_fn(craft(images, labels, weights, rank, seed)))
            return {
                "flips": tf.stack([tf.reduce_any(a != b, axis=1) for a, b in zip(before, after, strict=True)], axis=1)
            }

        return measure


def label_ranks(heads: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Count the classes that each head ranks above the label: 0 if it is predicted. Ties go to the lower class.

    Args:
        heads: float (batch, 1 + P, classes).
        labels: int (batch,).

    Returns:
        int32 (batch, 1 + P); the number of classes where a logit of the head is NaN.
    """
    classes = heads.shape[-1]
    own = tf.gather(heads, tf.cast(labels, tf.int32), axis=2, batch_dims=1)[..., None]
    lower = tf.range(classes) < tf.cast(labels, tf.int32)[:, None]
    before = (heads > own) | ((heads == own) & lower[:, None, :])
    ranks = tf.reduce_sum(tf.cast(before, tf.int32), axis=-1)
    return tf.where(tf.reduce_any(tf.math.is_nan(heads), axis=-1), classes, ranks)


def inside(ball: Ball, x_adv: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Return whether points lie in the ball around the images and in its bounds, but for rounding; NaN never does."""
    lowest, highest = ball.bounds
    in_bounds = tf.reduce_all((x_adv >= lowest - SLACK) & (x_adv <= highest + SLACK), axis=[1, 2, 3])
    slack = SLACK if ball.norm == "linf" else SLACK * max(1.0, float(ball.epsilon)) * 10
    return in_bounds & (ball.distance(x_adv, images) <= ball.epsilon + slack)


def differs(first: tf.Tensor, second: tf.Tensor, tolerance: float = SAME) -> tf.Tensor:
    """Return whether heads of the same images differ by more than rounding, see `deciding`: bool (batch,)."""
    (one, scale, floor), other = deciding(first, tolerance), second
    other = tf.where(tf.math.is_nan(other), other, tf.maximum(other, floor))
    typical = tf.minimum(_median(scale), LARGEST_TO_TYPICAL * scale)
    alike = (one == other) | (tf.abs(one - other) <= tolerance * tf.maximum(scale, typical))
    return ~tf.reduce_all(alike, axis=[1, 2])


def deciding(heads: tf.Tensor, tolerance: float = SAME) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the part of logits that decides, and what its rounding is a share of.

    That is the lead of the highest logit over the next, and no less than their own rounding makes it: neither a class
    that is ruled out by a logit of -1e9 nor a number that is added to all classes hides differences of the others.

    Args:
        heads: float (batch, 1 + P, classes).
        tolerance: the share, `SAME` or `SAME_IN_HALF`.

    Returns:
        heads, raised to a floor; what rounding is a share of (batch, 1 + P, 1); and the floor (batch, 1 + P, 1), twenty
        of these below the highest logit.
    """
    highest, second = tf.split(tf.math.top_k(heads, k=2).values, 2, axis=-1)
    second = tf.where(tf.math.is_inf(second), tf.zeros_like(second), second)
    scale = tf.maximum(
        highest - second, (ROUNDING[tolerance] / tolerance) * tf.maximum(tf.abs(highest), tf.abs(second))
    )
    floor = highest - DEPTH * scale
    return tf.where(tf.math.is_nan(heads), heads, tf.maximum(heads, floor)), scale, floor


def _median(values: tf.Tensor) -> tf.Tensor:
    """Return the median over the batch."""
    return tf.sort(values, axis=0)[tf.shape(values)[0] // 2]
