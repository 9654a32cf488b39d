"""Adversarial training: the trainer, its methods, and PyTorch's SGD."""

from cifs_tf.adversarial.methods import Method, PGDTraining, Standard
from cifs_tf.adversarial.sgd import SGD, step_decay
from cifs_tf.adversarial.trainer import AdversarialTrainer

__all__ = ["SGD", "AdversarialTrainer", "Method", "PGDTraining", "Standard", "step_decay"]
