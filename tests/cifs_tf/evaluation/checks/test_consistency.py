"""Whether a network is a function of each image: planted faults are found, honest networks pass."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.data import Split
from cifs_tf.evaluation import as_attacked, evaluate, load_attacked
from cifs_tf.evaluation.checks.consistency import FIRST, Answered, Consistency
from cifs_tf.evaluation.checks.sanity import entrance_tasks
from cifs_tf.evaluation.tasks import Natural
from tests.cifs_tf.evaluation.planted import EPSILON, failed, grid, linear

# By name: the logits of the network, and what must fail of the checks that need no attack.
ANSWERS = {
    "linear": (linear, set()),
    "its batch's mean removed": (lambda x: linear(x - tf.reduce_mean(x, 0) + 0.5), {"same answer in any batch"}),
    "its batch's size": (
        lambda x: linear(x) * tf.cast(tf.minimum(tf.shape(x)[0], 3), tf.float32),
        {"same answer in any batch"},
    ),
    "the first of its batch": (lambda x: linear(x) + linear(x[:1]), {"same answer in any batch"}),
    "its batch's mean, off 8-bit pixels": (
        lambda x: tf.where(grid(x), linear(x), linear(x - tf.reduce_mean(x, 0) + 0.5)),
        {"same answer in any batch"},
    ),
    "noise off 8-bit pixels": (
        lambda x: tf.where(grid(x), linear(x), linear(x + tf.random.normal(tf.shape(x), stddev=0.02))),
        {"same answer twice"},
    ),
    "noise": (lambda x: linear(x + tf.random.normal(tf.shape(x), stddev=0.02)), {"same answer twice"}),
    "a coin for each call": (lambda x: linear(x) * np.random.default_rng().uniform(), {"same answer twice"}),
    "pixels of 0 to 255": (lambda x: linear(x / 255), {"the pixels' range"}),
    "pixels of -1 to 1": (lambda x: linear((x + 1) / 2), {"the pixels' range"}),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_that_depend_on_more_than_the_image(name, make_victim, labelled):
    logits, faults = ANSWERS[name]
    victim = make_victim(lambda images: logits(images)[:, None], num_classes=3, num_probes=0)
    report = evaluate(victim, labelled, [Natural(), *entrance_tasks(("exact",), with_gradients=False)], batch_size=17)
    assert failed(report) == faults
    assert report["believable"] is (not faults)


def test_a_network_that_changes_while_it_is_measured(make_victim, labelled):
    """From its third call on its logits are a tenth less certain: calls agree, beginning and end do not."""
    calls = tf.Variable(0)

    def heads(images):
        logits = linear(images)[:, None]
        return tf.where(calls.assign_add(1) > 2, 0.9 * logits, logits)

    victim = make_victim(heads, num_classes=3, num_probes=0)
    tasks = [Natural(), Answered(name=FIRST), *entrance_tasks(("exact",), with_gradients=False)]
    assert failed(evaluate(victim, labelled, tasks)) == {"same answer to the end"}


@pytest.mark.parametrize(("scale", "ruled_out"), [(1.0, None), (1.0, -1e9), (1.0, -np.inf), (1e-7, None), (1e7, None)])
def test_a_network_that_is_another_in_a_graph(scale, ruled_out, make_victim, labelled):
    """Also of small logits, and where a class that is ruled out, or one number for all, makes differences small."""

    def answer(images, factor):
        logits = scale * factor * linear(images)
        return (logits if ruled_out is None else tf.pad(logits, [[0, 0], [0, 1]], constant_values=ruled_out))[:, None]

    def heads(images):
        return answer(images, 1.0 if tf.executing_eagerly() else 0.99)

    classes = 3 + (ruled_out is not None)
    honest = make_victim(lambda images: answer(images, 1.0), num_classes=classes, num_probes=0)
    checks = [Natural(), Answered(name=FIRST), *entrance_tasks(("exact",), with_gradients=False)]
    assert failed(evaluate(honest, labelled, checks)) == set()
    victim = make_victim(heads, num_classes=classes, num_probes=0)
    report = evaluate(victim, labelled, [Natural(), *entrance_tasks(("exact",), with_gradients=False)])
    assert failed(report) == {"same answer outside a graph"}
    assert not report["believable"]


def test_a_network_that_looks_at_its_batch_under_attack_alone(make_victim, labelled):
    """Natural images and noisy ones it answers by themselves, those with a pixel farther from the middle not."""

    def heads(images):
        is_moved = tf.reduce_max(tf.abs(images - 0.5), axis=[1, 2, 3]) > 0.3
        by_batch = linear(images) - tf.reduce_mean(linear(images), axis=0)
        return tf.where(is_moved[:, None], by_batch, linear(images))[:, None]

    extreme = np.where(labelled.images > 127, 195, 60).astype(np.uint8)
    split = Split(extreme, np.argmax(linear(tf.constant(extreme / np.float32(255))), 1))
    victim = make_victim(heads, num_classes=3, num_probes=0)
    assert failed(evaluate(victim, split, [Natural(), Consistency()])) == set()
    assert failed(evaluate(victim, split, [Natural(), Consistency(epsilon=EPSILON)])) == {"same answer in any batch"}
    hidden = dataclasses.replace(victim, has_gradient=False)
    assert failed(evaluate(hidden, split, [Natural(), Consistency(epsilon=EPSILON)])) == {"same answer in any batch"}


def test_labels_and_a_second_loading(make_victim, labelled):
    """A network that adds the label passed along; and a file whose second loading answers otherwise."""

    def heads(images):
        return linear(images)[:, None]

    victim = make_victim(heads, num_classes=3, num_probes=0)
    other = dataclasses.replace(
        victim, heads_fns={"exact": lambda images: heads(images) + tf.constant([0.0, 0.5, 0.0])}
    )
    leaking = dataclasses.replace(
        victim,
        labelled_heads_fn=lambda images, labels: heads(images) + tf.one_hot(labels, 3)[:, None],
        reload=lambda: other,
    )
    tasks = [Natural(), *entrance_tasks(("exact",), with_gradients=False)]
    found = {check["name"]: check["verdict"] for check in evaluate(leaking, labelled, tasks)["audit"]}
    assert (found["no label leaks"], found["same answer after loading again"]) == ("fail", "fail")
    same = dataclasses.replace(victim, reload=lambda: victim)
    found = {check["name"]: check["verdict"] for check in evaluate(same, labelled, tasks)["audit"]}
    assert (found["no label leaks"], found["same answer after loading again"]) == ("skip", "pass")


def test_a_file_is_loaded_again(plain_model, tmp_path):
    plain_model.save(tmp_path / "model.keras")
    victim = load_attacked(tmp_path / "model.keras")
    assert victim.reload().fingerprint == victim.fingerprint
    assert as_attacked(plain_model).reload is None


def test_a_sample_is_the_same_in_every_shard(make_victim, labelled):
    """Shards measure their parts of one sample, however the images are divided."""
    victim = make_victim(lambda images: linear(images)[:, None], num_classes=3, num_probes=0)
    task = entrance_tasks(("exact",), with_gradients=False)[2]
    task = dataclasses.replace(task, sample=20)
    whole, *parts = (
        evaluate(victim, labelled, [Natural(), task], shard=shard)["tasks"][1]["measured"]
        for shard in ("1/1", "1/3", "2/3", "3/3")
    )
    assert whole == 20 == sum(parts)
