"""Training steps on some number of replicas, in a process of their own, which divides its processor:

python -m tests.cifs_tf.adversarial.replicas NUMBER OUT.npz "DEFENSE METHOD,..." [THOSE_OF_ONE_DEVICE.npz]
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.config import AttackConfig, DataConfig, MachineConfig, ModelConfig, Ratio, RunConfig, TrainConfig
from cifs_tf.data import load_dataset
from cifs_tf.distribute import positions
from cifs_tf.errors import UserError
from cifs_tf.layers import CIFS, BatchNormalization
from cifs_tf.models import Classifier
from cifs_tf.runs.cluster import ALONE, make_cluster
from cifs_tf.runs.training import make_trainer

BATCH, SEED = 16, 3
DATASET = load_dataset(DataConfig(train_examples=40, val_examples=7))


@dataclasses.dataclass
class Hooked:
    """A method whose attack is looked at, or replaced, by `hook(method, classifier, images, labels, seed)`."""

    method: Any
    hook: Callable

    @property
    def head_weights(self):
        return self.method.head_weights

    def at(self, epoch):
        return Hooked(self.method.at(epoch), self.hook)

    def perturb(self, *arguments):
        return self.hook(self.method, *arguments)

    def loss(self, *arguments):
        return self.method.loss(*arguments)


def recording(x_adv):
    """A hook that writes what the attack makes to an array, by position in the global batch."""

    def keep(found, where):
        x_adv[where] = found

    def hook(method, classifier, images, labels, seed):
        found = method.perturb(classifier, images, labels, seed)
        tf.numpy_function(keep, [found, positions(images)], [])
        return found

    return hook


def giving(x_adv):
    """A hook that takes images made beforehand."""
    return lambda method, classifier, images, labels, seed: tf.gather(x_adv, positions(images))


def make_classifier(defense, normalise=BatchNormalization):
    """Two convolutions, each followed by `normalise()`, and a residual connection, cut behind the second."""
    keras.utils.set_random_seed(SEED)
    image = keras.Input(DATASET.image_shape)
    outputs = [image]
    for stage in (1, 2):
        x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False)(outputs[-1])
        x = keras.layers.ReLU()(normalise()(x))
        outputs.append(keras.layers.Add(name=f"out{stage}")([x, outputs[-1]]) if stage == 2 else x)
    pooled = keras.layers.GlobalAveragePooling2D()(outputs[-1])
    backbone = keras.Model(image, keras.layers.Dense(DATASET.num_classes)(pooled))
    return Classifier(backbone, {"out2": CIFS("mlp")} if defense == "cifs" else {})


def trainer_of(cluster, defense, method, make_metrics=None, normalise=BatchNormalization, **train):
    config = RunConfig(
        model=ModelConfig(defense=defense),
        train=TrainConfig(method=method, learning_rate=0.01, batch_size=BATCH, seed=SEED, **train),
        attack=AttackConfig(epsilon=Ratio("0.1"), num_steps=3),
    )
    with cluster.strategy.scope():
        trainer = make_trainer(config, config.model, make_classifier(defense, normalise), steps_per_epoch=1)
        if make_metrics is not None:
            trainer.compile(trainer.optimizer, metrics=make_metrics())
    return trainer


def batches():
    return DATASET.train.training_batches(BATCH, seed=SEED, augmentation="crop")


def step(cluster, defense, method, hook):
    """One step of `fit`: weights, and those of the last replica."""
    trainer = trainer_of(cluster, defense, method)
    trainer.method = Hooked(trainer.method, hook)
    trainer.fit(batches(), steps_per_epoch=1, verbose=0)
    weights = trainer.classifier.weights
    copies = [cluster.strategy.experimental_local_results(weight.value)[-1].numpy() for weight in weights]
    return trainer.classifier.get_weights(), copies


def steps(cluster, cases, reference):
    """The step of every network and method; where attacks differ, also with the images of one device."""
    found = {}
    for case in cases:
        x_adv = np.zeros((BATCH, *DATASET.image_shape), np.float32)
        weights, copies = step(cluster, *case.split(), recording(x_adv))
        theirs = reference.get(f"{case} x_adv", x_adv)
        found[f"{case} x_adv"] = x_adv
        if (x_adv != theirs).any():
            weights, copies = step(cluster, *case.split(), giving(theirs))
        for index, (weight, copy) in enumerate(zip(weights, copies, strict=True)):
            found[f"{case} weight {index}"], found[f"{case} copy {index}"] = weight, copy
    return found


def perturbed_and_averaged(cluster):
    """Weights and their average after two steps with adversarial weight perturbation and a moving average."""
    trainer = trainer_of(cluster, "cifs", "pgd", awp_gamma=0.01, ema_decay=0.9)
    trainer.fit(batches(), steps_per_epoch=2, verbose=0)
    weights = [*trainer.classifier.get_weights(), *trainer.average.get_weights()]
    return {f"averaged weight {index}": weight for index, weight in enumerate(weights)}


def validated(cluster):
    """What `fit` logs with validation images that do not divide evenly, with and without an attack on them."""
    trainer = trainer_of(cluster, "cifs", "pgd", lambda: [keras.metrics.SparseCategoricalAccuracy(name="compiled")])
    images = DATASET.validation.validation_batches(4)
    logs = trainer.fit(batches(), steps_per_epoch=1, validation_data=images, verbose=0).history
    trainer.validation_attack = trainer.test_function = None
    natural = trainer.evaluate(images, return_dict=True, verbose=0)
    return {
        **{f"validated {name}": values[-1] for name, values in logs.items()},
        **{f"validated natural {name}": value for name, value in natural.items()},
    }


def not_finite(cluster):
    """Steps skipped, and how far weights moved, where one image of the last replica is not finite.

    Without batch normalisation, which would tell the other replicas of it.
    """
    trainer = trainer_of(cluster, "cifs", "standard", normalise=keras.layers.Identity)
    before = trainer.classifier.get_weights()
    images = np.full((BATCH, *DATASET.image_shape), 0.5, np.float32)
    images[-1] = np.nan
    trainer.fit(images, np.zeros(BATCH, np.int32), batch_size=BATCH, shuffle=False, verbose=0)
    moved = max(np.abs(a - b).max() for a, b in zip(before, trainer.classifier.get_weights(), strict=True))
    return {"not finite": np.array([trainer.skipped_steps, moved])}


def uneven(cluster):
    """What `fit` says of a batch that does not divide evenly."""
    trainer = trainer_of(cluster, "cifs", "standard")
    try:
        trainer.fit(np.zeros((3, *DATASET.image_shape), np.float32), np.zeros(3, np.int32), batch_size=3, verbose=0)
    except tf.errors.InvalidArgumentError as error:
        return {"uneven": str(error)}
    return {"uneven": "no error"}


def statistics_apart(cluster):
    """What is said of Keras' own batch normalisation, and whether a step is made once it is synchronized."""
    try:
        trainer_of(cluster, "cifs", "standard", normalise=keras.layers.BatchNormalization)
    except UserError as error:
        refused = str(error)
    else:
        refused = "no error"
    synchronized = functools.partial(keras.layers.BatchNormalization, synchronized=True)
    trainer = trainer_of(cluster, "cifs", "standard", normalise=synchronized)
    trainer.fit(batches(), steps_per_epoch=1, verbose=0)
    weights = {f"keras weight {index}": weight for index, weight in enumerate(trainer.classifier.get_weights())}
    return {"apart": refused, **weights}


def main(number, file, cases, reference_file=None):
    number = int(number)
    cluster = make_cluster(MachineConfig(strategy="mirrored", replicas=number)) if number > 1 else ALONE
    reference = dict(np.load(reference_file)) if reference_file else {}
    found = steps(cluster, cases.split(","), reference)
    if number < 4:
        for part in (not_finite, uneven, perturbed_and_averaged, validated, statistics_apart):
            found |= part(cluster)
    np.savez(file, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
