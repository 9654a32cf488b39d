"""What of a global batch is whose."""

import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from cifs_tf.distribute import mirrored_strategy, num_replicas, part_of, positions, replica_sum


def test_one_device_has_the_whole_batch():
    assert num_replicas() == 1
    assert positions(tf.zeros((3, 2))).numpy().tolist() == [0, 1, 2]
    assert replica_sum(2.0) == 2.0


@pytest.mark.parametrize(
    ("replicas", "workers", "parts"),
    [(4, 1, [0, 1, 2, 3]), (4, 2, [0, 2, 1, 3]), (2, 2, [0, 1]), (6, 2, [0, 2, 4, 1, 3, 5])],
)
def test_parts_are_dealt_out_to_the_workers_in_turns(replicas, workers, parts):
    """tf.data divides a batch into as many parts as there are replicas; worker w of W takes w, w + W, w + 2 W, ..."""
    assert [part_of(replica, replicas, workers) for replica in range(replicas)] == parts


@given(workers=st.integers(1, 6), per_worker=st.integers(1, 6))
def test_every_part_is_somebodys(workers, per_worker):
    replicas = workers * per_worker
    assert {part_of(replica, replicas, workers) for replica in range(replicas)} == set(range(replicas))


def test_a_second_strategy_of_a_process_is_not_taken_for_the_first():
    """With TensorFlow's own numbering the sum of vectors stops here: the first strategy's were of another length."""
    for length in (3, 5):
        strategy = mirrored_strategy(["CPU:0", "CPU:1"])

        @tf.function
        def sums(strategy=strategy, length=length):
            return strategy.run(lambda: replica_sum(tf.ones(length)))

        for copy in strategy.experimental_local_results(sums()):
            assert copy.numpy().tolist() == [2.0] * length
