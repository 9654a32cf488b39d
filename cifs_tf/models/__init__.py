"""Networks: residual backbones, and the classifier that cuts them."""

from cifs_tf.models.build import build_classifier, default_cuts
from cifs_tf.models.classifier import Classifier, with_precision
from cifs_tf.models.resnet import resnet
from cifs_tf.models.wide_resnet import wide_resnet

__all__ = ["Classifier", "build_classifier", "default_cuts", "resnet", "wide_resnet", "with_precision"]
