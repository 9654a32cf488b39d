"""Build training steps and evaluations, and time them in interleaved pairs.

A machine that others share drifts by more than the differences looked for. So two networks take turns, each
time in the other order, and are compared by the ratios within the pairs.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.config import RunConfig
from cifs_tf.data import Split
from cifs_tf.evaluation import as_attacked, make_attacks
from cifs_tf.evaluation.engine import compile_measurement
from cifs_tf.evaluation.tasks import Crafted
from cifs_tf.models import Classifier, build_classifier
from cifs_tf.models.flops import count_flops
from cifs_tf.runs.training import make_trainer

NUM_CLASSES = 10
DEFAULT_SIDE = 32
EVALUATION_STEPS = 20
RESAMPLES = 10_000
Say = Callable[[str], object]
"""Is called with a line of text when something is done."""


@dataclasses.dataclass
class Subject:
    """Something to time.

    Args:
        compile: makes the function to time; counted into the first call.
        flops: floating-point operations of a call.
    """

    compile: Callable[[], Callable[[], Any]]
    flops: int
    traces: int = 0

    def traced(self, function: Callable) -> Callable:
        """Wrap a Python function that runs only while it is traced, to count its runs in `traces`."""

        @functools.wraps(function)
        def counted(*args, **kwargs):
            self.traces += 1
            return function(*args, **kwargs)

        return counted


def build_network(config: RunConfig) -> Classifier:
    """Build the network of a config, for square RGB images of ten classes."""
    keras.utils.set_random_seed(config.train.seed)
    return build_classifier(config.model, image_shape(config), NUM_CLASSES, config.train.precision)


def training_step(config: RunConfig, classifier: Classifier, split: Split | None = None) -> Subject:
    """Make a training step, compiled and fed by Keras' `fit` machinery.

    Under a `tf.distribute` strategy, call it, and build the classifier, in the strategy's scope.

    Args:
        config: of the run.
        classifier: to train.
        split: images to train on. Default None: a random batch.
    """
    trainer = make_trainer(config, config.model, classifier, steps_per_epoch=1)
    flops = config.train.batch_size * count_flops(classifier).training_step(config.attack.num_steps)
    split = random_images(config) if split is None else split
    batches = split.training_batches(config.train.batch_size, seed=config.train.seed)

    def compile() -> Callable[[], Any]:
        trainer.prepare_first_step()
        trainer.make_train_function()
        iterator = iter(trainer.distribute_strategy.experimental_distribute_dataset(batches))
        return lambda: trainer.train_function(iterator)

    subject = Subject(compile, flops)
    trainer.train_step = subject.traced(trainer.train_step)  # type: ignore[method-assign]
    return subject


def evaluation(config: RunConfig, classifier: Classifier) -> Subject:
    """Make an attack by PGD-20 on a random batch and the prediction on its images, as the engine compiles them."""
    split, size = random_images(config), config.train.batch_size
    attacked = as_attacked(classifier)
    attack = make_attacks(["pgd20"], config.attack.epsilon)["pgd20"]
    task = Crafted(
        name="pgd20", attack=attack, beta=config.train.beta, mask_gradient=attacked.mask_gradients[0], on="all"
    )

    def compile() -> Callable[[], Any]:
        # The evaluation's own function, so that what is timed is what it does.
        measure = compile_measurement(subject.traced(task.measure_fn(attacked)), split, config.train.seed)
        return lambda: measure(np.arange(size), task, attacked.num_probes)

    subject = Subject(compile, size * count_flops(classifier).evaluation(EVALUATION_STEPS))
    return subject


def random_images(config: RunConfig, num_batches: int = 1) -> Split:
    """Draw as many images and labels as some batches have."""
    generator, size = np.random.default_rng(config.train.seed), num_batches * config.train.batch_size
    images = generator.integers(0, 256, (size, *image_shape(config)), dtype=np.uint8)
    return Split(images, generator.integers(0, NUM_CLASSES, size, dtype=np.int32))


def image_shape(config: RunConfig) -> tuple[int, int, int]:
    """Return (height, width, channels) of the images."""
    return config.data.image_size or DEFAULT_SIDE, config.data.image_size or DEFAULT_SIDE, 3


def time_in_turns(subjects: Mapping[str, Subject], turns: int, report: Say) -> dict[str, dict]:
    """Time subjects in turns, after a first call of each: A B C, C B A, A B C, ...

    Args:
        subjects: by name.
        turns: how many, >= 1.
        report: called with a line of text after each turn.

    Returns:
        by name `first_call_seconds` (with tracing and compilation), `flops`, `traces`, `seconds` (turns,) and
        their `quartiles_seconds`, and `cpu_seconds` (turns,), which others on the machine disturb less.

    Raises:
        RuntimeError: if a subject was traced again while it was timed.
    """
    calls: dict[str, Callable[[], Any]] = {}
    found: dict[str, Any] = {}
    for name, subject in subjects.items():
        started = time.perf_counter()
        calls[name] = subject.compile()
        timed(calls[name])
        first_call = time.perf_counter() - started
        found[name] = {
            "first_call_seconds": first_call,
            "flops": subject.flops,
            "traces": subject.traces,
            "seconds": [],
            "cpu_seconds": [],
        }
        report(f"{name}, first call {first_call:.3g} s")
    for turn in range(turns):
        for name in list(subjects)[:: 1 if turn % 2 == 0 else -1]:
            seconds, cpu_seconds = timed(calls[name])
            found[name]["seconds"].append(seconds)
            found[name]["cpu_seconds"].append(cpu_seconds)
        latest = ", ".join(f"{name} {found[name]['seconds'][-1]:.3g} s" for name in subjects)
        report(f"turn {turn + 1} of {turns}: {latest}")
    for name, subject in subjects.items():
        if subject.traces != found[name]["traces"]:
            raise RuntimeError(f"{name} was traced again while it was timed; its seconds include that")
        found[name]["quartiles_seconds"] = np.percentile(found[name]["seconds"], [25, 50, 75]).tolist()
    return found


def ratios_of(numerator: dict, denominator: dict) -> dict[str, dict]:
    """Return `ratio` and `cpu_ratio` of two subjects of `time_in_turns`, see `ratio_of`."""
    clocks = {"ratio": "seconds", "cpu_ratio": "cpu_seconds"}
    return {ratio: ratio_of(numerator[clock], denominator[clock]) for ratio, clock in clocks.items()}


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Return seconds of a call until its results have arrived, and processor seconds of all threads in them."""
    started, cpu_started = time.perf_counter(), time.process_time()
    # Not `np.asarray`, which makes nothing of a scalar in bfloat16.
    tf.nest.map_structure(lambda result: result.numpy() if tf.is_tensor(result) else result, call())
    return time.perf_counter() - started, time.process_time() - cpu_started


def ratio_of(numerator: list[float], denominator: list[float]) -> dict:
    """Compute the median of the ratios within pairs, with a 95% percentile interval by bootstrap over pairs.

    Returns:
        `median`, `interval` (low, high) and `pairs`, the ratios themselves.
    """
    ratios = np.divide(numerator, denominator)
    resampled = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    interval = np.percentile(np.median(resampled, axis=1), [2.5, 97.5])
    return {"median": float(np.median(ratios)), "interval": interval.tolist(), "pairs": ratios.tolist()}
