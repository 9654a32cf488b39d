"""Training methods: what each adds to the one `train_step`.

A method is a frozen dataclass with two functions: `perturb` makes the images to train on, outside the gradient tape;
`loss` makes the per-example loss, inside it.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
import tensorflow as tf

from cifs_tf.attacks import PGD
from cifs_tf.losses import contract, cross_entropy
from cifs_tf.models import Classifier


class Method(Protocol):
    """What `AdversarialTrainer` asks of a training method."""

    @property
    def head_weights(self) -> np.ndarray:
        """Float (1 + P,), of the training loss and of the loss that validation reports."""

    def perturb(self, classifier: Classifier, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Make the images to train on, like `images`; `seed` is int64 (batch, 2), one per example."""

    def loss(
        self, classifier: Classifier, images: tf.Tensor, x_adv: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the per-example loss (batch,), and the heads (batch, 1 + P, classes) that metrics look at."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standard:
    """Training on natural images with the loss of Eq. (3).

    Args:
        head_weights: float (1 + P,), see `cifs_tf.losses.head_weights`.
    """

    head_weights: np.ndarray

    def perturb(self, classifier, images, labels, seed):
        """Return the images as they are."""
        return images

    def loss(self, classifier, images, x_adv, labels):
        """Eq. (3) in training mode, where the labels enter the mask."""
        heads = classifier(x_adv, labels=labels, training=True)
        return contract(cross_entropy(heads, labels), self.head_weights), heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class PGDTraining(Standard):
    """PGD adversarial training (Madry et al. 2018; Eq. 4): Eq. (3) on images that maximise it.

    The attack sees the network in inference mode, without labels in the mask, as in the official code.

    Args:
        head_weights: float (1 + P,), of the loss and of the attack on it.
        attack: how images are perturbed.
        mask_gradient: what the attack sees of the mask, `"detached"` (default) or `"full"`.
    """

    attack: PGD
    mask_gradient: str = "detached"

    def perturb(self, classifier, images, labels, seed):
        """Attack the classifier."""
        heads_fn = classifier.heads_fn(self.mask_gradient)
        return self.attack(heads_fn, images, labels, head_weights=self.head_weights, seed=seed)
