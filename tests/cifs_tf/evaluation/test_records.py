"""What the files of an evaluation tell of it."""

import pytest

from cifs_tf.evaluation.records import is_through_usual_gradients

ALL = ["detached", "full", "smoothed"]


@pytest.mark.parametrize(
    ("suite", "tasks", "usual"),
    [
        ("paper", {"paper": ["detached"], "sanity": ["exact"]}, True),
        ("paper", {"paper": ["full"]}, False),
        ("standard", {"autoattack": ["detached"]}, True),
        ("standard", {"autoattack": ["smoothed"]}, False),
        ("strict", {"paper": ["detached"], "adaptive": ALL, "autoattack": ALL}, True),
        ("strict", {"paper": ["detached"], "adaptive": ["detached"], "autoattack": ["detached"]}, False),
        ("adaptive", {"paper": ["full"], "adaptive": ALL}, False),
        ("adaptive", {"paper": ["detached"]}, False),
    ],
)
def test_gradients_that_were_attacked_are_those_of_the_suite(suite, tasks, usual):
    """`about` says which gradients the network has, not which were attacked."""
    report = {
        "about": {"suite": suite, "mask_gradients": ALL},
        "tasks": [{"section": name, "mask_gradient": each} for name, used in tasks.items() for each in used],
    }
    assert is_through_usual_gradients(report) is usual
