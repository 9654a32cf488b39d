"""A split of labelled images, in memory or on disk, and the batches made of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from cifs_tf.checks import check_labels
from cifs_tf.data.augmentation import AUGMENTATIONS, Rows
from cifs_tf.data.partition import choose_count, choose_share
from cifs_tf.data.stored import StoredImages, UnreadImages
from cifs_tf.errors import UserError
from cifs_tf.hardware import usable_cores

# Seed of choices that belong to a dataset, not to a run: which images a subset or a validation split takes.
SPLIT_SEED = 0
IMAGES_NDIM = 4
# Read at a time where all images are gone through.
READ_TOGETHER = 256
# Made at a time, at most: each takes its memory.
BATCHES_TOGETHER = 8
# What stands for an array, and is not one.
ELSEWHERE = (StoredImages, UnreadImages)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Labelled images.

    Args:
        images: uint8 (examples, height, width, channels): an array, or images on disk, which are read when an index,
            a slice or an array of indices asks for them. `np.asarray` reads all.
        labels: integers from 0 (examples,); one-hot rows and (examples, 1) are taken for what they say.
        names: of image files, below their class folder: what choices of examples depend on, so that another file more
            or less moves no other. Default None: they depend on the position, for a set that does not change.

    Raises:
        UserError: for images that are not uint8, invalid labels, or another number of them or of names.
    """

    images: Any
    labels: np.ndarray
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        images = self.images if isinstance(self.images, ELSEWHERE) else np.asarray(self.images)
        if images.dtype != np.uint8 or images.ndim != IMAGES_NDIM:
            received = f"{images.dtype} of shape {images.shape}"
            advice = "give uint8 pixels (examples, height, width, channels); floats in [0, 1] times 255, rounded"
            raise UserError("images", received, advice)
        labels = check_labels(self.labels)
        if len(labels) != len(images):
            raise UserError("labels", f"{len(labels)} labels", f"give one for each of the {len(images)} images")
        if self.names is not None and len(self.names) != len(labels):
            raise UserError("names", f"{len(self.names)} names", f"give one for each of the {len(labels)} images")
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """Return the split of these examples."""
        names = None if self.names is None else tuple(np.array(self.names, object)[indices])
        images = self.images.take(indices) if isinstance(self.images, ELSEWHERE) else self.images[indices]
        return Split(images, self.labels[indices], names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.images.shape[1:]

    def add_to(self, digest: Any) -> None:
        """Add all pixels and labels to a hash of `hashlib`, a few images at a time."""
        for start in range(0, len(self), READ_TOGETHER):
            digest.update(np.ascontiguousarray(self.images[start : start + READ_TOGETHER]))
        digest.update(self.labels.tobytes())

    def subset(self, num_examples: int | None, argument: str) -> Split:
        """Return the first examples of a fixed shuffle, or the whole split.

        Args:
            num_examples: how many, at most the size of the split; None takes all.
            argument: name of the option, for the error.

        Raises:
            UserError: if there are not so many.
        """
        if num_examples is None:
            return self
        if num_examples > len(self):
            raise UserError(argument, num_examples, f"give at most {len(self)}, the images there are")
        if self.names is not None:
            chosen = choose_count(self.names, self.labels, num_examples, "subset", keep_one=False)
            return self.take(np.flatnonzero(chosen))
        return self.take(np.sort(_fixed_shuffle(len(self))[:num_examples]))

    def class_balanced(self, num_examples: int, argument: str) -> Split:
        """Return a part with equally many examples of every class, but for one, by a fixed shuffle.

        Where a class has too few, the others make up for it.

        Args:
            num_examples: how many, at most the size of the split.
            argument: name of the option, for the error.

        Raises:
            UserError: if there are not so many.
        """
        if num_examples > len(self):
            raise UserError(argument, num_examples, f"give at most {len(self)}, the images there are")
        order = _fixed_shuffle(len(self))
        # How many of its class come before each example: the first of every class, then the second of every class, ...
        turns = np.zeros(len(self), int)
        for label in np.unique(self.labels):
            members = order[self.labels[order] == label]
            turns[members] = np.arange(len(members))
        return self.take(np.sort(order[np.argsort(turns[order], kind="stable")][:num_examples]))

    def divide(self, num_first: int) -> tuple[Split, Split]:
        """Divide into `num_first` examples and the rest: by a fixed shuffle, or, where named, by class and name."""
        if self.names is not None:
            return self._parted(choose_count(self.names, self.labels, num_first, "validation", keep_one=True))
        order = _fixed_shuffle(len(self))
        return self.take(np.sort(order[:num_first])), self.take(np.sort(order[num_first:]))

    def divide_by_share(self, share: float, purpose: str) -> tuple[Split, Split]:
        """Divide each class: this share of its examples, one at least, and the rest; by a fixed shuffle, or by name.

        Args:
            share: above 0 and below 1.
            purpose: what the first part is for; divisions of named examples for different purposes are independent.
        """
        if self.names is not None:
            return self._parted(choose_share(self.names, self.labels, share, purpose))
        order = _fixed_shuffle(len(self))
        first = [
            members[: max(1, round(share * len(members)))]
            for members in (order[self.labels[order] == label] for label in np.unique(self.labels))
        ]
        chosen = np.sort(np.concatenate(first))
        return self.take(chosen), self.take(np.setdiff1d(np.arange(len(self)), chosen))

    def _parted(self, chosen: np.ndarray) -> tuple[Split, Split]:
        return self.take(np.flatnonzero(chosen)), self.take(np.flatnonzero(~chosen))

    def training_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        start_step: int = 0,
        augmentation: str = "none",
        share: tuple[int, int] = (0, 1),
    ) -> tf.data.Dataset:
        """Return endless shuffled batches, a pure function of (seed, step): a run resumes at any step.

        Each epoch is a permutation of its own; its last, incomplete batch is dropped.

        Args:
            batch_size: images per step, at most the size of the split.
            seed: run seed.
            start_step: optimizer step of the first batch.
            augmentation: `"none"`, `"crop"`, `"crop_flip"` or `"resized_crop_flip"`.
            share: (i, n), the i-th of n equal parts of each batch, counted from 0; no image of another is read. Default
                the whole batch.

        Returns:
            dataset of (images float32 (batch_size / n, height, width, channels) in [0, 1], labels int32
            (batch_size / n,)).
        """
        size, steps = len(self), self.steps_per_epoch(batch_size)
        number = batch_size // share[1]
        first = share[0] * number
        read, labels, augment = self._read_fn(), tf.constant(self.labels), AUGMENTATIONS[augmentation]

        def epoch_of_batches(epoch: tf.Tensor) -> tf.data.Dataset:
            order = tf.random.experimental.stateless_shuffle(tf.range(size), seed=tf.stack([seed, epoch]))
            return tf.data.Dataset.from_tensor_slices(tf.reshape(order[: steps * batch_size], [steps, batch_size]))

        def load(step: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            own = indices[first : first + number]
            batch = augment(read(own), tf.stack([seed, tf.cast(step, tf.int32)]), Rows(batch_size, first))
            return tf.ensure_shape(batch, (number, *self.image_shape)), tf.gather(labels, own)

        first_epoch = start_step // steps
        epochs = tf.data.Dataset.range(first_epoch, 2**31 - 1, output_type=tf.int32)
        batches = epochs.flat_map(epoch_of_batches).skip(start_step - first_epoch * steps)
        return (
            batches.enumerate(start_step)
            .map(load, min(usable_cores(), BATCHES_TOGETHER), deterministic=True)
            .prefetch(2)
        )

    @functools.cached_property
    def _tensor(self) -> tf.Tensor:
        """Images in memory as batches are gathered from them, copied once."""
        with tf.init_scope(), tf.device("CPU"):
            return tf.constant(self.images)

    def _read_fn(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Return the function from int32 indices to float images, for tf.data: in memory it needs no Python."""
        if isinstance(self.images, np.ndarray):
            images = self._tensor
            return lambda indices: to_float(tf.gather(images, indices))
        read, shape = self.images.reader_of_floats(), (None, *self.image_shape)
        return lambda indices: tf.ensure_shape(tf.numpy_function(read, [indices], tf.float32), shape)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Count the whole batches in the split.

        Raises:
            UserError: if there is none.
        """
        if batch_size > len(self):
            raise UserError("--batch_size", batch_size, f"give at most {len(self)}, the number of training images")
        return len(self) // batch_size

    def validation_batches(self, batch_size: int, share: tuple[int, int] = (0, 1)) -> tf.data.Dataset:
        """Return batches in order, all of one size, with sample weights: the last is filled up with images of weight 0.

        Args:
            batch_size: images per batch.
            share: see `training_batches`.

        Returns:
            dataset of (images float32 (batch_size / n, height, width, channels) in [0, 1], labels int32
            (batch_size / n,), weights float32 (batch_size / n,)).
        """
        size, number = len(self), batch_size // share[1]
        read, labels = self._read_fn(), tf.constant(self.labels)

        def load(start: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            own = tf.range(start, tf.clip_by_value(size, start, start + number))
            missing = number - tf.size(own)
            images = read(own)
            filling = [[0, missing], [0, 0], [0, 0], [0, 0]]
            images = tf.cond(missing > 0, lambda: tf.pad(images, filling), lambda: images)
            images = tf.ensure_shape(images, (number, *self.image_shape))
            weights = tf.sequence_mask(tf.size(own), number, tf.float32)
            return images, tf.ensure_shape(tf.pad(tf.gather(labels, own), [[0, missing]]), (number,)), weights

        starts = tf.data.Dataset.range(share[0] * number, share[0] * number + size, batch_size, output_type=tf.int32)
        return _in_parallel(starts, load)


def to_float(images: tf.Tensor | np.ndarray) -> tf.Tensor:
    """Convert uint8 pixels to float32 in [0, 1]."""
    return tf.cast(images, tf.float32) / 255.0


def _in_parallel(steps: tf.data.Dataset, load: Callable) -> tf.data.Dataset:
    """Return the batches of some steps, in order; `AUTOTUNE` begins with one processor, and stays there for long."""
    return steps.map(load, min(usable_cores(), BATCHES_TOGETHER), deterministic=True).prefetch(2)


def _fixed_shuffle(size: int) -> np.ndarray:
    return np.random.default_rng(SPLIT_SEED).permutation(size)
