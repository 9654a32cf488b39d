"""Reports: every number from ledgers written by hand, and the files made of them."""

import json
import re

import numpy as np
import pytest

from cifs_tf.evaluation import build_report, write_report
from cifs_tf.evaluation.reports.pages import FILES
from cifs_tf.files import read_results


@pytest.fixture
def ledger(make_ledger):
    """Five images of three classes, two heads; image 4 is wrong without an attack.

    ranks [final, raw]:   natural   pgd20 beta 0   pgd20 beta infinity   apgd (on those standing)
        image 0, class 0   0 0         0 0             0 1                  0 0   stands
        image 1, class 0   0 0         1 0             0 0                        broken by pgd20, beta 0
        image 2, class 1   0 1         0 2             2 2                        broken by pgd20, beta infinity
        image 3, class 1   0 0         0 0             0 0                  1 0   broken by apgd
        image 4, class 2   1 0         0 0             1 1                        natural
    """
    pgd = {"section": "paper", "on": "all", "family": "pgd20"}
    tasks = [
        {"name": "pgd20, 0", "beta": 0, **pgd},
        {"name": "pgd20, infinity", "beta": "infinity", **pgd},
        {"name": "apgd", "family": "apgd_ce"},
    ]
    everyone = [0, 1, 2, 3, 4]
    found = {
        "natural": (everyone, {"ranks": [[0, 0], [0, 0], [0, 1], [0, 0], [1, 0]], "labels": [0, 0, 1, 1, 2]}),
        "pgd20, 0": (everyone, {"ranks": [[0, 0], [1, 0], [0, 2], [0, 0], [0, 0]]}),
        "pgd20, infinity": (everyone, {"ranks": [[0, 1], [0, 0], [2, 2], [0, 0], [1, 1]]}),
        "apgd": ([0, 3], {"ranks": [[0, 0], [1, 0]]}),
    }
    return make_ledger(tasks, found)


def test_both_conventions_by_hand(ledger):
    """Paper: pgd20 leaves 4/5 right at beta 0 (the repaired image 4 counts), 3/5 at infinity. Worst case: image 0."""
    report = build_report(ledger)
    assert report["natural"]["accuracy"] == 4 / 5
    assert report["paper"]["attacks"]["pgd20"]["by_beta"] == {"0": 0.8, "infinity": 0.6}
    assert (report["paper"]["robust_accuracy"], report["paper"]["attack"], report["paper"]["beta"]) == (
        0.6,
        "pgd20",
        "infinity",
    )
    assert report["worst_case"]["accuracy"] == 1 / 5
    assert report["gap"] == pytest.approx(0.4)
    assert report["broken_by"] == [None, "pgd20, 0", "pgd20, infinity", "apgd", "natural"]
    assert report["believable"] is None


def test_rows_by_hand(ledger):
    rows = {row["attack"]: row for row in build_report(ledger)["attacks"]}
    assert (rows["pgd20"]["runs"], rows["pgd20"]["broke_first"], rows["pgd20"]["standing"]) == (2, 2, 2)
    assert (rows["apgd_ce"]["runs"], rows["apgd_ce"]["broke_first"], rows["apgd_ce"]["standing"]) == (1, 1, 1)


def test_tables_4_and_5_and_classes_by_hand(ledger):
    """Table 4 at the worst beta (infinity): ranks 0, 0, 2, 0, 1."""
    report = build_report(ledger)
    assert report["top_k"]["natural"] == {"top-1": 0.8, "top-2": 1.0, "top-3": 1.0}
    assert report["top_k"]["pgd20"] == {"top-1": 0.6, "top-2": 0.8, "top-3": 1.0}
    matrix = report["matrix"]
    assert matrix["rows"] == {"0": [0.8, 0.8], "infinity": [0.6, 0.4]}
    assert (matrix["CIFS/CIFS"], matrix["CIFS/Final"], matrix["Adap/Final"]) == (0.4, 0.6, 0.6)
    classes = {row["class"]: (row["num_examples"], row["natural"], row["worst_case"]) for row in report["per_class"]}
    assert classes == {"0": (2, 1.0, 0.5), "1": (2, 1.0, 0.0), "2": (1, 0.0, 0.0)}


def test_intervals_are_given_for_subsets(ledger):
    assert build_report(ledger)["worst_case"]["interval"] is None
    ledger.header["about"]["subset_of"] = 10_000
    low, high = build_report(ledger)["worst_case"]["interval"]
    assert low < 1 / 5 < high


def test_files_hold_the_numbers_and_need_nothing_beside_them(ledger, tmp_path):
    ledger.header["about"] |= {"network": "<b>net</b>", "limits": ["Something <was> missing."]}
    report = build_report(ledger)
    rng = np.random.default_rng(0)
    image, noise = rng.random((8, 8, 1)), rng.normal(0, 0.01, (8, 8, 1))
    examples = [{"title": "image 1, cat taken for dog", "image": image, "x_adv": image + noise}]
    paths = write_report(report, tmp_path / "out", examples)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    assert read_results(paths[0]) == json.loads(json.dumps(report))
    markdown, html = paths[1].read_text(), paths[2].read_text()
    for text in (markdown, html):
        for words in ("20.00", "60.00", "40.00", "pgd20", "apgd_ce", "infinity"):
            assert words in text
    assert "&lt;b&gt;net" in html
    assert "Something &lt;was&gt; missing." in html
    assert "cat taken for dog" in html
    assert html.count("<svg") >= 3
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*https?:", html)
    assert not re.findall(r"(?:src|href)=[\"']https?:", html)


def test_a_table_in_markdown_has_as_many_cells_in_every_row(ledger, tmp_path):
    lines = write_report(build_report(ledger), tmp_path)[1].read_text().splitlines()
    for block in "\n".join(lines).split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1, rows
