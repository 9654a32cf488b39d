"""Smallest distances, from attacks and from ledgers written by hand."""

import math

import numpy as np
import pytest

from cifs_tf.data import Split
from cifs_tf.evaluation import evaluate, make_suite, write_report
from cifs_tf.evaluation.reports.distances import describe_distances, distance_curve
from cifs_tf.statistics import median_interval

SCALES = [("linf", 1), *(pytest.param(*each, marks=pytest.mark.slow) for each in (("l2", 8), ("l1", 64)))]


def test_smallest_over_attacks_by_hand(make_ledger):
    """Image 0: 0.2 and 0.1; image 1: 0.3 and nothing; image 2: nothing at all; image 3 is wrong without an attack."""
    tasks = [{"name": f"{family}, beta 0", "kind": "Nearest", "family": family} for family in ("fmn", "fab_t")]
    none = {"ranks": [[0, 0]] * 3}
    found = {
        "natural": ([0, 1, 2, 3], {"ranks": [[0, 0]] * 3 + [[1, 0]], "labels": [0, 0, 1, 1]}),
        "fmn, beta 0": ([0, 1, 2], {**none, "distance": [200_000, 300_000, 5], "reached": [1, 1, 0]}),
        "fab_t, beta 0": ([0, 1, 2], {**none, "distance": [100_000, 7, 8], "reached": [1, 0, 0]}),
    }
    distances = describe_distances(make_ledger(tasks, found))
    assert distances["smallest"] == [0.1, 0.3, None, 0.0]
    assert distances["by_attack"] == {"fmn": 0.3, "fab_t": None}
    assert (distances["median"], distances["interval"]) == (0.3, [0.1, None])
    assert distance_curve(distances) == [(0.0, 0.75), (0.1, 0.5), (0.3, 0.25)]


def test_no_attack_or_no_image_has_no_distances(make_ledger):
    natural = {"natural": ([0], {"ranks": [[1, 0]], "labels": [0]})}
    assert describe_distances(make_ledger([], natural)) is None
    assert describe_distances(make_ledger([{"name": "fmn", "kind": "Nearest", "family": "fmn"}], natural)) is None


def test_median_interval_covers():
    """P(B <= 2) of 11 fair coins is 3.3%, P(B <= 1) 0.6%: the second and the second largest value cover with 98.8%."""
    assert median_interval(range(11)) == (5.0, 1.0, 9.0)
    assert median_interval([1.0, math.inf]) == (math.inf, 1.0, math.inf)


@pytest.mark.parametrize(("norm", "scale"), SCALES)
def test_a_run_finds_the_distances_of_a_network_by_hand(norm, scale, make_victim, tmp_path):
    """Two classes by the mean of 64 pixels: |mean - 0.5| away in L-infinity, in L2 and L1 8 and 64 times that."""
    levels = np.array([100, 110, 120, 125, 130, 140, 150, 160], np.uint8)
    split = Split(np.tile(levels[:, None, None, None], (1, 8, 8, 1)), (levels > 127).astype(np.int32))
    split.labels[-1] = 0
    epsilon = 0.05 * scale
    two_heads = make_victim().heads_fns["full"]
    victim = make_victim(lambda images: two_heads(images)[:, :1], num_probes=0)
    tasks = make_suite("minimal", victim, epsilon, norm=norm, audit=False)
    report = evaluate(victim, split, tasks, epsilon=epsilon, norm=norm)
    expected = np.abs(levels / 255 - 0.5) * scale
    expected[-1] = 0
    np.testing.assert_allclose(report["distances"]["smallest"], expected, rtol=0.01, atol=2e-6)
    assert report["worst_case"]["count"] == int(np.sum(expected > epsilon))
    radii, shares = zip(*report["curves"]["distances"], strict=True)
    assert radii[0] == 0
    assert shares == tuple(np.mean(np.array(report["distances"]["smallest"]) > radius) for radius in radii)
    pages = [path.read_text() for path in write_report(report, tmp_path)[1:]]
    assert all("lies" in page and "Smallest distances" in page for page in pages)
    assert "Robust accuracy against epsilon, at most" in pages[1]
