"""The datasets that a name on the command line stands for."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from cifs_tf.config import DATASETS, MAXIMUM_VAL_EXAMPLES, DataConfig
from cifs_tf.data.folder import load_folder
from cifs_tf.data.folder_scan import ImageFile, LeftOut
from cifs_tf.data.identity import Identity, identify
from cifs_tf.data.reading import Reader
from cifs_tf.data.source import SPLITS, Source
from cifs_tf.data.split import Split
from cifs_tf.data.stored import StoredImages, UnreadImages
from cifs_tf.data.tfds import load_tfds
from cifs_tf.errors import UserError

TFDS_NAMES = {
    "svhn": "svhn_cropped",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "fashion_mnist": "fashion_mnist",
}
DIGITS_TEST_EXAMPLES = 360
# Of a source without test images.
TEST_SHARE = 0.2
TRAIN_PER_VAL_EXAMPLE = 10
# Of a run on a part of the training images, see `DataConfig.test_examples`.
MINIMUM_TEST_EXAMPLES = 16
TRAIN_PER_TEST_EXAMPLE = 20


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDataset:
    """An image classification set.

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
        home: where the pixels are, if not in memory of a set by name, as a sentence goes on after "images are".
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
    home: str = ""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.train.image_shape

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

    @contextlib.contextmanager
    def naming_faults(self) -> Iterator[None]:
        """Raise what was wrong with images on disk as itself: out of tf.data it comes as an error of TensorFlow.

        Raises:
            UserError: if a record is damaged.
        """
        try:
            yield
        except tf.errors.OpError as error:
            for split in self.splits.values():
                if isinstance(split.images, StoredImages) and split.images.records.fault is not None:
                    raise split.images.records.fault from error
            raise

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


def load_dataset(
    config: DataConfig, splits: Collection[str] = SPLITS, test_part: Callable[[Split], Split] | None = None
) -> ImageDataset:
    """Load the images that a config asks for.

    Args:
        config: which images, how many of them, and where they are kept.
        splits: those whose pixels are wanted, of `train`, `validation` and `test`; of a folder's others no file is
            decoded, unless such as cannot be read are skipped. Default all.
        test_part: takes the part of the test images that is wanted; the others are not decoded then, unless as above.
            Default None: all.

    Returns:
        the dataset.

    Raises:
        UserError: if the dataset is unknown, cannot be had, or does not fit the config.

    Example:
        >>> load_dataset(DataConfig(dataset="digits")).image_shape
        (8, 8, 1)
    """
    if not splits or set(splits) - set(SPLITS):
        raise UserError("splits", splits, f"give some of {', '.join(SPLITS)}")
    source = _load_source(config)
    reader = source.reader
    later = None
    if reader is not None and config.on_corrupt == "skip":
        # Which files can be read decides what the others are taken for: every load of a run must know the same of them.
        splits, test_part, later = SPLITS, None, test_part
    whole, parts = _divide(source, config, test_part)
    if isinstance(source.train.images, np.ndarray) and source.train.images.max(initial=0) == 1:
        raise UserError("--dataset", config.dataset, "its 8-bit pixels are 0 and 1 only, all images are black")
    while reader is not None:
        if (images := _read(reader, parts, splits)) is not None:
            parts = images
            break
        source = _without_unreadable(source, reader, config)
        whole, parts = _divide(source, config, test_part)
    identity, duplicates = identify(whole)
    if later is not None:
        parts["test"] = later(parts["test"])
    return ImageDataset(
        name=config.dataset,
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        class_names=source.class_names,
        num_test_images=len(whole.splits["test"]),
        identity=identity,
        duplicates=duplicates,
        left_out=(*source.left_out, *(reader.unreadable.values() if reader else ())),
        notes=(*(reader.notes() if reader else ()), *source.notes),
        home=reader.home if reader else source.home,
    )


def _divide(
    source: Source, config: DataConfig, test_part: Callable[[Split], Split] | None
) -> tuple[Source, dict[str, Split]]:
    """Return the source with a test split, if it had none, and the parts of its splits that a run takes."""
    if source.test is None:
        if source.train.names is not None:
            _check_pairs(source, config)
        test, train = source.train.divide_by_share(TEST_SHARE, "test")
        source = dataclasses.replace(source, train=train, test=test)
    test = source.splits["test"]
    _check(source, config)
    validation, train = _validation_of(source, config)
    test_examples = config.test_examples
    if test_examples is None and config.train_examples is not None:
        wanted = max(MINIMUM_TEST_EXAMPLES, config.train_examples // TRAIN_PER_TEST_EXAMPLE)
        test_examples = min(len(test), wanted)
    train = train.subset(config.train_examples, "--train_examples")
    if train.names is not None:
        _check_classes(train, source, config)
    tested = test.subset(test_examples, "--test_examples")
    return source, {
        "train": train,
        "validation": validation,
        "test": test_part(tested) if test_part else tested,
    }


def _read(reader: Reader, parts: Mapping[str, Split], splits: Collection[str]) -> dict[str, Split] | None:
    """Return the parts with their pixels; None if files cannot be read, and others may take their place."""
    files = {name: _files(part) for name, part in parts.items()}
    images = reader.read(
        {name: files[name] for name in parts if name in splits}, [file for part in files.values() for file in part]
    )
    if images is None:
        return None
    _, height, width, channels = next(iter(images.values())).shape
    unread = {name: UnreadImages(chosen, (height, width, channels)) for name, chosen in files.items()}
    return {name: dataclasses.replace(part, images={**unread, **images}[name]) for name, part in parts.items()}


def _without_unreadable(source: Source, reader: Reader, config: DataConfig) -> Source:
    """Return a source without the files that cannot be read, if every split still has every class."""
    kept: dict[str, Split] = {}
    for name, split in source.splits.items():
        files = _files(split)
        kept[name] = split.take(np.flatnonzero([file.path not in reader.unreadable for file in files]))
        if gone := set(split.labels.tolist()) - set(kept[name].labels.tolist()):
            missing = source.class_names[min(gone)]
            folder = next(file.path for file in files if file.label == min(gone)).parent
            advice = f"no image of the class {missing} in {folder} can be read; fill its folder or remove it"
            raise UserError("--dataset", config.dataset, advice)
    return dataclasses.replace(source, **kept)  # type: ignore[arg-type]


def _files(split: Split) -> tuple[ImageFile, ...]:
    return split.images.files if isinstance(split.images, UnreadImages) else ()


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
    raise UserError("--dataset", config.dataset, f"give one of {', '.join(DATASETS)}, tfds:NAME or folder:PATH")


def _check(source: Source, config: DataConfig) -> None:
    """Refuse a source that is empty or has other classes than the config says."""
    num_classes = len(source.class_names)
    for argument, split in (("training", source.train), ("test", source.splits["test"])):
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


def _check_pairs(source: Source, config: DataConfig) -> None:
    """Refuse classes of which there is no image for either split."""
    for label, count in enumerate(np.bincount(source.train.labels, minlength=len(source.class_names))):
        if count < 2:
            advice = f"the class {source.class_names[label]} has one image; give two, one to train on and one to test"
            raise UserError("--dataset", config.dataset, advice)


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
