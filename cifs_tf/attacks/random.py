"""Stateless random numbers, one stream per example: results do not depend on batches, devices or interruptions."""

from __future__ import annotations

import tensorflow as tf


def example_seeds(seed: int | tf.Tensor, stream: int | tf.Tensor, example_ids: tf.Tensor) -> tf.Tensor:
    """Seeds of a batch: one pair per example, distinct for every (run seed, stream, example id).

    Args:
        seed: seed of the run, 0 to 2^31 - 1.
        stream: what else tells draws apart, 0 to 2^31 - 1: the optimizer step in training, the attack in evaluation.
        example_ids: int (batch,), 0 to 2^31 - 1: position in the global batch, or in the dataset.

    Returns:
        int64 (batch, 2).

    Example:
        >>> example_seeds(1, 0, tf.range(2)).numpy()
        array([[4294967296, 0], [4294967296, 65536]])
    """
    run = tf.cast(seed, tf.int64) * 2**32 + tf.cast(stream, tf.int64)
    ids = tf.cast(example_ids, tf.int64)
    # The lower 16 bits are left to `fold_in`: restarts of an attack.
    return tf.stack([tf.fill(tf.shape(ids), run), ids * 2**16], axis=1)


def fold_in(seeds: tf.Tensor, index: int | tf.Tensor) -> tf.Tensor:
    """Seeds of the index-th restart.

    Args:
        seeds: int64 (batch, 2), see `example_seeds`.
        index: 0 to 65535.

    Returns:
        int64 (batch, 2).
    """
    return seeds + tf.stack([tf.constant(0, tf.int64), tf.cast(index, tf.int64)])


def uniform(seeds: tf.Tensor, shape: tf.TensorShape, low: float, high: float, dtype: tf.DType) -> tf.Tensor:
    """Uniform noise, drawn for each example from its own seed.

    Args:
        seeds: int64 (batch, 2).
        shape: shape of one example.
        low: lower bound.
        high: upper bound.
        dtype: float type of the result.

    Returns:
        (batch, *shape).
    """
    return tf.map_fn(
        lambda seed: tf.random.stateless_uniform(shape, seed, low, high, dtype),
        seeds,
        fn_output_signature=tf.TensorSpec(shape, dtype),
    )


def normal(seeds: tf.Tensor, shape: tf.TensorShape, dtype: tf.DType) -> tf.Tensor:
    """Standard normal noise, drawn for each example from its own seed.

    Args:
        seeds: int64 (batch, 2).
        shape: shape of one example.
        dtype: float type of the result.

    Returns:
        (batch, *shape).
    """
    return tf.map_fn(
        lambda seed: tf.random.stateless_normal(shape, seed, dtype=dtype),
        seeds,
        fn_output_signature=tf.TensorSpec(shape, dtype),
    )
