"""Networks: residual backbones, the classifier that cuts them, and what makes one of any Keras model."""

from cifs_tf.models.build import build_classifier, default_cuts
from cifs_tf.models.classifier import Classifier
from cifs_tf.models.from_keras import defend
from cifs_tf.models.resnets import resnet
from cifs_tf.models.saving import load_model, with_precision
from cifs_tf.models.summary import summary_rows
from cifs_tf.models.wide_resnets import wide_resnet

__all__ = [
    "Classifier",
    "build_classifier",
    "default_cuts",
    "defend",
    "load_model",
    "resnet",
    "summary_rows",
    "wide_resnet",
    "with_precision",
]
