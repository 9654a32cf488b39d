"""Accuracy under corruptions, by hand and in a run."""

import numpy as np
import pytest

from cifs_tf.data import Split
from cifs_tf.data.corruptions import CORRUPTIONS
from cifs_tf.evaluation import evaluate, make_suite, write_report
from cifs_tf.evaluation.corrupted import describe_corruptions
from cifs_tf.statistics import mean_interval


def test_mean_corruption_error_by_hand(make_ledger):
    """Two kinds, two severities, two images: image 0 is wrong in one case of four, image 1 in three."""
    kinds = {"fog": ([0, 0], [0, 1]), "snow": ([0, 2], [1, 1])}
    tasks, found = [], {"natural": ([0, 1], {"ranks": [[0, 0], [0, 0]], "labels": [0, 1]})}
    for kind, ranks in kinds.items():
        for severity, each in enumerate(ranks, start=1):
            name = f"{kind}, {severity}"
            tasks.append({"name": name, "kind": "Corrupted", "family": kind, "x": severity, "counts": False})
            found[name] = ([0, 1], {"ranks": [[rank, 0] for rank in each]})
    report = describe_corruptions(make_ledger(tasks, found), is_subset=True)
    assert report["kinds"] == {"fog": [1.0, 0.5], "snow": [0.5, 0.0]}
    assert report["mce"] == 0.5
    assert report["interval"] == list(mean_interval([0.25, 0.75]))
    assert describe_corruptions(make_ledger([], found), is_subset=True) is None


@pytest.mark.slow
def test_a_run_of_all_fifteen(make_victim, split, tmp_path):
    """Two classes by brightness: brighter images are taken for bright ones. Batches do not matter."""
    heads = make_victim().heads_fns["full"]
    victim = make_victim(lambda images: heads(images)[:, :1], num_probes=0, has_gradient=False)
    split = Split(split.images[:6], split.labels[:6])
    tasks = make_suite("corruptions", victim, 0.1, audit=False)
    reports = [evaluate(victim, split, tasks, batch_size=size) for size in (6, 4)]
    found = reports[0]["corruptions"]
    assert found == reports[1]["corruptions"]
    assert list(found["kinds"]) == list(CORRUPTIONS)
    assert all(len(shares) == 5 for shares in found["kinds"].values())
    bright = np.mean(split.labels == 1)
    assert found["kinds"]["brightness"][-1] == pytest.approx(bright)
    assert reports[0]["worst_case"] == reports[0]["natural"]
    reports[0]["about"]["suite"] = "corruptions"
    for page in write_report(reports[0], tmp_path)[1:]:
        text = page.read_text()
        assert "no attack" in text
        assert f"{100 * found['mce']:.2f}" in text
        assert all(kind in text for kind in CORRUPTIONS)
