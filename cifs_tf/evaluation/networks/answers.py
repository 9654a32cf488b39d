"""What a network answers to a few images and near them: a ledger goes on with the network that it was begun with.

No hash of weights and options tells all that a network computes with: the code of a plugin, a constant in a closure,
the order of inputs, a stand-in for the backward pass.
"""

import contextlib

import numpy as np
import tensorflow as tf

from cifs_tf.data import Split, to_float
from cifs_tf.evaluation.networks.attacked import AttackedModel
from cifs_tf.evaluation.records import Answers

# Images that are looked at, and how many numbers are kept of what a network answers to each.
IMAGES, NUMBERS = 4, 4
# Points so far from the images, in each pixel, are looked at too; of half grey levels rounding might go either way.
OFFSET = 20.3 / 255
# Parts of the largest number: what another machine may round otherwise, and what differs at once by chance alone.
ROUNDING, CHANCE = 0.02, 1e-3
Rows = list[list[float | None]]


def answers_of(model: AttackedModel, split: Split) -> Answers | None:
    """Ask a network about some images, and others near them.

    Args:
        model: the attacked model.
        split: the images; four of them are taken, spread over all.

    Returns:
        `heads` and `gradients` (8, 4): random projections of all heads for each image, and of a gradient; no gradients
        where the network has none, and None if it answers by chance.
    """
    places = np.unique(np.linspace(0, len(split) - 1, IMAGES).astype(int))
    images, draw = to_float(split.images[places]).numpy(), np.random.default_rng(0)
    near = np.clip(images + OFFSET * draw.choice([-1, 1], images.shape), 0, 1)
    x = tf.constant(np.concatenate([images, near]), tf.float32)
    heads_fn = next(iter(model.heads_fns.values()))
    gradient = None
    with tf.GradientTape() as tape:
        tape.watch(x)
        heads = heads_fn(x)
        loss = tf.reduce_sum(heads * tf.constant(draw.standard_normal(heads.shape[1:]), heads.dtype))
    if model.has_gradient:
        with contextlib.suppress(LookupError):  # of operations that have none
            gradient = tape.gradient(loss, x)
    found: Answers = {"heads": _projected(heads), "gradients": None if gradient is None else _projected(gradient)}
    return found if _close(found["heads"], _projected(heads_fn(x)), CHANCE) else None


def same_answers(found: Answers | None, wanted: Answers | None) -> bool:
    """Return whether two answers are of one network, as far as they tell; chance and an older ledger tell nothing."""
    if found is None or wanted is None:
        return True
    gradients = found["gradients"], wanted["gradients"]
    return _close(found["heads"], wanted["heads"], ROUNDING) and _close(*gradients, ROUNDING)


def _close(found: Rows | None, wanted: Rows | None, tolerance: float) -> bool:
    """Compare numbers, to a part of the largest; None equals None alone."""
    one, other = (np.array(each or [], float) for each in (found, wanted))
    if one.shape != other.shape or (np.isnan(one) != np.isnan(other)).any():
        return False
    difference, scale = (np.max(np.nan_to_num(np.abs(each)), initial=0) for each in (one - other, one))
    return bool(difference <= tolerance * scale)


def _projected(values: tf.Tensor) -> Rows:
    """Project what belongs to each image to a few numbers, to five digits; None for what is not finite."""
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    found = rows @ np.random.default_rng(1).standard_normal((rows.shape[1], NUMBERS))
    return [[float(f"{each:.5g}") if np.isfinite(each) else None for each in row] for row in found]
