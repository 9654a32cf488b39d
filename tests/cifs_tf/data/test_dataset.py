"""Named datasets: digits, and those of TensorFlow Datasets that lie on this machine."""

import dataclasses
import hashlib
import logging
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from tensorflow_datasets.core.download import downloader

from cifs_tf.config import DataConfig
from cifs_tf.data import load_dataset, tfds
from cifs_tf.data.dataset import TFDS_NAMES
from cifs_tf.errors import UserError

SHARED = Path(os.environ.get("CIFS_SHARED", Path(__file__).parents[4] / "shared"))


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(dataset="digits"))


@pytest.fixture
def data_dir():
    """Folder of prepared TFDS sets: $CIFS_SHARED/data, or ../shared/data beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"{SHARED / 'data'} has no TFDS sets; set CIFS_SHARED")
    return str(SHARED / "data")


def rows(split):
    return {image.tobytes() for image in split.images}


def test_digits(digits):
    """1,797 images of scikit-learn, 360 of them for the test, and a tenth of the rest for validation."""
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1294, 143, 360)
    assert (digits.name, digits.image_shape, digits.num_classes) == ("digits", (8, 8, 1), 10)
    assert digits.class_names == tuple("0123456789")
    for split in (digits.train, digits.test):
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        assert set(split.labels) == set(range(10))
    # 17 grey levels, from black to white.
    assert {0, 16, 128, 255} <= set(np.unique(digits.train.images)) <= {round(k * 255 / 16) for k in range(17)}


def test_digits_are_divided_without_overlap(digits):
    """scikit-learn's images are all distinct."""
    assert len(rows(digits.train) | rows(digits.validation) | rows(digits.test)) == 1797


def test_loading_is_repeatable(digits):
    again = load_dataset(DataConfig(dataset="digits"))
    np.testing.assert_array_equal(again.test.images, digits.test.images)
    np.testing.assert_array_equal(again.train.labels, digits.train.labels)


@pytest.mark.parametrize(
    ("train_examples", "expected"), [(None, (1294, 143)), (64, (64, 6)), (1400, (1400, 37)), (1437, (1437, 0))]
)
def test_validation_is_a_tenth_unless_the_training_images_are_needed(train_examples, expected):
    dataset = load_dataset(DataConfig(dataset="digits", train_examples=train_examples))
    assert (len(dataset.train), len(dataset.validation)) == expected


def test_sizes(digits):
    """Validation images come from the training set, before it is cut to size; the test set is never touched."""
    config = DataConfig(dataset="digits", val_examples=100, train_examples=50, test_examples=20, num_classes=10)
    dataset = load_dataset(config)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (50, 100, 20)
    assert not rows(dataset.train) & rows(dataset.validation)
    assert rows(dataset.train) | rows(dataset.validation) <= rows(digits.train) | rows(digits.validation)
    assert rows(dataset.test) <= rows(digits.test)


@pytest.mark.parametrize(
    ("config", "argument", "received"),
    [
        ({"dataset": "mnist"}, "--dataset", "mnist"),
        ({"dataset": ""}, "--dataset", ""),
        ({"dataset": "folder:"}, "--dataset", "folder:"),
        ({"dataset": "tfds:"}, "--dataset", "tfds:"),
        ({"dataset": "folder:/no/such/folder"}, "--dataset", "folder:/no/such/folder"),
        ({"num_classes": 9}, "--num_classes", 9),
        ({"val_examples": 1437}, "--val_examples", 1437),
        ({"train_examples": 1438}, "--train_examples", 1438),
        ({"train_examples": 1400, "val_examples": 100}, "--train_examples", 1400),
        ({"test_examples": 361}, "--test_examples", 361),
    ],
)
def test_errors_name_the_option_and_the_value(config, argument, received):
    with pytest.raises(UserError, match=rf"^{argument}: received {received};"):
        load_dataset(DataConfig(**config))


def test_unknown_dataset_lists_the_known_ones():
    with pytest.raises(UserError, match=r"digits, svhn, cifar10, cifar100, fashion_mnist, tfds:NAME or folder:PATH"):
        load_dataset(DataConfig(dataset="mnist"))


def test_unknown_tfds_set(tmp_path):
    with pytest.raises(UserError, match=r"^--dataset: received tfds:no_such_set_at_all;.*TFDS does not know it"):
        load_dataset(DataConfig(dataset="tfds:no_such_set_at_all", data_dir=str(tmp_path)))


def test_a_failed_download_leaves_tfds_as_it_was(tmp_path):
    logger, before = logging.getLogger("urllib3"), downloader.MAX_RETRIES
    seen = []

    def fail(download_dir):
        seen.append((downloader.MAX_RETRIES, logger.level))
        raise OSError

    builder = mock.Mock(data_path=tmp_path / "set", data_dir_root=tmp_path, download_and_prepare=fail)
    with pytest.raises(UserError, match=r"cannot be downloaded \(OSError\)"):
        tfds._download(builder, DataConfig(dataset="tfds:mnist"))
    assert seen == [(tfds.DOWNLOAD_RETRIES, logging.ERROR)]
    assert (downloader.MAX_RETRIES, logger.level) == (before, logging.NOTSET)


@pytest.mark.parametrize(
    ("dataset", "name"), [("svhn", "svhn_cropped"), ("cifar10", "cifar10"), ("fashion_mnist", "fashion_mnist")]
)
def test_tfds(dataset, name, data_dir):
    """Sizes and classes as shared/data/README.md and the papers state them."""
    if not (Path(data_dir) / name).is_dir():
        pytest.skip(f"{data_dir} has no {name}")
    sizes = {"svhn": (783, 300), "cifar10": (4000, 1000), "fashion_mnist": (60_000, 10_000)}[dataset]
    loaded = load_dataset(DataConfig(dataset=dataset, data_dir=data_dir, val_examples=0))
    assert (len(loaded.train), len(loaded.test)) == sizes
    assert loaded.image_shape == ((28, 28, 1) if dataset == "fashion_mnist" else (32, 32, 3))
    assert loaded.num_classes == 10
    assert loaded.class_names[0] == {"svhn": "0", "cifar10": "airplane", "fashion_mnist": "T-shirt/top"}[dataset]
    for split in (loaded.train, loaded.test):
        assert split.images.dtype == np.uint8
        assert set(split.labels) == set(range(10))
        # Every image was read: none is left as it was allocated, all of one value.
        assert np.all(np.ptp(split.images.reshape(len(split), -1), axis=1) > 0)


@pytest.mark.parametrize(
    ("dataset", "number", "recorded"),
    [
        ("digits", 1_294, "ecd431d17a3a2cdc"),
        ("svhn", 705, "7b44a657ef0576e8"),
        ("cifar10", 3_600, "db7489ef5ca84add"),
        pytest.param("fashion_mnist", 59_000, "d73cb04ba281a3fe", marks=pytest.mark.slow),
    ],
)
def test_batches_are_those_before_images_could_lie_on_disk(dataset, number, recorded, request):
    """Three batches around the end of an epoch, by SHA-256, recorded at commit 480eff0: runs give the same numbers."""
    data_dir = None if dataset == "digits" else request.getfixturevalue("data_dir")
    if data_dir is not None and not (Path(data_dir) / TFDS_NAMES[dataset]).is_dir():
        pytest.skip(f"{data_dir} has no {dataset}")
    train = load_dataset(DataConfig(dataset=dataset, data_dir=data_dir)).train
    if len(train) != number:
        pytest.skip(f"{data_dir} has another part of {dataset}")
    digest, last = hashlib.sha256(), number // 64 - 1
    for images, labels in train.training_batches(64, seed=3, augmentation="crop_flip", start_step=last).take(3):
        pixels = np.rint(255 * images.numpy()).astype(np.uint8)
        digest.update(pixels.tobytes() + labels.numpy().astype("<i4").tobytes())
    assert digest.hexdigest().startswith(recorded)


def test_tfds_on_disk(data_dir, tmp_path, monkeypatch):
    """The same images, labels and identity as in memory; what was read before an end is not read again."""
    config = DataConfig(dataset="svhn", data_dir=data_dir, cache="disk", cache_dir=str(tmp_path))
    memory = load_dataset(dataclasses.replace(config, cache="auto"))
    assert memory.home == ""
    monkeypatch.setattr(tfds, "STORE_BATCH", 10)
    with monkeypatch.context() as patched:
        patched.setattr(tfds, "digest_of", mock.Mock(side_effect=[*["00"] * 25, KeyboardInterrupt]))
        with pytest.raises(KeyboardInterrupt):
            load_dataset(config)
    (index,) = tmp_path.glob("*/index.jsonl")
    assert len(index.read_text().splitlines()) == 1 + 25
    index.unlink()
    load_dataset(config)
    with monkeypatch.context() as patched:
        patched.setattr(tfds, "digest_of", mock.Mock(side_effect=AssertionError("nothing is read again")))
        disk = load_dataset(config)
    assert disk.home.startswith(f"read from {tmp_path}")
    assert disk.identity == memory.identity
    assert disk.duplicates == memory.duplicates
    for name, split in memory.splits.items():
        np.testing.assert_array_equal(np.asarray(disk.splits[name].images), split.images)
        np.testing.assert_array_equal(disk.splits[name].labels, split.labels)
    # One line less is one image less.
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join([*lines[:300], *lines[301:]]))
    mended = load_dataset(config)
    assert len(index.read_text().splitlines()) == len(lines)
    np.testing.assert_array_equal(np.asarray(mended.train.images), memory.train.images)


def test_tfds_by_its_own_name_and_in_another_size(data_dir):
    config = DataConfig(dataset="tfds:svhn_cropped", data_dir=data_dir, image_size=16, val_examples=83)
    dataset = load_dataset(config)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (700, 83, 300)
    assert dataset.image_shape == (16, 16, 3)
    whole = load_dataset(DataConfig(dataset="svhn", data_dir=data_dir))
    # Files are read in the same order each time.
    np.testing.assert_array_equal(dataset.test.labels, whole.test.labels)
    # Halving a side averages blocks: means over an image stay within a grey level or so.
    means = [split.images.mean(axis=(1, 2)) for split in (dataset.test, whole.test)]
    assert np.max(np.abs(means[0] - means[1])) < 3
