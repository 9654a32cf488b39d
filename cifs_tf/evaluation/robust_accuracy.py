"""Robust accuracy in the logs of any Keras `fit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.adversarial import AdversarialTrainer
from cifs_tf.attacks import HeadsFn, example_seeds
from cifs_tf.attacks.objective import fooled
from cifs_tf.checks import as_array, check_images, check_labels
from cifs_tf.data import Split, to_float
from cifs_tf.errors import UserError
from cifs_tf.evaluation.inputs import collect
from cifs_tf.evaluation.networks.attacked import as_attacked
from cifs_tf.losses import head_weights
from cifs_tf.models import Classifier

Data: TypeAlias = Split | tf.data.Dataset | tuple[Any, ...]
STREAM = 2**31 - 2  # of random starts, apart from those of training and of the trainer's validation


class RobustAccuracy(keras.callbacks.Callback):
    """Measure natural and robust accuracy after each epoch of `fit`, for every later callback to read.

    An image counts as robust if it is classified correctly as it is and after the attack. Put it before the callbacks
    that read its logs, such as `EarlyStopping`: Keras calls them in their order.

    Args:
        attack: such as `PGD`, called as attack(heads_fn, images, labels, head_weights=..., seed=...).
        data: a `Split`, or (images, labels), or a `tf.data.Dataset` of batches (images, labels) or (images, labels,
            sample weights). Images are float in [0, 1] or uint8, labels int (examples,) or one-hot rows.
        name: of the robust accuracy in the logs. Default `"val_robust_accuracy"`.
        natural_name: of the natural accuracy. Default `"val_natural_accuracy"`.
        num_examples: at most so many images are measured, always the same: of a dataset its first ones, of arrays those
            of a fixed shuffle. Default 512.
        batch_size: images per batch, which costs memory, not accuracy. Default 128.
        beta: the attacker's setting of beta in Eq. (3), see `head_weights`. Default 0, the final logits alone.
        seed: of random starts, 0 to 2^31 - 1. Default 0.

    Raises:
        UserError: for data without images, or pixels out of range; in `fit`, for a model that is no image classifier.

    Example:
        >>> attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)
        >>> stop = keras.callbacks.EarlyStopping("val_robust_accuracy", mode="max", patience=3)
        >>> model.fit(images, labels, callbacks=[RobustAccuracy(attack, (images, labels)), stop])
    """

    def __init__(
        self,
        attack: Callable[..., tf.Tensor],
        data: Data,
        *,
        name: str = "val_robust_accuracy",
        natural_name: str = "val_natural_accuracy",
        num_examples: int = 512,
        batch_size: int = 128,
        beta: float | str = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        images, self._given = _examples(data, num_examples)
        labels = check_labels(self._given, argument="data: labels")
        self.attack, self.name, self.natural_name, self.beta, self.seed = attack, name, natural_name, beta, seed
        self.num_examples = len(labels)
        # All batches have one size, so that the attack is compiled once.
        batch_size = min(batch_size, len(labels))
        missing = -len(labels) % batch_size
        shape = (-1, batch_size, *images.shape[1:])
        self._images = np.concatenate([images, np.zeros_like(images[:missing])]).reshape(shape)
        self._labels = np.concatenate([labels, np.zeros_like(labels[:missing])]).reshape(-1, batch_size)
        self._measured: tuple[Any, Any] = (None, None)

    def measure(self, model: keras.Model) -> dict[str, float]:
        """Measure a model as it is now.

        Args:
            model: a `Classifier`, its trainer, or any Keras image classifier.

        Returns:
            both accuracies by their names in the logs.
        """
        if self._measured[0] is not model:
            self._measured = model, self._compile(model)
        counts = np.zeros(2)
        left, batch_size = self.num_examples, self._labels.shape[1]
        for index, (images, labels) in enumerate(zip(self._images, self._labels, strict=True)):
            positions = tf.range(index * batch_size, (index + 1) * batch_size)
            correct = self._measured[1](tf.constant(images), tf.constant(labels), positions)
            counts += [np.sum(each.numpy()[:left]) for each in correct]
            left -= batch_size
        return dict(zip((self.natural_name, self.name), (counts / self.num_examples).tolist(), strict=True))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Add both accuracies to the logs."""
        if logs is not None:
            logs.update(self.measure(self.model))

    def _compile(self, model: keras.Model) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
        heads_fn, num_probes, num_classes, image_shape = _network_of(model)
        check_images(self._images[0], "data", shape=image_shape)
        check_labels(self._given, num_classes, "data: labels")
        weights = head_weights(self.beta, num_probes)

        @tf.function(autograph=False)
        def measure(images: tf.Tensor, labels: tf.Tensor, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            seeds = example_seeds(self.seed, STREAM, positions)
            natural = ~fooled(heads_fn(images), labels)
            x_adv = self.attack(heads_fn, images, labels, head_weights=weights, seed=seeds)
            return natural, natural & ~fooled(heads_fn(x_adv), labels)

        return measure


def _network_of(model: keras.Model) -> tuple[HeadsFn, int, int, tuple[int, ...]]:
    """Return the heads function of a model with its weights as they will be, P, K, and the shape of its images."""
    if isinstance(model, AdversarialTrainer):
        model = model.inference_classifier
    if isinstance(model, Classifier):
        return model.heads_fn(), model.num_probes, model.num_classes, model.image_shape
    attacked = as_attacked(model)
    return next(iter(attacked.heads_fns.values())), 0, attacked.num_classes, attacked.image_shape


def _examples(data: Data, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Bring data to images float32 (examples, ...) in [0, 1] and labels (examples, ...), as they are."""
    if isinstance(data, tf.data.Dataset):
        images, labels = collect(data, "data", num_examples)
    else:
        if isinstance(data, Split):
            images, labels = data.images, data.labels
        elif isinstance(data, tuple | list) and len(data) == 2:
            images, labels = (as_array(each, "data") for each in data)
        else:
            advice = "give a cifs_tf.data.Split, (images, labels), or a tf.data.Dataset of them"
            raise UserError("data", type(data).__name__, advice)
        if labels.ndim == 0 or len(images) != len(labels):
            raise UserError("data", f"{labels.size} labels", f"give one for each of the {len(images)} images")
        chosen = np.sort(np.random.default_rng(0).permutation(len(labels))[:num_examples])
        images, labels = images[chosen], labels[chosen]
    if not len(labels):
        raise UserError("data", 0, "give at least one image")
    images = to_float(images) if images.dtype == np.uint8 else images
    check_images(images, "data")
    return np.asarray(images, np.float32), labels
