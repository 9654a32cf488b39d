"""The evaluation engine: the paper's numbers, whatever the batch size."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.config import ModelConfig
from cifs_tf.data import Split
from cifs_tf.errors import UserError
from cifs_tf.evaluation import Report, evaluate, make_attacks
from cifs_tf.models import build_classifier


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (23, 8, 8, 1), dtype=np.uint8), rng.integers(0, 2, 23).astype(np.int32))


def brightness_heads(images):
    """Two classes by the mean pixel m: the logits are (0.5 - m, m - 0.5) * 10, for two equal heads."""
    mean = tf.reduce_mean(images, axis=[1, 2, 3])
    logits = tf.stack([0.5 - mean, mean - 0.5], axis=1) * 10
    return tf.stack([logits, logits], axis=1)


def test_accuracy_of_a_model_that_can_be_attacked_by_hand(split):
    """FGSM moves every pixel by epsilon away from the label's side, so the mean moves by what clipping leaves."""
    epsilon = 0.02
    images = split.images / np.float32(255)
    direction = np.where(split.labels == 1, -1, 1)[:, None, None, None]
    moved = np.clip(images + epsilon * direction, 0, 1).mean(axis=(1, 2, 3))
    natural = np.mean((images.mean(axis=(1, 2, 3)) > 0.5) == split.labels)
    robust = np.mean((moved > 0.5) == split.labels)
    report = evaluate(brightness_heads, split, make_attacks(["fgsm"], epsilon), num_probes=1, betas=[0, 2])
    assert report.natural == pytest.approx(natural)
    assert report.robust["fgsm"] == {"0": pytest.approx(robust), "2": pytest.approx(robust)}
    assert robust < natural


def test_batch_size_does_not_matter(split):
    model = build_classifier(ModelConfig(arch="resnet10", width=4), (8, 8, 1), 2)
    attacks = make_attacks(["pgd3", "cw3"], 0.1)
    small, whole = (
        evaluate(model.heads_fn(), split, attacks, num_probes=2, betas=[0, 2, "infinity-2"], batch_size=batch_size)
        for batch_size in (7, 64)
    )
    assert small == whole


def test_progress_covers_every_batch(split):
    calls = []
    evaluate(
        brightness_heads,
        split,
        make_attacks(["fgsm"], 0.1),
        num_probes=1,
        betas=[0, 1],
        batch_size=10,
        on_progress=lambda task, done, total: calls.append((done, total)),
    )
    assert calls == [(done, 9) for done in range(1, 10)]


def test_worst_is_the_lowest_over_beta_and_survives_json():
    report = Report(10, 0.9, {"pgd20": {"0": 0.5, "2": 0.4, "infinity": 0.6}})
    assert report.worst("pgd20") == (0.4, "2")
    assert Report.from_dict(report.to_dict()) == report


def test_no_images_are_refused(split):
    with pytest.raises(UserError, match="no images"):
        evaluate(brightness_heads, split.take(np.array([], int)), {}, num_probes=0, betas=[0])


def test_attack_names():
    attacks = make_attacks(["fgsm", "pgd100", "cw30"], epsilon=0.3, step_sizes={"pgd100": 0.02})
    assert (attacks["fgsm"].num_steps, attacks["fgsm"].step_size) == (1, 0.3)
    assert (attacks["pgd100"].num_steps, attacks["pgd100"].step_size) == (100, 0.02)
    assert (attacks["cw30"].num_steps, attacks["cw30"].step_size, attacks["cw30"].loss) == (30, 0.03, "cw_margin")
    assert not any(attack.random_start for attack in attacks.values())


@pytest.mark.parametrize("name", ["pgd", "pgd0", "pgd-1", "apgd", "cw", ""])
def test_unknown_attack_is_named(name):
    with pytest.raises(UserError, match="attacks: received " + name):
        make_attacks([name], 0.1)


def test_step_size_of_no_attack_is_refused():
    with pytest.raises(UserError, match="eval_step_sizes: received pdg7"):
        make_attacks(["pgd20"], 0.1, step_sizes={"pdg7": 0.1})
    assert set(make_attacks(["pgd20"], 0.1, step_sizes={"pgd7": 0.1})) == {"pgd20"}


def test_no_attack_and_no_step_are_refused():
    with pytest.raises(UserError, match="attacks: received"):
        make_attacks([], 0.1)
    with pytest.raises(UserError, match="eval_step_sizes: received pgd20: -1"):
        make_attacks(["pgd20"], 0.1, step_sizes={"pgd20": -1})
