"""N-FGSM: one gradient at a noisy image, by hand, and how far it goes."""

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.attacks import NoisyFGSM, example_seeds
from cifs_tf.attacks.random import uniform
from cifs_tf.errors import UserError
from cifs_tf.losses import head_weights

EPSILON, SHAPE, COUNT = 0.1, (4, 4, 1), 6


def linear(kernel):
    return lambda x: (tf.reshape(x, [len(x), -1]) @ kernel)[:, None]


@pytest.fixture
def given():
    rng = np.random.default_rng(0)
    images, labels = rng.random((COUNT, *SHAPE)), rng.integers(0, 3, COUNT).astype(np.int32)
    return tf.constant(images), tf.constant(labels), rng.normal(size=(16, 3)), example_seeds(0, 0, tf.range(COUNT))


@pytest.mark.parametrize("noise", [2.0, 0.5, 0.0])
def test_one_step_by_hand(given, noise):
    """d CE / dx = (softmax(x W) - e) W^T at the noisy image; the noise is the generator's, the rest NumPy's."""
    images, labels, kernel, seeds = given
    attack = NoisyFGSM(epsilon=EPSILON, step_size=EPSILON, noise=noise)
    found = attack(linear(kernel), images, labels, head_weights=head_weights(0, 0), seed=seeds)
    drawn = uniform(seeds, tf.TensorShape(SHAPE), -noise * EPSILON, noise * EPSILON, tf.float64).numpy()
    noisy = np.clip(images + drawn, 0, 1)
    logits = noisy.reshape(COUNT, -1) @ kernel
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    gradient = (exponential / exponential.sum(axis=1, keepdims=True) - np.eye(3)[labels]) @ kernel.T
    expected = np.clip(noisy + EPSILON * np.sign(gradient).reshape(noisy.shape), 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_it_leaves_the_ball_and_not_the_bounds(given):
    images, labels, kernel, seeds = given
    found = NoisyFGSM(epsilon=EPSILON, step_size=EPSILON)(
        linear(kernel), images, labels, head_weights=head_weights(0, 0), seed=seeds
    )
    distance = np.abs(found - images).max()
    assert EPSILON < distance <= 3 * EPSILON + 1e-9
    assert np.min(found) >= 0
    assert np.max(found) <= 1


def test_it_asks_for_one_gradient(given):
    images, labels, kernel, seeds = given
    calls = []

    def heads_fn(x):
        calls.append(x)
        return linear(kernel)(x)

    NoisyFGSM(epsilon=EPSILON, step_size=EPSILON)(heads_fn, images, labels, head_weights=head_weights(0, 0), seed=seeds)
    assert len(calls) == 1


def test_refusals(given):
    images, labels, kernel, _ = given
    with pytest.raises(UserError, match="noise: received -1"):
        NoisyFGSM(epsilon=EPSILON, step_size=EPSILON, noise=-1)
    with pytest.raises(UserError, match="num_steps: received 2 steps, 1 restarts, linf; give one step"):
        NoisyFGSM(epsilon=EPSILON, step_size=EPSILON, num_steps=2)
    with pytest.raises(UserError, match="seed: received None"):
        NoisyFGSM(epsilon=EPSILON, step_size=EPSILON)(linear(kernel), images, labels, head_weights=head_weights(0, 0))
