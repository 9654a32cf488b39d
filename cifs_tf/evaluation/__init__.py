"""Measuring what a defense is worth."""

from cifs_tf.evaluation.engine import Report, evaluate
from cifs_tf.evaluation.suites import make_attacks

__all__ = ["Report", "evaluate", "make_attacks"]
