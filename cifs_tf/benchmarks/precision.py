"""Compare attacks made in bfloat16 with the same in float32, both judged in float32: `benchmark.py precision`."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
from rich.progress import track

from cifs_tf.adversarial import make_method
from cifs_tf.attacks import PGD, example_seeds
from cifs_tf.attacks.objective import fooled
from cifs_tf.benchmarks.options import PrecisionOptions
from cifs_tf.benchmarks.timing import Say
from cifs_tf.config import RunConfig
from cifs_tf.data import Split, to_float
from cifs_tf.errors import UserError
from cifs_tf.models import Classifier, build_classifier
from cifs_tf.runs.images import load_images
from cifs_tf.runs.precision import tf32_disabled
from cifs_tf.runs.trained import find_network
from cifs_tf.statistics import mcnemar_p_value

PRECISIONS = ("float32", "mixed_bfloat16")
PGD_STEPS = 20


def run(options: PrecisionOptions, report: Say) -> dict[str, Any]:
    """Compare the attacks on a run's network.

    Returns:
        `attacks`, by name what `compare` returns.

    Raises:
        UserError: if the run is not finished, or was trained without an attack.
    """
    network = find_network(options.run)
    config, classifier = network.config, network.load()
    split = load_images(config.data, [network.run]).test.class_balanced(options.examples, "--examples")
    methods = methods_of(config, classifier)
    attacked = {"float32": classifier, "mixed_bfloat16": _in_bfloat16(config, classifier)}
    found = {}
    for name, method in methods.items():
        with tf32_disabled():
            robust = {
                precision: _robust(classifier, attacked[precision], method, split, options.batch_size)
                for precision in PRECISIONS
            }
        found[name] = compare(robust["float32"], robust["mixed_bfloat16"])
        report(f"{name}: done")
    return {"attacks": found}


def methods_of(config: RunConfig, classifier: Classifier) -> dict[str, Any]:
    """Return the training method of a run, and the same with PGD-20 as its attack, by name."""
    method: Any = make_method(config, config.model, classifier.num_probes).at(tf.constant(float(config.train.epochs)))
    if not hasattr(method, "attack"):
        raise UserError("--run", config.train.method, "it was trained without an attack, give another run")
    pgd = PGD(epsilon=config.attack.epsilon, step_size=config.attack.epsilon / 10, num_steps=PGD_STEPS)
    return {"training attack": method, f"PGD-{PGD_STEPS}": dataclasses.replace(method, attack=pgd)}


def compare(float32: np.ndarray, bfloat16: np.ndarray) -> dict[str, Any]:
    """Compare which images survive two attacks.

    Args:
        float32: bool (images,), which images survive the attack in float32.
        bfloat16: likewise.

    Returns:
        both robust accuracies, how many images each alone broke, and `p_value`, the probability of so uneven a division
        of these if neither were stronger (McNemar's exact test).

    Example:
        >>> compare(np.array([True, False]), np.array([True, True]))["broken_by_float32_alone"]
        1
    """
    alone = int((~float32 & bfloat16).sum()), int((float32 & ~bfloat16).sum())
    return {
        "robust_accuracy": {"float32": float(float32.mean()), "mixed_bfloat16": float(bfloat16.mean())},
        "broken_by_float32_alone": alone[0],
        "broken_by_bfloat16_alone": alone[1],
        "p_value": mcnemar_p_value(*alone),
        "num_examples": len(float32),
    }


def _in_bfloat16(config: RunConfig, classifier: Classifier) -> Classifier:
    twin = build_classifier(config.model, classifier.image_shape, classifier.num_classes, "mixed_bfloat16")
    twin.set_weights(classifier.get_weights())
    return twin


def _robust(judge: Classifier, attacked: Classifier, method: Any, split: Split, batch_size: int) -> np.ndarray:
    """Return which images survive, bool (images,)."""

    @tf.function(autograph=False, reduce_retracing=True)
    def survives(images: tf.Tensor, labels: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
        x_adv = method.perturb(attacked, images, labels, example_seeds(0, 0, ids))
        return ~fooled(judge(x_adv, training=False), labels)

    found = []
    starts = range(0, len(split), batch_size)
    for start in track(starts, description=f"attacking in {attacked.compute_dtype}"):
        part = slice(start, min(start + batch_size, len(split)))
        ids = tf.range(part.start, part.stop)
        found.append(survives(to_float(split.images[part]), tf.constant(split.labels[part]), ids).numpy())
    return np.concatenate(found)
