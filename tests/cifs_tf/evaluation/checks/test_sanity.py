"""The sanity checks: what each planted fault of a network by hand shows, and that the honest network shows none."""

import dataclasses
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.attacks import PGD, RayS
from cifs_tf.data import Split
from cifs_tf.evaluation import as_attacked, evaluate, load_attacked, suites
from cifs_tf.evaluation.chance import Voted, expected_referees, rand_tasks
from cifs_tf.evaluation.checks.consistency import FIRST, Answered, Consistency
from cifs_tf.evaluation.checks.judging import judge, next_step
from cifs_tf.evaluation.checks.sanity import Faithful, Trajectory, entrance_tasks, sanity_tasks
from cifs_tf.evaluation.checks.sanity_verdicts import sanity_verdicts
from cifs_tf.evaluation.tasks import Crafted, Natural

EPSILON = 0.1
WEIGHTS = tf.constant(np.random.default_rng(0).normal(size=(64, 3)), tf.float32)
DECOY = tf.constant(np.random.default_rng(1).normal(size=(64, 3)), tf.float32)


def linear(images, weights=WEIGHTS):
    return (tf.reshape(images, [-1, 64]) - 0.5) @ weights


def grid(images):
    return tf.reduce_all(tf.abs(images * 255 - tf.round(images * 255)) < 1e-3, axis=[1, 2, 3])[:, None]


def answer_elsewhere(images):
    """On 8-bit pixels the network; elsewhere what it says of coarser pixels, without a gradient."""
    smooth = tf.stop_gradient(linear(tf.round(images * 3) / 3)) * 1e3 + linear(images, DECOY) * 1e-3
    return tf.where(grid(images), linear(images), smooth)


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


@pytest.fixture(scope="module")
def labelled():
    """60 random 8-bit images around the middle, with the labels that the linear network gives them."""
    images = np.random.default_rng(2).integers(40, 216, (60, 8, 8, 1), dtype=np.uint8)
    return Split(images, np.argmax(linear(tf.constant(images / np.float32(255))), 1))


def failed(report):
    return {check["name"] for check in report["audit"] if check["verdict"] == "fail"}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_that_depend_on_more_than_the_image(name, make_victim, labelled):
    logits, faults = ANSWERS[name]
    victim = make_victim(lambda images: logits(images)[:, None], num_classes=3, num_probes=0)
    report = evaluate(victim, labelled, [Natural(), *entrance_tasks(("exact",), with_gradients=False)], batch_size=17)
    assert failed(report) == faults
    assert report["believable"] is (not faults)


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


def test_a_gradient_that_misleads_on_average(make_victim, labelled):
    """A decoy with a little noise: attacks on the mean follow its gradient, Square and RayS do not."""

    def noise(images):
        return 1e-3 * tf.random.normal([tf.shape(images)[0], 1, 3])

    def decoy(images):
        return (tf.stop_gradient(linear(images)) + 1e-3 * linear(images, DECOY))[:, None] + noise(images)

    attack = rand_tasks(make_victim(num_classes=3), EPSILON, "exact")[0]
    attack = dataclasses.replace(attack, attack=dataclasses.replace(attack.attack, num_steps=20))
    asked = [attack, *expected_referees(EPSILON, "exact")]
    tasks = [Voted(votes=5), *(dataclasses.replace(task, eot=2, votes=5) for task in asked)]
    misleading = make_victim(decoy, num_classes=3, num_probes=0)
    honest = make_victim(lambda images: linear(images)[:, None] + noise(images), num_classes=3, num_probes=0)
    assert failed(evaluate(misleading, labelled, tasks)) == {"square adds nothing", "rays add nothing"}
    assert failed(evaluate(honest, labelled, tasks)) == set()


def test_what_to_do_next():
    assert next_step([]) is None
    assert "--suite rand" in next_step(["rays add nothing", "same answer twice"])
    assert next_step(["square adds nothing"]).startswith("evaluate with --suite strict")
    assert "stand-in" in next_step(["square adds nothing", "the gradient leads downhill"])


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


def test_a_ray_ends_where_the_prediction_changes():
    """Two classes by the mean pixel m: from grey 0.4, brighter by 26/255 changes it, 25/255 does not."""

    def heads(images):
        mean = tf.reduce_mean(images, axis=[1, 2, 3])
        return tf.stack([0.5 - mean, mean - 0.5], axis=1)[:, None]

    images, labels = tf.fill([3, 4, 4, 1], 102 / 255), tf.constant([0, 0, 1])
    for steps, moved in ((25, False), (26, True)):
        x = RayS(epsilon=steps / 255, num_queries=20)(heads, images, labels, head_weights=[1.0])
        assert np.allclose(x[0] - images[0], 26 / 255 if moved else 0.0, atol=1e-6)
        assert np.array_equal(x[2], images[2])  # misclassified before


def test_a_ray_is_divided_until_every_pixel_had_its_turn():
    parts = RayS(epsilon=0.1, num_queries=15).parts(8)
    assert parts[:4].tolist() == [[0, 8], [0, 4], [4, 8], [0, 2]]
    assert parts[-1].tolist() == [7, 8]
    assert RayS(epsilon=0.1, num_queries=40).parts(8)[15].tolist() == [0, 8]


def test_a_ray_stays_in_the_ball_whatever_the_network_says():
    """Of a network that answers by a coin, which seems to be fooled at any radius."""
    images = tf.fill([40, 4, 4, 1], 0.5)

    def heads(x):
        return tf.random.stateless_uniform((len(x), 1, 2), tf.random.uniform((2,), 0, 2**30, tf.int32))

    x = RayS(epsilon=2 / 255, num_queries=60)(heads, images, tf.zeros(40, tf.int32), head_weights=[1.0])
    assert np.max(np.abs(x - images)) <= 2 / 255 + 1e-6


def test_votes_of_no_number_are_for_no_class(make_victim):
    """Three calls of four are NaN: class 0, the argmax of NaN, has a quarter of the votes, not all of them."""
    calls = itertools.cycle([1.0, np.nan, np.nan, np.nan])
    victim = make_victim(lambda x: tf.ones((len(x), 2, 2)) * [1.0, 0.0] * next(calls))
    zeros = tf.zeros(5, tf.int32)
    found = Voted(votes=4).measure_fn(victim)(tf.zeros((5, 8, 8, 1)), zeros, None, None, None)
    assert np.all(found["ranks"] == 1)
    assert np.all(np.sum(found["right"], axis=1) == 1)


@pytest.mark.slow
def test_chance_is_judged_by_votes(make_victim):
    """Logits of the mean pixel and noise: where they are clear the vote says so, and single calls are told."""
    images = np.repeat(np.array([20, 60, 195, 235], np.uint8), 6)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    split = Split(images, (images[:, 0, 0, 0] > 127).astype(np.int32))

    def heads(x):
        mean = tf.reduce_mean(x, axis=[1, 2, 3])
        logits = tf.stack([0.5 - mean, mean - 0.5], axis=1) + tf.random.normal((tf.shape(x)[0], 2), stddev=0.05)
        return logits[:, None]

    victim = make_victim(heads, num_classes=2, num_probes=0)
    attack = rand_tasks(victim, 0.33, "exact")[0]
    attack = dataclasses.replace(attack, eot=3, votes=9, attack=dataclasses.replace(attack.attack, num_steps=10))
    tasks = [Voted(votes=9), attack, *entrance_tasks(("exact",), with_gradients=False)]
    for suite, verdict in (("quick", "fail"), ("rand", "warn")):
        report = evaluate(victim, split, tasks, about={"suite": suite})
        assert report["natural"]["count"] == 24
        assert report["worst_case"]["count"] == 12  # 20/255 and 235/255 are 0.42 away from the middle, the others 0.26
        found = {check["name"]: check["verdict"] for check in report["audit"]}
        assert (found["same answer twice"], found["accuracy of a single call"]) == (verdict, "info")
        assert ("suite rand took the place of quick" in str(report["about"]["limits"])) == (suite == "quick")


def test_dropout_that_is_left_on_is_found(digits):
    class Forgotten(keras.layers.Dropout):
        def call(self, inputs, training=None):
            return super().call(inputs, training=True)

    image = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(Forgotten(0.5)(image))
    victim = as_attacked(keras.Model(image, keras.layers.Dense(10)(x)))
    assert type(suites.make_suite("standard", victim, 0.1)[0]).__name__ == "Voted"
