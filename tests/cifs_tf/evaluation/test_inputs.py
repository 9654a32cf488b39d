"""The same images and labels in every form give the same split; what is none is refused."""

from pathlib import Path

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
SIZES = tf.data.Dataset.from_generator(
    lambda: iter([(IMAGES[0], 0), (IMAGES[0, :4], 1)]),
    output_signature=(tf.TensorSpec((None, None, 1), tf.uint8), tf.TensorSpec((), tf.int32)),
)
FORMS = {
    "split": Split(IMAGES, LABELS),
    "arrays": (IMAGES, LABELS),
    "floats": (FLOATS, LABELS[:, None]),
    "float64": (IMAGES / 255, LABELS.astype(float)),
    "tensors and one-hot": (tf.constant(FLOATS), tf.one_hot(LABELS, 2)),
    "batches": tf.data.Dataset.from_tensor_slices((FLOATS, LABELS)).batch(3),
    "examples": tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)),
    "one-hot examples": tf.data.Dataset.from_tensor_slices((FLOATS, tf.one_hot(LABELS, 2))),
    "weights": Split(IMAGES, LABELS).validation_batches(4),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form(form):
    split, told, columns = as_split(FORMS[form])
    assert columns == (2 if "one-hot" in form else None)
    np.testing.assert_array_equal(split.images, IMAGES)
    np.testing.assert_array_equal(split.labels, LABELS)
    assert told == []


def test_pixels_of_more_than_8_bits_are_rounded_and_said():
    split, told, _ = as_split((FLOATS * 0.9, LABELS))
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
        (tf.data.Dataset.from_tensor_slices(IMAGES), "elements without labels"),
        (tf.data.Dataset.from_tensor_slices({"image": IMAGES, "label": LABELS}), "a dataset of dict"),
        (tf.data.Dataset.from_tensor_slices(({"image": IMAGES}, LABELS)), "by name: give .images, labels."),
        (
            tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(3).repeat(),
            "no end, leave repeat",
        ),
        (tf.data.Dataset.from_tensor_slices((IMAGES[..., 0], LABELS)).batch(3), r"shape \(3, 8, 8\)"),
        (tf.data.Dataset.from_tensor_slices((IMAGES[..., 0], tf.one_hot(LABELS, 2))).batch(7), r"shape \(7, 8, 8\)"),
        (tf.data.Dataset.from_tensor_slices((IMAGES, LABELS, np.ones((7, 2)))).batch(3), r"shape \(3, 2\)"),
        (tf.data.Dataset.from_tensor_slices((IMAGES, LABELS, -np.ones(7))).batch(3), "numbers of 0 or more"),
        (SIZES, "bring all images to one size"),
        (SIZES.batch(2), "images of several sizes; bring all images to one size"),
        ((IMAGES // 128, LABELS), "uint8 pixels of 0 and 1 only"),
        (Split(IMAGES // 128, LABELS), "uint8 pixels of 0 and 1 only"),
        (([[1.0], [1.0, 2.0]], LABELS), "give an array"),
        (tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).take(0), "no images"),
    ],
)
def test_what_is_no_data_is_refused(data, words):
    with pytest.raises(UserError, match=words):
        as_split(data)


def test_images_that_are_there_twice_are_said():
    twice = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).repeat(2).batch(4)
    assert as_split(twice).told == ["7 of the 14 images are there more than once, and count as often."]


def test_batches_of_other_classes_are_refused():
    first, second = (tf.data.Dataset.from_tensors((FLOATS, np.eye(classes)[LABELS])) for classes in (2, 2))
    other = tf.data.Dataset.from_generator(
        lambda: iter([(FLOATS, np.eye(2)[LABELS]), (FLOATS, np.eye(3)[LABELS])]),
        output_signature=(tf.TensorSpec((None, 8, 8, 1)), tf.TensorSpec((None, None))),
    )
    assert len(as_split(first.concatenate(second)).split) == 14
    with pytest.raises(UserError, match=r"labels of shape \(2,\) and \(3,\) for each image"):
        as_split(other)


def test_rows_of_other_classes_are_refused(make_victim):
    with pytest.raises(UserError, match="one-hot rows of 3 columns; the network has 2 classes"):
        evaluate(make_victim(num_probes=0), (FLOATS, np.eye(3)[LABELS]), [Natural()])


def test_evaluate_takes_arrays(make_victim):
    report = evaluate(make_victim(num_probes=0), (FLOATS, LABELS), [Natural()])
    assert report["num_examples"] == 7
    assert report["natural"] == evaluate(make_victim(num_probes=0), FORMS["batches"], [Natural()])["natural"]


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"f": np.float32(0.5), "n": np.arange(2), "p": Path("a")}, {"f": 0.5, "n": [0, 1], "p": "a"}),
        ({"f": float("nan")}, "about"),
        ({"f": object()}, "about"),
        ([1, 2], "about"),
        ({"class_names": ["one"]}, "one for each class"),
        ({"class_names": 2}, "one for each class"),
        ({"num_examples": 2, "limits": "none"}, "limits, num_examples; the evaluation says this itself"),
    ],
)
def test_what_else_a_report_says_is_plain_or_refused_at_once(make_victim, about, expected):
    def measure():
        return evaluate(make_victim(num_probes=0), (FLOATS, LABELS), [Natural()], about=about)

    if isinstance(expected, dict):
        assert {name: measure()["about"][name] for name in expected} == expected
    else:
        with pytest.raises(UserError, match=expected):
            measure()
