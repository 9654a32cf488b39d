"""A split of labelled images in memory, and the batches made of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from cifs_tf.data.augmentation import AUGMENTATIONS
from cifs_tf.errors import UserError

# Seed of choices that belong to a dataset, not to a run: which images a subset or a validation split takes.
SPLIT_SEED = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Labelled images.

    Args:
        images: uint8 (examples, height, width, channels).
        labels: int32 (examples,).
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """Return the split of these examples."""
        return Split(self.images[indices], self.labels[indices])

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
        """Divide by a fixed shuffle into a split of `num_first` examples and the rest."""
        order = _fixed_shuffle(len(self))
        return self.take(np.sort(order[:num_first])), self.take(np.sort(order[num_first:]))

    def divide_by_share(self, share: float) -> tuple[Split, Split]:
        """Divide each class by a fixed shuffle: this share of its examples, one at least, and the rest."""
        order = _fixed_shuffle(len(self))
        first = [
            members[: max(1, round(share * len(members)))]
            for members in (order[self.labels[order] == label] for label in np.unique(self.labels))
        ]
        chosen = np.sort(np.concatenate(first))
        return self.take(chosen), self.take(np.setdiff1d(np.arange(len(self)), chosen))

    def training_batches(
        self, batch_size: int, *, seed: int, start_step: int = 0, augmentation: str = "none"
    ) -> tf.data.Dataset:
        """Endless shuffled batches, a pure function of (seed, step): a run resumes at any step.

        Each epoch is a permutation of its own; its last, incomplete batch is dropped.

        Args:
            batch_size: images per step, at most the size of the split.
            seed: run seed.
            start_step: optimizer step of the first batch.
            augmentation: `"none"`, `"crop"` or `"crop_flip"`.

        Returns:
            dataset of (images float32 (batch_size, height, width, channels) in [0, 1], labels int32 (batch_size,)).
        """
        size, steps = len(self), self.steps_per_epoch(batch_size)
        images, labels = tf.constant(self.images), tf.constant(self.labels)
        augment = AUGMENTATIONS[augmentation]

        def epoch_of_batches(epoch: tf.Tensor) -> tf.data.Dataset:
            order = tf.random.experimental.stateless_shuffle(tf.range(size), seed=tf.stack([seed, epoch]))
            return tf.data.Dataset.from_tensor_slices(tf.reshape(order[: steps * batch_size], [steps, batch_size]))

        def load(step: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            batch = augment(to_float(tf.gather(images, indices)), tf.stack([seed, tf.cast(step, tf.int32)]))
            return tf.ensure_shape(batch, (batch_size, *self.images.shape[1:])), tf.gather(labels, indices)

        first_epoch = start_step // steps
        epochs = tf.data.Dataset.range(first_epoch, 2**31 - 1, output_type=tf.int32)
        batches = epochs.flat_map(epoch_of_batches).skip(start_step - first_epoch * steps)
        return batches.enumerate(start_step).map(load, tf.data.AUTOTUNE, deterministic=True).prefetch(2)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches in the split.

        Raises:
            UserError: if there is none.
        """
        if batch_size > len(self):
            raise UserError("--batch_size", batch_size, f"give at most {len(self)}, the number of training images")
        return len(self) // batch_size

    def validation_batches(self, batch_size: int) -> tf.data.Dataset:
        """Batches in order, all of one size, with sample weights: the last is filled up with images of weight 0.

        Args:
            batch_size: images per batch.

        Returns:
            dataset of (images float32 (batch_size, height, width, channels) in [0, 1], labels int32 (batch_size,),
            weights float32 (batch_size,)).
        """
        missing = -len(self) % batch_size
        images, labels, weights = (
            np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
            for array in (self.images, self.labels, np.ones(len(self), np.float32))
        )
        dataset = tf.data.Dataset.from_tensor_slices((images, labels, weights)).batch(batch_size, drop_remainder=True)
        return dataset.map(lambda images, *others: (to_float(images), *others)).prefetch(2)


def to_float(images: tf.Tensor | np.ndarray) -> tf.Tensor:
    """Convert uint8 pixels to float32 in [0, 1]."""
    return tf.cast(images, tf.float32) / 255.0


def _fixed_shuffle(size: int) -> np.ndarray:
    return np.random.default_rng(SPLIT_SEED).permutation(size)
