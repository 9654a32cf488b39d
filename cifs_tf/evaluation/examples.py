"""A few adversarial images, made again, for the report."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from cifs_tf.attacks import example_seeds
from cifs_tf.data import Split, to_float
from cifs_tf.evaluation.attacked import AttackedModel
from cifs_tf.evaluation.records import Example, Report
from cifs_tf.evaluation.tasks import Crafted, Task
from cifs_tf.losses import head_weights


def pick_examples(
    model: AttackedModel,
    split: Split,
    tasks: Sequence[Task],
    report: Report,
    class_names: Sequence[str],
    limit: int = 6,
) -> list[Example]:
    """Make the first adversarial image of each attack again: random numbers are seeded by image.

    Args:
        model: the attacked model.
        split: the images of the evaluation.
        tasks: its tasks.
        report: of the evaluation.
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
        _make(model, split, i, task, class_names, report["about"]["seed"]) for i, task in list(first.values())[:limit]
    ]
    return [example for example in made if example is not None]


def _make(
    model: AttackedModel, split: Split, i: int, task: Crafted, class_names: Sequence[str], seed: int
) -> Example | None:
    ids = np.array([i])
    image, label = to_float(split.images[ids]), tf.constant(split.labels[ids], tf.int32)
    weights = tf.constant(head_weights(task.beta, model.num_probes), tf.float32)
    craft = tf.function(task.craft_fn(model), autograph=False)
    seeds = example_seeds(seed, task.stream, tf.constant(ids))
    x_adv = craft(image, label, weights, tf.constant(task.target_rank), seeds)
    heads_fn = model.heads_fns[task.own_mask_gradient(model)]
    predicted = int(tf.argmax(heads_fn(x_adv)[0, 0]))
    if predicted == int(label[0]):  # alone in its batch an image may round to the other side
        return None
    names = dict(enumerate(class_names))
    title = f"image {i}, {names[int(label[0])]} taken for {names.get(predicted, predicted)}, {task.name}"
    return {"title": title, "image": image[0].numpy(), "x_adv": x_adv[0].numpy()}
