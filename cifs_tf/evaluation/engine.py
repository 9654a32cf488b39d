"""Measuring natural and robust accuracy under every attack and every beta_atk."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from cifs_tf.attacks import PGD, HeadsFn, example_seeds
from cifs_tf.data import Split, to_float
from cifs_tf.errors import UserError
from cifs_tf.losses import attack_betas_for, head_weights

ProgressFn = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluation found, by the paper's convention: the share of all images whose final prediction is right.

    Args:
        num_examples: images measured.
        natural: accuracy on the images themselves, in [0, 1].
        robust: accuracy under each attack, by attack and then by beta_atk.
    """

    num_examples: int
    natural: float
    robust: dict[str, dict[str, float]]

    def worst(self, attack: str) -> tuple[float, str]:
        """Return the lowest accuracy over beta_atk and the beta that brought it: the number of the paper's tables."""
        return min((accuracy, beta) for beta, accuracy in self.robust[attack].items())

    def to_dict(self) -> dict[str, Any]:
        """Return the report in plain types, with the worst values beside the single ones."""
        worst = {attack: dict(zip(("accuracy", "beta"), self.worst(attack), strict=True)) for attack in self.robust}
        return {**dataclasses.asdict(self), "worst": worst}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Report:
        """Rebuild the report from `to_dict()`."""
        return cls(values["num_examples"], values["natural"], values["robust"])


def evaluate(
    heads_fn: HeadsFn,
    split: Split,
    attacks: Mapping[str, PGD],
    *,
    num_probes: int,
    betas: Sequence[float | str],
    batch_size: int = 250,
    seed: int = 0,
    on_progress: ProgressFn = lambda task, done, total: None,
    known: Mapping[str, float] | None = None,
    on_measured: Callable[[str, float], None] = lambda task, accuracy: None,
) -> Report:
    """Attack every image with every attack at every beta_atk.

    Each attack is compiled once: batches have one size (the last is filled up and the filling ignored), and the head
    weights of beta_atk are an argument.

    Args:
        heads_fn: images float32 (batch, height, width, channels) -> heads (batch, 1 + P, classes), in inference mode.
        split: images to measure on.
        attacks: by name, see `make_attacks`.
        num_probes: P, the number of selection layers.
        betas: the attacker's settings, see `head_weights`; those that do not differ on this network are left out.
        batch_size: images per batch, at most.
        seed: of random starts.
        on_progress: called as (task, batches done, batches in all) after every batch.
        known: accuracies of tasks that an interrupted evaluation has measured; they are not measured again.
        on_measured: called as (task, accuracy) after every task, `natural` or `ATTACK, beta BETA`.

    Returns:
        the report.

    Raises:
        UserError: if there are no images.

    Example:
        >>> report = evaluate(model.heads_fn(), test, make_attacks(["pgd20"], 0.1), num_probes=2, betas=[0, 2])
        >>> report.worst("pgd20")
        (0.7194444444444444, '2')
    """
    if len(split) == 0:
        raise UserError("split", "no images", "give at least one")
    num_batches = math.ceil(len(split) / batch_size)
    batches = _Batches(split, math.ceil(len(split) / num_batches))
    weights = {str(beta): head_weights(beta, num_probes) for beta in attack_betas_for(tuple(betas), num_probes)}
    total = num_batches * (1 + len(attacks) * len(weights))
    done = 0

    def measure(task: str, correct_fn: Callable[..., tf.Tensor], head_weights: np.ndarray) -> float:
        nonlocal done
        if known and task in known:
            done += num_batches
            on_progress(task, done, total)
            return known[task]
        num_correct = 0
        for images, labels, ids, size in batches:
            verdicts = correct_fn(images, labels, ids, tf.constant(head_weights, tf.float32))
            num_correct += int(np.sum(verdicts.numpy()[:size]))
            done += 1
            on_progress(task, done, total)
        accuracy = num_correct / len(split)
        on_measured(task, accuracy)
        return accuracy

    any_weights = next(iter(weights.values()))
    natural = measure("natural", _compile(heads_fn, None, batches, seed), any_weights)
    robust = {}
    for name, attack in attacks.items():
        correct_fn = _compile(heads_fn, attack, batches, seed)
        robust[name] = {beta: measure(f"{name}, beta {beta}", correct_fn, w) for beta, w in weights.items()}
    return Report(len(split), natural, robust)


@dataclasses.dataclass(frozen=True)
class _Batches:
    """Batches of one size over a split: (images, labels, example ids, how many of them are real)."""

    split: Split
    size: int

    def __iter__(self) -> Any:
        for start in range(0, len(self.split), self.size):
            ids = np.arange(start, start + self.size)
            real = min(self.size, len(self.split) - start)
            rows = np.minimum(ids, len(self.split) - 1)
            labels = tf.constant(self.split.labels[rows])
            yield to_float(self.split.images[rows]), labels, tf.constant(ids), real


def _compile(heads_fn: HeadsFn, attack: PGD | None, batches: _Batches, seed: int) -> Callable[..., tf.Tensor]:
    image_shape = batches.split.images.shape[1:]
    signature = [
        tf.TensorSpec((batches.size, *image_shape), tf.float32),
        tf.TensorSpec((batches.size,), tf.int32),
        tf.TensorSpec((batches.size,), tf.int64),
        tf.TensorSpec((None,), tf.float32),
    ]

    @tf.function(input_signature=signature, autograph=False)
    def correct_fn(images: tf.Tensor, labels: tf.Tensor, ids: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        if attack is not None:
            seeds = example_seeds(seed, 0, ids)
            images = attack(heads_fn, images, labels, head_weights=weights, seed=seeds)
        return tf.argmax(heads_fn(images)[:, 0], axis=-1, output_type=tf.int32) == labels

    # One trace, made here: every call has this signature.
    return correct_fn.get_concrete_function()
