"""The split of an image: a function of the image's name, so that another file more or less moves no other.

A name is hashed to a position in [0, 1), and a share of the images are those whose position lies below it. What a class
needs at least comes first: a class of two images and more has one on either side, the one with the lowest or the
highest position, and only so small a class can see an image move when another one comes.
"""

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np


def choose_share(names: Sequence[str], labels: np.ndarray, share: float, purpose: str) -> np.ndarray:
    """Choose about this share of every class, by the names alone.

    Args:
        names: of the images, without their class (examples,).
        labels: int (examples,).
        share: above 0 and below 1.
        purpose: what they are chosen for; choices for different purposes are independent.

    Returns:
        bool (examples,); of a class of two images and more, one at least is chosen and one is not.

    Example:
        >>> choose_share(["a.png", "b.png", "c.png"], np.array([0, 0, 1]), 0.5, "test").tolist()
        [False, True, False]
    """
    positions = _positions(names, purpose)
    chosen = positions < share
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = members[np.argsort(positions[members], kind="stable")]
        if len(members) > 1:
            chosen[order[0]], chosen[order[-1]] = True, False
        else:
            chosen[members] = False
    return chosen


def choose_count(names: Sequence[str], labels: np.ndarray, count: int, purpose: str, keep_one: bool) -> np.ndarray:
    """Choose exactly so many images, every class in proportion, those with the lowest positions.

    Args:
        names: of the images, without their class (examples,).
        labels: int (examples,).
        count: how many, at most as there are.
        purpose: what they are chosen for; choices for different purposes are independent.
        keep_one: leave one image of every class at least, if there are enough others.

    Returns:
        bool (examples,); if `count` is the number of classes or more, every class that can spare one has one chosen.
    """
    positions = _positions(names, purpose)
    classes, sizes = np.unique(labels, return_counts=True)
    quotas = _quotas(sizes, count, keep_one)
    chosen = np.zeros(len(labels), bool)
    for label, quota in zip(classes, quotas, strict=True):
        members = np.flatnonzero(labels == label)
        chosen[members[np.argsort(positions[members], kind="stable")][:quota]] = True
    return chosen


def _quotas(sizes: np.ndarray, count: int, keep_one: bool) -> np.ndarray:
    """Divide a count among classes in proportion to their sizes, by largest remainders, within what each can give."""
    most = sizes - 1 if keep_one and count <= (sizes - 1).sum() else sizes
    least = np.minimum(most, 1) if count >= len(sizes) else np.zeros_like(sizes)
    exact = count * sizes / sizes.sum()
    quotas = np.clip(np.floor(exact).astype(int), least, most)
    while (missing := count - quotas.sum()) != 0:
        can = quotas < most if missing > 0 else quotas > least
        wanted = np.where(can, (exact - quotas) * np.sign(missing), -np.inf)
        quotas[np.argmax(wanted)] += np.sign(missing)
    return quotas


def _positions(names: Sequence[str], purpose: str) -> np.ndarray:
    """Hash each name to a position in [0, 1); the same name in another Unicode form is the same name."""
    digests = (hashlib.sha256(f"{purpose}/{unicodedata.normalize('NFC', name)}".encode()).digest() for name in names)
    return np.array([int.from_bytes(digest[:8], "big") / 2**64 for digest in digests])
