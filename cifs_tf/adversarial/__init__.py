"""Adversarial training: the trainer, its methods, what goes on top of them, and PyTorch's SGD."""

from cifs_tf.adversarial.fat import FAT
from cifs_tf.adversarial.mart import MART
from cifs_tf.adversarial.methods import Method, PGDTraining, Standard, make_method, register_method
from cifs_tf.adversarial.nfgsm import NFGSM, catastrophic_overfitting
from cifs_tf.adversarial.sgd import SGD, step_decay
from cifs_tf.adversarial.trades import TRADES
from cifs_tf.adversarial.trainer import AdversarialTrainer
from cifs_tf.adversarial.weight_perturbation import WeightPerturbation

__all__ = [
    "FAT",
    "MART",
    "NFGSM",
    "SGD",
    "TRADES",
    "AdversarialTrainer",
    "Method",
    "PGDTraining",
    "Standard",
    "WeightPerturbation",
    "catastrophic_overfitting",
    "make_method",
    "register_method",
    "step_decay",
]
