"""What TensorBoard shows of a network of a run beside its curves: broken images, importances, and hyperparameters."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from cifs_tf.config import RunConfig
from cifs_tf.data import Split, to_float
from cifs_tf.evaluation.cards.card import Card
from cifs_tf.evaluation.records import Example, Report
from cifs_tf.extras import is_installed
from cifs_tf.models import Classifier
from cifs_tf.runs.trained import TrainedNetwork

# Images whose importances are shown: as many natural ones, and what became of them under attack.
MOST_IMAGES = 256
# Side of a picture, at least; small images are enlarged by a whole factor.
SIDE = 96


def write_to_tensorboard(
    network: TrainedNetwork,
    classifier: Classifier,
    split: Split,
    card: Card,
    report: Report,
    examples: Sequence[Example],
    epoch: int,
) -> None:
    """Write what the attacks found of a network, in place of what was written of it before.

    Args:
        network: of a run.
        classifier: the same, loaded.
        split: the images that were attacked.
        card: the adversarial images that broke some of them.
        report: of the evaluation.
        examples: broken images that the report shows.
        epoch: after which the network is as it is.
    """
    folder = network.run.tensorboard(network.defense) / "evaluation" / network.checkpoint
    shutil.rmtree(folder, ignore_errors=True)
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default(step=epoch):
        hparams.hparams(hyperparameters(network.config, network.defense), trial_id=network.title)
        tf.summary.scalar("accuracy/natural", report["natural"]["accuracy"])
        for attack, found in (report["paper"] or {"attacks": {}})["attacks"].items():
            tf.summary.scalar(f"accuracy/{attack}", found["accuracy"])
        for number, example in enumerate(examples):
            tf.summary.image(f"adversarial/{number}", _strip(example)[None], description=example["title"])
        if classifier.cuts and card.shown:
            _write_importances(classifier, split, card)
    writer.close()


def hyperparameters(config: RunConfig, defense: str) -> dict[str, Any]:
    """Return the options of one network of a run as TensorBoard's HParams tab takes them: numbers and texts by name.

    Example:
        >>> hyperparameters(RunConfig(), "vanilla")["learning_rate"]
        0.1
    """
    options = {"dataset": config.data.dataset, "augmentation": config.data.augmentation}
    for group in (config.model, config.train, config.attack):
        options |= {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
    options["defense"] = defense
    return {
        name: float(value) if isinstance(value, float) else value if isinstance(value, int | str) else str(value)
        for name, value in options.items()
        if value is not None
    }


def _strip(example: Example) -> np.ndarray:
    """Return an image, its adversarial image and their difference, magnified around grey, side by side."""
    shift = example["x_adv"] - example["image"]
    difference = 0.5 + 0.5 * shift / (np.abs(shift).max() or 1)
    strip = np.concatenate([example["image"], example["x_adv"], difference], axis=1)
    factor = max(1, SIDE // example["image"].shape[0])
    strip = np.clip(strip.repeat(factor, axis=0).repeat(factor, axis=1), 0, 1)
    return strip if strip.shape[-1] in (1, 3) else strip[..., :1]


def _write_importances(classifier: Classifier, split: Split, card: Card) -> None:
    """Write, for each selection layer, the mean importance of each channel for natural and for adversarial images."""
    ids = sorted(card.shown)[:MOST_IMAGES]
    natural = to_float(split.images[ids])
    attacked = np.stack([card.shown[i].pixels(image) for i, image in zip(ids, split.images[ids], strict=True)])
    found = [classifier.explain(images)["importance"] for images in (natural, tf.constant(attacked, tf.float32))]
    for cut in classifier.cuts:
        means = [np.mean(importance[cut], axis=0) for importance in found]
        for kind, values in zip(("natural", "attacked"), means, strict=True):
            tf.summary.histogram(f"importance/{cut}/{kind}", values)
        if is_installed("report"):
            from cifs_tf.analysis.plots import plot_importances
            from cifs_tf.figures import pixels_of

            picture = pixels_of(plot_importances(means[0], means[1], f"{cut}, {len(ids)} broken images"))
            tf.summary.image(f"importance/{cut}", picture[None])
