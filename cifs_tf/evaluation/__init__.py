"""Robust accuracy: suites of attacks, an engine that resumes, an audit for gradient masking, a report."""

from cifs_tf.evaluation.api import evaluate
from cifs_tf.evaluation.ledger import Ledger, merge
from cifs_tf.evaluation.named_attacks import make_attacks
from cifs_tf.evaluation.networks.attacked import AttackedModel, as_attacked
from cifs_tf.evaluation.networks.loading import load_attacked
from cifs_tf.evaluation.reports.pages import write_report
from cifs_tf.evaluation.reports.report import build_report
from cifs_tf.evaluation.robust_accuracy import RobustAccuracy
from cifs_tf.evaluation.suites import make_suite

__all__ = [
    "AttackedModel",
    "Ledger",
    "RobustAccuracy",
    "as_attacked",
    "build_report",
    "evaluate",
    "load_attacked",
    "make_attacks",
    "make_suite",
    "merge",
    "write_report",
]
