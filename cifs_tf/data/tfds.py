"""Images from TensorFlow Datasets."""

import logging
import math
import os
import shutil
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from cifs_tf.config import DataConfig
from cifs_tf.data.home import cache_folder, lives_in_memory
from cifs_tf.data.memory import check_disk
from cifs_tf.data.progress import decoding_progress
from cifs_tf.data.resizing import mode_of, resize
from cifs_tf.data.source import Source
from cifs_tf.data.split import Split
from cifs_tf.data.stored import Records, StoredImages, digest_of
from cifs_tf.errors import UserError, first_line

TEST_SPLITS = ("test", "validation")
READ_BATCH = 1000
STORE_BATCH = 64
DOWNLOAD_RETRIES = 3


def load_tfds(name: str, config: DataConfig) -> Source:
    """Load a TFDS image classification set: its train split, and its test (or validation) split.

    A set that has only a train split gives a part of it as test split later.

    Args:
        name: TFDS name, such as `svhn_cropped` or `patch_camelyon:2.0.0`.
        config: `data_dir`, `image_size`, `resize`, `cache` and `cache_dir` are read.

    Returns:
        its images.

    Raises:
        UserError: if the set is unknown, cannot be downloaded, or is no image classification set.
    """
    builder = _find(name, config)
    features, keys = builder.info.features, builder.info.supervised_keys
    # Before a download, which may be large.
    if not keys or not hasattr(features[keys[1]], "num_classes") or len(features[keys[0]].shape or ()) != 3:
        advice = "it is no image classification set; give one with images and labels"
        raise UserError("--dataset", config.dataset, advice)
    image_key, label_key = keys[:2]
    if features[image_key].np_dtype != np.uint8:
        raise UserError(
            "--dataset", config.dataset, f"its pixels are {features[image_key].np_dtype}; give 8-bit images"
        )
    _download(builder, config)

    names = tuple(features[label_key].names)
    tested_on = next((split for split in TEST_SPLITS if split in builder.info.splits), None)
    if "train" not in builder.info.splits:
        raise UserError("--dataset", config.dataset, f"it has no train split, only {', '.join(builder.info.splits)}")
    shape = features[image_key].shape
    if config.image_size is not None:
        shape = (config.image_size, config.image_size, shape[2])
    elif None in shape:
        advice = f"the images of {config.dataset} differ in size; give the side in pixels to resize them to"
        raise UserError("--image_size", None, advice)
    present = [split for split in ("train", tested_on) if split]
    sizes = {split: builder.info.splits[split].num_examples for split in present}
    num_bytes = sum(sizes.values()) * math.prod(shape)

    def convert(example: dict) -> tuple[tf.Tensor, tf.Tensor]:
        image = example[image_key]
        return image if config.image_size is None else resize(image, shape[:2], mode_of(config)), example[label_key]

    def batches(split: str, batch_size: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        examples, read = builder.as_dataset(split=split, shuffle_files=False).skip(start), start
        converted = examples.map(convert, tf.data.AUTOTUNE, deterministic=True).batch(batch_size)
        try:
            for images, labels in converted.as_numpy_iterator():
                read += len(labels)
                if read <= sizes[split]:
                    yield images, labels
        except (tf.errors.OpError, ValueError):  # cut, edited, or of another number than they say
            read = -1
        if read != sizes[split]:
            advice = f"its files in {builder.data_path} are damaged or incomplete; remove that folder to get them again"
            raise UserError("--dataset", config.dataset, advice)

    def checked(split: str, images: np.ndarray | StoredImages, labels: np.ndarray) -> Split:
        if np.any(labels < 0):
            raise UserError("--dataset", config.dataset, f"its {split} split hides the labels; give another set")
        return Split(images, labels)

    def into_memory(split: str) -> Split:
        images, labels = np.empty((sizes[split], *shape), np.uint8), np.empty(sizes[split], np.int32)
        for index, (batch_images, batch_labels) in enumerate(batches(split, READ_BATCH)):
            positions = slice(index * READ_BATCH, index * READ_BATCH + len(batch_labels))
            images[positions], labels[positions] = batch_images, batch_labels
        return checked(split, images, labels)

    if lives_in_memory(config, num_bytes):
        splits, home = {split: into_memory(split) for split in present}, ""
    else:
        info = Path(builder.data_path) / "dataset_info.json"
        made = (builder.info.full_name, str(info), str(info.stat().st_mtime_ns))
        records = Records(cache_folder(config, builder.name, made))
        found = _into_cache(records, sizes, shape, batches)
        splits = {split: checked(split, *found[split]) for split in present}
        home = records.describe(sum(sizes.values()))
    return Source(splits["train"], None, splits[tested_on] if tested_on else None, names, home=home)


def _into_cache(
    records: Records,
    sizes: Mapping[str, int],
    shape: tuple[int, int, int],
    batches: Callable[[str, int, int], Iterator[tuple[np.ndarray, np.ndarray]]],
) -> dict[str, tuple[StoredImages, np.ndarray]]:
    """Decode into the cache what is not there, and return images and labels by split; records are SPLIT/INDEX/LABEL."""

    def known() -> dict[str, dict[int, tuple[int, int]]]:
        found: dict[str, dict[int, tuple[int, int]]] = {split: {} for split in sizes}
        for name, entry in records.entries.items() if records.shape == shape else ():
            split, index, label = name.rsplit("/", 2)
            found[split][int(index)] = entry.record, int(label)
        return found

    if missing := sum(sizes.values()) - sum(map(len, known().values())):
        check_disk(records.folder, missing * math.prod(shape))
        with records.writing(shape) as add:
            there = known()  # another process may have been at it
            with decoding_progress(sum(sizes.values()) - sum(map(len, there.values()))) as advance:
                for split, size in sizes.items():
                    start = next((index for index in range(size) if index not in there[split]), size)
                    if start == size:
                        continue
                    examples = (
                        pair for batch in batches(split, STORE_BATCH, start) for pair in zip(*batch, strict=True)
                    )
                    for index, (image, label) in enumerate(examples, start):
                        if index not in there[split]:
                            add(image, f"{split}/{index}/{label}", (0, 0, 0), digest_of(image), None)
                            advance()
    found = known()
    return {
        split: (
            StoredImages(records, np.array([found[split][index][0] for index in range(size)])),
            np.array([found[split][index][1] for index in range(size)], np.int32),
        )
        for split, size in sizes.items()
    }


def _find(name: str, config: DataConfig):
    """Return the builder of a dataset, which knows it without having it."""
    import tensorflow_datasets as tfds

    data_dir = os.path.expanduser(config.data_dir or tfds.core.constants.DATA_DIR)
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (tfds.core.registered.DatasetNotFoundError, ValueError, AssertionError, ImportError) as error:
        advice = f"TFDS does not know it ({_short(error)}); see tensorflow.org/datasets for names"
        raise UserError("--dataset", config.dataset, advice) from error


def _download(builder, config: DataConfig) -> None:
    """Download and prepare a dataset if it is not there; a failure leaves nothing behind."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    target = Path(builder.data_path)
    missing = [path for path in (target, *target.parents) if not path.exists()]
    if not missing:
        return
    # TFDS would retry for minutes where there is no network, and draw its bars into logs.
    logger = logging.getLogger("urllib3")
    retries, level = downloader.MAX_RETRIES, logger.level
    downloader.MAX_RETRIES = DOWNLOAD_RETRIES
    logger.setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    data_dir = Path(builder.data_dir_root)
    downloads = data_dir / f".downloading-{os.getpid()}"
    try:
        builder.download_and_prepare(download_dir=str(downloads))
    except BaseException as error:  # a download can fail in as many ways as the network can, and be interrupted
        shutil.rmtree(missing[-1], ignore_errors=True)
        if not isinstance(error, Exception):
            raise
        advice = (
            f"it is not in --data_dir {data_dir} and cannot be downloaded ({_reason(error)}); connect to a network "
            f"once, or point --data_dir at a folder that has {builder.info.full_name}"
        )
        raise UserError("--dataset", config.dataset, advice) from error
    finally:
        downloader.MAX_RETRIES = retries
        logger.setLevel(level)
        shutil.rmtree(downloads, ignore_errors=True)


def _reason(error: Exception) -> str:
    request = getattr(error, "request", None)
    if request is not None:
        return f"no connection to {urllib.parse.urlparse(request.url).hostname}"
    return _short(error)


def _short(error: Exception) -> str:
    return first_line(error)[:160].rstrip(" .")
