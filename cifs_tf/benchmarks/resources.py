"""What else could hold a training step up: images that come too slowly, and memory that grows with the attack."""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import time

import numpy as np
import tensorflow as tf

from cifs_tf import hardware
from cifs_tf.adversarial import make_method
from cifs_tf.attacks import example_seeds
from cifs_tf.benchmarks import timing as measuring
from cifs_tf.config import RunConfig
from cifs_tf.data import to_float

AUGMENTATION = "crop_flip"  # the most that any recipe does to an image
WARM_UP_BATCHES = 10


def input_speed(config: RunConfig, num_batches: int) -> float:
    """Images per second that the input pipeline of `fit` delivers to a step that takes no time.

    Args:
        config: of a run, for the size of images and batches.
        num_batches: that are timed, >= 1.

    Returns:
        images per second.
    """
    split = measuring.random_images(config, WARM_UP_BATCHES)
    batches = split.training_batches(config.train.batch_size, seed=config.train.seed, augmentation=AUGMENTATION)
    iterator = iter(batches)
    for _ in range(WARM_UP_BATCHES):
        next(iterator)
    started = time.perf_counter()
    for _ in range(num_batches):
        next(iterator)
    return num_batches * config.train.batch_size / (time.perf_counter() - started)


def attack_memory(config: RunConfig) -> dict[str, int]:
    """Peak memory of a run's training attack on one batch, in a process of its own: a peak never sinks again.

    Args:
        config: of the run.

    Returns:
        `before_bytes`, with TensorFlow loaded and the network built, and `peak_bytes`: of the first GPU, or without one
        resident memory.
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_attack_memory, config).result()


def _attack_memory(config: RunConfig) -> dict[str, int]:
    classifier = measuring.build(config)
    split = measuring.random_images(config)
    images, labels = to_float(tf.constant(split.images)), tf.constant(split.labels)
    seeds = example_seeds(config.train.seed, 0, tf.range(len(split)))
    method = make_method(config, config.model, classifier.num_probes)
    perturb = tf.function(functools.partial(method.perturb, classifier), autograph=False)
    before = _peak()
    np.asarray(perturb(images, labels, seeds))
    return {"before_bytes": before, "peak_bytes": _peak()}


def _peak() -> int:
    if tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return hardware.peak_memory()
