"""The datasets that a name on the command line stands for."""

from __future__ import annotations

import dataclasses

import numpy as np

from cifs_tf.config import DataConfig
from cifs_tf.data.folder import load_folder
from cifs_tf.data.split import Split
from cifs_tf.data.tfds import load_tfds
from cifs_tf.errors import UserError

TFDS_NAMES = {
    "svhn": "svhn_cropped",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "fashion_mnist": "fashion_mnist",
}
DIGITS_TEST_EXAMPLES = 360
MAXIMUM_VAL_EXAMPLES = 1_000
TRAIN_PER_VAL_EXAMPLE = 10
# Of a run on a part of the training images, see `DataConfig.test_examples`.
MINIMUM_TEST_EXAMPLES = 16
TRAIN_PER_TEST_EXAMPLE = 20


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDataset:
    """An image classification set in memory.

    Args:
        name: as given on the command line.
        train: images to train on.
        validation: images held out of the training set; may be empty.
        test: images that only a final evaluation sees.
        class_names: one name per class, in the order of the labels.
        num_test_images: how many there are in all, of which `test` may be a part.
        unreadable: names of the image files that were skipped.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    num_test_images: int
    unreadable: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.train.images.shape[1:]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def load_dataset(config: DataConfig) -> ImageDataset:
    """Load the images that a config asks for.

    Args:
        config: which images, and how many of them.

    Returns:
        the dataset.

    Raises:
        UserError: if the dataset is unknown, cannot be had, or does not fit the config.

    Example:
        >>> load_dataset(DataConfig(dataset="digits")).image_shape
        (8, 8, 1)
    """
    kind, _, rest = config.dataset.partition(":")
    unreadable: tuple[str, ...] = ()
    if config.dataset == "digits":
        train, test, class_names = _load_digits()
    elif config.dataset in TFDS_NAMES:
        train, test, class_names = load_tfds(TFDS_NAMES[config.dataset], config)
    elif kind == "tfds" and rest:
        train, test, class_names = load_tfds(rest, config)
    elif kind == "folder" and rest:
        train, test, class_names, unreadable = load_folder(rest, config)
    else:
        known = ", ".join(["digits", *TFDS_NAMES])
        raise UserError("--dataset", config.dataset, f"give one of {known}, tfds:NAME or folder:PATH")
    for argument, split in (("training", train), ("test", test)):
        if len(split) == 0:
            raise UserError(
                "--dataset", config.dataset, f"no {argument} images are left; give two for each class at least"
            )
    if config.image_size is not None and kind not in ("tfds", "folder"):
        raise UserError("--image_size", config.image_size, "only tfds: and folder: images are resized; leave it out")
    if config.num_classes not in (None, len(class_names)):
        advice = (
            f"the dataset {config.dataset} has {len(class_names)} classes, give that number or leave the option out"
        )
        raise UserError("--num_classes", config.num_classes, advice)
    if len(class_names) < 2:
        raise UserError(
            "--dataset",
            config.dataset,
            f"it has {len(class_names)} class; give images of two classes or more",
        )
    val_examples = config.val_examples
    if val_examples is None:
        asked = config.train_examples
        val_examples = min(MAXIMUM_VAL_EXAMPLES, min(asked or len(train), len(train)) // TRAIN_PER_VAL_EXAMPLE)
        if asked is not None:
            val_examples = max(0, min(val_examples, len(train) - asked))
    if val_examples >= len(train):
        raise UserError("--val_examples", val_examples, f"give fewer than {len(train)}, the training images")
    validation, train = train.divide(val_examples)
    test_examples = config.test_examples
    if test_examples is None and config.train_examples is not None:
        test_examples = min(len(test), max(MINIMUM_TEST_EXAMPLES, config.train_examples // TRAIN_PER_TEST_EXAMPLE))
    return ImageDataset(
        name=config.dataset,
        train=train.subset(config.train_examples, "--train_examples"),
        validation=validation,
        test=test.subset(test_examples, "--test_examples"),
        class_names=class_names,
        num_test_images=len(test),
        unreadable=unreadable,
    )


def _load_digits() -> tuple[Split, Split, tuple[str, ...]]:
    """Load 1,797 real handwritten digits, 8x8, that come with scikit-learn; a fixed fifth of them is the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 17 grey levels, 0 to 16.
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    test, train = Split(images, digits.target.astype(np.int32)).divide(DIGITS_TEST_EXAMPLES)
    return train, test, tuple(str(digit) for digit in digits.target_names)
