"""Stateless seeds and noise."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cifs_tf.attacks import example_seeds
from cifs_tf.attacks.random import fold_in, normal, threefry, uniform

WORD = st.integers(0, 2**31 - 1)


def test_seeds_by_hand():
    """(seed 2^32 + stream, id 2^16)."""
    expected = [[2**32 + 5, 0], [2**32 + 5, 65_536], [2**32 + 5, 7 * 65_536]]
    np.testing.assert_array_equal(example_seeds(1, 5, tf.constant([0, 1, 7])), expected)


@given(st.lists(st.tuples(WORD, WORD, WORD, st.integers(0, 65_535)), min_size=2, max_size=6, unique=True))
def test_no_two_draws_share_a_seed(draws):
    """Distinct (run seed, stream, example id, restart) give distinct seeds, to the ends of their ranges."""
    seeds = [
        tuple(fold_in(example_seeds(seed, stream, tf.constant([example])), restart).numpy()[0])
        for seed, stream, example, restart in draws
    ]
    assert len(set(seeds)) == len(draws)
    assert min(min(pair) for pair in seeds) >= 0


def test_seeds_take_tensors_of_either_width():
    ids = np.array([0, 3])
    expected = example_seeds(2, 9, tf.constant(ids, tf.int32))
    found = example_seeds(tf.constant(2), tf.constant(9, tf.int64), tf.constant(ids, tf.int64))
    assert found.dtype == "int64"
    np.testing.assert_array_equal(found, expected)


def test_fold_in_zero_is_the_first_run():
    seeds = example_seeds(0, 0, tf.range(3))
    np.testing.assert_array_equal(fold_in(seeds, 0), seeds)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1, 2**32 - 1), (2**32 - 1, 2**32 - 1), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_is_that_of_its_authors(key, counter, expected):
    """The known answers of their library, Random123."""
    key, counter = (tuple(tf.constant(word, tf.uint32) for word in pair) for pair in (key, counter))
    assert tuple(int(word) for word in threefry(key, counter)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw",
    [lambda seeds: uniform(seeds, (5, 5, 3), -1.0, 1.0, tf.float32), lambda seeds: normal(seeds, (75,), tf.float32)],
)
def test_noise_under_xla_is_the_same(draw):
    """On one GPU, Keras compiles a step with XLA, on several it does not; the seed of the run counts in both."""
    seeds = [example_seeds(seed, 4, tf.range(3)) for seed in (0, 1)]
    compiled = tf.function(draw, jit_compile=True)
    for each in seeds:
        np.testing.assert_allclose(compiled(each), draw(each), atol=1e-6)
    assert np.abs(compiled(seeds[0]) - compiled(seeds[1])).max() > 0.5


@pytest.mark.parametrize("dtype", [tf.float64, tf.bfloat16])
def test_noise_is_the_same_in_every_dtype(dtype):
    seeds = example_seeds(0, 0, tf.range(4))
    for expected, found in (
        (uniform(seeds, (30,), -0.5, 0.5, tf.float32), uniform(seeds, (30,), -0.5, 0.5, dtype)),
        (normal(seeds, (30,), tf.float32), normal(seeds, (30,), dtype)),
    ):
        assert found.dtype == dtype
        np.testing.assert_allclose(tf.cast(found, tf.float32), expected, rtol=0.01, atol=0.005)


def test_normal_noise_is_standard_normal():
    """40,000 draws: Kolmogorov and Smirnov find no difference, and examples and their elements are not correlated."""
    noise = normal(example_seeds(1, 2, tf.range(40)), (10, 100), tf.float32).numpy()
    assert stats.kstest(noise.ravel(), "norm").pvalue > 0.01
    flat = noise.reshape(40, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(40)).max() < 0.2
    assert abs(np.corrcoef(noise[..., :-1].ravel(), noise[..., 1:].ravel())[0, 1]) < 0.03


def test_uniform_noise_is_uniform():
    """The two halves of a draw, which share their counters, too."""
    noise = uniform(example_seeds(5, 0, tf.range(40)), (1001,), 0.0, 1.0, tf.float32).numpy()
    assert noise.max() < 1
    assert stats.kstest(noise.ravel(), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(noise[:, :500].ravel(), noise[:, 501:].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_noise_is_bounded_and_fills_the_range(dtype):
    """4,000 draws from U(-0.1, 0.3): mean 0.1 and variance 0.4^2 / 12; 6 standard errors are 0.011 and 0.0012."""
    noise = uniform(example_seeds(0, 0, tf.range(5)), (10, 10, 8), -0.1, 0.3, dtype)
    assert (noise.shape, noise.dtype) == ((5, 10, 10, 8), dtype)
    assert np.min(noise) >= -0.1
    assert np.max(noise) <= 0.3
    assert abs(np.mean(noise) - 0.1) < 0.011
    assert abs(np.var(noise) - 0.4**2 / 12) < 0.0012


def test_noise_does_not_depend_on_the_batch():
    seeds = example_seeds(3, 1, tf.range(6))
    together = uniform(seeds, (4, 4, 1), -1.0, 1.0, tf.float32).numpy()
    for index in range(6):
        alone = uniform(seeds[index : index + 1], (4, 4, 1), -1.0, 1.0, tf.float32)
        np.testing.assert_array_equal(alone[0], together[index])
    reversed_ = uniform(seeds[::-1], (4, 4, 1), -1.0, 1.0, tf.float32)
    np.testing.assert_array_equal(reversed_[::-1], together)


@pytest.mark.parametrize("other", [(1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=["seed", "stream", "example"])
def test_every_part_of_a_seed_changes_the_noise(other):
    first, second = (
        uniform(example_seeds(seed, stream, tf.constant([example])), (50,), 0.0, 1.0, tf.float32).numpy()
        for seed, stream, example in [(0, 0, 0), other]
    )
    assert abs(np.corrcoef(first[0], second[0])[0, 1]) < 0.6


def test_noise_does_not_touch_the_global_generator():
    draws = []
    for _ in range(2):
        tf.random.set_seed(1)
        if draws:
            uniform(example_seeds(0, 0, tf.range(2)), (3,), 0.0, 1.0, tf.float32)
        draws.append(tf.random.uniform((4,)).numpy())
    np.testing.assert_array_equal(draws[0], draws[1])
