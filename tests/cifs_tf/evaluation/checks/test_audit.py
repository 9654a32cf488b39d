"""The audit: planted defences that hide their gradients are caught, an honest network passes."""

import keras
import pytest
import tensorflow as tf

from cifs_tf.adversarial import AdversarialTrainer, PGDTraining
from cifs_tf.attacks import PGD
from cifs_tf.config import DataConfig
from cifs_tf.data import Split, load_dataset
from cifs_tf.evaluation import as_attacked, evaluate, make_suite
from cifs_tf.evaluation.checks.audit import audit
from cifs_tf.evaluation.checks.judging import SEEN_THROUGH, next_step
from cifs_tf.evaluation.networks.attacked import AttackedModel
from cifs_tf.evaluation.suites import audit_tasks
from cifs_tf.evaluation.tasks import Natural
from cifs_tf.losses import head_weights
from cifs_tf.models import Classifier


def verdicts(report):
    """Verdict by check."""
    return {check["name"]: check["verdict"] for check in report["audit"]}


def plain(trained, change=lambda images: images, scale=1.0, **fields):
    """The trained network's final head alone, with a change of the images before it and a scale of its logits."""

    def heads_fn(images):
        return scale * trained.classifier(change(images), training=False)[:, :1]

    return AttackedModel("planted", {"exact": heads_fn}, 0, 10, (8, 8, 1), "f", **fields)


def audited(victim, split):
    """The parts of the audit that decide here: gradients, and Square behind an attack that follows them."""
    tasks = [task for task in audit_tasks(victim, 0.1, victim.mask_gradients) if task.family in ("", "pgd20", "square")]
    return evaluate(victim, split, [Natural(), *tasks], batch_size=64)


@pytest.fixture(scope="module")
def robust(trained):
    """The trained network without its selection layers, trained on adversarially."""
    classifier = Classifier(keras.models.clone_model(trained.classifier.backbone))
    attack = PGD(epsilon=0.1, step_size=0.04, num_steps=4, random_start=True)
    trainer = AdversarialTrainer(classifier, PGDTraining(head_weights=head_weights(2, 0), attack=attack))
    trainer.compile(optimizer=keras.optimizers.Adam(0.003))
    split = load_dataset(DataConfig(dataset="digits")).train
    trainer.fit(split.training_batches(64, seed=0), epochs=8, steps_per_epoch=split.steps_per_epoch(64), verbose=0)
    return classifier


@pytest.mark.slow
def test_an_adversarially_trained_network_passes(robust, digits):
    report = evaluate(robust, digits, "quick", epsilon=0.1, batch_size=64)
    found = verdicts(report)
    assert "fail" not in found.values()
    assert report["believable"] is True
    assert found["transfer adds nothing"] == "skip"
    assert found["no label leaks"] == "pass"
    assert report["curves"]["epsilon"][-1][0] == 1.0
    assert 0.2 < report["worst_case"]["accuracy"] < 0.95


@pytest.mark.slow
def test_every_head_and_mask_gradient_is_checked(trained, digits):
    found = checks_of(as_attacked(trained.classifier), digits, "Gradients", "Stability", "Flips")
    heads = ("the final head", "raw prediction 1", "raw prediction 2")
    assert {f"gradient of {head}, {mask}" for head in heads for mask in ("detached", "full", "smoothed")} <= set(found)
    assert found["top-k set under attack"] == "info"


@pytest.mark.slow
def test_a_quantising_layer_is_caught(trained, digits):
    """Rounding the images has no gradient: PGD and APGD see nothing, Square walks through."""
    report = audited(plain(trained, change=lambda images: tf.round(images * 8) / 8), digits)
    found = verdicts(report)
    assert found["gradient of the final head, exact"] == "fail"
    assert found["square adds nothing"] == "fail"
    assert report["believable"] is False


def test_large_logits_hide_no_gradient(trained, digits):
    """The cross-entropy saturates: its gradient is zero in float32. That of the lead is not, and attacks follow it."""
    found = checks_of(plain(trained, scale=1e4), digits, "Gradients")
    assert found["gradient of the final head, exact"] == "pass"
    found = checks_of(plain(trained, change=tf.stop_gradient), digits, "Gradients")
    assert found["gradient of the final head, exact"] == "fail"


def checks_of(victim, split, *kinds):
    tasks = [Natural(), *(t for t in audit_tasks(victim, 0.1, victim.mask_gradients) if type(t).__name__ in kinds)]
    return verdicts(evaluate(victim, split, tasks))


def test_random_answers_are_caught(trained, digits):
    victim = plain(trained, change=lambda images: images + tf.random.normal(tf.shape(images), stddev=0.05))
    assert checks_of(victim, digits, "Stability")["same answer twice"] == "fail"


def test_a_label_that_leaks_is_caught(trained, digits):
    def cheating(images, labels):
        return trained.classifier(images, training=False)[:, :1] + tf.one_hot(labels, 10)[:, None]

    assert checks_of(plain(trained, labelled_heads_fn=cheating), digits, "Stability")["no label leaks"] == "fail"
    assert checks_of(plain(trained), digits, "Stability")["no label leaks"] == "skip"


def test_a_gradient_that_is_not_finite_is_caught(trained, digits):
    victim = plain(trained, change=lambda images: images + tf.sqrt(0 * images))
    assert checks_of(victim, digits, "Gradients")["gradient of the final head, exact"] == "fail"


def ledger_of(make_ledger, families, num_images=200):
    """Images 0 to 199, all right without an attack; each family in a pool of its own breaks the ids given."""
    tasks, found, everyone = [], {}, list(range(num_images))
    found["natural"] = everyone, {"ranks": [[0, 0]] * num_images, "labels": [0] * num_images}
    for (name, fields), broken in families.items():
        tasks.append({"name": name, "section": "audit", "family": name, **dict(fields)})
        found[name] = everyone, {"ranks": [[int(i in broken), 0] for i in everyone]}
    return make_ledger(tasks, found)


def verdict_of(ledger, name):
    return next(check for check in audit(ledger) if check.name == name)


@pytest.mark.parametrize(
    ("fgsm", "pgd", "verdict"), [(12, 10, "pass"), (13, 10, "warn"), (15, 10, "fail"), (9, 40, "pass")]
)
def test_fgsm_against_pgd(fgsm, pgd, verdict, make_ledger):
    """Of 200 images, 2 are one point; from 5 on the whole interval of the share lies over it."""
    pools = {("fgsm", (("pool", "fgsm"),)): range(fgsm), ("pgd20", (("pool", "pgd20"),)): range(pgd)}
    check = verdict_of(ledger_of(make_ledger, pools), "FGSM no stronger than PGD-20")
    assert (check.verdict, check.number) == (verdict, pytest.approx((fgsm - pgd) / 200))


@pytest.mark.parametrize(("beyond", "verdict"), [(2, "pass"), (3, "warn"), (5, "fail")])
@pytest.mark.parametrize(("family", "name"), [("square", "square adds nothing"), ("transfer", "transfer adds nothing")])
def test_what_sees_no_gradients_adds_nothing(family, name, beyond, verdict, make_ledger):
    ledger = ledger_of(make_ledger, {("apgd", ()): range(50), (family, ()): range(20, 50 + beyond)})
    check = verdict_of(ledger, name)
    assert (check.verdict, check.number) == (verdict, beyond / 200)


def test_square_of_a_suite_without_an_audit_is_judged(make_ledger):
    tasks = {("apgd", (("section", "autoattack"),)): range(50), ("square", (("section", "autoattack"),)): range(20, 55)}
    sanity = {("ranges", (("section", "sanity"), ("kind", "Ranges"), ("counts", False), ("pool", "ranges"))): range(0)}
    assert verdict_of(ledger_of(make_ledger, tasks | sanity), "square adds nothing").verdict == "fail"
    assert audit(ledger_of(make_ledger, tasks)) == []


@pytest.mark.parametrize(("left", "verdict"), [(2, "pass"), (3, "warn"), (5, "fail")])
def test_epsilon_one(left, verdict, make_ledger):
    pools = {
        ("e1", (("pool", "epsilon"), ("x", 0.1))): range(9),
        ("e2", (("pool", "epsilon"), ("x", 1.0))): range(200 - left),
    }
    ledger = ledger_of(make_ledger, pools)
    assert verdict_of(ledger, "epsilon 1 breaks everything").verdict == verdict
    assert ledger.curve("epsilon") == [(0.0, 1.0), (0.1, 191 / 200), (1.0, left / 200)]


@pytest.mark.parametrize("radius", [1.0, 55.43, 3072.0])
def test_what_to_do_about_the_largest_ball_is_the_same_in_every_norm(radius, make_ledger):
    ledger = ledger_of(make_ledger, {("e", (("pool", "epsilon"), ("x", radius))): range(100)})
    (name,) = (check.name for check in audit(ledger) if check.verdict == "fail")
    assert name.endswith("breaks everything")
    assert next_step([name]) == SEEN_THROUGH


@pytest.mark.parametrize(("gain", "verdict"), [(4, "pass"), (5, "warn")])
@pytest.mark.parametrize("pool", ["steps", "restarts"])
def test_doubling(pool, gain, verdict, make_ledger):
    """Over two points of 200 images is 5; what earlier points of the curve broke stays broken."""
    pools = {(f"{x}", (("pool", pool), ("x", x))): broken for x, broken in ((2, range(10)), (4, range(8, 10 + gain)))}
    check = verdict_of(ledger_of(make_ledger, pools), f"twice the {pool} add little")
    assert (check.verdict, check.number) == (verdict, pytest.approx(gain / 200))


@pytest.mark.parametrize(("gain", "verdict"), [(2, "pass"), (3, "warn")])
def test_full_against_detached(gain, verdict, make_ledger):
    pools = {
        ("d", (("pool", "mask detached"),)): range(10),
        ("f", (("pool", "mask full"),)): range(10 + gain),
    }
    check = verdict_of(ledger_of(make_ledger, pools), "the mask hides nothing")
    assert check.verdict == verdict
    assert ("go by `full`" in check.sentence) == (verdict == "warn")


def test_without_an_audit_there_are_no_checks(make_ledger):
    ledger = make_ledger([{"name": "a"}], {"natural": ([0], {"ranks": [[0, 0]]}), "a": ([0], {"ranks": [[0, 0]]})})
    assert audit(ledger) == []


@pytest.mark.slow
def test_a_surrogate_is_tried(trained, digits):
    """A surrogate with fewer heads attacks what stands, and what it breaks beyond the rest is counted."""
    victim, surrogate = as_attacked(trained.classifier), plain(trained)
    tasks = make_suite("quick", victim, 0.1, surrogate=surrogate)
    tasks = [t for t in tasks if t.family in ("", "pgd20", "transfer") and t.section != "sanity"]
    few = Split(digits.images[:16], digits.labels[:16])
    report = evaluate(victim, few, tasks)
    check = next(check for check in report["audit"] if check["name"] == "transfer adds nothing")
    assert check["verdict"] != "skip"
    rows = {row["attack"]: row for row in report["attacks"]}
    assert rows["transfer"]["runs"] == 2
    assert check["number"] * len(few) == rows["transfer"]["broke_first"]
    measured = [task for task in report["tasks"] if task.get("family") == "transfer"]
    assert 0 < measured[0]["measured"] == rows["pgd20"]["standing"]
