"""Measuring a network under attack, by hand, batch by batch, and interrupted."""

import numpy as np
import pytest

from cifs_tf.analysis import measure_channels
from cifs_tf.attacks import fgsm
from cifs_tf.data import Split
from cifs_tf.errors import UserError

# All pixels are 0.2.
SPLIT = Split(np.full((5, 2, 2, 3), 51, np.uint8), np.array([0, 1, 1, 0, 1], np.int32))


def test_measurement_by_hand(make_pencil):
    """w_0 = (1, 0, -1) and w_1 = (-1, 1, 1); z = (0.2, 0.2, 0.2) has the logits (0, 0.2): class 1.

    The loss of class 0 grows along w_1 - w_0 = (-2, 1, 2), so FGSM with epsilon 0.1 makes z = (0.1, 0.3, 0.3), with the
    logits (-0.2, 0.5): still class 1. That of class 1 grows along (2, -1, -2): z = (0.3, 0.1, 0.1), logits (0.2, -0.1),
    class 0.

    NR channels of class 0 are the second and third: shares 0.4/0.6 and, attacked, 0.6/0.7; of class 1 the first:
    0.2/0.6 and 0.3/0.5. Centred ranks of w_0: (1, 0, -1), of (0.1, 0.3, 0.3): (-1, 1/2, 1/2), so -3/2 /
    sqrt(2 * 3/2); of w_1: (-1, 1/2, 1/2), of (0.3, 0.1, 0.1): (1, -1/2, -1/2), so -1.
    """
    found = measure_channels(make_pencil(), SPLIT, fgsm(0.1), batch_size=2)
    is_zero = SPLIT.labels == 0
    np.testing.assert_allclose(found.natural_activations, np.full((5, 3), 0.2), atol=1e-6)
    np.testing.assert_allclose(found.adversarial_activations[is_zero], [[0.1, 0.3, 0.3]] * 2, atol=1e-6)
    np.testing.assert_allclose(found.adversarial_activations[~is_zero], [[0.3, 0.1, 0.1]] * 3, atol=1e-6)
    by_class = {
        "natural_accuracy": (0, 1),
        "adversarial_accuracy": (0, 0),
        "natural_negative_share": (2 / 3, 1 / 3),
        "adversarial_negative_share": (6 / 7, 3 / 5),
        "adversarial_alignment": (-np.sqrt(3) / 2, -1),
    }
    per_example = found.per_example()
    for name, (zero, one) in by_class.items():
        np.testing.assert_allclose(per_example[name], np.where(is_zero, zero, one), atol=1e-6, err_msg=name)
    assert found.profile(1).order.tolist() == [1, 2, 0]
    np.testing.assert_allclose(found.profile(1).adversarial_magnitude, [1 / 3, 1 / 3, 1], atol=1e-6)
    with pytest.raises(UserError, match="target_class: received 7"):
        found.profile(7)


def test_an_interrupted_measurement_continues(make_pencil, tmp_path):
    """What was finished is read, not made again; other terms have a folder of their own."""

    def until(number):
        def progress(starts):
            for done, start in enumerate(starts):
                if done == number:
                    raise KeyboardInterrupt
                yield start

        return progress

    classifier = make_pencil()
    with pytest.raises(KeyboardInterrupt):
        measure_channels(classifier, SPLIT, fgsm(0.1), batch_size=2, folder=tmp_path, progress=until(1))
    (first,) = tmp_path.rglob("*.npz")
    written = first.stat().st_mtime_ns
    found = measure_channels(classifier, SPLIT, fgsm(0.1), batch_size=2, folder=tmp_path)
    assert first.stat().st_mtime_ns == written
    assert sorted(file.name for file in tmp_path.rglob("*")) == sorted(
        [first.parent.name, "000000.npz", "000002.npz", "000004.npz"]
    )
    for name, values in vars(measure_channels(classifier, SPLIT, fgsm(0.1))).items():
        np.testing.assert_allclose(getattr(found, name), values, atol=1e-6, err_msg=name)
    # A batch that is damaged, or another one, is measured again.
    (first.parent / "000002.npz").write_bytes(first.read_bytes())
    (first.parent / "000004.npz").write_bytes(first.read_bytes()[:100])
    again = measure_channels(classifier, SPLIT, fgsm(0.1), batch_size=2, folder=tmp_path)
    for name, values in vars(found).items():
        np.testing.assert_array_equal(getattr(again, name), values, err_msg=name)
    measure_channels(classifier, SPLIT, fgsm(0.2), batch_size=2, folder=tmp_path)
    measure_channels(make_pencil(kernel=np.ones((3, 2))), SPLIT, fgsm(0.1), batch_size=2, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
