"""The adversary: attacks on heads, as pure functions of (heads_fn, images, labels, head weights, seed)."""

from cifs_tf.attacks.apgd import APGD
from cifs_tf.attacks.attack import Attack
from cifs_tf.attacks.ball import Ball
from cifs_tf.attacks.ddn import DDN
from cifs_tf.attacks.fab import FABT
from cifs_tf.attacks.fmn import FMN
from cifs_tf.attacks.friendly import FriendlyPGD
from cifs_tf.attacks.malt import MALT
from cifs_tf.attacks.minimal import MinimalNorm
from cifs_tf.attacks.noisy_fgsm import NoisyFGSM
from cifs_tf.attacks.objective import HeadsFn
from cifs_tf.attacks.pgd import PGD, fgsm
from cifs_tf.attacks.random import example_seeds
from cifs_tf.attacks.rays import RayS
from cifs_tf.attacks.square import Square

__all__ = [
    "APGD",
    "DDN",
    "FABT",
    "FMN",
    "MALT",
    "PGD",
    "Attack",
    "Ball",
    "FriendlyPGD",
    "HeadsFn",
    "MinimalNorm",
    "NoisyFGSM",
    "RayS",
    "Square",
    "example_seeds",
    "fgsm",
]
