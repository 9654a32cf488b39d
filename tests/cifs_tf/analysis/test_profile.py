"""Profiles of a class, by hand."""

import dataclasses

import numpy as np
import pytest

from cifs_tf.analysis import channel_profile, make_profile
from cifs_tf.errors import UserError

NATURAL = [[1.0, 0.0, 0.01], [0.0, 0.5, 0.1]]
ADVERSARIAL = [[0.2, 0.4, 0.0], [0.2, 0.0, 0.0]]


def check_by_hand(profile, weights, order):
    """Natural means (0.5, 0.25, 0.055), over the largest: (1, 0.5, 0.11). Of the first image, channels above 0.01 count
    as activated, so 0.01 itself does not; of the second, those above 0.005: each channel in one of two images.
    Adversarial means (0.2, 0.2, 0): (1, 1, 0), activated (1, 1/2, 0).
    """
    expected = {
        "weights": weights,
        "order": np.arange(3),
        "natural_magnitude": [1, 0.5, 0.11],
        "adversarial_magnitude": [1, 1, 0],
        "natural_frequency": [0.5, 0.5, 0.5],
        "adversarial_frequency": [1, 0.5, 0],
    }
    assert [field.name for field in dataclasses.fields(profile)] == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(profile, name), np.array(values)[order], atol=1e-6, err_msg=name)


def test_profile_by_hand():
    """Weights (-1, 2, 0) put the second channel first, then the third."""
    weights = np.array([-1.0, 2.0, 0.0])
    check_by_hand(make_profile(np.array(NATURAL), np.array(ADVERSARIAL), weights), weights, [1, 2, 0])


def test_profile_of_a_network_by_hand(make_pencil, constant_images):
    """Class 1 has the weights (-1, 1, 1): of equal ones the first channel comes first. Images of class 0 do not count.

    float32: 0.01 as an image is above 0.01 times 1 or not by rounding, so a little less is taken.
    """
    natural = constant_images([[0.9, 0.9, 0.9], [1.0, 0.0, 0.0099], *NATURAL[1:]])
    adversarial = constant_images([[0.1, 0.9, 0.9], *ADVERSARIAL])
    profile = channel_profile(make_pencil(), natural, adversarial, np.array([0, 1, 1]), 1, batch_size=1)
    assert profile.order.tolist() == [1, 2, 0]
    np.testing.assert_allclose(profile.natural_magnitude, [0.5, 0.1099, 1], atol=1e-6)
    np.testing.assert_allclose(profile.natural_frequency, [0.5, 0.5, 0.5])
    np.testing.assert_allclose(profile.adversarial_magnitude, [1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(profile.adversarial_frequency, [0.5, 0, 1])


def test_signs_do_not_matter_but_silence_does():
    """CAS can make activations negative: magnitudes count. A network that activates nothing has magnitude 0."""
    weights = np.array([2.0, 1.0, 0.0])
    check_by_hand(make_profile(-np.array(NATURAL), np.array(ADVERSARIAL), weights), weights, [0, 1, 2])
    silent = make_profile(np.zeros((2, 3)), np.zeros((2, 3)), weights)
    assert silent.natural_magnitude.tolist() == silent.natural_frequency.tolist() == [0, 0, 0]


def test_errors_name_the_argument(make_pencil, constant_images):
    classifier, images, labels = make_pencil(), constant_images(NATURAL), np.array([0, 0])
    with pytest.raises(UserError, match="target_class: received 1; no image has this label"):
        channel_profile(classifier, images, images, labels, 1)
    with pytest.raises(UserError, match="target_class: received 2; give a class from 0 to 1"):
        channel_profile(classifier, images, images, labels, 2)
    with pytest.raises(UserError, match="x_adv: received 2 images, 1 x_adv, 2 labels"):
        channel_profile(classifier, images, images[:1], labels, 0)
