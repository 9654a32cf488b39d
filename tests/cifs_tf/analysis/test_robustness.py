"""Robustness by class, and the verdicts of a ledger, by hand."""

import dataclasses

import numpy as np
import pytest

from cifs_tf.analysis import class_wise_accuracy, read_verdicts
from cifs_tf.errors import UserError
from cifs_tf.evaluation import Ledger
from cifs_tf.evaluation.records import TaskRecord


def make_ledger(finish=True):
    """Four images; PGD-20 at two settings of beta_atk and FGSM at one, on all images."""

    def task(name, family, beta, section="paper"):
        fields = {"on": "all", "pool": "main", "counts": True, "mask_gradient": "exact", "target_rank": 2, "x": None}
        record = TaskRecord("Crafted", name, section=section, family=family, beta=beta, **fields)
        return dataclasses.asdict(record)

    tasks = [task("natural", "", 0, "natural")]
    tasks += [task("pgd20, beta 0", "pgd20", 0), task("pgd20, beta 2", "pgd20", 2), task("fgsm", "fgsm", 0)]
    ledger = Ledger({"key": {}, "shard": "1/1", "about": {"tasks": tasks}})
    ids = np.arange(4)
    ranks = {
        "natural": [0, 0, 0, 3],
        "pgd20, beta 0": [0, 0, 1, 2],
        "pgd20, beta 2": [1, 0, 1, 0],
        "fgsm": [0, 0, 0, 1],
    }
    for name, found in ranks.items():
        values = {"ranks": np.array(found)[:, None]}
        ledger.append(name, ids, values | ({"labels": np.array([0, 0, 1, 1])} if name == "natural" else {}))
    if finish:
        ledger.finish()
    return ledger


def test_class_wise_accuracy_by_hand():
    found = class_wise_accuracy(np.array([True, False, True, True]), np.array([0, 0, 2, 0]), 4)
    np.testing.assert_allclose(found, [2 / 3, np.nan, 1, np.nan])


def test_class_wise_accuracy_refuses_what_does_not_fit():
    with pytest.raises(UserError, match=r"correct: received shape \(1,\)"):
        class_wise_accuracy(np.array([True]), np.array([0, 1]), 2)
    with pytest.raises(UserError, match="labels: received 0 to 2; give classes from 0 to 1"):
        class_wise_accuracy(np.array([True, True]), np.array([0, 2]), 2)


def test_verdicts_are_those_of_the_worst_beta():
    """Both settings leave two of four standing: the first is taken. FGSM leaves three."""
    verdicts = read_verdicts(make_ledger(), "pgd20")
    assert verdicts.beta == 0
    assert verdicts.robust.tolist() == [True, True, False, False]
    assert verdicts.natural.tolist() == [True, True, True, False]
    assert class_wise_accuracy(verdicts.robust, verdicts.labels, 2).tolist() == [1, 0]
    assert read_verdicts(make_ledger(), "fgsm").robust.sum() == 3


def test_verdicts_that_are_not_there_are_refused():
    with pytest.raises(UserError, match="attack: received cw30; the evaluation has pgd20, fgsm"):
        read_verdicts(make_ledger(), "cw30")
    with pytest.raises(UserError, match="ledger: received an evaluation that is not finished"):
        read_verdicts(make_ledger(finish=False), "pgd20")
