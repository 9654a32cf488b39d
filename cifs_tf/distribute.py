"""Sums, means and positions over the replicas of a `tf.distribute` strategy; without a strategy there is one."""

from typing import TypeVar

import tensorflow as tf

from cifs_tf.framework_internals import separate_collectives, workers_of

Structure = TypeVar("Structure")

# More than the groups of devices that one strategy makes; TensorFlow's own tests keep strategies as far apart.
KEYS_OF_A_STRATEGY = 100_000


def mirrored_strategy(devices: list[str]) -> tf.distribute.MirroredStrategy:
    """Make a strategy that shares no collective with an earlier one of this process.

    TensorFlow numbers the collective operations of each strategy from the same start, and takes those of one number for
    one operation: a second strategy then waits for ever, or stops at a "Shape mismatch in the collective instance".

    Args:
        devices: such as `["GPU:0", "GPU:1"]`.

    Returns:
        the strategy.

    Example:
        >>> mirrored_strategy(["CPU:0"]).num_replicas_in_sync
        1
    """
    strategy = tf.distribute.MirroredStrategy(devices)
    separate_collectives(KEYS_OF_A_STRATEGY)
    return strategy


def num_replicas() -> int:
    """Return how many replicas share a global batch: 1 outside a strategy, and where code is traced for all of them."""
    in_replica = tf.distribute.get_replica_context() is not None
    return tf.distribute.get_strategy().num_replicas_in_sync if in_replica else 1


def replica_sum(values: Structure) -> Structure:
    """Sum over replicas; differentiable.

    Args:
        values: tensors, the same shapes on every replica.

    Returns:
        tensors, the same values on every replica.
    """
    return _all_reduce(tf.distribute.ReduceOp.SUM, values)


def replica_mean(values: Structure) -> Structure:
    """Average over replicas; otherwise as `replica_sum`."""
    return _all_reduce(tf.distribute.ReduceOp.MEAN, values)


def positions(batch: tf.Tensor) -> tf.Tensor:
    """Return the positions of a replica's examples in the global batch, of which each replica has an equal stretch.

    Args:
        batch: (examples, ...) of this replica.

    Returns:
        int32 (examples,).
    """
    strategy, size = tf.distribute.get_strategy(), tf.shape(batch)[0]
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return part_of(replica, strategy.num_replicas_in_sync, workers_of(strategy) or 1) * size + tf.range(size)


def one_in(number: int, batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Choose every so-many-th example of the global batch, the same ones whatever the number of replicas.

    Args:
        number: of how many examples one is chosen, >= 1.
        batch: (examples, ...) of this replica, one at least.

    Returns:
        (indices int32 (chosen,) in the batch of this replica, bool (chosen,), whether an index counts): as many on
        every replica, of shapes that do not depend on which it is.
    """
    size = tf.shape(batch)[0]
    indices = -positions(batch)[0] % number + number * tf.range((size + number - 1) // number)
    return tf.minimum(indices, size - 1), indices < size


def part_of(replica: int | tf.Tensor, num_replicas: int, num_workers: int) -> int | tf.Tensor:
    """Return which of the equal parts of a global batch a replica gets.

    TensorFlow deals the parts out to the workers in turns; a worker's replicas take its own in order.

    Args:
        replica: number of the replica, worker by worker, from 0.
        num_replicas: of all workers.
        num_workers: each with as many replicas.

    Returns:
        number of the part, from 0.

    Example:
        >>> [part_of(replica, num_replicas=4, num_workers=2) for replica in range(4)]
        [0, 2, 1, 3]
    """
    per_worker = num_replicas // num_workers
    return replica % per_worker * num_workers + replica // per_worker


def check_even(batch: tf.Tensor) -> None:
    """Refuse a global batch of which the replicas do not have equal parts, such as an incomplete last one.

    Raises:
        InvalidArgumentError: when the step runs.
    """
    if num_replicas() == 1:
        return
    size = tf.shape(batch)[0]
    message = f"a batch must divide evenly among the {num_replicas()} replicas: give a multiple, drop the remainder"
    tf.debugging.assert_equal(replica_sum(size), size * num_replicas(), message)


def spans_workers(strategy: tf.distribute.Strategy) -> bool:
    """Tell whether a strategy joins several processes, each with replicas of its own."""
    return workers_of(strategy) is not None


def _all_reduce(operation: tf.distribute.ReduceOp, values: Structure) -> Structure:
    if num_replicas() == 1:
        return values
    return tf.distribute.get_replica_context().all_reduce(operation, values)
