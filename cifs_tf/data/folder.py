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


def load_folder(path: str, config: DataConfig) -> tuple[Split, Split, tuple[str, ...]]:
    """Load PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, or PATH/CLASS/*.png.

    `val` or `validation` may stand for `test`; without either, a fixed fifth of the images is the test split. Grey
    images become RGB.

    Args:
        path: the folder.
        config: `image_size` is read.

    Returns:
        (train, test, class names), the class names in alphabetical order.

    Raises:
        UserError: if there are no images, if they differ in size and no size is given, if a file is no image, or if
            the two splits have different classes.
    """
    root = Path(os.path.expanduser(path))
    if not root.is_dir():
        raise UserError("--dataset", config.dataset, "there is no such folder; give one with a sub-folder per class")
    if not _is_split(root / "train"):
        class_names = _class_names(root, config)
        test, train = _load(root, class_names, config).divide_by_share(TEST_SHARE)
        return train, test, class_names
    test_root = next((root / name for name in TEST_FOLDERS if _is_split(root / name)), None)
    class_names = _class_names(root / "train", config)
    train = _load(root / "train", class_names, config)
    if test_root is None:
        test, train = train.divide_by_share(TEST_SHARE)
        return train, test, class_names
    test_names = _class_names(test_root, config)
    if test_names != class_names:
        different = ", ".join(sorted(set(class_names) ^ set(test_names)))
        counts = f"train has {len(class_names)} classes and {test_root.name} has {len(test_names)}"
        advice = f"{counts}, they differ in {different}; give both the same sub-folders"
        raise UserError("--dataset", config.dataset, advice)
    return train, _load(test_root, class_names, config), class_names


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


def _load(root: Path, class_names: tuple[str, ...], config: DataConfig) -> Split:
    files = [(file, label) for label, name in enumerate(class_names) for file in _files(root / name)]
    side = config.image_size
    shape = tuple(_decode(files[0][0], config).shape) if side is None else (side, side, CHANNELS)
    check_memory(config.dataset, len(files), shape)
    images = np.empty((len(files), *shape), np.uint8)
    for index, (file, _) in enumerate(files):
        image = _decode(file, config)
        if side is not None:
            image = resize(image, side)
        elif tuple(image.shape) != shape:
            advice = f"{file} is {image.shape[1]}x{image.shape[0]} and others are not; give the side to resize them to"
            raise UserError("--image_size", None, advice)
        images[index] = image.numpy()
    return Split(images, np.array([label for _, label in files], np.int32))


def _decode(file: Path, config: DataConfig) -> tf.Tensor:
    try:
        return tf.io.decode_image(file.read_bytes(), channels=CHANNELS, expand_animations=False)
    except (tf.errors.InvalidArgumentError, OSError) as error:
        raise UserError(
            "--dataset", config.dataset, f"the file {file} cannot be read as an image; remove it"
        ) from error
