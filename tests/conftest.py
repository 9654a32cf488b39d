"""Shared fixtures: small networks, random images, and a network that has learnt to read digits."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Several test processes share the cores; also for the programs that they start.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import collections
import signal
import types

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.adversarial import AdversarialTrainer, Standard
from cifs_tf.config import DataConfig, ModelConfig
from cifs_tf.data import load_dataset, to_float
from cifs_tf.layers import CIFS, BatchNormalization, get_importance
from cifs_tf.losses import head_weights
from cifs_tf.models import Classifier, build_classifier

# An honest evaluation, a model of one's own, serving.
SOAK_NOTEBOOKS = ("03", "04", "05")
# Slow tests that take as long as a notebook, or as a test of several processes.
MANY = 20
# A second logical CPU, for tests of replicas; everything else runs on the first.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

# A shell's background job ignores Ctrl-C, and so would the programs that it starts: tests send it to them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, max_examples=20)
hypothesis.settings.load_profile("tests")


def pytest_addoption(parser):
    group = parser.getgroup("serving", "check the serving contract on another server than the local one")
    group.addoption("--base-url", help="of its REST API, such as http://127.0.0.1:8501")
    group.addoption("--grpc-target", help="of its gRPC API, such as 127.0.0.1:8500")
    group.addoption(
        "--external", action="store_true", help="it is a real TF Serving: leave out what crashes it, or needs its flags"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Notebooks are slow, three for the soak: CI runs their steps as those of pages.

    Files with long or many slow tests come first: what is last is short, no worker waits long.
    """
    slow = collections.Counter()
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("slow")
            if item.path.name[:2] in SOAK_NOTEBOOKS:
                item.add_marker("soak")
        is_long = item.path.suffix == ".ipynb" or item.get_closest_marker("multi_worker")
        slow[item.path] += MANY if is_long else bool(item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def _fixed_seed():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def make_images():
    """Uniform float32 images in [0, 1]."""

    def make(shape, seed=0):
        return tf.constant(np.random.default_rng(seed).random(shape), tf.float32)

    return make


@pytest.fixture(scope="session")
def make_classifier():
    """A small classifier of the library's own architectures; batch normalisation is moved off its start."""

    def make(image_shape=(8, 8, 3), num_classes=5, *, precision="float32", seed=0, **config):
        config = {"arch": "resnet10", "width": 4, **config}
        keras.utils.set_random_seed(seed)
        classifier = build_classifier(ModelConfig(**config), image_shape, num_classes, precision)
        rng = np.random.default_rng(seed)
        for variable in classifier.non_trainable_variables:
            if variable.name == "moving_mean":
                variable.assign(rng.normal(0, 0.1, variable.shape))
            if variable.name == "moving_variance":
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        return classifier

    return make


@pytest.fixture(scope="session")
def trained():
    """A two-cut network, 4 epochs into real digits: `classifier`, and 64 test `images` and `labels`."""
    keras.utils.set_random_seed(0)
    dataset = load_dataset(DataConfig(dataset="digits"))
    image = keras.Input((8, 8, 1), name="image")
    x = image
    for index, filters in enumerate((16, 32, 64), start=1):
        x = keras.layers.Conv2D(filters, 3, strides=min(index, 2), padding="same", name=f"conv{index}")(x)
        x = keras.layers.ReLU(name=f"out{index}")(BatchNormalization(name=f"bn{index}")(x))
    backbone = keras.Model(image, keras.layers.Dense(10, name="logits")(keras.layers.Flatten(name="flat")(x)))
    importance = get_importance("softmax", scale="mean_one")
    cuts = {"out2": CIFS("mlp", importance=importance), "out3": CIFS("linear", importance=importance)}
    classifier = Classifier(backbone, cuts)
    trainer = AdversarialTrainer(classifier, Standard(head_weights=head_weights(2, 2)))
    trainer.compile(optimizer=keras.optimizers.Adam(0.01))
    batches = dataset.train.training_batches(64, seed=0)
    trainer.fit(batches, epochs=4, steps_per_epoch=dataset.train.steps_per_epoch(64), verbose=0)
    images, labels = to_float(dataset.test.images[:64]), tf.constant(dataset.test.labels[:64])
    return types.SimpleNamespace(classifier=classifier, images=images, labels=labels)
