"""Folders of real image files."""

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.config import DataConfig
from cifs_tf.data import load_dataset
from cifs_tf.errors import UserError

SIDE = 8


def write_image(path, value, shape=(SIDE, SIDE, 3)):
    """A PNG (or JPEG) file of one colour: `value` red, and for RGB half of it green."""
    image = np.zeros(shape, np.uint8)
    image[..., 0] = value
    if shape[2] >= 3:
        image[..., 1] = value // 2
    encode = tf.io.encode_jpeg if path.suffix == ".jpg" else tf.io.encode_png
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(image).numpy())


def write_class(folder, count, first=0, **kwargs):
    for index in range(count):
        write_image(folder / f"{index:03}.png", first + index, **kwargs)


def load(path, **kwargs):
    return load_dataset(DataConfig(dataset=f"folder:{path}", **kwargs))


def values(split):
    """The red value of every image."""
    return split.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("test_name", ["test", "val", "validation"])
def test_train_and_test_folders(tmp_path, test_name):
    """Classes in alphabetical order, files in order, pixels as written."""
    write_class(tmp_path / "train" / "dog", 3, first=100)
    write_class(tmp_path / "train" / "cat", 2, first=50)
    write_class(tmp_path / test_name / "cat", 1, first=70)
    write_class(tmp_path / test_name / "dog", 2, first=170)
    dataset = load(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.image_shape == (SIDE, SIDE, 3)
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert values(dataset.train) == [50, 51, 100, 101, 102]
    assert dataset.test.labels.tolist() == [0, 1, 1]
    assert values(dataset.test) == [70, 170, 171]
    np.testing.assert_array_equal(dataset.test.images[1, 3, 4], [170, 85, 0])
    assert (dataset.train.images.dtype, dataset.train.labels.dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize("layout", ["", "train"])
def test_without_a_test_folder_a_fifth_is_held_out(tmp_path, layout):
    """About a fifth of 150 images to test, the same ones each time, and none in both."""
    write_class(tmp_path / layout / "a", 90)
    write_class(tmp_path / layout / "b", 60, first=100)
    dataset, again = (load(tmp_path, val_examples=0) for _ in range(2))
    assert 20 <= len(dataset.test) <= 40
    assert sorted(values(dataset.train) + values(dataset.test)) == [*range(90), *range(100, 160)]
    assert values(dataset.test) == values(again.test)
    for split in (dataset.train, dataset.test):
        assert [value >= 100 for value in values(split)] == split.labels.astype(bool).tolist()


def test_grey_images_become_rgb(tmp_path):
    write_class(tmp_path / "a", 3, shape=(SIDE, SIDE, 1))
    write_class(tmp_path / "b", 2, first=9)
    dataset = load(tmp_path)
    assert dataset.image_shape == (SIDE, SIDE, 3)
    grey = [image for split in (dataset.train, dataset.test) for image in split.take(split.labels == 0).images]
    assert len(grey) == 3
    assert all(np.ptp(image, axis=-1).max() == 0 for image in grey)


def test_transparency_is_dropped(tmp_path):
    write_class(tmp_path / "a", 3, first=7, shape=(SIDE, SIDE, 4))
    write_class(tmp_path / "b", 2)
    assert load(tmp_path).image_shape == (SIDE, SIDE, 3)


def test_other_suffixes_and_other_files(tmp_path):
    """JPEG and upper case are images; notes, hidden files and hidden folders are passed over."""
    write_image(tmp_path / "a" / "one.jpg", 0)
    write_image(tmp_path / "a" / "two.PNG", 1)
    write_class(tmp_path / "b", 3, first=10)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "a" / "._one.jpg").write_text("what a file manager leaves")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    dataset = load(tmp_path)
    assert dataset.class_names == ("a", "b")
    assert len(dataset.train) + len(dataset.test) == 5


def test_a_class_without_images_is_refused(tmp_path):
    write_class(tmp_path / "a", 3, first=10)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_text("not of a kind that is read")
    with pytest.raises(UserError, match=r"b has no images.*b/one\.txt is left out, its content is no image"):
        load(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("car", "plane", "train"):
        write_class(tmp_path / name, 3, first=10)
    assert load(tmp_path).class_names == ("car", "plane", "train")


def test_image_size_brings_all_to_one_size(tmp_path):
    """Images of one colour keep it, whatever their size was."""
    write_class(tmp_path / "train" / "a", 2, first=10, shape=(20, 12, 3))
    write_class(tmp_path / "train" / "b", 2, first=30, shape=(6, 9, 3))
    write_class(tmp_path / "test" / "a", 1, first=50, shape=(SIDE, SIDE, 3))
    write_class(tmp_path / "test" / "b", 1, first=60, shape=(40, 40, 1))
    dataset = load(tmp_path, image_size=SIDE)
    assert dataset.image_shape == (SIDE, SIDE, 3)
    assert values(dataset.train) == [10, 11, 30, 31]
    assert values(dataset.test) == [50, 60]
    assert np.all(dataset.train.images == dataset.train.images[:, :1, :1])


def test_sizes_that_differ_need_image_size(tmp_path):
    write_class(tmp_path / "a", 2)
    write_class(tmp_path / "b", 2, shape=(SIDE, 12, 3))
    with pytest.raises(UserError, match=r"^--image_size: received None; .*b/000\.png is 12x8"):
        load(tmp_path)


def test_different_classes_in_the_two_folders(tmp_path):
    for name in ("train/cat", "train/dog", "test/cat", "test/cow"):
        write_class(tmp_path / name, 1)
    with pytest.raises(UserError, match=r"^--dataset: received folder:.*they differ in cow, dog"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_broken_file_is_named(tmp_path, content):
    write_class(tmp_path / "a", 2)
    write_class(tmp_path / "b", 2)
    (tmp_path / "b" / "001.png").write_bytes(content)
    with pytest.raises(UserError, match=r"^--dataset: received folder:.*b/001\.png cannot be read as an image"):
        load(tmp_path)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: write_image(path / "loose.png", 1)])
def test_no_class_folders(tmp_path, make):
    make(tmp_path)
    with pytest.raises(UserError, match=r"^--dataset: received folder:.*has no sub-folders with images"):
        load(tmp_path)


def test_one_class_is_no_classification(tmp_path):
    write_class(tmp_path / "only", 5)
    with pytest.raises(UserError, match=r"^--dataset: received folder:.*has 1 class;"):
        load(tmp_path)


def test_unreadable_files_are_refused_or_skipped_named_and_counted(tmp_path):
    """A truncated PNG and one that is no image at all; the rest is loaded as if they were not there."""
    for label, first in (("a", 10), ("b", 20)):
        write_class(tmp_path / "train" / label, 3, first=first)
        write_class(tmp_path / "test" / label, 1, first=first)
    truncated = tmp_path / "train" / "a" / "000.png"
    truncated.write_bytes(truncated.read_bytes()[:40])
    (tmp_path / "test" / "b" / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"a/000\.png cannot be read as an image.*--on_corrupt skip"):
        load(tmp_path)
    dataset = load(tmp_path, on_corrupt="skip")
    assert dataset.unreadable == ("train/a/000.png", "test/b/text.png")
    assert values(dataset.train) == [11, 12, 20, 21, 22]
    assert values(dataset.test) == [10, 20]
    for file in (tmp_path / "train" / "a").iterdir():
        file.write_text("")
    with pytest.raises(UserError, match="no image of the class a"):
        load(tmp_path, on_corrupt="skip")


@pytest.mark.parametrize("broken", ["train/a/001.png", "test/a/000.png"])
@pytest.mark.parametrize("splits", [("test",), ("train", "validation")])
def test_whatever_is_loaded_knows_of_all_files_that_are_skipped(tmp_path, broken, splits):
    """An evaluation reads other splits than the run, and a part of them: its images must not look like others."""
    for label, first in (("a", 10), ("b", 20)):
        write_class(tmp_path / "train" / label, 3, first=first)
        write_class(tmp_path / "test" / label, 2, first=first)
    (tmp_path / broken).write_bytes((tmp_path / broken).read_bytes()[:40])
    config = DataConfig(dataset=f"folder:{tmp_path}", val_examples=0, on_corrupt="skip")
    whole, part = load_dataset(config), load_dataset(config, splits, lambda test: test.take(np.arange(1)))
    assert part.identity.hash == whole.identity.hash
    assert part.unreadable == whole.unreadable == (broken,)
    assert (len(part.test), len(whole.test)) == (1, 4 - broken.startswith("test"))


@pytest.mark.parametrize("splits", [(), ("tst",), ("train", "val")])
def test_splits_that_are_none_are_refused(tmp_path, splits):
    with pytest.raises(UserError, match=r"^splits: received .*; give some of train, validation, test"):
        load_dataset(DataConfig(dataset=f"folder:{tmp_path}"), splits)


def test_an_empty_split_is_loaded_alone(tmp_path):
    for label in ("a", "b"):
        write_class(tmp_path / label, 3)
    dataset = load_dataset(DataConfig(dataset=f"folder:{tmp_path}", val_examples=0), ("validation",))
    assert len(dataset.validation) == 0
    assert dataset.image_shape == dataset.validation.image_shape
    with pytest.raises(RuntimeError, match="these images were not loaded: name their split"):
        dataset.train.training_batches(2, seed=0)
