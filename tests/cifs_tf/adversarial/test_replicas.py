"""A step is the same on 1, 2 and 4 replicas, random starts, FAT's stops and batch statistics included."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
CASES = [f"{defense} {method}" for defense in ("vanilla", "cifs") for method in ("pgd", "fat", "trades")]
CI_CASES = ["cifs fat"]  # PGD that stops early
pytestmark = [pytest.mark.slow, pytest.mark.multi_worker]


def run_steps(file, number, cases, reference=None):
    """What the steps came to on a number of replicas."""
    command = [sys.executable, "-m", "tests.cifs_tf.adversarial.replicas", str(number), str(file), ",".join(cases)]
    command += [str(reference)] if reference else []
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return dict(np.load(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("replicas")


@pytest.fixture(scope="module")
def found(folder):
    """What the steps came to, by the number of replicas; the cases that are left out are for the soak."""
    one = run_steps(folder / "1.npz", 1, CI_CASES)
    two = run_steps(folder / "2.npz", 2, CI_CASES, folder / "1.npz")
    return {1: one, 2: two}


def weights_of(steps, case, kind="weight"):
    count = sum(name.startswith(f"{case} {kind} ") for name in steps)
    assert count, case
    return [steps[f"{case} {kind} {index}"] for index in range(count)]


def assert_equal_weights(one, several, bar):
    for alone, shared in zip(one, several, strict=True):
        assert np.abs(alone - shared).max() <= bar * np.abs(alone).max()


def check_step(one, several, case):
    different = (one[f"{case} x_adv"] != several[f"{case} x_adv"]).mean()
    if different:
        print(f"{different:.2%} of the pixels differ; compared with the adversarial images of one device")
    # Signs of gradients that are nearly zero, no more: the random starts are those of one device.
    assert different < 0.01
    assert_equal_weights(weights_of(one, case), weights_of(several, case), 1e-5)


@pytest.mark.parametrize("case", CI_CASES)
def test_replicas_make_the_step_of_one_device(found, case):
    check_step(found[1], found[2], case)


@pytest.mark.soak
def test_two_and_four_replicas_make_every_step_of_one_device(folder):
    one = run_steps(folder / "one.npz", 1, CASES)
    for replicas in (2, 4):
        several = run_steps(folder / f"{replicas} of all.npz", replicas, CASES, folder / "one.npz")
        for case in CASES:
            check_step(one, several, case)
            for first, last in zip(weights_of(several, case), weights_of(several, case, "copy"), strict=True):
                np.testing.assert_array_equal(first, last)


def test_all_replicas_hold_the_same_weights(found):
    first, last = weights_of(found[2], CI_CASES[0]), weights_of(found[2], CI_CASES[0], "copy")
    for one, other in zip(first, last, strict=True):
        np.testing.assert_array_equal(one, other)


def test_weight_perturbation_and_average_are_those_of_one_device(found):
    one, two = (weights_of(found[replicas], "averaged") for replicas in (1, 2))
    assert_equal_weights(one, two, 1e-4)


def test_logs_are_those_of_one_device_whatever_the_number_of_validation_images(found):
    names = {name for name in found[1] if name.startswith("validated")}
    expected = ("loss", "robust_accuracy", "compiled", "val_loss", "val_clean_accuracy", "natural clean_accuracy")
    assert names >= {f"validated {name}" for name in expected}
    for name in names:
        assert found[2][name] == pytest.approx(found[1][name], rel=1e-4), name


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_step_that_is_not_finite_on_one_replica_is_made_by_none(found, replicas):
    skipped, moved = found[replicas]["not finite"]
    assert (skipped, moved) == (1, 0)


def test_a_batch_that_does_not_divide_evenly_is_refused(found):
    assert "a batch must divide evenly among the 2 replicas" in str(found[2]["uneven"])
    assert str(found[1]["uneven"]) == "no error"


def test_batch_normalisation_of_keras_must_be_synchronized(found):
    """Else each replica keeps statistics of its own part of the batch."""
    assert "classifier: received batch_normalization" in str(found[2]["apart"])
    assert "synchronized = True" in str(found[2]["apart"])
    assert str(found[1]["apart"]) == "no error"
    assert_equal_weights(weights_of(found[1], "keras"), weights_of(found[2], "keras"), 1e-5)
