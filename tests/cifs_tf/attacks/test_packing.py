"""The loop that leaves out what is done."""

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.attacks.packing import loop_packed


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("num_steps", [0, 3, 100])
def test_each_example_runs_until_it_is_done(is_compiled, num_steps):
    """Example i counts down from i by its own constant 1 + i % 2, and stays where it first is at 0 or below."""
    rows = []

    def step(index, state, constants):
        rows.append(len(state[0]) if not is_compiled else None)
        return [tf.where(state[0] > 0, state[0] - constants[0], state[0]), state[1] + 1]

    def run(counts, sizes):
        zeros = tf.zeros_like(counts)
        return loop_packed(
            step, lambda left, _: left <= 0, [counts, zeros], [sizes], num_steps=num_steps, num_results=2
        )

    counts = np.arange(40)
    sizes = 1 + counts % 2
    left, steps = (tf.function(run, autograph=False) if is_compiled else run)(tf.constant(counts), tf.constant(sizes))
    needed = np.minimum(-(-counts // sizes), num_steps)
    np.testing.assert_array_equal(left, counts - needed * sizes)
    assert np.all(steps >= needed)
    if not is_compiled and num_steps == 100:
        assert sum(rows) < 1.3 * needed.sum()
