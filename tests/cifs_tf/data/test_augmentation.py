"""Augmentation against NumPy crops and mirrors."""

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.data.augmentation import AUGMENTATIONS, CROP_PADDING, Rows, crop, crop_flip, flip

SEED = tf.constant([1, 2])


def make_images(shape=(16, 6, 9, 3)):
    """Distinct positive values, so that a crop shows where it was taken."""
    return (1 + np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape)).astype(np.float32) / np.prod(shape)


def corner_of(image, cropped):
    """(row, column) at which `cropped` lies in the padded image, or None."""
    height, width = image.shape[:2]
    padded = np.pad(image, [(CROP_PADDING,) * 2, (CROP_PADDING,) * 2, (0, 0)])
    for row in range(2 * CROP_PADDING + 1):
        for column in range(2 * CROP_PADDING + 1):
            if np.array_equal(padded[row : row + height, column : column + width], cropped):
                return row, column
    return None


def test_crop_is_a_window_of_the_padded_image():
    """Padding 4: corners from 0 to 8 in both directions, drawn for each image by itself."""
    images = make_images()
    corners = [corner_of(*pair) for pair in zip(images, crop(tf.constant(images), SEED).numpy(), strict=True)]
    assert None not in corners
    assert len(set(corners)) > 8
    assert len({row for row, _ in corners}) > 3
    assert len({column for _, column in corners}) > 3


def test_crop_reaches_every_corner():
    images = np.broadcast_to(make_images((1, 5, 5, 1)), (600, 5, 5, 1))
    cropped = np.unique(crop(tf.constant(images), SEED).numpy(), axis=0)
    corners = {corner_of(images[0], each) for each in cropped}
    # 81 equally likely corners, 600 draws: the chance to miss a given one is (80/81)^600 = 0.0006.
    assert len(corners) >= 79
    assert {(0, 4), (8, 4), (4, 0), (4, 8), (4, 4)} <= corners


def test_flip_mirrors_half_of_the_images():
    """200 fair draws: 100 give or take 6 standard deviations of 7.07."""
    images = make_images((200, 3, 4, 1))
    flipped = flip(tf.constant(images), SEED).numpy()
    mirrored = np.array([np.array_equal(*pair) for pair in zip(flipped, images[:, :, ::-1], strict=True)])
    same = np.array([np.array_equal(*pair) for pair in zip(flipped, images, strict=True)])
    assert np.all(mirrored ^ same)
    assert 58 <= mirrored.sum() <= 142


def test_crop_flip_does_both():
    images = make_images((64, 6, 6, 1))
    found = [
        (corner_of(image, each), corner_of(image, each[:, ::-1]))
        for image, each in zip(images, crop_flip(tf.constant(images), SEED).numpy(), strict=True)
    ]
    assert all((straight is None) != (mirrored is None) for straight, mirrored in found)
    assert 10 <= sum(straight is None for straight, _ in found) <= 54


def test_flip_and_crop_are_drawn_apart():
    """Mirrored and straight images have the same spread of corners: a flip tells nothing of its crop."""
    images = make_images((300, 6, 6, 1))
    columns = {True: [], False: []}
    for image, each in zip(images, crop_flip(tf.constant(images), SEED).numpy(), strict=True):
        straight = corner_of(image, each)
        row, _ = straight or corner_of(image, each[:, ::-1])
        columns[straight is None].append(row)
    # Rows are uniform on 0..8: mean 4, standard deviation 2.58; with 100 or more images a mean is off by 0.26.
    for rows in columns.values():
        assert abs(np.mean(rows) - 4) < 1.2


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(3, 8, 8, 1), (2, 12, 7, 3), (1, 4, 4, 4)])
def test_keeps_shape_type_and_bounds(name, shape):
    images = tf.constant(np.random.default_rng(0).random(shape, np.float32))
    found = AUGMENTATIONS[name](images, SEED)
    assert (found.shape, found.dtype) == (images.shape, images.dtype)
    assert np.min(found) >= 0
    assert np.max(found) <= np.max(images)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_is_a_function_of_the_seed(name):
    images, augment = tf.constant(make_images()), AUGMENTATIONS[name]
    tf.random.set_seed(1)
    first = augment(images, SEED)
    tf.random.set_seed(2)
    np.testing.assert_array_equal(augment(images, SEED), first)
    np.testing.assert_array_equal(tf.function(augment)(images, SEED), first)
    other = augment(images, tf.constant([1, 3]))
    assert np.array_equal(other, first) == (name == "none")


def test_none_returns_the_images():
    images = make_images()
    np.testing.assert_array_equal(AUGMENTATIONS["none"](tf.constant(images), SEED), images)


def test_a_resized_crop_is_a_scaled_part_of_its_own_image():
    """Of a ramp in both directions every crop is a ramp again: its slope is the share that was taken of each side."""
    rows, columns = np.meshgrid(np.linspace(0, 1, 33), np.linspace(0, 1, 33), indexing="ij")
    ramp = np.broadcast_to(np.stack([rows, columns, 0 * rows], -1).astype(np.float32), (400, 33, 33, 3))
    cropped = AUGMENTATIONS["resized_crop_flip"](tf.constant(ramp), SEED, None).numpy()
    tall = np.ptp(cropped[..., 0], (1, 2))
    wide = np.ptp(cropped[..., 1], (1, 2))
    assert np.abs(np.diff(cropped[..., 0], 2, axis=1)).max() < 1e-5
    assert cropped.min() >= 0
    assert cropped.max() <= 1 + 1e-6
    area, shape = tall * wide, wide / tall
    assert 0.25 - 1e-3 <= area.min() < 0.35
    assert area.max() > 0.9
    inside = (tall < 0.999) & (wide < 0.999)
    assert 0.75 - 1e-3 <= shape[inside].min() < 0.8
    assert 1.25 < shape[inside].max() <= 4 / 3 + 1e-3
    falling = cropped[:, 0, 0, 1] > cropped[:, 0, -1, 1]
    assert 0.35 < falling.mean() < 0.65


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_a_part_of_a_batch_is_that_part_of_the_whole(name):
    images = tf.constant(make_images((8, 6, 6, 3)))
    whole = AUGMENTATIONS[name](images, SEED, None).numpy()
    part = AUGMENTATIONS[name](images[2:6], SEED, Rows(8, 2)).numpy()
    np.testing.assert_array_equal(part, whole[2:6])
