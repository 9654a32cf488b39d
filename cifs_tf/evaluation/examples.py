"""A few broken images, made again, to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from cifs_tf.attacks import example_seeds
from cifs_tf.data import Split, to_float
from cifs_tf.evaluation.pages import Examples
from cifs_tf.evaluation.tasks import Crafted, Task
from cifs_tf.evaluation.victim import Victim
from cifs_tf.losses import head_weights


def pick_examples(
    victim: Victim,
    split: Split,
    tasks: Sequence[Task],
    report: dict[str, Any],
    class_names: Sequence[str],
    limit: int = 6,
) -> Examples:
    """Make again what broke a few images: the first of each attack, since everything random is seeded by image.

    Args:
        victim: the network.
        split: the images of the evaluation.
        tasks: its tasks.
        report: what it found.
        class_names: by label.
        limit: how many at most. Default 6.

    Returns:
        the examples for `write_report`.
    """
    crafted = {task.name: task for task in tasks if isinstance(task, Crafted)}
    first: dict[str, tuple[int, Crafted]] = {}
    for i, name in enumerate(report["broken_by"]):
        if name in crafted:
            first.setdefault(crafted[name].family, (i, crafted[name]))
    made = [
        _make(victim, split, i, task, class_names, report["about"]["seed"]) for i, task in list(first.values())[:limit]
    ]
    return [example for example in made if example is not None]


def _make(
    victim: Victim, split: Split, i: int, task: Crafted, class_names: Sequence[str], seed: int
) -> dict[str, Any] | None:
    ids = np.array([i])
    image, label = to_float(split.images[ids]), tf.constant(split.labels[ids], tf.int32)
    weights = tf.constant(head_weights(task.beta, victim.num_probes), tf.float32)
    craft = tf.function(task.craft_fn(victim), autograph=False)
    seeds = example_seeds(seed, task.stream, tf.constant(ids))
    x_adv = craft(image, label, weights, tf.constant(task.target_rank), seeds)
    heads_fn = victim.heads_fns[task.victim_gradient(victim)]
    predicted = int(tf.argmax(heads_fn(x_adv)[0, 0]))
    if predicted == int(label[0]):  # alone in its batch an image may round to the other side
        return None
    names = dict(enumerate(class_names))
    title = f"image {i}, {names[int(label[0])]} taken for {names.get(predicted, predicted)}, {task.name}"
    return {"title": title, "image": image[0].numpy(), "x_adv": x_adv[0].numpy()}
