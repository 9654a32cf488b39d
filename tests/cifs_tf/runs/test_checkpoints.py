"""Checkpoints: the newest whole one is restored, a damaged one is named and passed over, nothing broken is kept."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from cifs_tf.adversarial import SGD, AdversarialTrainer, Standard
from cifs_tf.errors import UserError
from cifs_tf.losses import head_weights
from cifs_tf.runs.checkpoints import (
    BEST,
    Checkpoints,
    SingleStepWatch,
    adopt_checkpoints,
    best_epoch,
    read_arrays,
)
from cifs_tf.runs.preemption import Preempted

STEPS = 2


def data(count=8):
    rng = np.random.default_rng(0)
    return rng.random((count, 8, 8, 3), np.float32), rng.integers(0, 5, count)


@pytest.fixture
def make_trainer(make_classifier):
    def make(seed=0, **kwargs):
        classifier = make_classifier(seed=seed)
        method = Standard(head_weights=head_weights(2, classifier.num_probes))
        trainer = AdversarialTrainer(classifier, method, **kwargs)
        trainer.compile(optimizer=SGD(0.01, momentum=0.9))
        return trainer

    return make


@pytest.fixture
def make_checkpoints(tmp_path):
    def make(on_nan="stop", minutes=10.0, requested=lambda: False, folder="checkpoints", **options):
        return Checkpoints(
            tmp_path / folder,
            tmp_path / "history.json",
            steps_per_epoch=STEPS,
            minutes=minutes,
            on_nan=on_nan,
            batch_at=lambda step: data(),
            requested=requested,
            **options,
        )

    return make


def fit(trainer, checkpoints, epochs, images=None):
    own, labels = data()
    images = own if images is None else images
    trainer.fit(images, labels, batch_size=4, epochs=epochs, verbose=0, shuffle=False, callbacks=[checkpoints])


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_newest_is_restored_with_optimizer_metrics_and_history(make_trainer, make_checkpoints, tmp_path):
    trainer, checkpoints = make_trainer(ema_decay=0.5), make_checkpoints()
    fit(trainer, checkpoints, epochs=3)
    assert names(tmp_path / "checkpoints") == ["step-00000004.npz", "step-00000006.npz"]

    restored, again = make_trainer(seed=1, ema_decay=0.5), make_checkpoints()
    assert again.restore(restored) == 6
    assert again.history == checkpoints.history
    assert restored.optimizer.iterations.numpy() == 6
    for ours, theirs in zip(restored.optimizer.variables, trainer.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(restored.variables, trainer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert sum(float(metric.total) != 0 for metric in restored.metrics if hasattr(metric, "total")) >= 1


@pytest.mark.slow
def test_damaged_and_foreign_ones_are_passed_over_and_leave_no_trace(make_trainer, make_checkpoints, tmp_path, capsys):
    fit(make_trainer(), make_checkpoints(), epochs=3)
    older, newest = (tmp_path / "checkpoints" / f"step-0000000{step}.npz" for step in (4, 6))
    foreign = tmp_path / "checkpoints" / "step-00000009.npz"
    foreign.write_bytes(older.read_bytes())
    np.savez(tmp_path / "checkpoints" / "step-00000008.npz", np.zeros(3))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    assert make_checkpoints().restore(make_trainer()) == 4
    said = capsys.readouterr().out.replace("\n", "")
    assert "step-00000006" in said
    assert "step-00000009" in said
    assert "it is of step 4" in said
    assert "it is of another network" in said

    # One byte of a weight, in the middle of the file.
    content = bytearray(older.read_bytes())
    content[len(content) // 2] ^= 1
    older.write_bytes(content)
    trainer = make_trainer()
    before = trainer.get_weights()
    assert make_checkpoints().restore(trainer) == 0
    for ours, fresh in zip(trainer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, fresh)


@pytest.mark.slow
def test_those_of_another_run_are_passed_over_unless_they_are_adopted(make_trainer, make_checkpoints, tmp_path, capsys):
    """And what the epochs logged comes with a checkpoint: the file of it is made again."""
    ours, theirs = ({"key": key, "defense": "cifs"} for key in ("ours", "theirs"))
    first = make_checkpoints(identity=ours)
    fit(make_trainer(), first, epochs=1)
    (tmp_path / "history.json").unlink()
    again = make_checkpoints(identity=ours)
    assert again.restore(make_trainer()) == STEPS
    assert again.history == first.history == json.loads((tmp_path / "history.json").read_text())
    assert make_checkpoints(identity=theirs).restore(make_trainer()) == 0
    assert "it is of another run" in capsys.readouterr().out.replace("\n", " ")
    adopt_checkpoints(tmp_path / "checkpoints", tmp_path / "adopted", "theirs")
    adopted = make_checkpoints(identity=theirs, folder="adopted")
    assert adopted.restore(make_trainer()) == STEPS
    assert adopted.history == first.history


@pytest.mark.slow
def test_there_are_checkpoints_within_a_long_epoch(make_trainer, make_checkpoints, tmp_path):
    """After every step here; the epoch's last step waits for the epoch's end, which has validation before it."""
    seen = []

    class Seeing(Checkpoints):
        def _save(self, step):
            super()._save(step)
            seen.append((step, len(self.history)))

    checkpoints = make_checkpoints(minutes=1e-9)
    checkpoints.__class__ = Seeing
    fit(make_trainer(), checkpoints, epochs=2)
    assert seen == [(1, 0), (2, 1), (3, 1), (4, 2)]


@pytest.mark.slow
def test_sigterm_saves_after_the_step_and_ends(make_trainer, make_checkpoints, tmp_path):
    trainer = make_trainer()
    checkpoints = make_checkpoints(requested=lambda: int(trainer.optimizer.iterations) >= 3)
    with pytest.raises(Preempted):
        fit(trainer, checkpoints, epochs=5)
    assert names(tmp_path / "checkpoints")[-1] == "step-00000003.npz"
    assert make_checkpoints().restore(make_trainer()) == 3


@pytest.mark.slow
def test_a_step_that_is_not_finite_stops_and_can_be_repeated(make_trainer, make_checkpoints, tmp_path):
    images, _ = data()
    images[5, 0, 0, 0] = np.inf  # in the second batch
    trainer = make_trainer()
    words = r"--on_nan: received stop; x_adv and \d+ more was not finite in step 1 \(epoch 1\)"
    with pytest.raises(UserError, match=words):
        fit(trainer, make_checkpoints(), epochs=2, images=images)
    assert names(tmp_path / "checkpoints") == ["step-00000001.npz"]
    dump = json.loads((tmp_path / "not_finite" / "step-00000001.json").read_text())
    assert (dump["epoch"], dump["step"], dump["not_finite"][0]) == (1, 1, "x_adv")
    batch = np.load(tmp_path / "not_finite" / "step-00000001.npz")
    assert set(batch) == {"images", "labels"}
    again = make_trainer()
    assert make_checkpoints().restore(again) == 1
    assert again.skipped_steps == 0
    for ours, theirs in zip(again.get_weights(), trainer.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert np.all(np.isfinite(ours))


@pytest.mark.slow
def test_steps_that_are_not_finite_are_skipped_and_counted(make_trainer, make_checkpoints):
    images, _ = data()
    images[5, 0, 0, 0] = np.inf
    trainer, checkpoints = make_trainer(), make_checkpoints(on_nan="skip")
    fit(trainer, checkpoints, epochs=2, images=images)
    assert [entry["skipped_steps"] for entry in checkpoints.history] == [1, 2]
    assert all(np.all(np.isfinite(weight)) for weight in trainer.get_weights())


@pytest.mark.slow
def test_an_epoch_of_nothing_but_skipped_steps_ends_the_run(make_trainer, make_checkpoints):
    images, _ = data()
    images[:] = np.nan
    with pytest.raises(UserError, match=r"--on_nan: received skip; no step of epoch 1 was finite.*--learning_rate"):
        fit(make_trainer(), make_checkpoints(on_nan="skip"), epochs=2, images=images)


def test_a_validation_result_that_is_not_finite(make_trainer, make_checkpoints):
    checkpoints = make_checkpoints()
    checkpoints.set_model(make_trainer())
    with pytest.raises(UserError, match=r"--on_nan: received stop; val_loss is nan after epoch 3; the weights"):
        checkpoints.on_epoch_end(2, {"loss": 1.0, "val_loss": float("nan")})
    skipping = make_checkpoints(on_nan="skip")
    skipping.set_model(make_trainer())
    skipping.on_epoch_end(0, {"loss": 1.0, "val_loss": float("nan")})
    assert skipping.history == [{"loss": 1.0, "val_loss": None, "skipped_steps": 0}]


@pytest.mark.slow
def test_the_weights_of_the_best_epoch_are_kept(make_trainer, make_checkpoints, make_classifier, tmp_path):
    trainer, checkpoints, kept = make_trainer(), make_checkpoints(), {}
    checkpoints.set_model(trainer)
    for epoch, accuracy in enumerate((0.2, 0.5, 0.4, 0.5)):
        trainer.set_weights([weight + 1 for weight in trainer.get_weights()])
        checkpoints.on_epoch_end(epoch, {"loss": 1.0, "val_robust_accuracy": accuracy})
        kept[epoch + 1] = trainer.classifier.get_weights()
    assert best_epoch(checkpoints.history) == 2, "the first of equals"
    shapes = [weight.shape for weight in make_classifier(seed=3).weights]
    for found, expected in zip(read_arrays(tmp_path / "checkpoints" / BEST, shapes), kept[2], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_no_validation_no_best_epoch():
    assert best_epoch([{"loss": 1.0}]) is None


def test_a_collapse_is_told_once(capsys):
    """Each time that it begins; the history is that of the checkpoints, which resumes."""
    checkpoints = SimpleNamespace(history=[])
    watch = SingleStepWatch(checkpoints)
    collapses = ((0.3, 0.3), (0.01, 0.8), (0.01, 0.9), (0.3, 0.4), (0.01, 0.9))
    for several, one in (*collapses, (None, 0.9), (0.01, 0.9)):  # between them an epoch without validation
        checkpoints.history.append({"val_robust_accuracy": several, "val_single_step_accuracy": one})
        watch.on_epoch_end(len(checkpoints.history) - 1)
    assert capsys.readouterr().out.count("Catastrophic overfitting") == 2
