"""On one GPU, Keras compiles a step with XLA, on several it does not: it must come to the same."""

import numpy as np
import pytest

from cifs_tf.runs.cluster import ALONE
from tests.cifs_tf.adversarial.replicas import batches, trainer_of


def weights_after_a_step(jit_compile):
    trainer = trainer_of(ALONE, "cifs", "pgd")
    trainer.jit_compile = jit_compile
    trainer.fit(batches(), steps_per_epoch=1, verbose=0)
    return trainer.classifier.get_weights()


@pytest.mark.soak
def test_a_step_with_a_random_start_is_the_same_under_xla():
    plain, compiled = weights_after_a_step(False), weights_after_a_step(True)
    for expected, found in zip(plain, compiled, strict=True):
        assert np.abs(expected - found).max() <= 1e-5 * np.abs(expected).max()
