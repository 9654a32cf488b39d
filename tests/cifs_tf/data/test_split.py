"""Splits in memory: fixed shuffles, and batches that are a pure function of (seed, step)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifs_tf.data import Split, to_float
from cifs_tf.errors import UserError


def make_split(size=23, side=4):
    """Image i is filled with i, its label is i: batches show what they hold."""
    images = np.broadcast_to(np.arange(size, dtype=np.uint8)[:, None, None, None], (size, side, side, 1))
    return Split(np.array(images), np.arange(size, dtype=np.int32))


def take(split, count, **kwargs):
    """The first batches as NumPy arrays."""
    return list(split.training_batches(**kwargs).take(count).as_numpy_iterator())


def labels_of(batches):
    return np.concatenate([labels for _, labels in batches])


def test_to_float():
    np.testing.assert_allclose(to_float(np.array([0, 51, 255], np.uint8)), [0, 0.2, 1], rtol=1e-6)
    assert to_float(np.zeros(1, np.uint8)).dtype == "float32"


def test_training_batches_hold_images_and_their_labels():
    (images, labels), *_ = take(make_split(), 1, batch_size=5, seed=0)
    assert (images.shape, images.dtype) == ((5, 4, 4, 1), np.float32)
    assert (labels.shape, labels.dtype) == ((5,), np.int32)
    np.testing.assert_allclose(images[:, 0, 0, 0], labels / 255, rtol=1e-6)


def test_shapes_are_static():
    """A network that is traced on the batches sees their whole shape."""
    images, labels = make_split().training_batches(5, seed=0, augmentation="crop_flip").element_spec
    assert images.shape == (5, 4, 4, 1)
    assert labels.shape == (5,)


@pytest.mark.parametrize("batch_size", [1, 5, 23])
def test_each_epoch_is_a_permutation(batch_size):
    """Whole batches of a new shuffle each epoch; what does not fill a batch is dropped."""
    split = make_split()
    steps = split.steps_per_epoch(batch_size)
    assert steps == 23 // batch_size
    batches = take(split, 3 * steps, batch_size=batch_size, seed=0)
    epochs = [labels_of(batches[index * steps : (index + 1) * steps]) for index in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == steps * batch_size
    assert np.any(epochs[0] != epochs[1])
    assert np.any(epochs[1] != epochs[2])


def test_every_image_has_its_turn():
    """3 of 23 images are dropped each epoch, but not always the same ones."""
    assert set(labels_of(take(make_split(), 40, batch_size=5, seed=0))) == set(range(23))


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
def test_resumes_at_any_step(augmentation):
    """4 steps an epoch: resumed within the first epoch, at its end, within the second, within the third."""
    split, kwargs = make_split(), {"batch_size": 5, "seed": 3, "augmentation": augmentation}
    whole = take(split, 14, **kwargs)
    for start_step in (1, 4, 6, 11):
        resumed = take(split, 14 - start_step, start_step=start_step, **kwargs)
        for (images, labels), (expected_images, expected_labels) in zip(resumed, whole[start_step:], strict=True):
            np.testing.assert_array_equal(labels, expected_labels)
            np.testing.assert_array_equal(images, expected_images)


def test_seed_decides_the_batches():
    first, again, other = (labels_of(take(make_split(), 4, batch_size=5, seed=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_largest_seed():
    assert len(take(make_split(), 1, batch_size=5, seed=2**31 - 1, augmentation="crop_flip")) == 1


def test_augmentation_is_drawn_anew_each_step():
    """The same image, batch after batch: crops differ between steps."""
    split = Split(np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1), np.zeros(1, np.int32))
    images = [images for images, _ in take(split, 8, batch_size=1, seed=0, augmentation="crop")]
    assert len(np.unique(np.concatenate(images).reshape(8, -1), axis=0)) > 4


def test_validation_batches_are_in_order_and_of_one_size():
    split = make_split()
    batches = list(split.validation_batches(5).as_numpy_iterator())
    images, labels, weights = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert [len(labels) for _, labels, _ in batches] == [5] * 5
    np.testing.assert_array_equal(weights, [1] * 23 + [0] * 2)
    np.testing.assert_array_equal(labels[:23], np.arange(23))
    np.testing.assert_allclose(images[:23], split.images / 255, rtol=1e-6)


@given(st.integers(2, 60), st.data())
def test_divide(size, data):
    """Two parts that share nothing and miss nothing, the same each time, each in the order of the whole."""
    first_size = data.draw(st.integers(0, size))
    split = make_split(size, side=1)
    first, rest = split.divide(first_size)
    assert (len(first), len(rest)) == (first_size, size - first_size)
    np.testing.assert_array_equal(np.sort(np.concatenate([first.labels, rest.labels])), np.arange(size))
    for part in (first, rest):
        np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.labels)
        assert np.all(np.diff(part.labels) > 0)
    np.testing.assert_array_equal(split.divide(first_size)[0].labels, first.labels)


def test_divide_by_share_divides_every_class():
    """A fifth of 10, 5 and 2 examples: 2, 1 and, at least, 1."""
    labels = np.repeat([0, 1, 2], [10, 5, 2]).astype(np.int32)
    first, rest = Split(np.arange(17, dtype=np.uint8)[:, None, None, None], labels).divide_by_share(0.2, "test")
    assert list(np.bincount(first.labels)) == [2, 1, 1]
    assert list(np.bincount(rest.labels)) == [8, 4, 1]
    assert set(first.images.ravel()) | set(rest.images.ravel()) == set(range(17))


def test_subsets_are_nested():
    """A smaller subset is part of a larger one, so runs of different size share images."""
    split = make_split()
    small, large = (set(split.subset(size, "--train_examples").labels) for size in (5, 12))
    assert (len(small), len(large)) == (5, 12)
    assert small < large
    assert split.subset(None, "--train_examples") is split


def test_subset_is_no_prefix():
    """Files are often sorted by class: the first images would be of one class."""
    assert set(make_split().subset(8, "--train_examples").labels) != set(range(8))


def test_errors_name_the_option_and_the_value():
    with pytest.raises(UserError, match=r"^--test_examples: received 24; give at most 23"):
        make_split().subset(24, "--test_examples")
    with pytest.raises(UserError, match=r"^--batch_size: received 24; give at most 23"):
        make_split().training_batches(24, seed=0)


@given(st.integers(1, 60), st.integers(0, 100))
def test_class_balanced_parts(num_examples, seed):
    """Of every class the same number, but for one; where a class has too few, the others make up for it."""
    labels = np.random.default_rng(seed).integers(0, 4, 60).astype(np.int32)
    images = np.arange(60, dtype=np.uint8)[:, None, None, None]
    part = Split(images, labels).class_balanced(num_examples, "--examples")
    taken, available = np.bincount(part.labels, minlength=4), np.bincount(labels, minlength=4)
    assert len(part) == num_examples
    assert np.all(np.diff(part.images.ravel().astype(int)) > 0), "in order, none twice"
    assert np.all(labels[part.images.ravel()] == part.labels)
    unfilled = taken[taken < available]
    assert len(unfilled) == 0 or taken.max() - unfilled.min() <= 1


def test_class_balanced_parts_are_nested_and_bounded():
    split = Split(np.arange(40, dtype=np.uint8)[:, None, None, None], np.arange(40, dtype=np.int32) % 3)
    small, large = (set(split.class_balanced(n, "--examples").images.ravel().tolist()) for n in (10, 20))
    assert small < large
    with pytest.raises(UserError, match="--examples: received 41; give at most 40"):
        split.class_balanced(41, "--examples")
