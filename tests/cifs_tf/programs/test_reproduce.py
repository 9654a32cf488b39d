"""The program from the outside: every table and figure in two steps, kills, and refusals."""

from __future__ import annotations

import json
import signal
import time

import pytest

from cifs_tf.reproduction.catalogue import figures, tables
from tests import running


def start(*argv, cwd):
    return running.start(*argv, cwd=cwd, program="reproduce.py")


def run(*argv, cwd):
    return running.run_here(*argv, cwd=cwd, program="reproduce.py")


OF_THE_PAPER = [number for number, table in tables().items() if "full" in table.rows[0].scales]
EVERYTHING = ["--table=all", "--figure=all", "--scale=smoke"]
# In CI a few of each kind.
SOME = ["--table=1,4,B.3", "--figure=3,A.1", "--scale=smoke"]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(SOME, marks=pytest.mark.slow, id="some"),
        pytest.param(EVERYTHING, marks=pytest.mark.soak, id="everything"),
    ],
)
def smoke(tmp_path_factory, request):
    """Tables and figures at the scale `smoke`: the workdir, what was asked for, and what the program printed."""
    folder = tmp_path_factory.mktemp("smoke")
    code, out, err = run(*request.param, cwd=folder)
    assert code == 0, err
    return folder / "runs" / "reproduce-smoke", request.param, out


def result_of(workdir, number):
    return json.loads((workdir / "tables" / f"reproduce_table{number}_smoke.json").read_text())


def test_every_table_is_written_beside_the_papers_numbers(smoke):
    workdir, asked, _ = smoke
    for number in OF_THE_PAPER if asked is EVERYTHING else ("1", "4", "B.3"):
        table = tables()[number]
        result = result_of(workdir, number)
        rows = [row for row in table.rows if "smoke" in row.scales]
        assert [row["name"] for row in result["rows"]] == [row.name for row in rows]
        for row, planned in zip(result["rows"], rows, strict=True):
            assert [cell["paper"] for cell in row["cells"]] == list(planned.paper)
            measured = [cell["ours"] for cell in row["cells"]]
            is_vanilla = "-vanilla-" in row["networks"][0]
            assert None not in (measured if not is_vanilla else measured[:1] + measured[-1:]), (number, row["name"])
    if asked is not EVERYTHING:
        return
    overhead = result_of(workdir, "overhead")["rows"]
    assert [row["cells"][2]["paper"] for row in overhead] == [
        pytest.approx(3.61, abs=0.01),
        pytest.approx(5.66, abs=0.01),
    ]
    assert all(cell["ours"] is not None for row in overhead for cell in row["cells"])


def test_numbers_are_those_of_the_reports(smoke):
    workdir, _, _ = smoke
    report = json.loads((workdir / "evaluations/digits-cifs-seed0/last/paper/report.json").read_text())
    row = {row["name"]: row for row in result_of(workdir, "1")["rows"]}["CIFS"]
    found = report["paper"]["attacks"]
    measured = [report["natural"]["accuracy"], *(found[name]["accuracy"] for name in ("fgsm", "pgd2", "cw2", "pgd2"))]
    assert [cell["ours"] for cell in row["cells"]] == pytest.approx([100 * share for share in measured], abs=1e-3)
    assert result_of(workdir, "1")["renamed"]["PGD-100"] == "PGD-2"


def test_every_figure_is_there(smoke):
    workdir, asked, _ = smoke
    for number in figures() if asked is EVERYTHING else ("3", "A.1"):
        pictures = list((workdir / "figures" / f"figure_{number}").glob("*.png"))
        assert pictures, number
        numbers = json.loads((workdir / "figures" / f"reproduce_figure{number}_smoke.json").read_text())
        assert numbers["figure"] == number
        for network in numbers["networks"].values():
            assert 0 <= network["adversarial_negative_share"] <= 1
            assert "WORKDIR/runs/" in network["command"]


def test_networks_are_shared_between_rows(smoke):
    workdir, _, _ = smoke
    assert {folder.name for folder in (workdir / "runs").iterdir()} == {
        "digits-vanilla-seed0",
        "digits-cas-seed0",
        "digits-cifs-seed0",
    }
    # After one epoch the best is the last: nothing is measured a second time.
    assert not list(workdir.glob("evaluations/*/best"))


def test_again_nothing_is_done_twice_and_tables_are_made_anew(smoke):
    workdir, asked, _ = smoke
    before = {file: file.stat().st_mtime_ns for part in ("runs", "evaluations") for file in (workdir / part).rglob("*")}
    table = workdir / "tables" / "reproduce_tableB.3_smoke.json"
    rows = json.loads(table.read_text())["rows"]
    table.unlink()
    code, out, err = run(*asked, cwd=workdir.parents[1])
    assert code == 0, err
    assert "training/run.py" not in out
    assert "training/evaluate.py" not in out
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert json.loads(table.read_text())["rows"] == rows


@pytest.mark.soak
def test_killed_and_started_again_it_ends_in_the_same_table(smoke, tmp_path):
    """Killed in the middle of the first evaluation, as soon as its ledger has begun."""
    workdir, _, _ = smoke
    ledger = tmp_path / "runs/reproduce-smoke/evaluations/digits-vanilla-seed0/last/paper/ledger.jsonl"
    process = start("--table=4", "--scale=smoke", cwd=tmp_path)
    while not ledger.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "runs/reproduce-smoke/tables").exists()
    code, out, err = run("--table=4", "--scale=smoke", cwd=tmp_path)
    assert code == 0, err
    assert "training/run.py" not in out
    assert result_of(tmp_path / "runs/reproduce-smoke", "4")["rows"] == result_of(workdir, "4")["rows"]


def test_a_dry_run_lists_everything_and_writes_nothing(tmp_path):
    code, out, err = run("--dry-run", "--scale=smoke", cwd=tmp_path)
    assert code == 0, err
    for name in [
        *(f"Table {number}" for number in OF_THE_PAPER),
        *(f"Figure {number}" for number in figures()),
        "Overhead",
    ]:
        assert f"{name}:" in out
    assert "python training/run.py --recipe=training/recipes/digits.yaml" in out
    assert "hours" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--table: received None; say what to reproduce"),
        (["--table=microscope"], "--table: received microscope; give some of 1, 2, 3"),
        (["--table=6"], "--table: received 6; give some of 1, 2, 3"),
        (["--figure=2"], "--figure: received 2; give some of 1, 3, 4, A.1, A.2"),
        (["--table=1", "--seeds=0"], "--seeds: received 0; give a number of 1 or more"),
        (["--table=1", "--scale=tiny"], "--scale: received tiny; give one of full, small, smoke"),
        (["--table=1", "--workdir=/dev/null"], "--workdir: received /dev/null"),
    ],
)
def test_bad_input_is_one_sentence(argv, message, tmp_path):
    code, _, err = run(*argv, cwd=tmp_path)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
