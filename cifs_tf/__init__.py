"""CIFS for TensorFlow and Keras: robust classifiers by channel-wise importance-based feature selection.

The parts, in the order in which data flows: `data`, `layers`, `models`, `losses`, `attacks`, `adversarial` (training),
`evaluation`, `export`. Images are float32 in [0, 1], channels last; a network answers with heads
(batch, 1 + P, classes), the final logits first and then the raw prediction of each of its P selection layers.
"""

from cifs_tf.adversarial import SGD, AdversarialTrainer, PGDTraining, Standard
from cifs_tf.attacks import PGD, fgsm
from cifs_tf.config import RunConfig
from cifs_tf.data import load_dataset
from cifs_tf.errors import UserError
from cifs_tf.evaluation import evaluate, make_attacks
from cifs_tf.export import export
from cifs_tf.layers import CAS, CIFS, register_importance
from cifs_tf.losses import head_weights
from cifs_tf.models import Classifier, build_classifier, resnet, wide_resnet

__all__ = [
    "CAS",
    "CIFS",
    "PGD",
    "SGD",
    "AdversarialTrainer",
    "Classifier",
    "PGDTraining",
    "RunConfig",
    "Standard",
    "UserError",
    "build_classifier",
    "evaluate",
    "export",
    "fgsm",
    "head_weights",
    "load_dataset",
    "make_attacks",
    "register_importance",
    "resnet",
    "wide_resnet",
]
