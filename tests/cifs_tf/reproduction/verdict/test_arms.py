"""Every arm trains two steps, and its masks are what its definition says: in NumPy, from the probes' weights."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.config import RunConfig
from cifs_tf.data import load_dataset
from cifs_tf.models import Classifier, build_classifier
from cifs_tf.reproduction.verdict.cells import plan_cells, scale_of
from cifs_tf.reproduction.verdict.study import load_study
from cifs_tf.runs.networks import build
from cifs_tf.runs.recipes import parse_config
from cifs_tf.runs.training import make_trainer

STUDY = load_study()
# Two arms are tested always, all of them by make test-all.
ARMS = [pytest.param(arm, marks=[] if arm == "permuted" else pytest.mark.slow) for arm in STUDY.arms]


def softmax(x):
    exponential = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponential / exponential.sum(axis=-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def shuffled(seed, importance):
    return importance[:, np.random.RandomState(seed).permutation(importance.shape[1])]


# Importance m of a relevance g (batch, channels) at the cut of an index, 0 or 1.
MASKS = {
    "mean_one": lambda g, cut: softmax(g) * g.shape[1],
    "no_label": lambda g, cut: softmax(g) * g.shape[1],
    "cifs": lambda g, cut: softmax(g),
    "permuted": lambda g, cut: shuffled(1 + cut, softmax(g) * g.shape[1]),
    "probes_only": lambda g, cut: np.ones_like(g),
    "scale_only": lambda g, cut: np.full_like(g, 1 / g.shape[1]),
    "sigmoid": lambda g, cut: sigmoid(10 * g),
    "softplus": lambda g, cut: np.log1p(np.exp(5 * g)) / 5,
    "cas": lambda g, cut: g,
}


def probe_in_numpy(layer, pooled):
    """Logits, and a function from class weights (batch, classes) to the relevance: the gradient of their sum."""
    weights = [weight.astype(float) for weight in layer.probe.get_weights()]
    if len(weights) == 2:
        kernel, bias = weights
        return pooled @ kernel + bias, lambda classes: classes @ kernel.T
    kernel, bias, out_kernel, out_bias = weights
    hidden, s = pooled @ kernel + bias, layer.probe.sharpness
    logits = np.log1p(np.exp(s * hidden)) / s @ out_kernel + out_bias
    return logits, lambda classes: (classes @ out_kernel.T * sigmoid(s * hidden)) @ kernel.T


def expected_importance(arm, layer, cut, pooled, labels):
    """Eq. (1) and the arm's mask; `labels` replace the top-1 class unless the arm leaves them out."""
    logits, relevance = probe_in_numpy(layer, pooled)
    classes = np.argsort(-logits, axis=1)[:, : layer.top_k]
    if labels is not None and arm != "no_label":
        classes[:, 0] = labels
    counts = np.stack([np.bincount(row, minlength=logits.shape[1]) for row in classes])
    return MASKS[arm](relevance(counts.astype(float)), cut)


@pytest.fixture(scope="module", params=ARMS)
def trained(request):
    """(arm, config, dataset, classifier after two steps), at the scale `smoke`."""
    cells = {cell.arm.name: cell for cell in plan_cells(STUDY, scale_of(STUDY, "smoke"), seeds=1)}
    argv = cells[request.param].training.argv(Path("unused"))
    config = parse_config("run.py", "", argv)
    dataset = load_dataset(config.data)
    classifier = build(config, config.model, dataset)
    before = [weight.numpy() for weight in classifier.trainable_weights]
    trainer = make_trainer(config, config.model, classifier, steps_per_epoch=2)
    trainer.run_eagerly = True  # a graph takes longer to make than two steps
    batches = dataset.train.training_batches(config.train.batch_size, seed=0).take(2)
    trainer.fit(batches, epochs=1, steps_per_epoch=2, shuffle=False, verbose=0)
    moved = [np.any(a != b.numpy()) for a, b in zip(before, classifier.trainable_weights, strict=True)]
    assert all(moved), request.param
    return request.param, config, dataset, trainer.inference_classifier


# Those with an option of their own that a file must keep; the others are for the soak.
some_arms = pytest.mark.parametrize(
    "trained",
    [
        pytest.param(arm, marks=pytest.mark.slow if arm in ("no_label", "permuted") else pytest.mark.soak)
        for arm in STUDY.arms
    ],
    indirect=True,
)


@some_arms
def test_arm_is_reachable_from_the_command_line_and_comes_back(trained):
    _, config, dataset, classifier = trained
    assert RunConfig.from_flat(config.flat()) == config
    copy = Classifier.from_config(classifier.get_config())
    assert copy.get_config() == classifier.get_config()
    images = dataset.test.images[:3] / np.float32(255)
    copy.set_weights(classifier.get_weights())
    np.testing.assert_array_equal(copy(images), classifier(images))


@some_arms
def test_arm_survives_a_file(trained, tmp_path):
    _, _, dataset, classifier = trained
    classifier.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    images = dataset.test.images[:3] / np.float32(255)
    np.testing.assert_array_equal(loaded(images), classifier(images))
    for mine, theirs in zip(loaded.cuts.values(), classifier.cuts.values(), strict=True):
        assert (mine.label_in_mask, mine.mask_permutation) == (theirs.label_in_mask, theirs.mask_permutation)


@pytest.mark.parametrize("training", [False, True])
def test_mask_is_the_arms_definition(trained, training):
    arm, _, _, classifier = trained
    assert len(classifier.cuts) == (0 if arm in ("vanilla", "ema") else 2)
    rng = np.random.default_rng(3)
    for cut, layer in enumerate(classifier.cuts.values()):
        channels = layer.probe.get_weights()[0].shape[0]
        features, labels = rng.uniform(0, 2, (6, 2, 2, channels)).astype(np.float32), rng.integers(0, 10, 6)
        outputs = layer(tf.constant(features), labels=labels, training=training)
        pooled = features.astype(float).mean(axis=(1, 2))
        expected = expected_importance(arm, layer, cut, pooled, labels if training else None)
        np.testing.assert_allclose(outputs["importance"], expected, rtol=2e-4, atol=2e-5)
        product = features * np.asarray(outputs["importance"])[:, None, None]
        np.testing.assert_allclose(outputs["features"], product, rtol=1e-5)


def test_old_configs_build_what_they_built():
    """A model section from before the options of the mask: their defaults are the paper's mask."""
    config = parse_config("run.py", "", ["--dataset=digits", "--width=4"]).model
    for layer in build_classifier(config, (8, 8, 1), 10).cuts.values():
        assert (layer.label_in_mask, layer.mask_permutation) == (True, None)
