"""A network whose robustness can be told by hand, and ledgers filled by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.attacks import APGD, FABT, PGD, Square
from cifs_tf.data import Split
from cifs_tf.evaluation.ledger import Ledger
from cifs_tf.evaluation.named_attacks import make_attacks
from cifs_tf.evaluation.networks.attacked import AttackedModel
from cifs_tf.evaluation.suites import paper_tasks
from cifs_tf.evaluation.tasks import Crafted, Flips, Natural
from tests.cifs_tf.evaluation.planted import linear


def brightness_heads(images):
    """Two classes by the mean pixel m: the logits are (0.5 - m, m - 0.5) * 10, for two equal heads."""
    mean = tf.reduce_mean(images, axis=[1, 2, 3])
    logits = tf.stack([0.5 - mean, mean - 0.5], axis=1) * 10
    return tf.stack([logits, logits], axis=1)


@pytest.fixture(scope="session")
def make_victim():
    """A victim from heads_fn; by default of two classes by brightness."""

    def make(heads_fn=brightness_heads, num_classes=2, image_shape=(8, 8, 1), num_probes=1, **fields):
        masks = dict.fromkeys(("detached", "full") if num_probes else ("exact",), heads_fn)
        fields = {"fingerprint": "f", "top_k": (1,) * num_probes, **fields}
        return AttackedModel("by hand", masks, num_probes, num_classes, image_shape, **fields)

    return make


@pytest.fixture(scope="session")
def split():
    """23 random images of two classes; a third of the labels is that of the brightness, and wrong by chance else."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (23, 8, 8, 1), dtype=np.uint8)
    labels = (images.mean(axis=(1, 2, 3)) > 127.5).astype(np.int32)
    labels[::5] = 1 - labels[::5]
    return Split(images, labels)


@pytest.fixture(scope="session")
def digits(trained):
    """The 64 images of the trained network, as a split."""
    return Split(np.round(trained.images.numpy() * 255).astype(np.uint8), trained.labels.numpy())


def header(tasks=(), shard="1/1", num_examples=None, **key):
    """A ledger's header of tasks given as dicts; every field that a report reads has a default."""
    default = {
        "kind": "Crafted",
        "on": "standing",
        "pool": "main",
        "counts": True,
        "section": "autoattack",
        "family": "pgd20",
        "beta": 0,
        "mask_gradient": "detached",
        "target_rank": 2,
        "x": None,
    }
    natural = {**default, "name": "natural", "kind": "Natural", "on": "all", "counts": False, "section": "natural"}
    about = {
        "network": "by hand",
        "suite": "strict",
        "num_probes": 1,
        "num_classes": 3,
        "limits": [],
        "epsilon": 0.1,
        "seed": 0,
        "precision": "float32",
        "dataset": None,
        "subset_of": None,
        "class_names": None,
        "tasks": [natural, *({**default, **task} for task in tasks)],
    }
    if num_examples is not None:
        about["num_examples"] = num_examples
    return {"key": {"weights": "w", "data": "d", **key}, "shard": shard, "about": about}


@pytest.fixture(scope="session")
def make_ledger():
    """A ledger in memory: tasks as dicts, and what each found as {name: (ids, {value name: list})}."""

    def make(tasks, found, **key):
        ledger = Ledger(header(tasks, **key))
        for name, (ids, values) in found.items():
            ledger.append(name, np.array(ids), {k: np.array(v) for k, v in values.items()})
        return ledger

    return make


@pytest.fixture(scope="session")
def make_header():
    """See `header`."""
    return header


@pytest.fixture(scope="session")
def plain_model():
    """A Keras model of this library's knowledge: no Classifier, one tensor of logits."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="pixels")
    x = keras.layers.Conv2D(8, 3, activation="relu")(image)
    return keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(x)), name="plain")


@pytest.fixture(scope="session")
def small_suite():
    """The tasks of a victim with two probes: every kind of attack, with small budgets."""

    def make(victim):
        def crafted(family, attack, mask="detached", beta=0):
            name = f"{family}, beta {beta}, {mask}"
            return Crafted(name=name, family=family, attack=attack, mask_gradient=mask, beta=beta, counts=True)

        pgd = {"epsilon": 0.1, "step_size": 0.02, "num_steps": 5, "random_start": True}
        return [
            Natural(),
            *paper_tasks(make_attacks(["fgsm"], 0.1), (0, "infinity"), "detached"),
            crafted("square", Square(epsilon=0.1, num_queries=60)),
            crafted("pgd", PGD(**pgd, keep="fooling"), "full", 2),
            crafted("apgd_dlr", APGD(epsilon=0.1, num_steps=8, loss="dlr"), "smoothed", 2),
            crafted("apgd_t", APGD(epsilon=0.1, num_steps=8, loss="targeted_dlr")),
            crafted("fab_t", FABT(epsilon=0.1, num_steps=10)),
            Flips(name="flips", attack=PGD(**pgd), mask_gradient="detached"),
        ]

    return make


@pytest.fixture(scope="module")
def labelled():
    """60 random 8-bit images around the middle, with the labels that the linear network gives them."""
    images = np.random.default_rng(2).integers(40, 216, (60, 8, 8, 1), dtype=np.uint8)
    return Split(images, np.argmax(linear(tf.constant(images / np.float32(255))), 1))
