"""Class-wise robust accuracy (Figure A.1), from predictions or from the ledger of an evaluation."""

import dataclasses

import numpy as np

from cifs_tf.errors import UserError
from cifs_tf.evaluation import Ledger


@dataclasses.dataclass(frozen=True, eq=False)
class Verdicts:
    """Results of an attack: for each image, whether the final prediction is correct.

    Args:
        labels: int (examples,).
        natural: bool (examples,), without an attack.
        robust: bool (examples,), under the attack.
        beta: the attacker's beta_atk.
    """

    labels: np.ndarray
    natural: np.ndarray
    robust: np.ndarray
    beta: float | str


def class_wise_accuracy(correct: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Compute the accuracy of each class.

    Args:
        correct: bool (examples,); of numbers, the mean of each class is returned.
        labels: int (examples,), 0 to num_classes - 1.
        num_classes: K, >= 1.

    Returns:
        float (classes,) in [0, 1]; NaN for a class without images.

    Raises:
        UserError: if the lengths differ, or a label is no class.

    Example:
        >>> class_wise_accuracy(np.array([True, False, True]), np.array([0, 0, 1]), 3)
        array([0.5, 1. , nan])
    """
    correct, labels = np.asarray(correct, float), np.asarray(labels)
    if correct.shape != labels.shape or labels.ndim != 1:
        raise UserError("correct", f"shape {correct.shape}", f"give one for each label, {labels.shape}")
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        advice = f"give classes from 0 to {num_classes - 1}"
        raise UserError("labels", f"{labels.min()} to {labels.max()}", advice)
    counts = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels, weights=correct, minlength=num_classes)
    return np.divide(right, counts, out=np.full(num_classes, np.nan), where=counts > 0)


def read_verdicts(ledger: Ledger, attack: str) -> Verdicts:
    """Read the results of one of the paper's attacks at its worst beta_atk, the first of several (Section 4.1).

    Args:
        ledger: of the suite `paper` or `strict`, finished.
        attack: name, such as `"pgd20"`.

    Returns:
        the results, in the order of the images' ids.

    Raises:
        UserError: if the evaluation is not finished, or the attack is not part of it.

    Example:
        >>> verdicts = read_verdicts(ledger, "pgd20")  # ledger.jsonl of an evaluation, by Ledger.read
        >>> class_wise_accuracy(verdicts.robust, verdicts.labels, 10)
    """
    paper = [task for task in ledger.tasks if task.section == "paper"]
    tasks = [task for task in paper if task.family == attack]
    if not tasks:
        known = ", ".join(dict.fromkeys(task.family for task in paper)) or "none of the paper's"
        raise UserError("attack", attack, f"the evaluation has {known}")
    if not ledger.finished:
        raise UserError("ledger", "an evaluation that is not finished", "run its command again first")
    ids = ledger.ids("natural")
    robust = {task.name: ~np.isin(ids, ledger.fooled(task.name)) for task in tasks}
    worst = min(tasks, key=lambda task: robust[task.name].mean())
    return Verdicts(
        labels=ledger.values("natural", "labels"),
        natural=~np.isin(ids, ledger.fooled("natural")),
        robust=robust[worst.name],
        beta=worst.beta,
    )
