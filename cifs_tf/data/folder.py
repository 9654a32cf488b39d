"""Images from a folder of one's own: one sub-folder of image files per class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from cifs_tf.config import DataConfig
from cifs_tf.data.memory import check_memory, resize
from cifs_tf.data.split import Split
from cifs_tf.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif"}
TEST_FOLDERS = ("test", "val", "validation")
TEST_SHARE = 0.2
CHANNELS = 3


def load_folder(path: str, config: DataConfig) -> tuple[Split, Split, tuple[str, ...], tuple[str, ...]]:
    """Load PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, or PATH/CLASS/*.png.

    `val` or `validation` may stand for `test`; without either, a fixed fifth of the images is the test split. Grey
    images become RGB.

    Args:
        path: the folder.
        config: `image_size` and `on_corrupt` are read.

    Returns:
        (train, test, class names, skipped files), the class names in alphabetical order.

    Raises:
        UserError: if there are no images, if they differ in size and no size is given, if a file is no image (unless
            such files are skipped), or if the two splits have different classes.
    """
    root = Path(os.path.expanduser(path))
    if not root.is_dir():
        raise UserError("--dataset", config.dataset, "there is no such folder; give one with a sub-folder per class")
    if not _is_split(root / "train"):
        class_names = _class_names(root, config)
        images, skipped = _load(root, class_names, config)
        test, train = images.divide_by_share(TEST_SHARE)
        return train, test, class_names, skipped
    test_root = next((root / name for name in TEST_FOLDERS if _is_split(root / name)), None)
    class_names = _class_names(root / "train", config)
    train, skipped = _load(root / "train", class_names, config)
    if test_root is None:
        test, train = train.divide_by_share(TEST_SHARE)
        return train, test, class_names, skipped
    test_names = _class_names(test_root, config)
    if test_names != class_names:
        different = ", ".join(sorted(set(class_names) ^ set(test_names)))
        counts = f"train has {len(class_names)} classes and {test_root.name} has {len(test_names)}"
        advice = f"{counts}, they differ in {different}; give both the same sub-folders"
        raise UserError("--dataset", config.dataset, advice)
    test, skipped_too = _load(test_root, class_names, config)
    return train, test, class_names, skipped + skipped_too


def _class_names(root: Path, config: DataConfig) -> tuple[str, ...]:
    folders = sorted(_folders(root))
    if not folders:
        raise UserError("--dataset", config.dataset, f"{root} has no sub-folders with images; make one for each class")
    for folder in folders:
        if not _files(folder):
            advice = f"{folder} has no images ({', '.join(sorted(SUFFIXES))}); fill it or remove it"
            raise UserError("--dataset", config.dataset, advice)
    return tuple(folder.name for folder in folders)


def _folders(root: Path) -> list[Path]:
    return [child for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")]


def _is_split(folder: Path) -> bool:
    """A split holds class folders; a class that happens to be called train holds images."""
    return folder.is_dir() and bool(_folders(folder))


def _files(folder: Path) -> list[Path]:
    files = (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    return sorted(file for file in files if not file.name.startswith("."))


def _load(root: Path, class_names: tuple[str, ...], config: DataConfig) -> tuple[Split, tuple[str, ...]]:
    """Load a split, and name the files that were skipped."""
    files = [(file, label) for label, name in enumerate(class_names) for file in _files(root / name)]
    side = config.image_size
    shape = (side, side, CHANNELS) if side is not None else None
    images: np.ndarray | None = None
    labels: list[int] = []
    skipped: list[str] = []
    for file, label in files:
        image = _decode(file)
        if image is None:
            if config.on_corrupt == "refuse":
                advice = f"the file {file} cannot be read as an image; remove it, or give --on_corrupt skip"
                raise UserError("--dataset", config.dataset, advice)
            skipped.append(str(file))
            continue
        if side is not None:
            image = resize(image, side)
        shape = shape or tuple(image.shape)
        if tuple(image.shape) != shape:
            advice = f"{file} is {image.shape[1]}x{image.shape[0]} and others are not; give the side to resize them to"
            raise UserError("--image_size", None, advice)
        if images is None:
            check_memory(config.dataset, len(files), shape)
            images = np.empty((len(files), *shape), np.uint8)
        images[len(labels)] = image.numpy()
        labels.append(label)
    if images is None:
        raise UserError("--dataset", config.dataset, f"no file in {root} can be read as an image; give another")
    missing = [name for label, name in enumerate(class_names) if label not in set(labels)]
    if missing:
        advice = f"no image of the class {missing[0]} under {root} can be read; fill its folder or remove it"
        raise UserError("--dataset", config.dataset, advice)
    return Split(images[: len(labels)], np.array(labels, np.int32)), tuple(skipped)


def _decode(file: Path) -> tf.Tensor | None:
    """Decode an image file; None if it is none."""
    try:
        return tf.io.decode_image(file.read_bytes(), channels=CHANNELS, expand_animations=False)
    except (tf.errors.InvalidArgumentError, OSError):
        return None
