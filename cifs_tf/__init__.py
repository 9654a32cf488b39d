"""CIFS for TensorFlow and Keras: robust classifiers by channel-wise importance-based feature selection.

The parts, in the order in which data flows: `data`, `layers`, `models`, `losses`, `attacks`, `adversarial` (training),
`evaluation`, `export`. Images are float32 in [0, 1], channels last; a network answers with heads
(batch, 1 + P, classes), the final logits first and then the raw prediction of each of its P selection layers.

Importing this package imports neither TensorFlow nor Keras. As soon as both are imported, before or after it, the
classes of a saved classifier are registered, so that `keras.models.load_model` knows them.
"""

import _signal  # signal imports modules of its own first: a Ctrl-C in that time would be a traceback
import sys

if hasattr(_signal, "pthread_sigmask") and (
    "".join(sys.argv[:1]).rpartition("/")[2] == "cifs-tf"
    or (sys.argv[:1] == ["-m"] and "cifs_tf" in sys.orig_argv)  # while `python -m` imports the package
):
    # They wait until the program is prepared for them (`cifs_tf.signals.prepare`).
    _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP))

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from cifs_tf.adversarial import SGD as SGD
    from cifs_tf.adversarial import AdversarialTrainer as AdversarialTrainer
    from cifs_tf.adversarial import PGDTraining as PGDTraining
    from cifs_tf.adversarial import Standard as Standard
    from cifs_tf.attacks import PGD as PGD
    from cifs_tf.attacks import fgsm as fgsm
    from cifs_tf.config import RunConfig as RunConfig
    from cifs_tf.data import load_dataset as load_dataset
    from cifs_tf.errors import UserError as UserError
    from cifs_tf.evaluation import RobustAccuracy as RobustAccuracy
    from cifs_tf.evaluation import evaluate as evaluate
    from cifs_tf.evaluation import make_attacks as make_attacks
    from cifs_tf.layers import CAS as CAS
    from cifs_tf.layers import CIFS as CIFS
    from cifs_tf.layers import register_importance as register_importance
    from cifs_tf.losses import head_weights as head_weights
    from cifs_tf.models import Classifier as Classifier
    from cifs_tf.models import build_classifier as build_classifier
    from cifs_tf.models import defend as defend
    from cifs_tf.models import load_model as load_model
    from cifs_tf.models import resnet as resnet
    from cifs_tf.models import summary_rows as summary_rows
    from cifs_tf.models import wide_resnet as wide_resnet
    from cifs_tf.presets import from_preset as from_preset

# Where each name is, loaded when first asked for: a command line refuses bad input before TensorFlow is imported.
_NAMES = {
    "adversarial": ("SGD", "AdversarialTrainer", "PGDTraining", "Standard"),
    "attacks": ("PGD", "fgsm"),
    "config": ("RunConfig",),
    "data": ("load_dataset",),
    "errors": ("UserError",),
    "evaluation": ("RobustAccuracy", "evaluate", "make_attacks"),
    "layers": ("CAS", "CIFS", "register_importance"),
    "losses": ("head_weights",),
    "models": ("Classifier", "build_classifier", "defend", "load_model", "resnet", "summary_rows", "wide_resnet"),
    "presets": ("from_preset",),
}
_HOME = {name: part for part, names in _NAMES.items() for name in names}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("cifs_tf.extras").own_version()
    if name not in _HOME:
        raise AttributeError(f"module 'cifs_tf' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cifs_tf.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


# What is imported with `adversarial`: with `layers` and `models` it has the classes of a saved classifier.
_PARTS = ("framework_internals", "distribute", "data", "layers", "models", "losses", "attacks", "adversarial")
_WATCHED = ("tensorflow", "keras", *(f"cifs_tf.{part}" for part in _PARTS))
_imported: set[str] = set()


def _register_classes(module: ModuleType) -> None:
    """Import what registers the classes of a saved classifier, as soon as none of it is half imported.

    TensorFlow imports Keras, and a package here may be what imports them first: the last that is complete comes here
    last.
    """
    _imported.add(module.__name__)
    if "keras" in _imported and all(name in _imported for name in _WATCHED if name in sys.modules):
        importlib.import_module("cifs_tf.adversarial")


for _name in _WATCHED:
    wrapt.register_post_import_hook(_register_classes, _name)
