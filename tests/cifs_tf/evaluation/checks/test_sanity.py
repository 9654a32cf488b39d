"""The sanity checks: what each planted fault of a network by hand shows, and that the honest network shows none."""

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.attacks import PGD
from cifs_tf.data import Split
from cifs_tf.evaluation import as_attacked, evaluate, suites
from cifs_tf.evaluation.checks.judging import judge, next_step
from cifs_tf.evaluation.checks.sanity import Faithful, Trajectory, sanity_tasks
from cifs_tf.evaluation.checks.sanity_verdicts import sanity_verdicts
from cifs_tf.evaluation.tasks import Crafted, Natural
from tests.cifs_tf.evaluation.planted import DECOY, EPSILON, failed, grid, linear


def answer_elsewhere(images):
    """On 8-bit pixels the network; elsewhere what it says of coarser pixels, without a gradient."""
    smooth = tf.stop_gradient(linear(tf.round(images * 3) / 3)) * 1e3 + linear(images, DECOY) * 1e-3
    return tf.where(grid(images), linear(images), smooth)


# The same, of those that look at gradients or attack, behind PGD.
GRADIENTS = {
    "linear": (linear, set()),
    "decoy": (
        lambda x: tf.stop_gradient(linear(x)) + 1e-3 * linear(x, DECOY),
        {"the gradient predicts the answer", "the gradient leads downhill", "square adds nothing"},
    ),
    "hard labels": (
        lambda x: 10 * tf.stop_gradient(tf.one_hot(tf.argmax(linear(x), 1), 3)) + 1e-3 * linear(x, DECOY),
        {"the answer changes gradually", "rays add nothing"},
    ),
    "answers for 8-bit pixels": (answer_elsewhere, {"8-bit pixels add nothing", "rays add nothing"}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "linear" else pytest.mark.slow) for name in GRADIENTS]
)
def test_gradients_and_logits_that_mislead(name, make_victim, labelled):
    logits, faults = GRADIENTS[name]
    victim = make_victim(lambda images: logits(images)[:, None], num_classes=3, num_probes=0)
    attack = PGD(epsilon=EPSILON, step_size=EPSILON / 5, num_steps=10, loss="cw_margin")
    tasks = [
        Natural(),
        Crafted(name="pgd", attack=attack, counts=True),
        *sanity_tasks(EPSILON, ("exact",), (8, 8, 1), with_gradients=True, with_square=name == "decoy"),
    ]
    report = evaluate(victim, labelled, tasks)
    assert faults <= failed(report)
    assert report["believable"] is (not faults)


@pytest.mark.parametrize(("right", "verdict"), [((78, 0, 96), "fail"), ((90, 0, 96), "pass"), ((96, 98, 0), "pass")])
def test_a_network_that_is_better_with_other_pixels(right, verdict, make_ledger):
    """Of 100 images so many are right in each range."""
    flags = np.arange(100)[:, None] < np.array(right)
    tasks = [{"name": name, "kind": name, "section": "sanity"} for name in ("consistency", "ranges")]
    ledger = make_ledger(tasks, {"ranges": (range(100), {"right": flags})}, num_examples=100)
    found = {check.name: check.verdict for check in sanity_verdicts(ledger)}
    assert found["the pixels' range"] == verdict


@pytest.mark.parametrize(("jumping", "verdict"), [(0, "pass"), (10, "pass"), (49, "warn"), (100, "fail")])
def test_masks_may_jump_for_some_images_hard_labels_do_for_all(jumping, verdict, make_ledger):
    """A trained CIFS network jumped for 19 of 39 images, and hid nothing."""
    tasks = [{"name": name, "kind": name, "section": "sanity"} for name in ("faithful", "boundary")]
    jumps, never = np.arange(100) < jumping, np.zeros(100, bool)
    values = {
        "faithful": (range(100), {"unexplained": never, "blind": never}),
        "boundary": (range(100), {"jumps": jumps, "reached": ~never}),
    }
    found = {check.name: check.verdict for check in sanity_verdicts(make_ledger(tasks, values, num_examples=100))}
    assert found["the answer changes gradually"] == verdict


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "elsewhere", "fault"),
    [
        (Trajectory(epsilon=EPSILON / 10), lambda x: tf.stop_gradient(linear(x)), "a gradient to the end"),
        (
            Faithful(epsilon=EPSILON / 10),
            lambda x: tf.stop_gradient(linear(x)) + 1e-3 * linear(x, DECOY),
            "the gradient predicts the answer",
        ),
    ],
)
def test_gradients_that_are_right_on_8_bit_pixels_only(task, elsewhere, fault, make_victim, labelled):
    victim = make_victim(lambda x: tf.where(grid(x), linear(x), elsewhere(x))[:, None], num_classes=3, num_probes=0)
    assert fault in failed(evaluate(victim, labelled, [Natural(), task]))
    honest = make_victim(lambda x: linear(x)[:, None], num_classes=3, num_probes=0)
    found = {check["name"]: check["verdict"] for check in evaluate(honest, labelled, [Natural(), task])["audit"]}
    assert found[fault] == "pass"
    assert "fail" not in found.values()


def test_a_network_that_recognises_the_corners_of_the_ball(make_victim):
    """Dark and bright images of pairs of equal pixels: it goes by brightness where moved pixels share a value.

    Elsewhere by the differences in the pairs too, which an attack makes as large as it likes.
    """
    rng = np.random.default_rng(3)
    pairs = rng.integers(30, 90, (40, 32)) + 120 * (np.arange(40) % 2)[:, None]
    split = Split(np.repeat(pairs, 2, axis=1).reshape(40, 8, 8, 1).astype(np.uint8), np.arange(40) % 2)
    signs = tf.tile(tf.constant([[1.0], [-1.0]]), [32, 1])

    def heads(images):
        pixels = tf.reshape(images, [-1, 64])
        values = tf.sort(pixels, axis=1)
        shared = (values[:, 1:] - values[:, :-1] < 2e-5) & ~grid(images)
        is_made = tf.reduce_sum(tf.cast(shared, tf.int32), axis=1, keepdims=True) >= 4
        bright = 10 * (tf.reduce_mean(pixels, axis=1, keepdims=True) - 0.5)
        lead = bright + tf.where(is_made, 0.0, pixels @ signs)
        return tf.concat([-lead, lead], axis=1)[:, None]

    victim = make_victim(heads, num_probes=0)
    attack = PGD(epsilon=EPSILON, step_size=EPSILON / 4, num_steps=20, loss="cw_margin", keep="fooling")
    tasks = [Natural(), Crafted(name="pgd", attack=attack, counts=True), Trajectory(epsilon=EPSILON)]
    report = evaluate(victim, split, tasks)
    assert report["worst_case"]["accuracy"] == 1
    assert failed(report) == {"uneven steps add nothing"}


def test_what_to_do_next():
    assert next_step([]) is None
    assert "--suite rand" in next_step(["rays add nothing", "same answer twice"])
    assert next_step(["square adds nothing"]).startswith("evaluate with --suite strict")
    assert "stand-in" in next_step(["square adds nothing", "the gradient leads downhill"])


@pytest.mark.slow
def test_the_other_results_of_a_suite_stay(plain_model, digits):
    """With and without the checks every image is broken by the same task."""
    few = digits.take(np.arange(16))
    victim = as_attacked(plain_model)
    found = [evaluate(victim, few, suites.make_suite("apgd", victim, 0.1, audit=audit)) for audit in (None, False)]
    assert found[0]["broken_by"] == found[1]["broken_by"]
    assert found[0]["worst_case"] == found[1]["worst_case"]
    assert found[1]["believable"] is None


@pytest.mark.parametrize(
    ("images", "number", "limit", "verdict"),
    [
        (0, 0, 0.0, "pass"),
        (1, 1, 0.01, "warn"),
        (1, 60, 0.01, "warn"),
        (2, 50, 0.01, "fail"),
        (2, 60, 0.01, "warn"),
        (3, 60, 0.01, "fail"),
        (1, 32, 0.0, "warn"),
        (2, 32, 0.0, "fail"),
        (10, 100, 0.1, "pass"),
        (17, 100, 0.1, "fail"),
    ],
)
def test_one_image_never_fails_a_check(images, number, limit, verdict):
    assert judge(images, number, limit) == verdict
