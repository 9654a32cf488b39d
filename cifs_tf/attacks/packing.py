"""A loop over the examples that an attack has not finished yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

# Rows are packed together where so many of eight are left.
LEFT = 7


def loop_packed(
    step: Callable[..., Sequence[tf.Tensor]],
    is_done: Callable[..., tf.Tensor],
    state: Sequence[tf.Tensor],
    constants: Sequence[tf.Tensor],
    *,
    num_steps: int,
    num_results: int,
) -> list[tf.Tensor]:
    """Repeat a step on a batch, and leave out examples that are done: what is left is packed together on the way.

    Args:
        step: (index, state, constants) -> the next state; no example may look at another.
        is_done: (*state) -> bool (rows,). What is done must stay done.
        state: tensors (batch, ...).
        constants: tensors (batch, ...) that the steps need and do not change.
        num_steps: how often at most.
        num_results: how many of the first tensors of the state are wanted.

    Returns:
        those, as they were when each example was left out.

    Example:
        >>> count = tf.constant([1, 5, 3])
        >>> down = lambda index, state, constants: [state[0] - 1]
        >>> loop_packed(down, lambda left: left <= 0, [count], [], num_steps=4, num_results=1)
        [<tf.Tensor: shape=(3,), dtype=int32, numpy=array([0, 1, 0], dtype=int32)>]
    """

    def gather(values: Sequence[tf.Tensor], rows: tf.Tensor) -> list[tf.Tensor]:
        return [tf.gather(each, rows) for each in values]

    def unfinished(values: Sequence[tf.Tensor]) -> tf.Tensor:
        return tf.where(~is_done(*values))[:, 0]

    def stretch(index, rows, values, fixed, results):  # type: ignore[no-untyped-def]
        most = tf.shape(rows)[0] * LEFT // 8

        def goes_on(index, *values):  # type: ignore[no-untyped-def]
            left = tf.math.count_nonzero(~is_done(*values), dtype=tf.int32)
            return (index < num_steps) & (left > most)

        index, *values = tf.while_loop(
            goes_on,
            lambda index, *values: (index + 1, *step(index, values, fixed)),
            (index, *values),
            parallel_iterations=1,
        )
        results = [
            tf.tensor_scatter_nd_update(old, rows[:, None], new)
            for old, new in zip(results, values[:num_results], strict=True)
        ]
        left = unfinished(values)
        return index, tf.gather(rows, left), gather(values, left), gather(fixed, left), results

    rows = unfinished(state)
    start = (tf.constant(0), rows, gather(state, rows), gather(constants, rows), list(state[:num_results]))
    return tf.while_loop(  # type: ignore[no-any-return]
        lambda index, rows, *_: (index < num_steps) & (tf.shape(rows)[0] > 0), stretch, start, parallel_iterations=1
    )[-1]
