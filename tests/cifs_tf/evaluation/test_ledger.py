"""The ledger: nothing lost, nothing mixed."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from cifs_tf.errors import UserError
from cifs_tf.evaluation.cards.card import Card
from cifs_tf.evaluation.ledger import Ledger, merge
from cifs_tf.evaluation.lines import check_same, encode


def fill(path, header, tasks=("natural", "a"), ids=(0, 1, 2), finish=True):
    with Ledger.open(path, header) as ledger:
        for task in tasks:
            ledger.append(task, np.array(ids), {"ranks": np.array([[0, 1]] * len(ids))}, seconds=0.5)
        if finish:
            ledger.finish()


def test_what_was_written_is_read(tmp_path, make_header):
    path = tmp_path / "new" / "ledger.jsonl"
    with Ledger.open(path, make_header()) as ledger:
        ledger.append("a", np.array([3, 5]), {"ranks": np.array([[0, 2], [1, 0]])}, seconds=1.0)
        ledger.append("a", np.array([0, 4]), {"ranks": np.array([[3, 0], [0, 0]])})
        ledger.append("b", np.array([], int), {"ranks": np.zeros((0, 2))})
    read = Ledger.read(path)
    assert read.ids("a").tolist() == [0, 3, 4, 5]
    assert read.values("a", "ranks").tolist() == [[3, 0], [0, 2], [0, 0], [1, 0]]
    assert read.fooled("a").tolist() == [0, 5]
    assert read.ids("b").tolist() == []
    assert read.fooled("c").tolist() == []
    assert read.seconds == 1.0
    assert not read.finished


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_torn_last_line_is_cut_off(cut, tmp_path, make_header):
    path = tmp_path / "ledger.jsonl"
    fill(path, make_header(), finish=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Ledger.open(path, make_header()) as ledger:
        assert ledger.ids("natural").tolist() == [0, 1, 2]
        assert ledger.ids("a").tolist() == []
        ledger.append("a", np.array([0, 1, 2]), {"ranks": np.array([[0, 1]] * 3)}, seconds=0.5)
    assert path.read_bytes() == whole


def test_a_line_of_rubbish_at_the_end_is_cut_off(tmp_path, make_header):
    """A crash of the machine may leave a line of zeros."""
    path = tmp_path / "ledger.jsonl"
    fill(path, make_header(), finish=False)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 40 + b"\n")
    with Ledger.open(path, make_header()):
        pass
    assert path.read_bytes() == whole


def test_a_torn_header_begins_anew(tmp_path, make_header):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"schema":1,"ke')
    fill(path, make_header())
    assert Ledger.read(path).finished


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda lines: [lines[0], "rubbish\n", *lines[2:]], "line 2 is damaged"),
        (lambda lines: [lines[0], "[1]\n", *lines[2:]], "line 2 is damaged"),
        (lambda lines: [*lines[:2], lines[2].replace("[0,1]", "[1,1]", 1), lines[3]], "line 3 was edited"),
        (lambda lines: [*lines[:3], lines[2], lines[3]], "line 3 has the images of line 4, line 4 has the images of"),
        (lambda lines: [*lines[:2], lines[3]], "lines of a are lost (images 0, 1, 2)"),
        (lambda lines: [lines[0], *lines[2:]], "lines of natural are lost (images 0, 1, 2)"),
        (lambda lines: [*lines[:2], lines[2][: lines[2].index(',"check"')] + "}\n", lines[3]], "has no checksum"),
    ],
    ids=["rubbish", "no object", "edited", "doubled", "lost", "natural lost", "check removed"],
)
def test_a_line_that_cannot_be_believed_is_named_and_measured_again(fault, words, tmp_path, make_header, capsys):
    path, header = tmp_path / "ledger.jsonl", make_header([{"name": "a"}], num_examples=3)
    fill(path, header)
    whole = path.read_text()
    path.write_text("".join(fault(whole.splitlines(keepends=True))))
    if "lost" not in words:
        with pytest.raises(UserError, match=r"ledger: received .*it is damaged \(line"):
            Ledger.read(path)
    with Ledger.open(path, header) as ledger:
        assert words in capsys.readouterr().out
        for task in ledger.tasks:
            missing = np.setdiff1d(ledger.ids_to_measure(task.name), ledger.ids(task.name))
            if len(missing):
                ledger.append(task.name, missing, {"ranks": np.array([[0, 1]] * len(missing))}, seconds=0.5)
        ledger.finish()
        ledger.check_complete()
    assert sorted(set(path.read_text().splitlines())) == sorted(whole.splitlines())
    assert Ledger.read(path).finished


@pytest.mark.parametrize(
    ("ids", "values", "words"),
    [
        ([0, 9], [[0, 1]] * 2, "not of this part"),
        ([0, 0], [[0, 1]] * 2, "or twice"),
        ([0, 1], [[0, 1]], "for other images"),
        ([0, 1], [[0, 4]] * 2, "ranks out of range"),
        ([0, 1], [[-1, 0]] * 2, "ranks out of range"),
        ([0.5, 1], [[0, 1]] * 2, "is damaged"),
    ],
)
def test_numbers_that_cannot_be_are_refused(ids, values, words, tmp_path, make_header):
    """Even with a checksum that is right: three images, three classes."""
    path = tmp_path / "ledger.jsonl"
    fill(path, make_header(num_examples=3), tasks=(), finish=False)
    line = {"task": "natural", "ids": ids, "values": {"ranks": values}, "seconds": 0.5}
    with path.open("a") as file:
        file.write(encode(line) + "\n")
    with pytest.raises(UserError, match=f"line 2 has .*{words}|line 2 {words}"):
        Ledger.read(path)


def test_a_damaged_header_is_refused(tmp_path, make_header):
    path = tmp_path / "ledger.jsonl"
    fill(path, make_header())
    path.write_text(path.read_text().replace('"epsilon":0.1', '"epsilon":0.2'))
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"damaged \(line 1\), move it away"), Ledger.open(path, make_header()):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["my precious notes", "one line\nand another"])
def test_a_file_of_something_else_is_left_as_it_is(content, tmp_path, make_header):
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(UserError, match="it is no ledger"), Ledger.open(path, make_header()):
        pass
    with pytest.raises(UserError, match="it is no card"), Card.open(path, make_header()):
        pass
    assert path.read_text() == content


@pytest.mark.parametrize("name", [".", "file/ledger.jsonl"])
def test_a_place_that_cannot_be_written_to_is_refused(name, tmp_path, make_header):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="it cannot be written to"),
        Ledger.open(tmp_path / name, make_header()),
    ):
        pass


def test_a_ledger_that_was_removed_ends_the_evaluation(tmp_path, make_header):
    path = tmp_path / "ledger.jsonl"
    with Ledger.open(path, make_header()) as ledger:
        path.unlink()
        with pytest.raises(UserError, match="it was removed while"):
            ledger.append("natural", np.array([0]), {"ranks": np.array([[0, 1]])})


@pytest.mark.parametrize("key", ["weights", "data", "config", "code"])
def test_a_ledger_of_something_else_is_refused(key, tmp_path, make_header):
    path = tmp_path / "ledger.jsonl"
    fill(path, make_header(config="c", code="1"))
    other = make_header(**{"config": "c", "code": "1", key: "other"})
    with pytest.raises(UserError, match=f"belongs to another evaluation.*{key}"), Ledger.open(path, other):
        pass


def _hold(path, header, held, release):
    with Ledger.open(path, header):
        held.set()
        release.wait(30)


def test_two_processes_do_not_share_a_ledger(tmp_path, make_header):
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "l.jsonl", make_header(), held, release))
    process.start()
    assert held.wait(30)
    with pytest.raises(UserError, match="another process"), Ledger.open(tmp_path / "l.jsonl", make_header()):
        pass
    release.set()
    process.join(30)
    assert process.exitcode == 0


@pytest.fixture
def shards(tmp_path, make_header):
    paths = [tmp_path / f"{part}.jsonl" for part in (1, 2, 3)]
    for part, path in enumerate(paths, start=1):
        fill(path, make_header(shard=f"{part}/3"), ids=[part - 1, part + 2])
    return paths


def test_shards_are_joined(shards, tmp_path):
    merged = merge(shards[::-1], tmp_path / "out" / "ledger.jsonl")
    assert merged.header["shard"] == "1/1"
    for ledger in (merged, Ledger.read(tmp_path / "out" / "ledger.jsonl")):
        assert ledger.ids("a").tolist() == [0, 1, 2, 3, 4, 5]
        assert ledger.finished


@pytest.mark.parametrize(
    ("chosen", "words"), [((0, 1), "shard 3/3 is missing"), ((0, 1, 1), "3/3 is missing"), ((0, 0, 1, 2), "twice")]
)
def test_gaps_and_overlaps_are_refused(chosen, words, shards, tmp_path):
    with pytest.raises(UserError, match=words):
        merge([shards[i] for i in chosen], tmp_path / "ledger.jsonl")
    assert not (tmp_path / "ledger.jsonl").exists()


def test_images_in_two_ledgers_or_in_none_are_refused(tmp_path, make_header):
    """By their ids, whatever the headers say."""
    paths = [tmp_path / f"{part}.jsonl" for part in (1, 2)]
    for part, ids in ((1, [0, 2]), (2, [1, 2])):
        fill(paths[part - 1], make_header(shard=f"{part}/2"), ids=ids)
    with pytest.raises(UserError, match="image 2 are in two of them"):
        merge(paths, tmp_path / "ledger.jsonl")
    paths[1].unlink()
    fill(paths[1], make_header(shard="2/2"), ids=[3])
    with pytest.raises(UserError, match="image 1 are in none of them"):
        merge(paths, tmp_path / "ledger.jsonl")
    for part, ids in ((1, [0, 2]), (2, [1])):
        paths[part - 1].unlink()
        fill(paths[part - 1], make_header([{"name": "a"}], shard=f"{part}/2", num_examples=4), ids=ids)
    with pytest.raises(UserError, match=r"2\.jsonl; natural has not measured what it had to \(image 3\)"):
        merge(paths, tmp_path / "ledger.jsonl")
    assert not (tmp_path / "ledger.jsonl").exists()


def test_copies_unfinished_and_foreign_shards_are_refused(shards, tmp_path, make_header):
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(shards[1].read_bytes())
    with pytest.raises(UserError, match=r"overlaps with .*both are shard 2/3"):
        merge([*shards, copy], tmp_path / "ledger.jsonl")
    open_end = tmp_path / "open.jsonl"
    fill(open_end, make_header(shard="2/3"), finish=False)
    with pytest.raises(UserError, match="shard 2/3 is not finished"):
        merge([shards[0], open_end, shards[2]], tmp_path / "ledger.jsonl")
    foreign = tmp_path / "foreign.jsonl"
    fill(foreign, make_header(shard="2/3", weights="other"))
    with pytest.raises(UserError, match="weights other there"):
        merge([shards[0], foreign, shards[2]], tmp_path / "ledger.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        merge([tmp_path / "none.jsonl"], tmp_path / "ledger.jsonl")


def test_other_divisions_of_the_images_are_refused(shards, tmp_path, make_header):
    half = tmp_path / "half.jsonl"
    fill(half, make_header(shard="1/2"))
    with pytest.raises(UserError, match="shard 1/2 divides the images in another way"):
        merge([*shards, half], tmp_path / "ledger.jsonl")


def test_merging_does_not_overwrite_what_is_not_finished(shards, tmp_path, make_header):
    fill(tmp_path / "ledger.jsonl", make_header(), finish=False)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    with pytest.raises(UserError, match="not finished lies there"):
        merge(shards, tmp_path / "ledger.jsonl")
    assert (tmp_path / "ledger.jsonl").read_bytes() == before


def test_merging_does_not_overwrite_a_shard(shards):
    before = shards[0].read_bytes()
    with pytest.raises(UserError, match="it is one of the ledgers to join"):
        merge(shards, shards[0])
    assert shards[0].read_bytes() == before


def test_a_torn_shard_is_not_finished(shards, tmp_path):
    shards[1].write_bytes(shards[1].read_bytes()[:-5])
    with pytest.raises(UserError, match="shard 2/3 is not finished, run its command again"):
        merge(shards, tmp_path / "ledger.jsonl")


def test_what_differs_is_told_in_words(tmp_path, make_header):
    fill(tmp_path / "l.jsonl", make_header(config="a"))
    other = make_header(config="b")
    other["about"]["epsilon"] = 0.2
    with pytest.raises(UserError, match=r"epsilon 0\.1 there, 0\.2 in"), Ledger.open(tmp_path / "l.jsonl", other):
        pass


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tasks: tasks[1]["attack"].update(num_steps=10), "num_steps of pgd 20 there, 10 in this evaluation"),
        (lambda tasks: tasks[1].update(beta=2.0), "beta of pgd 0.0 there, 2.0 in this evaluation"),
        (lambda tasks: tasks.pop(), "pgd only there"),
        (lambda tasks: tasks.append({"name": "cw", "kind": "Crafted"}), "cw only in this evaluation"),
        (lambda tasks: None, "config a there, b in this evaluation"),
    ],
)
def test_options_of_attacks_that_differ_are_named(change, told):
    def header(config):
        attack = {"kind": "PGD", "num_steps": 20, "epsilon": 0.1}
        tasks = [{"name": "natural"}, {"name": "pgd", "kind": "Crafted", "beta": 0.0, "attack": attack}]
        return {"key": {"config": config}, "shard": "1/1", "about": {"epsilon": 0.1, "tasks": tasks}}

    found, wanted = header("a"), header("b")
    change(wanted["about"]["tasks"])
    with pytest.raises(UserError, match=f"another evaluation \\({told}\\), give"):
        check_same(Path("l.jsonl"), found, wanted)


def test_every_line_is_json_and_numbers_are_plain(tmp_path, make_header):
    fill(tmp_path / "l.jsonl", make_header())
    lines = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert lines[0]["schema"] == 1
    natural = {"task": "natural", "ids": [0, 1, 2], "values": {"ranks": [[0, 1]] * 3}, "seconds": 0.5}
    assert {**natural, "check": "cb68f2e9"} == lines[1], "CRC-32 of the line without it, as zlib has it"
