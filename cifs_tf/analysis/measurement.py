"""Activations and predictions of a classifier on natural and adversarial images, measured batch by batch."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from cifs_tf.analysis.activations import channel_activations, last_layer_weights
from cifs_tf.analysis.metrics import alignment, negative_share
from cifs_tf.analysis.profile import ChannelProfile, make_profile
from cifs_tf.attacks import PGD, example_seeds
from cifs_tf.attacks.objective import fooled
from cifs_tf.checks import check_labels
from cifs_tf.data import Split, to_float
from cifs_tf.errors import UserError
from cifs_tf.evaluation.engine import code_version
from cifs_tf.evaluation.networks.attacked import fingerprint_of
from cifs_tf.files import write_atomically
from cifs_tf.losses import head_weights
from cifs_tf.models import Classifier


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """Activations and correctness on natural and adversarial images, in the order of the images.

    Args:
        labels: int (examples,).
        weights: float (channels, classes), of the last dense layer.
        natural_activations: float (examples, channels), inputs of that layer on natural images.
        adversarial_activations: the same on adversarial images.
        natural_correct: bool (examples,), whether the final prediction is right.
        adversarial_correct: the same under attack.
    """

    labels: np.ndarray
    weights: np.ndarray
    natural_activations: np.ndarray
    adversarial_activations: np.ndarray
    natural_correct: np.ndarray
    adversarial_correct: np.ndarray

    def profile(self, target_class: int) -> ChannelProfile:
        """Return the profile of one class, see `channel_profile`.

        Raises:
            UserError: if no image has the class.
        """
        of_class = self.labels == target_class
        if not of_class.any():
            raise UserError("target_class", target_class, "no image has this label, give images of the class")
        natural, adversarial = self.natural_activations[of_class], self.adversarial_activations[of_class]
        return make_profile(natural, adversarial, self.weights[:, target_class])

    def per_example(self) -> dict[str, np.ndarray]:
        """Return for each image whether it is correct, and NR share and alignment with the weights of its class.

        Returns:
            `natural_accuracy`, `adversarial_accuracy`, `natural_negative_share`, `adversarial_negative_share`,
            `natural_alignment`, `adversarial_alignment`, each float (examples,).
        """
        relevance = self.weights.T[self.labels]
        return {
            "natural_accuracy": self.natural_correct.astype(float),
            "adversarial_accuracy": self.adversarial_correct.astype(float),
            "natural_negative_share": negative_share(self.natural_activations, relevance),
            "adversarial_negative_share": negative_share(self.adversarial_activations, relevance),
            "natural_alignment": alignment(self.natural_activations, relevance),
            "adversarial_alignment": alignment(self.adversarial_activations, relevance),
        }


def measure_channels(
    classifier: Classifier,
    split: Split,
    attack: PGD,
    beta: float | str = 0,
    *,
    mask_gradient: str | None = None,
    seed: int = 0,
    batch_size: int = 250,
    folder: Path | None = None,
    progress: Callable[[Sequence[int]], Iterable[int]] = lambda starts: starts,
) -> Measurement:
    """Attack images, and record activations and correctness before and after.

    Args:
        classifier: to be measured; its backbone ends in a Dense layer.
        split: the images.
        attack: see `cifs_tf.evaluation.make_attacks`.
        beta: beta_atk, see `cifs_tf.losses.head_weights`. Default 0, the final prediction alone.
        mask_gradient: gradient of the attacker, see `Classifier.heads_fn`. Default each layer's own.
        seed: of attacks with a random start. Default 0.
        batch_size: images at a time. Default 250.
        folder: where each finished batch is written, in a sub-folder named after classifier, images, attack and code,
            so that an interrupted measurement resumes; None (default) writes nothing.
        progress: wraps the sequence of batches to show a progress bar, such as `rich.progress.track`.

    Returns:
        the measurement.

    Raises:
        UserError: if the last layer is not dense, or the classifier has no such beta or mask gradient.

    Example:
        >>> attack = make_attacks(["pgd20"], epsilon=8 / 255)["pgd20"]
        >>> profile = measure_channels(classifier, test, attack, beta=2).profile(3)
    """
    weights = last_layer_weights(classifier)
    check_labels(split.labels, classifier.num_classes)
    run = _make_run(classifier, split, attack, beta, mask_gradient, seed, batch_size)
    if folder is not None:
        terms = (attack, beta, mask_gradient, seed, batch_size, fingerprint_of(classifier), code_version())
        of_images = hashlib.sha256(repr(terms).encode())
        split.add_to(of_images)
        folder = folder / of_images.hexdigest()[:16]
    batches = []
    for start in progress(range(0, len(split), batch_size)):
        file = None if folder is None else folder / f"{start:06d}.npz"
        of = "" if folder is None else f"{folder.name}, images from {start}"
        arrays = None if file is None else _read_batch(file, of)
        if arrays is None:
            arrays = run(np.arange(start, min(start + batch_size, len(split))))
            if file is not None:
                content = {**arrays, "of": of}
                write_atomically(file, lambda path, content=content: np.savez(path, **content))  # type: ignore[misc]
        batches.append(arrays)
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    return Measurement(labels=split.labels, weights=weights, **joined)


def _read_batch(file: Path, of: str) -> dict[str, np.ndarray] | None:
    """Read a batch that was measured before; None if there is none, or, which is said, it is damaged or another."""
    if not file.exists():
        return None
    try:
        with np.load(file) as content:
            arrays = dict(content)
        if str(arrays.pop("of", "")) == of:
            return arrays
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        pass
    print(f"{file} is damaged, or of another measurement; it is measured again.")
    return None


def _make_run(
    classifier: Classifier,
    split: Split,
    attack: PGD,
    beta: float | str,
    mask_gradient: str | None,
    seed: int,
    batch_size: int,
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Make the function ids -> arrays of a `Measurement`; the attack is compiled once for all sizes of batches."""
    contraction = tf.constant(head_weights(beta, classifier.num_probes), tf.float32)
    heads_fn = classifier.heads_fn(mask_gradient)
    signature = [
        tf.TensorSpec((None, *split.image_shape), tf.float32),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((None, 2), tf.int64),
    ]

    @tf.function(input_signature=signature, autograph=False)
    def craft(images: tf.Tensor, labels: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        return attack(heads_fn, images, labels, head_weights=contraction, seed=seeds)

    def run(ids: np.ndarray) -> dict[str, np.ndarray]:
        images, labels = to_float(split.images[ids]), tf.constant(split.labels[ids], tf.int32)
        x_adv = craft(images, labels, example_seeds(seed, 0, tf.constant(ids)))
        arrays = {}
        for kind, batch in (("natural", images), ("adversarial", x_adv)):
            arrays[f"{kind}_activations"] = channel_activations(classifier, batch, batch_size=batch_size)
            arrays[f"{kind}_correct"] = ~fooled(heads_fn(batch), labels).numpy()
        return arrays

    return run
