"""The files of an evaluation keep their format: an evaluation recorded at revision a34acf5 is read and described alike.

`golden/` holds the ledger and the report of the suite `quick`, with a surrogate, on 16 images of a model by hand.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.data import Split
from cifs_tf.evaluation import AttackedModel, Ledger, build_report, make_suite, merge
from cifs_tf.evaluation.engine import header_of

GOLDEN = Path(__file__).parent / "golden"
# What differs between revisions and machines.
FREE = ("key", "wall_clock")


@pytest.fixture(scope="module")
def recorded():
    return json.loads((GOLDEN / "report.json").read_text())


def heads_fn(images):
    """Five classes by the mean pixel, for two equal heads."""
    mean = tf.reduce_mean(images, axis=[1, 2, 3])[:, None]
    logits = -10.0 * tf.abs(mean - tf.constant([[0.1, 0.3, 0.5, 0.7, 0.9]]))
    return tf.stack([logits, 0.5 * logits], axis=1)


def model(name, fingerprint):
    return AttackedModel(name, {"detached": heads_fn, "full": heads_fn}, 1, 5, (4, 4, 1), fingerprint, (2,))


def test_a_recorded_ledger_gives_the_recorded_report(recorded):
    """Every number, name and place; intervals to 1e-12, since SciPy orders the terms of Wilson's formula otherwise."""
    report = json.loads(json.dumps(build_report(Ledger.read(GOLDEN / "ledger.jsonl"))))
    assert list(report) == list(recorded)
    for found, expected in zip(every_interval(report), every_interval(recorded), strict=True):
        assert found == pytest.approx(expected, abs=1e-12)
    for check in (*report["audit"], *recorded["audit"]):
        del check["sentence"]
    assert text_of(report) == text_of(recorded)


def every_interval(report):
    """Take the intervals out of a report, in order."""
    parts = [report["natural"], report["worst_case"], *report["paper"]["attacks"].values(), *report["per_class"]]
    return [part.pop("interval") for part in parts]


def text_of(report):
    return json.dumps({name: value for name, value in report.items() if name not in FREE})


def test_the_same_tasks_have_the_same_header(recorded):
    """`config` is a hash of every field of every task; sanity checks were added behind these since."""
    tasks = make_suite("quick", model("by hand", "f"), 0.06, surrogate=model("surrogate", "g"))
    tasks = [task for task in tasks if task.section != "sanity"]
    split = Split(np.zeros((16, 4, 4, 1), np.uint8), np.zeros(16, np.int32))
    about = {"suite": "quick", "epsilon": 0.06, "dataset": "by hand", "subset_of": 100}
    header = header_of(model("by hand", "f"), split, tasks, seed=0, about=about)
    before = Ledger.read(GOLDEN / "ledger.jsonl").header
    assert json.dumps(header["about"]) == json.dumps(before["about"])
    assert header["key"]["config"] == before["key"]["config"]
    assert list(header["key"]) == list(before["key"])


def test_a_ledger_is_written_byte_by_byte_as_before(tmp_path):
    """But for the seconds, which a merged ledger does not keep, and a checksum behind each line; batches are in the
    order of the tasks."""
    merge([GOLDEN / "ledger.jsonl"], tmp_path / "ledger.jsonl")
    expected = [json.loads(line) for line in (GOLDEN / "ledger.jsonl").read_text().splitlines()]
    for line in expected[1:]:
        line["seconds"] = 0.0
    text = "".join(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n" for line in expected)
    written = (tmp_path / "ledger.jsonl").read_text()
    assert re.sub(r',"check":"[0-9a-f]{8}"}$', "}", written, flags=re.MULTILINE) == text
