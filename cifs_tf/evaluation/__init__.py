"""Measuring what a defense is worth: suites of attacks, an engine that can be interrupted, an audit, a report."""

from cifs_tf.evaluation.evaluate import evaluate
from cifs_tf.evaluation.ledger import Ledger, merge
from cifs_tf.evaluation.pages import write_report
from cifs_tf.evaluation.report import build_report
from cifs_tf.evaluation.suites import make_attacks, make_suite
from cifs_tf.evaluation.victim import Victim, load_victim, victim_of

__all__ = [
    "Ledger",
    "Victim",
    "build_report",
    "evaluate",
    "load_victim",
    "make_attacks",
    "make_suite",
    "merge",
    "victim_of",
    "write_report",
]
