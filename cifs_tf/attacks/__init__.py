"""The adversary: attacks on heads, as pure functions of (heads_fn, images, labels, head weights, seed)."""

from cifs_tf.attacks.pgd import PGD, HeadsFn, fgsm
from cifs_tf.attacks.random import example_seeds

__all__ = ["PGD", "HeadsFn", "example_seeds", "fgsm"]
