"""The fifteen corruptions: what each does to images whose corrupted form is known, and what all of them keep."""

import numpy as np
import pytest
from scipy import ndimage

from cifs_tf.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from cifs_tf.errors import UserError


def picture(side, channels, seed=0):
    """A picture with detail, of all brightnesses."""
    noise = np.random.default_rng(seed).normal(size=(side, side, channels))
    smooth = ndimage.gaussian_filter(noise, (side / 20, side / 20, 0))
    return np.clip(0.5 + 0.25 * smooth / smooth.std(), 0, 1).astype(np.float32)


def distance(image, kind, severity, draws=4):
    return np.mean([np.abs(corrupt(image, kind, severity, (severity, i)) - image).mean() for i in range(draws)])


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_kind_on_images_of_every_size(kind):
    """In [0, 1], of 8 bits, of the same shape, the same with the same seed, and another image than before."""
    for side, channels in ((8, 1), (8, 3), (32, 3), (28, 1), (224, 3)):
        image = picture(side, channels)
        before = image.copy()
        for severity in (1, 5) if side < 200 else (3,):
            changed = corrupt(image, kind, severity, seed=(1, 2))
            assert (changed.shape, changed.dtype) == (image.shape, np.float32)
            assert changed.min() >= 0
            assert changed.max() <= 1
            np.testing.assert_allclose(255 * changed, np.rint(255 * changed), atol=1e-4)
            np.testing.assert_array_equal(changed, corrupt(image, kind, severity, seed=(1, 2)))
            # One impulse in a hundred values may be none of 64.
            assert np.abs(changed - image).max() > 0.01 or (kind, side, severity) == ("impulse_noise", 8, 1)
        np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("kind", [kind for kind in CORRUPTIONS if kind != "elastic_transform"])
def test_the_distance_grows_with_severity(kind):
    """From the first to the last of each; step by step where one parameter alone says how much."""
    image = picture(32, 3)
    found = [distance(image, kind, severity) for severity in SEVERITIES]
    assert found[-1] > found[0]
    if all(len(values) == 1 for values in CORRUPTIONS[kind][1]):
        assert found == sorted(found)


def test_elastic_transform_is_first_smooth_and_then_rough():
    """Its displacement gets smaller and less smooth: straight stripes stay straight at severity 1, and do not at 5."""
    stripes = np.tile((np.arange(64) % 16 < 8).astype(np.float32)[:, None, None], (1, 64, 1))
    roughness = [
        np.mean(
            [np.abs(np.diff(corrupt(stripes, "elastic_transform", severity, i), 2, axis=1)).mean() for i in range(8)]
        )
        for severity in (1, 5)
    ]
    assert roughness[1] > 1.5 * roughness[0]


@pytest.mark.parametrize(
    ("kind", "severity", "expected"),
    [
        ("brightness", 1, [0.25, 0.45]),  # the value rises by 0.05
        ("brightness", 5, [0.5, 0.7]),  # by 0.3
        ("contrast", 1, [0.225, 0.375]),  # three quarters of the distance from the mean 0.3
        ("contrast", 5, [0.285, 0.315]),  # 0.15 of it
    ],
)
def test_brightness_and_contrast_by_hand(kind, severity, expected):
    changed = corrupt(np.array([[[0.2]], [[0.4]]]), kind, severity, seed=0)
    np.testing.assert_allclose(changed.ravel(), expected, atol=0.5 / 255)


def test_brightness_keeps_the_colour():
    """Of (0.2, 0.4, 0.1) the value 0.4 becomes 0.7: all channels times 1.75."""
    changed = corrupt(np.array([[[0.2, 0.4, 0.1]]]), "brightness", 5, seed=0)
    np.testing.assert_allclose(changed.ravel(), [0.35, 0.7, 0.175], atol=0.5 / 255)


def test_noise_has_the_deviation_of_its_definition():
    """Gaussian 0.1; Poisson of 50 photons at 0.5: sqrt(0.5 / 50) = 0.1; 7% of impulses, half black and half white."""
    grey = np.full((200, 200, 1), 0.5)
    assert corrupt(grey, "gaussian_noise", 5, 0).std() == pytest.approx(0.1, rel=0.02)
    assert corrupt(grey, "shot_noise", 5, 0).std() == pytest.approx(0.1, rel=0.02)
    changed = corrupt(grey, "impulse_noise", 5, 0)
    assert [np.mean(changed == value) for value in (0, 1)] == pytest.approx([0.035, 0.035], rel=0.1)


@pytest.mark.parametrize("kind", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "pixelate", "contrast"])
def test_a_blur_leaves_an_even_image(kind):
    even = np.full((16, 16, 3), 0.4, np.float32)
    np.testing.assert_allclose(corrupt(even, kind, 5, 0), even, atol=1e-3)


def test_lengths_grow_with_the_image():
    """A point of light is spread over seven times as many pixels of an image seven times as wide."""
    widths = []
    for side in (32, 224):
        image = np.zeros((side, side, 1))
        image[side // 2 - 1 : side // 2 + 1, side // 2 - 1 : side // 2 + 1] = 1
        spread = corrupt(image, "motion_blur", 5, 3)[..., 0]
        rows, columns = np.nonzero(spread > 0.1 * spread.max())
        widths.append(max(np.ptp(rows), np.ptp(columns)))
    assert 4 < widths[1] / widths[0] < 9


def test_what_is_unknown_is_refused():
    with pytest.raises(UserError, match="kind: received rain"):
        corrupt(picture(8, 1), "rain", 1, 0)
    with pytest.raises(UserError, match="severity: received 6"):
        corrupt(picture(8, 1), "fog", 6, 0)
