"""The binarisation test: a network with known adversarial examples, which a sound evaluation must find.

The last layer of the network is replaced, for each image by itself, by a linear one of two classes: inside, for points
of the ball, and border, for one point on its border. That point is then an adversarial example of the new network, by
construction. An attack that does not find one is blinded by the features, and what it left standing proves nothing.

Source: Zimmermann et al., "Increasing Confidence in Adversarial Robustness Evaluations", NeurIPS 2022. Different from
it: 200 points inside instead of 999, ridge regression (which has a solution in closed form) instead of logistic
regression, and images whose border class random points find are left out instead of counted apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from cifs_tf.attacks import PGD, Ball
from cifs_tf.attacks.objective import fooled
from cifs_tf.attacks.random import fold_in, uniform
from cifs_tf.evaluation.networks.attacked import AttackedModel
from cifs_tf.evaluation.networks.outputs import last_features
from cifs_tf.evaluation.tasks import Task, inside

SECTION = "sanity"
SOME = 50
INSIDE, RANDOM = 200, 200
# Of the radius: how far the points inside go. Of the way from them to the border point: where the new boundary lies.
GAP, CLOSE = 0.95, 0.999
RIDGE, TINY = 1.0, 1e-30
# More would take gigabytes: 200 points of each image are held at once.
MOST_FEATURES = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Binarised(Task):
    """Whether an attack finds adversarial examples that are known to be there, see the module.

    Args:
        epsilon: radius of the L-infinity ball.
    """

    name: str = "binarised"
    section: str = SECTION
    on: str = "correct"
    sample: int | None = SOME
    epsilon: float

    def compile_key(self) -> Any:
        return ("binarised", self.mask_gradient, self.epsilon)

    @property
    def attack(self) -> PGD:
        """PGD-50 from three random points, as in the suites `adaptive` and `strict`."""
        return PGD(
            epsilon=self.epsilon,
            step_size=self.epsilon / 10,
            num_steps=50,
            random_start=True,
            num_restarts=3,
            keep="fooling",
        )

    def measure_fn(self, model: AttackedModel) -> Callable[..., dict[str, tf.Tensor]]:
        answers = model.answers_fns.get(self.mask_gradient)
        features = None if answers is None else last_features(answers, model.image_shape)
        ball = Ball(epsilon=self.epsilon)

        def measure(images, labels, weights, rank, seed):  # type: ignore[no-untyped-def]
            if features is None or features(images).shape[-1] > MOST_FEATURES:
                return dict.fromkeys(("asked", "found"), tf.zeros_like(labels, tf.bool))

            def corner(stream: tf.Tensor) -> tf.Tensor:
                noise = uniform(fold_in(seed, stream), images.shape[1:], -1.0, 1.0, images.dtype)
                return tf.clip_by_value(images + self.epsilon * tf.sign(noise), 0.0, 1.0)

            def inner(stream: tf.Tensor, share: float) -> tf.Tensor:
                return images + share * (ball.random_point(images, fold_in(seed, stream)) - images)

            def heads_fn(x: tf.Tensor) -> tf.Tensor:
                lead = readout.lead(features(x)) / 2
                return tf.stack([-lead, lead], axis=1)[:, None]

            def finds(x: tf.Tensor) -> tf.Tensor:
                return fooled(heads_fn(x), here)

            border, here = corner(tf.constant(0)), tf.zeros_like(labels)
            drawn = tf.map_fn(
                lambda i: features(inner(i, GAP)),
                tf.range(1, INSIDE),
                fn_output_signature=images.dtype,
                parallel_iterations=1,
            )
            readout = _separate(tf.concat([features(images)[None], drawn], 0), features(border))
            by_chance = tf.map_fn(
                lambda i: finds(tf.where(i % 2 == 0, corner(i), inner(i, 1.0))),
                tf.range(INSIDE, INSIDE + RANDOM),
                fn_output_signature=tf.bool,
                parallel_iterations=1,
            )
            known = readout.separates & finds(border) & ~finds(images) & ~tf.reduce_any(by_chance, axis=0)
            x_adv = self.attack(heads_fn, images, here, head_weights=tf.ones([1]), seed=seed)
            return {"asked": known, "found": finds(x_adv) & inside(ball, x_adv, images)}

        return measure

    @property
    def cost(self) -> float:
        return 3 * 50.0 + 0.5 * (INSIDE + RANDOM)


@dataclasses.dataclass(frozen=True)
class _Readout:
    """A linear readout of its own for each image: features (batch, D) -> the lead of the class border, (batch,).

    Args:
        centre, weights: float (batch, D).
        threshold: float (batch,).
        separates: bool (batch,), whether the points inside lie on one side and the border point on the other.
    """

    centre: tf.Tensor
    weights: tf.Tensor
    threshold: tf.Tensor
    separates: tf.Tensor

    def lead(self, features: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum((features - self.centre) * self.weights, axis=1) - self.threshold


def _separate(inner: tf.Tensor, border: tf.Tensor) -> _Readout:
    """Find what separates border points from those inside: ridge regression, solved in the space of the points.

    Args:
        inner: float (points, batch, D), features of the points inside.
        border: float (batch, D), of the border point.
    """
    points = tf.transpose(inner, [1, 0, 2])
    centre = tf.reduce_mean(points, axis=1)
    points, shift = points - centre[:, None], border - centre
    products, width = tf.matmul(points, points, transpose_b=True), tf.cast(tf.shape(points)[2], border.dtype)
    # In units of the mean square of a feature.
    size = (tf.linalg.trace(products) + tf.reduce_sum(shift**2, axis=1)) / width + TINY
    ridge = RIDGE * size[:, None, None] * tf.eye(tf.shape(points)[1], dtype=border.dtype)
    solved = tf.linalg.solve(products + ridge, tf.matmul(points, shift[:, :, None]))
    weights = shift - tf.matmul(points, solved, transpose_a=True)[:, :, 0]
    scores, outer = tf.matmul(points, weights[:, :, None])[:, :, 0], tf.reduce_sum(shift * weights, axis=1)
    highest, lowest = tf.reduce_max(scores, axis=1), tf.reduce_min(scores, axis=1)
    # Leads of the size of 1: what the scale of logits hides is not asked here.
    scale = tf.math.divide_no_nan(1.0, outer - lowest)
    threshold = outer - (1 - CLOSE) * (outer - highest)
    return _Readout(centre, weights * scale[:, None], threshold * scale, outer > highest)
