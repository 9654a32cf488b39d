"""Stateless random numbers, one stream per example: results do not depend on batches, devices or interruptions.

They are hashed with plain integer operations. TensorFlow's own stateless generators draw other numbers under XLA, which
Keras switches on for a single GPU and off for several, and cut their 64-bit seeds to 32 bits there.
"""

import math

import tensorflow as tf

# Threefry-2x32 with 20 rounds: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
# Bits of a uniform number: as many as float32 has in [0.5, 1).
UNIFORM_BITS = 24

Words = tuple[tf.Tensor, tf.Tensor]


def example_seeds(seed: int | tf.Tensor, stream: int | tf.Tensor, example_ids: tf.Tensor) -> tf.Tensor:
    """Return the seeds of a batch: one pair per example, distinct for every (run seed, stream, example id).

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
    """Return the seeds of the index-th restart.

    Args:
        seeds: int64 (batch, 2), see `example_seeds`.
        index: 0 to 65535.

    Returns:
        int64 (batch, 2).
    """
    return seeds + tf.stack([tf.constant(0, tf.int64), tf.cast(index, tf.int64)])


def uniform(seeds: tf.Tensor, shape: tf.TensorShape, low: float, high: float, dtype: tf.DType) -> tf.Tensor:
    """Draw uniform noise for each example from its own seed; the same in every dtype, but for rounding.

    Args:
        seeds: int64 (batch, 2).
        shape: shape of one example.
        low: lower bound.
        high: upper bound.
        dtype: float type of the result.

    Returns:
        (batch, *shape).
    """
    size = math.prod(shape)
    words = tf.concat(_words(seeds, -(-size // 2)), axis=1)[:, :size]
    noise = low + (high - low) * tf.cast(_unit(words), dtype)
    return tf.reshape(noise, [-1, *shape])


def normal(seeds: tf.Tensor, shape: tf.TensorShape, dtype: tf.DType) -> tf.Tensor:
    """Draw standard normal noise by Box and Muller, for each example from its own seed.

    Args:
        seeds: int64 (batch, 2).
        shape: shape of one example.
        dtype: float type of the result.

    Returns:
        (batch, *shape).
    """
    first, second = _words(seeds, math.prod(shape))
    radius = tf.sqrt(-2 * tf.math.log(1 - _unit(first)))
    noise = radius * tf.cos(2 * math.pi * _unit(second))
    return tf.reshape(tf.cast(noise, dtype), [-1, *shape])


def threefry(key: Words, counter: Words) -> Words:
    """Hash a counter under a key.

    Args:
        key: two uint32 words.
        counter: two uint32 words; all four broadcast.

    Returns:
        two uint32 words.

    Example:
        >>> zero = tf.constant(0, tf.uint32)
        >>> [hex(word) for word in threefry((zero, zero), (zero, zero))]
        ['0x6b200159', '0x99ba4efe']
    """
    keys = (*key, key[0] ^ key[1] ^ tf.constant(PARITY, tf.uint32))
    first, second = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for bits in ROTATIONS[group % 2]:
            first += second
            second = _rotate(second, bits) ^ first
        first += keys[(group + 1) % 3]
        second += keys[(group + 2) % 3] + tf.constant(group + 1, tf.uint32)
    return first, second


def _words(seeds: tf.Tensor, count: int) -> Words:
    """Return twice `count` random words for each seed, each (batch, count)."""
    halves = [(tf.bitwise.right_shift(part, 32), part) for part in tf.unstack(seeds, axis=1)]
    run, example = [tuple(tf.cast(half, tf.uint32)[:, tf.newaxis] for half in pair) for pair in halves]
    return threefry(threefry(run, example), (tf.constant(0, tf.uint32), tf.cast(tf.range(count), tf.uint32)))


def _unit(words: tf.Tensor) -> tf.Tensor:
    """Return words as float32 in [0, 1)."""
    shift = tf.constant(32 - UNIFORM_BITS, tf.uint32)
    return tf.cast(tf.bitwise.right_shift(words, shift), tf.float32) * 2**-UNIFORM_BITS


def _rotate(words: tf.Tensor, bits: int) -> tf.Tensor:
    left, right = tf.constant(bits, tf.uint32), tf.constant(32 - bits, tf.uint32)
    return tf.bitwise.left_shift(words, left) | tf.bitwise.right_shift(words, right)
