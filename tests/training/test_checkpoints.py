"""Checkpoints: the newest whole one is restored, a damaged one is named and passed over."""

from __future__ import annotations

import numpy as np
import pytest

from cifs_tf.adversarial import SGD, AdversarialTrainer, Standard
from cifs_tf.errors import UserError
from cifs_tf.losses import head_weights
from training.checkpoints import Checkpoints


@pytest.fixture
def make_trainer(make_classifier):
    def make(seed=0):
        classifier = make_classifier(seed=seed)
        trainer = AdversarialTrainer(classifier, Standard(head_weights=head_weights(2, classifier.num_probes)))
        trainer.compile(optimizer=SGD(0.01, momentum=0.9))
        return trainer

    return make


def fit(trainer, checkpoints, epochs):
    rng = np.random.default_rng(0)
    images, labels = rng.random((8, 8, 8, 3), np.float32), rng.integers(0, 5, 8)
    trainer.fit(images, labels, batch_size=4, epochs=epochs, verbose=0, shuffle=False, callbacks=[checkpoints])


def test_newest_is_restored_with_optimizer_and_history(make_trainer, tmp_path):
    trainer = make_trainer()
    checkpoints = Checkpoints(tmp_path / "checkpoints", tmp_path / "history.json")
    fit(trainer, checkpoints, epochs=3)
    kept = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert kept == ["epoch-0002.weights.h5", "epoch-0003.weights.h5"]

    restored, again = make_trainer(seed=1), Checkpoints(tmp_path / "checkpoints", tmp_path / "history.json")
    assert again.restore(restored) == 3
    assert again.history == checkpoints.history
    assert restored.optimizer.iterations.numpy() == 6
    for ours, theirs in zip(restored.optimizer.variables, trainer.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(restored.get_weights(), trainer.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_damaged_ones_are_passed_over_and_leave_no_trace(make_trainer, tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path / "checkpoints", tmp_path / "history.json")
    fit(make_trainer(), checkpoints, epochs=2)
    newest = tmp_path / "checkpoints" / "epoch-0002.weights.h5"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    assert Checkpoints(tmp_path / "checkpoints", tmp_path / "history.json").restore(make_trainer()) == 1
    assert "epoch-0002" in capsys.readouterr().out.replace("\n", "")

    older = tmp_path / "checkpoints" / "epoch-0001.weights.h5"
    older.write_bytes(b"")
    trainer = make_trainer()
    before = trainer.get_weights()
    assert Checkpoints(tmp_path / "checkpoints", tmp_path / "history.json").restore(trainer) == 0
    for ours, fresh in zip(trainer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, fresh)


def test_a_loss_that_is_not_finite_is_not_saved(make_trainer, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", tmp_path / "history.json")
    checkpoints.set_model(make_trainer())
    with pytest.raises(UserError, match=r"--learning_rate: received 0\.01; the loss became nan in epoch 3"):
        checkpoints.on_epoch_end(2, {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
