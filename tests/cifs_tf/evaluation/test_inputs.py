"""The same images and labels in every form give the same split; what is none is refused."""

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.data import Split
from cifs_tf.errors import UserError
from cifs_tf.evaluation import evaluate
from cifs_tf.evaluation.inputs import as_split
from cifs_tf.evaluation.tasks import Natural

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), dtype=np.uint8)
LABELS = np.array([0, 1, 1, 0, 1, 0, 1], np.int32)
FLOATS = (IMAGES / 255).astype(np.float32)
FORMS = {
    "split": Split(IMAGES, LABELS),
    "arrays": (IMAGES, LABELS),
    "floats": (FLOATS, LABELS[:, None]),
    "float64": (IMAGES / 255, LABELS.astype(float)),
    "tensors and one-hot": (tf.constant(FLOATS), tf.one_hot(LABELS, 2)),
    "batches": tf.data.Dataset.from_tensor_slices((FLOATS, LABELS)).batch(3),
    "examples": tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)),
    "weights": Split(IMAGES, LABELS).validation_batches(4),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form(form):
    split, told = as_split(FORMS[form])
    np.testing.assert_array_equal(split.images, IMAGES)
    np.testing.assert_array_equal(split.labels, LABELS)
    assert told == []


def test_pixels_of_more_than_8_bits_are_rounded_and_said():
    split, told = as_split((FLOATS * 0.9, LABELS))
    assert np.abs(split.images - FLOATS * 0.9 * 255).max() <= 0.5 + 1e-3
    assert "rounded to 8 bits" in told[0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((FLOATS * 255, LABELS), "divide by 255"),
        ((IMAGES, LABELS[:3]), "labels: received 3 labels"),
        ((IMAGES, LABELS - 1), "number the classes from 0"),
        ((IMAGES[0], LABELS[:1]), "give .examples, height, width, channels."),
        (IMAGES, "give a cifs_tf.data.Split"),
        (tf.data.Dataset.from_tensor_slices(IMAGES), "a dataset without labels"),
        (tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).take(0), "no images"),
    ],
)
def test_what_is_no_data_is_refused(data, words):
    with pytest.raises(UserError, match=words):
        as_split(data)


def test_evaluate_takes_arrays(make_victim):
    report = evaluate(make_victim(num_probes=0), (FLOATS, LABELS), [Natural()])
    assert report["num_examples"] == 7
    assert report["natural"] == evaluate(make_victim(num_probes=0), FORMS["batches"], [Natural()])["natural"]
