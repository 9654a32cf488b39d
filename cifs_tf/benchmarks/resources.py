"""Measure the input pipeline and the memory of attacks, which could hold a step up: `benchmark.py resources`."""

import concurrent.futures
import functools
import multiprocessing
import time
from typing import Any

import numpy as np
import tensorflow as tf

from cifs_tf.adversarial import make_method
from cifs_tf.attacks import example_seeds
from cifs_tf.benchmarks import timing
from cifs_tf.benchmarks.options import ResourcesOptions
from cifs_tf.benchmarks.timing import Say
from cifs_tf.config import RunConfig
from cifs_tf.data import to_float
from cifs_tf.hardware import peak_memory

AUGMENTATION = "crop_flip"  # the most that any recipe does to an image
WARM_UP_BATCHES = 10


def run(options: ResourcesOptions, report: Say) -> dict[str, Any]:
    """Measure both.

    Returns:
        `input_images_per_second`; and `attacks`, by number of steps what `attack_memory` returns.
    """
    configs = [options.run_config(num_steps) for num_steps in options.num_steps]
    speed = input_speed(configs[0], options.batches)
    report(f"the input pipeline delivers {speed:,.0f} images a second")
    return {
        "input_images_per_second": speed,
        "attacks": {str(config.attack.num_steps): attack_memory(config) for config in configs},
    }


def input_speed(config: RunConfig, num_batches: int) -> float:
    """Measure the images per second that the input pipeline of `fit` delivers to a step that takes no time."""
    split = timing.random_images(config, WARM_UP_BATCHES)
    batches = split.training_batches(config.train.batch_size, seed=config.train.seed, augmentation=AUGMENTATION)
    iterator = iter(batches)
    for _ in range(WARM_UP_BATCHES):
        next(iterator)
    started = time.perf_counter()
    for _ in range(num_batches):
        next(iterator)
    return num_batches * config.train.batch_size / (time.perf_counter() - started)


def attack_memory(config: RunConfig) -> dict[str, int]:
    """Measure the memory of a run's training attack on one batch, in a process of its own: a peak never sinks again.

    Returns:
        `before_bytes`, with TensorFlow loaded and the network built, and `peak_bytes`: of the first GPU, or without one
        resident memory.
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_attack_memory, config).result()


def _attack_memory(config: RunConfig) -> dict[str, int]:
    classifier = timing.build_network(config)
    split = timing.random_images(config)
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
    return peak_memory()
