"""From reports to numbers and intervals, and from there to Markdown and HTML."""

from __future__ import annotations

import json

import pytest

from cifs_tf.files import write_results
from cifs_tf.reproduction.catalogue import tables
from cifs_tf.reproduction.plan import Evaluation, jobs_of, plan_table
from cifs_tf.reproduction.render import cell_text, result_table, write_result
from cifs_tf.reproduction.results import about, build_result, read_place
from cifs_tf.reproduction.scales import SCALES

SMOKE = SCALES["smoke"]
REPORT = {
    "num_examples": 100,
    "about": {"revision": "abc"},
    "wall_clock": {"seconds": 1.0},
    "natural": {"accuracy": 0.9, "count": 90},
    "worst_case": {"accuracy": 0.4, "count": 40},
    "paper": {"attacks": {"pgd2": {"accuracy": 0.5, "beta": "infinity-1", "by_beta": {"0": 0.6, "infinity-1": 0.5}}}},
    "matrix": {"CIFS/CIFS": 0.45},
}


def test_places_of_a_report():
    assert read_place(REPORT, "natural") == (0.9, None)
    assert read_place(REPORT, "paper:attacks:pgd2") == (0.5, "infinity-1")
    assert read_place(REPORT, "paper:attacks:pgd2:by_beta:0") == (0.6, None)
    assert read_place(REPORT, "matrix:CIFS/CIFS") == (0.45, None)
    assert read_place({**REPORT, "matrix": None}, "matrix:CIFS/CIFS") is None


@pytest.fixture
def workdir(tmp_path):
    """What the runs and evaluations of Table 5 leave, as far as a table reads it; seed 1 is 10 points better."""
    for job in jobs_of(plan_table(tables()["5"], SMOKE, 2)):
        if isinstance(job, Evaluation):
            gain = 0.1 * job.training["seed"]
            vanilla = job.training["defense"] == "vanilla"
            matrix = {"Adap/Final": 0.4} | ({} if vanilla else {"CIFS/CIFS": 0.45 + gain, "CIFS/Final": 0.5 + gain})
            write_results(tmp_path / job.report_file, {**REPORT, "matrix": matrix})
        else:
            result = dict.fromkeys(("started", "finished", "revision", "machine", "versions"), "x")
            write_results(
                tmp_path / job.folder / "result.json", {**result, "networks": {job["defense"]: {"parameters": 7}}}
            )
    return tmp_path


def build(workdir, seeds):
    rows = plan_table(tables()["5"], SMOKE, seeds)
    return build_result(tables()["5"], rows, SMOKE, seeds, workdir, "python training/reproduce.py --table 5")


def test_one_seed_has_intervals_over_images(workdir):
    """Of 100 images 45 stand: Wilson gives 35.6 to 54.8; the paper's top-1 network has 47.24."""
    row = {row["name"]: row for row in build(workdir, 1)["rows"]}["top-1"]
    cell = dict(zip(tables()["5"].columns, row["cells"], strict=True))["CIFS/CIFS"]
    assert cell["ours"] == 45
    assert cell["interval"] == pytest.approx([35.6, 54.8], abs=0.1)
    assert cell["paper"] == 47.24
    assert cell["difference"] == pytest.approx(-2.24)


def test_several_seeds_have_their_mean(workdir):
    result = build(workdir, 2)
    cell = result["rows"][1]["cells"][1]
    assert cell["by_seed"] == pytest.approx([45, 55])
    assert cell["ours"] == pytest.approx(50)
    assert "2 seeds" in result["interval"]


def test_a_table_says_what_stands_for_autoattack():
    """At the paper's own scale nothing stands for it."""
    assert "APGD-T stand here for AutoAttack" in about(tables()["B.1"], SMOKE)
    assert "AutoAttack" not in about(tables()["B.1"], SCALES["full"])
    assert about(tables()["1"], SMOKE) == SMOKE.about


def test_what_a_network_does_not_have_stays_empty(workdir):
    """A vanilla network has no raw predictions to attack."""
    cells = build(workdir, 1)["rows"][0]["cells"]
    assert [cell["ours"] for cell in cells] == [90, None, None, 40]
    assert cell_text(cells[1], "ours") == cell_text(cells[1], "paper") == "-"


def test_files(workdir, tmp_path):
    """Everything is in each of them, and nothing of this machine."""
    result = build(workdir, 1)
    files = write_result(result, tmp_path / "tables")
    assert json.loads(files[0].read_text()) == result
    assert result_table(result).markdown() in files[1].read_text()
    assert "| top-1 | ours | 90.0 [82.6, 94.5] | 45.0 [35.6, 54.8] |" in files[1].read_text()
    assert "| | paper | 87.63 | 47.24 | 47.24 | 47.24 |" in files[1].read_text()
    assert "+2.4" in result_table(result, ["difference"]).markdown()
    page = files[2].read_text()
    assert "87.63" in page
    assert "src=" not in page
    assert "href=" not in page
    for file in files:
        assert str(tmp_path) not in file.read_text()
