"""Smallest distances of misclassified points, and robust accuracy over epsilon from them, out of a ledger."""

import math

import numpy as np

from cifs_tf.evaluation.ledger import Ledger
from cifs_tf.evaluation.records import Distances, TaskRecord
from cifs_tf.evaluation.tasks import DISTANCE_UNITS
from cifs_tf.statistics import median_interval

# Points of a curve: one at every twentieth part of the images whose distance is known.
CURVE_POINTS = 21


def smallest_distances(ledger: Ledger, tasks: list[TaskRecord]) -> np.ndarray:
    """Return for every image, in order, the smallest distance that some tasks found; infinite where they found none.

    Args:
        ledger: of a finished evaluation.
        tasks: of the kind `Nearest`.

    Returns:
        float (n,); 0 where the image is wrong without an attack.
    """
    ids = ledger.ids("natural")
    smallest = np.where(np.isin(ids, ledger.fooled("natural")), 0.0, math.inf)
    for task in tasks:
        places = np.searchsorted(ids, ledger.ids(task.name))
        reached = ledger.values(task.name, "reached") > 0
        found = np.where(reached, ledger.values(task.name, "distance") / DISTANCE_UNITS, math.inf)
        smallest[places] = np.minimum(smallest[places], found)
    return smallest


def describe_distances(ledger: Ledger) -> Distances | None:
    """Return distances, their medians and intervals; None without minimal-norm attacks, or an image that is right."""
    tasks = [task for task in ledger.tasks if task.kind == "Nearest"]
    is_right = ~np.isin(ledger.ids("natural"), ledger.fooled("natural"))
    if not tasks or not is_right.any():
        return None

    def median(tasks: list[TaskRecord]) -> list[float | None]:
        return [_finite(value) for value in median_interval(smallest_distances(ledger, tasks)[is_right].tolist())]

    middle, *interval = median(tasks)
    families = dict.fromkeys(task.family for task in tasks)
    return {
        "median": middle,
        "interval": interval,
        "by_attack": {family: median([task for task in tasks if task.family == family])[0] for family in families},
        "smallest": [_finite(value) for value in smallest_distances(ledger, tasks).tolist()],
    }


def distance_curve(distances: Distances) -> list[tuple[float, float]]:
    """Return the points (epsilon, robust accuracy at most) that the smallest distances give, by increasing epsilon."""
    smallest = np.array([math.inf if value is None else value for value in distances["smallest"]])
    known = smallest[(smallest > 0) & np.isfinite(smallest)]
    radii = np.quantile(known, np.linspace(0, 1, CURVE_POINTS), method="inverted_cdf") if len(known) else []
    return [(radius, float(np.mean(smallest > radius))) for radius in [0.0, *np.unique(radii).tolist()]]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
