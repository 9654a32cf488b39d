"""The page, from no cells to all of them."""

import json

import pytest

from cifs_tf.errors import UserError
from cifs_tf.files import with_check
from cifs_tf.reproduction.verdict.cells import read_cells, write_cell
from cifs_tf.reproduction.verdict.page import render, summarise, write_page
from cifs_tf.reproduction.verdict.study import load_study
from tests.cifs_tf.reproduction.verdict.synthetic import make_cell

STUDY = load_study()
PILOT = {
    "name": "a",
    "command": "python training/run.py --lr_milestones [2]",
    "about": "Too early.",
    "curves": {name: [0.1, 0.3, 0.2] for name in ("robust_accuracy", "val_clean_accuracy", "val_robust_accuracy")},
}


def all_cells(seeds=3, **changes):
    return [
        make_cell(arm, seed, **(changes if arm == "vanilla" else {"last": 0.3, "best": 0.3}))
        for arm in STUDY.arms
        for seed in range(seeds)
    ]


def test_without_cells_the_page_says_so_and_tells_hypotheses_and_pilots():
    text = render(STUDY, [], [PILOT])
    assert "**Not enough cells yet: 0 of 33 are finished; a verdict needs 3 seeds.**" in text
    for hypothesis in STUDY.hypotheses:
        assert hypothesis.claim in text
    for arm in STUDY.arms.values():
        assert arm.title in text
    assert "| 2 | 10.0 | 10.0 | 30.0 |" not in text
    assert "| 2 | 30.0 | 30.0 | 30.0 |" in text
    assert "Hypotheses judged" not in text


def test_some_cells_are_shown_and_not_judged():
    text = render(STUDY, [make_cell("vanilla", 0), make_cell("mean_one", 0, last=0.3)], [])
    assert "2 of 33 cells" in text
    assert "| vanilla | 1 | 50.0 [" in text
    assert "**The gate is passed.**" in text
    assert "| CIFS, mean one | 1 | +20.0 [" in text
    assert "| supported" not in text
    assert text.count("(CIFS, mean one, 1 seed); each network at its best epoch") == 1


def test_checks_of_the_audit_that_failed_are_named():
    cell = make_cell("vanilla", 0)
    cell["checkpoints"]["last"] |= FAILED
    text = render(STUDY, [cell], [])
    assert "| 1: a gradient |" in text
    assert "another" not in text.split("## Hypotheses judged")[0].split("## What was found")[1]


FAILED = {"audit_passed": False, "audit": {"a gradient": "fail", "another": "warn"}}


def test_one_sentence_says_what_was_found_so_far(tmp_path):
    def say(cells):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for cell in cells:
            write_cell(cell, folder / "results" / "verdict" / f"{cell['arm']}-seed{cell['seed']}.json", STUDY)
        return summarise(STUDY, folder)

    vanilla, mean_one, no_label = make_cell("vanilla", 0), make_cell("mean_one", 0, last=0.3), make_cell("no_label", 0)
    assert say([vanilla]) == "No cells of CIFS can be compared yet, 1 of 33 are finished."
    assert say([mean_one]) == "No cells of CIFS can be compared yet, 1 of 33 are finished."
    assert "of one seed the chance in training is not" in say([vanilla, mean_one])
    assert "at the last epoch +20.0 [" in say([vanilla, mean_one])
    assert "no label" not in say([vanilla, mean_one])
    assert "(CIFS, mean one, 1 seed), +0.0 [" in say([vanilla, mean_one, no_label])
    more = [
        make_cell(arm, seed, **last)
        for seed in range(3)
        for arm, last in (("vanilla", {}), ("mean_one", {"last": 0.3}))
    ]
    assert '"At the last epoch CIFS is more robust than vanilla": supported (CIFS, mean one).' in say(more)
    assert "6 of 33" in say(more)
    more[1]["checkpoints"]["last"] |= FAILED
    more.append(make_cell("vanilla", 7))  # in no contrast: seeds are taken from 0 on, without a gap
    more[-1]["checkpoints"]["last"] |= FAILED
    assert "supported (CIFS, mean one; the audit fails for 1 of 6 networks)." in say(more)
    assert "(CIFS, mean one, 3 seeds; audit failed: 1 of 6); each network at its best" in say(more)
    more.pop()
    assert "7 of 44" in say([*more, make_cell("vanilla", 3)])  # the page is a function of the cells
    assert '"CIFS is more robust at the last epoch" is supported (difference in points: +20.0 [' in say(all_cells())
    assert say(all_cells(training=0.5)) == "Vanilla did not overfit far enough, so nothing is concluded about CIFS."


def test_failed_audits_are_told_where_a_claim_is():
    cells = all_cells()
    for cell in cells:
        if cell["arm"] in ("mean_one", "scale_only"):
            cell["checkpoints"]["last"] |= FAILED
    text = render(STUDY, cells, [])
    quoted = [line for line in text.splitlines() if line.startswith("**") and line.endswith("**")]
    assert "points; the audit fails for 3 of 9 networks)" in quoted[0]
    assert quoted[2].count("the audit fails for 3 of 6 networks") == 2  # H3 compares with mean one, H4 scale only


def test_a_finished_study_ends_in_three_sentences():
    text = render(STUDY, all_cells(), [])
    quoted = [line for line in text.splitlines() if line.startswith("**") and line.endswith("**")]
    assert len(quoted) == 3
    assert "at the last epoch is supported" in quoted[0]
    assert "| H4 | A constant mask 1/C does as well as CIFS. |" in text
    assert render(STUDY, all_cells(), []) == text


def test_without_the_regime_nothing_is_judged():
    text = render(STUDY, all_cells(training=0.5), [])
    assert "**Regime not reached.**" in text
    assert "nothing is concluded about CIFS" in text
    assert "in all: **regime not reached**" in text
    assert "| supported" not in text


@pytest.mark.slow
def test_page_and_picture_are_written_from_files(tmp_path):
    cells = tmp_path / "results" / "verdict"
    for cell in all_cells(seeds=1):
        write_cell(cell, cells / f"{cell['arm']}-seed{cell['seed']}.json", STUDY)
    (cells / "pilot-a.json").write_text(json.dumps(with_check(PILOT)))
    written = write_page(STUDY, tmp_path)
    assert [path.name for path in written] == ["verdict.md", "verdict_curves.png", "verdict_channels.png"]
    first = [path.read_bytes() for path in written]
    assert write_page(STUDY, tmp_path) == written
    assert [path.read_bytes() for path in written] == first
    assert [cell["arm"] for cell in read_cells(tmp_path, STUDY)] == list(STUDY.arms)


def of_last(**changes):
    return lambda cell: cell["checkpoints"]["last"].update(changes)


@pytest.mark.parametrize(
    "damage",
    [
        lambda cell: cell.update(seed=1),
        lambda cell: cell.update(arm="vanilla"),
        lambda cell: cell.update(schema=0),
        lambda cell: cell.pop("images"),
        lambda cell: cell.pop("revisions"),
        lambda cell: cell["checkpoints"]["best"].pop("channels"),
        lambda cell: cell["config"].update(importance_scale="mean_one"),
        lambda cell: cell["curves"]["loss"].pop(),
        lambda cell: cell["config"].pop("learning_rate"),
        lambda cell: cell.update(config={"epochs": 60}),
        lambda cell: cell.update(revisions={}),
        lambda cell: cell["curves"].pop("val_robust_accuracy"),
        lambda cell: cell["curves"]["val_robust_accuracy"].__setitem__(0, None),
        lambda cell: cell["labels"].__setitem__(0, 1),  # no class-balanced images
        lambda cell: cell.update(class_names=cell["class_names"][:3]),
        lambda cell: cell["checkpoints"]["best"].update(epoch=5),
        of_last(paper={"fgsm": {"0": "0" * 125, "2": "0" * 125}}, worst_case="0" * 125),
        of_last(paper={}),
        of_last(paper={"fgsm": {}, "pgd20": {}, "cw30": {}}),
        lambda cell: cell["checkpoints"]["last"]["paper"]["cw30"].pop("infinity-2"),
        of_last(worst_case="0" * 125),  # more than what broke first
        of_last(worst_case="-" + "0" * 124),
        of_last(natural="1_" + "0" * 123),
        of_last(audit=None),
        of_last(audit={"the mask hides nothing": "fail"}),
        of_last(audit_passed=False),
        of_last(training={"images": 3, "attack": "pgd10", "natural": 0.9, "robust": 0.8}),
        of_last(training={"images": 1000, "attack": "fgsm", "natural": 0.9, "robust": 0.8}),
        of_last(training={"images": 1000, "attack": "pgd10", "natural": 0.9, "robust": -0.5}),
        of_last(training={"images": 1000, "attack": "pgd10", "natural": None, "robust": 0.8}),
        lambda cell: cell["checkpoints"]["last"]["channels"].update(natural_negative_share=-0.1),
        lambda cell: cell["curves"]["val_robust_accuracy"].__setitem__(1, 7.0),
        lambda cell: cell["curves"]["loss"].__setitem__(0, 10**400),
        lambda cell: cell["checkpoints"]["best"].update(epoch=2 - 60),
        lambda cell: cell.update(code=None),
        lambda cell: cell.update(finished="x | y"),
        of_last(channels={}),
        of_last(audit_passed=None),
        of_last(training={"natural": 0.9, "robust": 7.0}),
        of_last(training={"natural": 0.9, "robust": "much"}),
        of_last(worst_case="f" * 125),
        of_last(worst_case="0" * 20),
        of_last(natural=None),
    ],
)
def test_a_file_that_is_not_the_cell_of_its_name_is_refused(damage, tmp_path):
    file, cell = tmp_path / "results" / "verdict" / "cifs-seed0.json", make_cell("cifs", 0)
    write_cell(cell, file, STUDY)
    assert read_cells(tmp_path, STUDY) == [cell]
    damage(cell)
    file.write_text(json.dumps(with_check(cell)))
    with pytest.raises(UserError, match=r"cifs-seed0; .* delete it, and --study computes it again"):
        read_cells(tmp_path, STUDY)


@pytest.mark.parametrize(
    ("of_file", "to_file"),
    [
        ('"robust": 0.9', '"robust": 0.8'),
        ('"seed": 0', '"seed": 1'),
        ('"check": ', '"checked": '),
        ('{"', '[[{"'),
        ("0", ""),
    ],
)
def test_a_cell_that_was_edited_is_refused(of_file, to_file, tmp_path):
    file = tmp_path / "results" / "verdict" / "cifs-seed0.json"
    write_cell(make_cell("cifs", 0), file, STUDY)
    file.write_text(file.read_text().replace(of_file, to_file))
    with pytest.raises(UserError, match=r"cifs-seed0; .* delete it, and --study computes it again"):
        read_cells(tmp_path, STUDY)


def test_a_cell_of_another_setting_is_not_written(tmp_path):
    cell = make_cell("cifs", 0)
    cell["config"] = {**cell["config"], "epsilon": "4/255"}
    with pytest.raises(UserError, match=r"cifs-seed0; what was measured is not that cell"):
        write_cell(cell, tmp_path / "cifs-seed0.json", STUDY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["vanila-seed1", "vanilla-Seed1", "vanilla-seed01", "notes"])
def test_a_file_that_is_neither_cell_nor_pilot_is_named(name, tmp_path):
    folder = tmp_path / "results" / "verdict"
    folder.mkdir(parents=True)
    (folder / f"{name}.json").write_text("{}")
    with pytest.raises(UserError, match=f"{name}; .* is no cell, such as vanilla-seed0.json"):
        read_cells(tmp_path, STUDY)


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", "{}", json.dumps(PILOT)),
        json.dumps(with_check({"name": "a", "command": "", "about": "", "curves": {}})),
    ],
)
def test_a_pilot_that_is_none_is_named_and_nothing_is_written(content, tmp_path):
    folder = tmp_path / "results" / "verdict"
    folder.mkdir(parents=True)
    (folder / "pilot-a.json").write_text(content)
    with pytest.raises(UserError, match=r"pilot-a; .* is no pilot"):
        write_page(STUDY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_cells_of_other_images_are_refused(tmp_path):
    other = {**make_cell("cifs", 0), "images": "others"}
    with pytest.raises(UserError, match=r"cifs-seed0; its images is not that of vanilla-seed0"):
        write_cell(other, tmp_path / "cifs-seed0.json", STUDY, [make_cell("vanilla", 0)])
    assert not list(tmp_path.iterdir())
