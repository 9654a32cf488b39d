"""The datasets that a name on the command line stands for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from cifs_tf.config import DataConfig
from cifs_tf.data.folder import load_folder
from cifs_tf.data.folder_scan import LeftOut
from cifs_tf.data.identity import Identity, identify
from cifs_tf.data.source import Source
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
        identity: which images these are: all of them, whatever part is used.
        duplicates: `train_and_test` and `two_labels`, see `identify`.
        left_out: files of a folder that are not used, and why.
        notes: what a person should know of the images, a sentence each.
        unlike_run: in what they differ from the images of the run whose network they are for, a phrase each; empty if
            they are the run's, or there is none.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    num_test_images: int
    identity: Identity
    duplicates: Mapping[str, int]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    unlike_run: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.train.images.shape[1:]

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Image files of a folder that could not be decoded and were skipped."""
        return tuple(left.file for left in self.left_out if left.is_unreadable)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def with_classes(self, class_names: Sequence[str]) -> ImageDataset:
        """Return the same images with their classes in another order.

        Args:
            class_names: the same names, in the order that the labels are to have.
        """
        labels = np.array([class_names.index(name) for name in self.class_names], np.int32)
        names = tuple(class_names)
        return dataclasses.replace(
            self,
            train=dataclasses.replace(self.train, labels=labels[self.train.labels]),
            validation=dataclasses.replace(self.validation, labels=labels[self.validation.labels]),
            test=dataclasses.replace(self.test, labels=labels[self.test.labels]),
            class_names=names,
            identity=dataclasses.replace(self.identity, class_names=names),
        )


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
    source = _load_source(config)
    _check(source, config)
    validation, train = _validation_of(source, config)
    test_examples = config.test_examples
    if test_examples is None and config.train_examples is not None:
        wanted = max(MINIMUM_TEST_EXAMPLES, config.train_examples // TRAIN_PER_TEST_EXAMPLE)
        test_examples = min(len(source.test), wanted)
    train = train.subset(config.train_examples, "--train_examples")
    if train.names is not None:
        _check_classes(train, source, config)
    identity, duplicates = identify(source)
    return ImageDataset(
        name=config.dataset,
        train=train,
        validation=validation,
        test=source.test.subset(test_examples, "--test_examples"),
        class_names=source.class_names,
        num_test_images=len(source.test),
        identity=identity,
        duplicates=duplicates,
        left_out=source.left_out,
        notes=source.notes,
    )


def _load_source(config: DataConfig) -> Source:
    kind, _, rest = config.dataset.partition(":")
    if config.image_size is not None and kind not in ("tfds", "folder"):
        raise UserError("--image_size", config.image_size, "only tfds: and folder: images are resized; leave it out")
    if config.dataset == "digits":
        return _load_digits()
    if config.dataset in TFDS_NAMES:
        return load_tfds(TFDS_NAMES[config.dataset], config)
    if kind == "tfds" and rest:
        return load_tfds(rest, config)
    if kind == "folder" and rest:
        return load_folder(rest, config)
    known = ", ".join(["digits", *TFDS_NAMES])
    raise UserError("--dataset", config.dataset, f"give one of {known}, tfds:NAME or folder:PATH")


def _check(source: Source, config: DataConfig) -> None:
    """Refuse a source that is empty or has other classes than the config says."""
    num_classes = len(source.class_names)
    for argument, split in (("training", source.train), ("test", source.test)):
        if len(split) == 0:
            advice = f"no {argument} images are left; give two for each class at least"
            raise UserError("--dataset", config.dataset, advice)
    if config.num_classes not in (None, num_classes):
        advice = f"the dataset {config.dataset} has {num_classes} classes, give that number or leave the option out"
        raise UserError("--num_classes", config.num_classes, advice)
    if num_classes < 2:
        raise UserError("--dataset", config.dataset, f"it has {num_classes} class; give images of two classes or more")


def _validation_of(source: Source, config: DataConfig) -> tuple[Split, Split]:
    """Return the validation images, and what is left to train on."""
    asked, train = config.val_examples, source.train
    if source.validation is not None:
        whole = source.validation
        wanted = min(len(whole), MAXIMUM_VAL_EXAMPLES) if asked is None else asked
        return whole.subset(wanted, "--val_examples"), train
    if asked is None and train.names is not None and config.train_examples is None:
        # A share that stays as it is while images come and go, halved where it would be too many.
        share = 1 / TRAIN_PER_VAL_EXAMPLE
        while share * len(train) > MAXIMUM_VAL_EXAMPLES:
            share /= 2
        if len(train) >= TRAIN_PER_VAL_EXAMPLE:
            return train.divide_by_share(share, "validation")
        asked = 0
    if asked is None:
        limit = config.train_examples
        asked = min(MAXIMUM_VAL_EXAMPLES, min(limit or len(train), len(train)) // TRAIN_PER_VAL_EXAMPLE)
        if limit is not None:
            asked = max(0, min(asked, len(train) - limit))
    if asked >= len(train):
        raise UserError("--val_examples", asked, f"give fewer than {len(train)}, the training images")
    return train.divide(asked)


def _check_classes(train: Split, source: Source, config: DataConfig) -> None:
    """Refuse classes that are left without a training image."""
    counts = np.bincount(train.labels, minlength=len(source.class_names))
    if counts.all():
        return
    missing = source.class_names[int(np.argmin(counts))]
    option = "dataset" if config.train_examples is None else "train_examples"
    raise UserError(
        f"--{option}", getattr(config, option), f"the class {missing} has no training image then; give it more images"
    )


def _load_digits() -> Source:
    """Load 1,797 real handwritten digits, 8x8, that come with scikit-learn; a fixed fifth of them is the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 17 grey levels, 0 to 16.
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    test, train = Split(images, digits.target.astype(np.int32)).divide(DIGITS_TEST_EXAMPLES)
    return Source(train, None, test, tuple(str(digit) for digit in digits.target_names))
