"""Labels and pixels of every form that people have."""

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.checks import check_images, check_labels
from cifs_tf.data import Split
from cifs_tf.errors import UserError

LABELS = np.array([0, 2, 1, 2])


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        LABELS.tolist(),
        LABELS.astype(np.uint8),
        LABELS.astype(np.int64),
        LABELS.astype(np.float32),
        LABELS[:, None],
        np.eye(3)[LABELS],
        np.eye(3, dtype=bool)[LABELS],
        np.eye(3, dtype=np.float32)[LABELS],
    ],
)
def test_labels_that_say_the_same(labels):
    found = check_labels(labels, 3)
    assert found.dtype == np.int32
    assert found.tolist() == [0, 2, 1, 2]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (LABELS + 1, "labels from 1 to 3; labels are 0 to 2"),
        (LABELS - 1, "labels from -1 to 1"),
        (LABELS + 0.7, "0.7; labels are whole numbers"),
        ([0.0, np.nan], "nan; labels are whole numbers"),
        (np.eye(4)[LABELS], "one-hot rows have 3 columns"),
        (np.eye(3)[LABELS] * 0.9, "not one-hot"),
        (np.ones((4, 3)), "not one-hot"),
        (np.zeros((4, 2, 2)), "give integers"),
        (["cat", "dog"], "give integers"),
        ([0, 2**32], "labels from 0 to 4294967296"),
        ([0.0, 1e30], r"1e\+30; labels are whole numbers"),
        (np.array([0, 2**63], np.uint64), "9223372036854775808; labels are whole numbers"),
        (np.zeros((3, 0)), "give integers"),
        ([[0, 1], [1]], "give an array"),
        (3, "give integers"),
    ],
)
def test_other_labels_are_refused_in_a_sentence(labels, expected):
    with pytest.raises(UserError, match=rf"^labels: received .*{expected}"):
        check_labels(labels, 3)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "advice"),
    [
        (0, 255, "uint8", "divide by 255"),
        (0, 255, "float32", "divide by 255"),
        (0, 16, "float64", "divide by 255"),
        (-1, 1, "float32", "add 1 and divide by 2"),
        (-2.1, 2.6, "float32", "normalise inside the network"),
        (-0.5, 0.5, "float32", "normalise inside the network"),
        (-2.0, -0.7, "float32", "normalise inside the network"),
        (0, 1 / 255, "float32", "divided twice"),
    ],
)
def test_pixels_of_another_range_are_refused(low, high, dtype, advice):
    with pytest.raises(UserError, match=advice):
        check_images(np.array([low, high]).astype(dtype))


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.2, 0.7), (0, 0), (-1e-7, 1 + 1e-7), (np.nan, np.nan), (0.5, np.inf), (-np.inf, 0.5)]
)
def test_pixels_in_range_pass(low, high):
    """What is not finite passes in training, which names it."""
    check_images(np.array([low, high], np.float32), allow_nan=True)
    check_images(tf.constant([low, high], tf.bfloat16), allow_nan=True)


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), [0, 1], "images: received float32"),
        (np.zeros((2, 4, 4), np.uint8), [0, 1], r"images: received uint8 of shape \(2, 4, 4\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 1, 1], "labels: received 3 labels; give one for each of the 2"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0.5, 1], "labels: received 0.5"),
    ],
)
def test_a_split_is_made_of_what_it_says(images, labels, expected):
    with pytest.raises(UserError, match=expected):
        Split(images, labels)


@pytest.mark.parametrize(
    ("images", "shape", "expected"),
    [
        (
            np.zeros((2, 4, 4, 3), np.float32),
            (8, 8, 3),
            r"shape \(2, 4, 4, 3\); the network takes \(examples, 8, 8, 3\)",
        ),
        (np.zeros((8, 8, 3), np.float32), (8, 8, 3), r"shape \(8, 8, 3\); give a batch"),
        (np.zeros((2, 8, 8), np.float32), (8, 8, 1), "an axis for their channel"),
        (np.array([[["a"]]]), None, "give an array of floats"),
        (np.zeros((1, 2, 2, 3), object), None, "dtype object; give an array of floats"),
        (np.array([0.5, np.nan]), None, "1 pixels that are not finite"),
    ],
)
def test_images_of_another_form_are_refused(images, shape, expected):
    with pytest.raises(UserError, match=expected):
        check_images(images, shape=shape)


def test_sizes_that_are_open_fit():
    check_images(np.zeros((2, 4, 6, 3), np.float32), shape=(None, None, 3))


def test_truth_values_are_labels_of_two_classes_only():
    assert check_labels([True, False], 2).tolist() == [1, 0]
    with pytest.raises(UserError, match="dtype bool; there are 3 classes"):
        check_labels([True, False], 3)
