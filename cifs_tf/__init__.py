"""CIFS for TensorFlow and Keras: robust classifiers by channel-wise importance-based feature selection.

The parts, in the order in which data flows: `data`, `layers`, `models`, `losses`, `attacks`, `adversarial` (training),
`evaluation`, `export`. Images are float32 in [0, 1], channels last; a network answers with heads
(batch, 1 + P, classes), the final logits first and then the raw prediction of each of its P selection layers.
"""

import importlib
from typing import Any

# Loaded when first asked for, so that a command line can refuse bad input before TensorFlow is imported.
_HOME = {
    "CAS": "layers",
    "CIFS": "layers",
    "PGD": "attacks",
    "SGD": "adversarial",
    "AdversarialTrainer": "adversarial",
    "Classifier": "models",
    "PGDTraining": "adversarial",
    "RunConfig": "config",
    "Standard": "adversarial",
    "UserError": "errors",
    "build_classifier": "models",
    "defend": "models",
    "evaluate": "evaluation",
    "fgsm": "attacks",
    "head_weights": "losses",
    "load_dataset": "data",
    "make_attacks": "evaluation",
    "register_importance": "layers",
    "resnet": "models",
    "summary_rows": "models",
    "wide_resnet": "models",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("cifs_tf.extras").own_version()
    if name not in _HOME:
        raise AttributeError(f"module 'cifs_tf' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cifs_tf.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
