"""Auto-PGD in the L1 ball: sparse steps, whose sparsity follows that of the best point (Croce and Hein 2021)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from cifs_tf.attacks.ball import Ball, sparse_signs
from cifs_tf.attacks.objective import fooled, per_example, value_and_gradient

# Radii, as multiples of epsilon, and the shares of the steps that are spent in each ball.
STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
# Of the entries that differ at the best point, so many change in a step, one in this.
SPARSER = 1.5
STEP_SHRINK, MOST_SHRINK = 1.5, 10.0
FEWER = 0.95
CHECK_SHARE = 0.04
TINY_SHIFT = 1e-6

Objective = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class _State(NamedTuple):
    """State of the loop, from one iteration to the next: points (batch, ...) and values (batch,)."""

    step: tf.Tensor
    x: tf.Tensor
    gradient: tf.Tensor
    best: tf.Tensor
    best_loss: tf.Tensor
    best_gradient: tf.Tensor
    x_adv: tf.Tensor
    broken: tf.Tensor
    step_size: tf.Tensor
    share: tf.Tensor
    number: tf.Tensor


def search_l1(
    ball: Ball,
    num_steps: int,
    objective: Objective,
    images: tf.Tensor,
    labels: tf.Tensor,
    already: tf.Tensor,
    start: tf.Tensor,
) -> tf.Tensor:
    """Climb in balls of three times, twice and once the radius; only what is found in the last one counts.

    Args:
        ball: the L1 ball.
        num_steps: iterations in all, > 0.
        objective: images -> (values (batch,) to be raised, heads).
        images: float (batch, height, width, channels).
        labels: int (batch,).
        already: bool (batch,), misclassified without an attack.
        start: point that the attack starts from, once it is brought into the largest ball, like `images`.

    Returns:
        the last misclassified iterates; images that have none come back as they were.
    """
    x, state = start, None
    for factor, share in STAGES:
        steps = max(1, round(share * num_steps))
        state = _climb(ball, factor * float(ball.epsilon), steps, objective, images, labels, already, x)
        x = state.best
    return tf.where(per_example(state.broken & ~already, images), state.x_adv, images)  # type: ignore[union-attr]


def _climb(
    ball: Ball,
    radius: float,
    num_steps: int,
    objective: Objective,
    images: tf.Tensor,
    labels: tf.Tensor,
    already: tf.Tensor,
    start: tf.Tensor,
) -> _State:
    project = Ball(epsilon=radius, norm="l1", bounds=ball.bounds).around(images)
    size = tf.cast(tf.size(images[0]), images.dtype)
    start = project(start)
    loss, heads, gradient = value_and_gradient(objective, start)
    start_fooled = fooled(heads, labels)
    ones = tf.ones_like(loss)

    def count(x: tf.Tensor) -> tf.Tensor:
        """Count the entries that an iterate changes."""
        return tf.reduce_sum(tf.cast(tf.abs(x - images) > TINY_SHIFT, images.dtype), axis=[1, 2, 3])

    number = count(start)
    state = _State(
        step=tf.constant(0),
        x=start,
        gradient=gradient,
        best=start,
        best_loss=loss,
        best_gradient=gradient,
        x_adv=start,
        broken=already | start_fooled,
        step_size=radius * ones,
        share=number / size / SPARSER,
        number=number,
    )
    every = max(1, int(CHECK_SHARE * num_steps))

    def iterate(*values: tf.Tensor) -> _State:
        state = _State(*values)
        ahead = per_example(state.step_size, images) * sparse_signs(state.gradient, state.share)
        x = project(state.x + ahead)
        loss, heads, gradient = value_and_gradient(objective, x)
        now_fooled = fooled(heads, labels)
        better = loss > state.best_loss
        best = tf.where(per_example(better, x), x, state.best)
        best_gradient = tf.where(per_example(better, x), gradient, state.best_gradient)
        check = (state.step + 1) % every == 0
        number = count(best)
        # Sparser than before: begin anew from the best point, with the whole step.
        sparser = check & (number < FEWER * state.number)
        shrunk = tf.maximum(state.step_size / STEP_SHRINK, radius / MOST_SHRINK)
        return _State(
            step=state.step + 1,
            x=tf.where(per_example(sparser, x), best, x),
            gradient=tf.where(per_example(sparser, x), best_gradient, gradient),
            best=best,
            best_loss=tf.where(better, loss, state.best_loss),
            best_gradient=best_gradient,
            x_adv=tf.where(per_example(now_fooled, x), x, state.x_adv),
            broken=state.broken | now_fooled,
            step_size=tf.where(sparser, radius * ones, tf.where(check, shrunk, state.step_size)),
            share=tf.where(check, number / size / SPARSER, state.share),
            number=tf.where(check, number, state.number),
        )

    return tf.while_loop(
        lambda *values: tf.reduce_any(~_State(*values).broken) | (radius > float(ball.epsilon)),
        iterate,
        state,
        maximum_iterations=num_steps,
        parallel_iterations=1,
    )
