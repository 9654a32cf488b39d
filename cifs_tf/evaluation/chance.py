"""Networks that answer by chance: attacks on the expectation over their draws, and verdicts by repeated calls.

One call neither shows where such a network is weak nor whether an image is broken: its gradient is that of one draw,
and a lucky draw looks like a success. Gradients are averaged over draws (EOT, Athalye et al. 2018), as in AutoAttack's
version `rand`; an image is broken if the class that most calls name is not its label.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from cifs_tf.attacks import APGD, HeadsFn, RayS, Square
from cifs_tf.evaluation.checks.consistency import tolerance_of
from cifs_tf.evaluation.checks.referees import REFEREES, SOME
from cifs_tf.evaluation.grids import scale_free_attack
from cifs_tf.evaluation.networks.attacked import AttackedModel
from cifs_tf.evaluation.networks.outputs import probe_images
from cifs_tf.evaluation.tasks import Crafted, Natural, Task, differs, inside, label_ranks

EOT, VOTES = 20, 20


def answers_by_chance(model: AttackedModel, calls: int = 10) -> bool:
    """Return whether several calls of a network, on fixed images, give different answers; NaN is like NaN."""
    network, images = next(iter(model.heads_fns.values())), probe_images(model.image_shape)

    def heads_fn(images: tf.Tensor) -> tf.Tensor:
        heads = network(images)
        return tf.where(tf.math.is_nan(heads), heads.dtype.max, heads)

    tolerance = tolerance_of(model.precision)
    first = heads_fn(images)
    return any(bool(tf.reduce_any(differs(first, heads_fn(images), tolerance))) for _ in range(calls - 1))


def rand_tasks(model: AttackedModel, epsilon: float, mask_gradient: str, norm: str = "linf") -> list[Task]:
    """List the attacks of the suite `rand`: APGD on the cross-entropy and on DLR or the margin, of 20 draws each."""
    first = {"apgd_ce": APGD(epsilon=epsilon, norm=norm)}
    attacks = first | scale_free_attack(model.num_classes, epsilon, norm=norm)
    return [
        Expected(
            name=f"{family}, eot {EOT}, {mask_gradient}",
            counts=True,
            section="autoattack",
            family=family,
            attack=attack,
            mask_gradient=mask_gradient,
        )
        for family, attack in attacks.items()
    ]


def expected_referees(epsilon: float, mask_gradient: str, norm: str = "linf") -> list[Task]:
    """List the referees of a network that answers by chance: the gradient of a mean may mislead like any other.

    Square on the mean of several draws, and in L-infinity RayS on what most of them name; they should break no more.
    """
    attacks: dict[str, Any] = {"square": Square(epsilon=epsilon, norm=norm, num_queries=500)}
    if norm == "linf":
        attacks["rays"] = RayS(epsilon=epsilon)
    return [
        ExpectedReferee(name=f"{family}, referee", family=family, attack=attack, mask_gradient=mask_gradient)
        for family, attack in attacks.items()
    ]


def describe_change(suite: str | None, tasks: Sequence[Task]) -> list[str]:
    """Return a sentence on a suite whose place the suite `rand` took."""
    if suite == "rand" or not any(isinstance(task, Expected) for task in tasks):
        return []
    return [f"Several calls of the network differ: the suite rand took the place of {suite or 'the one asked for'}."]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Voted(Natural):
    """The predictions on natural images, by the votes of several calls.

    Args:
        votes: calls.
    """

    votes: int = VOTES

    uses_one_trace = True

    def compile_key(self) -> Any:
        return ("voted", self.votes)

    def measure_fn(self, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        heads_fn = next(iter(model.heads_fns.values()))
        return lambda images, labels, weights, rank, seed: {
            **_vote(heads_fn, images, labels, self.votes),
            "labels": labels,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected(Crafted):
    """An attack on the mean loss of several draws, judged by the votes of others.

    Args:
        eot: draws for each gradient.
        votes: calls that judge.
    """

    eot: int = EOT
    votes: int = VOTES

    uses_one_trace = True

    @property
    def cost(self) -> float:
        return self.eot * super().cost

    def drawn(self, heads_fn: HeadsFn, weights: tf.Tensor) -> tuple[HeadsFn, tf.Tensor]:
        """Return the function that is attacked, and the weights of its heads."""
        return with_draws(heads_fn, self.eot), tf.concat([[0.0], tf.tile(weights / self.eot, [self.eot])], 0)

    def compile_key(self) -> Any:
        return (type(self).__name__, self.attack, self.mask_gradient, self.eot, self.votes)

    def measure_fn(self, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        heads_fn = model.heads_fns[self.mask_gradient]

        def measure(images, labels, weights, rank, seed):  # type: ignore[no-untyped-def]
            drawn, weights = self.drawn(heads_fn, weights)
            x_adv = self.attack(drawn, images, labels, head_weights=weights, seed=seed)
            return {**_vote(heads_fn, x_adv, labels, self.votes), "outside": ~inside(self.attack, x_adv, images)}

        return measure


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedReferee(Expected):
    """An attack without gradients, on the survivors of the suite; one that reads classes reads those of the votes."""

    section: str = "sanity"
    pool: str = REFEREES
    on: str = "unbroken"
    sample: int | None = SOME

    def drawn(self, heads_fn: HeadsFn, weights: tf.Tensor) -> tuple[HeadsFn, tf.Tensor]:
        if self.family != "rays":
            return super().drawn(heads_fn, weights)
        return lambda images: _count_votes(_named_by_draws(heads_fn, images, self.votes))[:, None], tf.constant([1.0])


def with_draws(heads_fn: HeadsFn, draws: int) -> HeadsFn:
    """Give a network the heads of several draws, after the mean of their final predictions.

    A loss that weights all draws alike, and the mean not at all, has the mean of their gradients as its gradient; the
    mean in front decides what counts as fooled on the way.

    Args:
        heads_fn: images -> (batch, 1 + P, classes).
        draws: calls.

    Returns:
        images -> (batch, 1 + draws (1 + P), classes).
    """

    def heads(images: tf.Tensor) -> tf.Tensor:
        drawn = [heads_fn(images) for _ in range(draws)]
        mean = tf.reduce_mean([tf.nn.softmax(each[:, :1]) for each in drawn], axis=0)
        return tf.concat([tf.math.log(mean + 1e-30), *drawn], axis=1)

    return heads


def _vote(heads_fn: HeadsFn, images: tf.Tensor, labels: tf.Tensor, votes: int) -> dict[str, tf.Tensor]:
    """Rank the label by how many calls name each class, and say which calls name it."""
    named = _named_by_draws(heads_fn, images, votes)
    ranks = label_ranks(_count_votes(named)[:, None], labels)
    return {"ranks": ranks, "right": tf.argmax(named, axis=-1, output_type=labels.dtype) == labels[:, None]}


def _named_by_draws(heads_fn: HeadsFn, images: tf.Tensor, votes: int) -> tf.Tensor:
    """Return the class that each of several calls names, one-hot (batch, votes, classes + 1); NaN is the last."""
    heads = tf.stack([heads_fn(images)[:, 0] for _ in range(votes)], axis=1)
    is_nan = tf.reduce_any(tf.math.is_nan(heads), axis=-1)
    named = tf.where(is_nan, heads.shape[-1], tf.argmax(heads, axis=-1, output_type=tf.int32))
    return tf.one_hot(named, heads.shape[-1] + 1)


def _count_votes(named: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(named, axis=1)
