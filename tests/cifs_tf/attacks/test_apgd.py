"""APGD against a transcription of its published pseudo-code, and its schedule by hand."""

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.attacks import APGD, example_seeds
from cifs_tf.attacks.random import uniform


def softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def by_the_book(image, label, weight, noise, attack):
    """Croce and Hein's algorithm for one image, pixel bounds [0, 1], cross-entropy of the logits x W.

    Returns the first misclassified iterate, where an attack on a single image may stop, or the image.
    """
    epsilon, steps = attack.epsilon, attack.num_steps

    def evaluate(x):
        logits = x @ weight
        probabilities = softmax(logits)
        gradient = weight @ (probabilities - np.eye(weight.shape[1])[label])
        return -np.log(probabilities[label]), gradient, logits.argmax() != label

    def project(x):
        return np.clip(np.clip(x, image - epsilon, image + epsilon), 0, 1)

    if evaluate(image)[2]:
        return image
    x = project(image + epsilon * noise / np.abs(noise).max())
    loss, gradient, fooled = evaluate(x)
    if fooled:
        return x
    best, best_loss, best_gradient = x, loss, gradient
    previous, eta, length, since, halved, loss_at_check = x, 2 * epsilon, max(int(0.22 * steps), 1), 0, True, loss
    history = [0.0 if attack.compat else loss]
    for i in range(steps):
        momentum, previous = x - previous, x
        share = 1.0 if i == 0 else 0.75
        ahead = project(x + eta * np.sign(gradient))
        x = project(x + share * (ahead - x) + (1 - share) * momentum)
        loss, gradient, fooled = evaluate(x)
        if fooled:
            return x
        history.append(loss)
        if loss > best_loss:
            best, best_loss, best_gradient = x, loss, gradient
        since += 1
        if since == length:
            rises = sum(history[-j] > history[-j - 1] for j in range(1, length + 1))
            reduce = rises <= 0.75 * length or (not halved and loss_at_check >= best_loss)
            halved, loss_at_check = reduce, best_loss
            if reduce:
                eta, x, gradient = eta / 2, best, best_gradient
            length, since = max(length - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)), 0
    return image


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("num_steps", [1, 7, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (33, 100))])
def test_every_step_is_by_the_book(num_steps, compat):
    """Images near the boundary, so that some fall late: their misclassified iterate tells all steps before it."""
    rng = np.random.default_rng(num_steps)
    images, weight = rng.random((12, 2, 3, 1)), rng.normal(size=(6, 3))
    labels = (images.reshape(12, 6) @ weight).argmax(axis=1).astype(np.int32)
    labels[0] = (labels[0] + 1) % 3  # wrong from the start
    attack, seeds = APGD(epsilon=0.12, num_steps=num_steps, compat=compat), example_seeds(0, 0, tf.range(12))
    noise = uniform(seeds, tf.TensorShape([2, 3, 1]), -1.0, 1.0, tf.float64).numpy()

    @tf.function(autograph=False)
    def attack_one(image, label, seed):  # alone: in a batch the loop goes on until all are fooled
        logits_fn = lambda x: tf.matmul(tf.reshape(x, (-1, 6)), weight)[:, None]  # noqa: E731
        return attack(logits_fn, image[None], label[None], head_weights=[1.0], seed=seed[None])

    for image, label, seed, start in zip(images, labels, seeds, noise, strict=True):
        found = attack_one(tf.constant(image), tf.constant(label), seed)
        expected = by_the_book(image.ravel(), label, weight, start.ravel(), attack)
        np.testing.assert_allclose(found.numpy().ravel(), expected, rtol=1e-9, atol=1e-12)


def test_checkpoints_of_a_hundred_steps():
    """Lengths 22, 19, 16, 13, 10, 7, 6, 6: from 0.22, less 0.03 each time, at least 0.06 of the steps."""
    assert APGD(epsilon=0.1).checkpoints() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert APGD(epsilon=0.1, num_steps=10).checkpoints() == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert APGD(epsilon=0.1, num_steps=1).checkpoints() == [1]


def test_targets_are_the_ranks_of_the_clean_prediction():
    """Towards rank r the class of the r-th largest clean logit rises against the label."""
    weight = np.eye(4)
    images = tf.constant([[[[0.9], [0.6]], [[0.5], [0.4]]]], tf.float64)
    attack = APGD(epsilon=0.05, num_steps=1, loss="targeted_dlr")
    seed = example_seeds(0, 0, tf.range(1))
    for rank in (2, 3, 4):
        moved = []

        def heads_fn(x, moved=moved):
            moved.append(x)
            return tf.matmul(tf.reshape(x, (-1, 4)), weight)[:, None]

        attack(heads_fn, images, tf.constant([0]), head_weights=[1.0], seed=seed, target_rank=rank)
        last = moved[-1].numpy().ravel()
        assert last[rank - 1] > images.numpy().ravel()[rank - 1] + 0.04


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_on_the_surface(norm, make_images):
    attack = APGD(epsilon=0.01, num_steps=1, norm=norm)
    images = 0.25 + 0.5 * make_images((5, 4, 4, 3))
    start = attack.random_surface_point(images, example_seeds(0, 0, tf.range(5)))
    np.testing.assert_allclose(attack.distance(start, images), 0.01, rtol=1e-4)
