"""The record of a run's images: written once, compared ever after."""

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifs_tf.config import DataConfig, OutputConfig, RunConfig, TrainConfig
from cifs_tf.data import load_dataset
from cifs_tf.errors import UserError
from cifs_tf.runs.images import (
    check_recorded_images,
    check_warm_start,
    load_images,
    load_training_images,
    read_record,
    record_images,
)
from cifs_tf.runs.networks import _check_origin
from cifs_tf.runs.workdir import Workdir
from cifs_tf.tuning.options import SearchConfig
from tests.running import run_here


@pytest.fixture
def pets(tmp_path):
    """A folder of three classes with twelve images each; the pixels of a class are of its own brightness."""
    rng = np.random.default_rng(0)
    for level, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(12):
            pixels = rng.integers(80 * level, 80 * level + 80, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{index:02}.png")
    return tmp_path / "pets"


def begin(tmp_path, data):
    """A run as it is when its first start is over: config, record, a network."""
    return begin_at(tmp_path / "run", data)


def begin_at(path, data, **train):
    run = Workdir(path)
    with run.open(RunConfig(data=data, train=TrainConfig(**train), output=OutputConfig(workdir=str(path)))):
        record_images(load_dataset(data), run, train.get("warm_start"))
    (run.path / "cifs").mkdir()
    run.model_file("cifs").write_bytes(b"")
    return run


def test_the_images_of_a_run_are_those_it_was_begun_with(pets, tmp_path):
    data = DataConfig(dataset=f"folder:{pets}")
    run = begin(tmp_path, data)
    record = json.loads(run.images_file.read_text())
    assert record["class_names"] == ["ant", "bee", "cat"]
    assert sum(record["counts"].values()) == sum(map(len, record["splits"].values())) == 36
    assert read_record(run).identity.hash == load_dataset(data).identity.hash == record["hash"]
    again = load_images(data, [run])
    assert again.unlike_run == ()
    record_images(load_training_images(data, run), run)


def add(pets):
    Image.new("RGB", (8, 8), (1, 2, 3)).save(pets / "ant" / "new.png")


def remove(pets):
    (pets / "bee" / "03.png").unlink()


def repaint(pets):
    Image.new("RGB", (8, 8), (1, 2, 3)).save(pets / "cat" / "05.png")


def rename(pets):
    (pets / "ant").rename(pets / "zebra")


def give_up(pets):
    for file in (pets / "cat").iterdir():
        file.unlink()
    (pets / "cat").rmdir()


CHANGES = [
    (add, "1 file added: ant/new.png"),
    (remove, "1 file gone: bee/03.png"),
    (repaint, "1 file of other pixels: cat/05.png"),
    (rename, "1 class gone: ant; 1 class new: zebra"),
    (give_up, "1 class gone: cat"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_other_images_are_refused_by_what_changed(change, words, pets, tmp_path):
    data = DataConfig(dataset=f"folder:{pets}")
    run = begin(tmp_path, data)
    change(pets)
    with pytest.raises(UserError, match=words):
        load_images(data, [run])
    with pytest.raises(UserError, match=rf"{words}.*another --workdir"):
        load_training_images(data, run)
    with pytest.raises(UserError, match=words):
        record_images(load_dataset(data), run)
    if change in (rename, give_up):
        with pytest.raises(UserError, match=rf"{words}.*the same classes"):
            load_images(data, [run], other_images=True)
    else:
        assert load_images(data, [run], other_images=True).unlike_run == (words,)


def test_images_that_were_trained_on_are_counted_in_a_test_split(pets, tmp_path):
    """The training images of the run as the test images of another folder."""
    data = DataConfig(dataset=f"folder:{pets}")
    run = begin(tmp_path, data)
    trained_on = list(json.loads(run.images_file.read_text())["splits"]["train"])
    for number, name in enumerate(trained_on):
        target = tmp_path / "other" / ("train" if number % 2 else "test") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((pets / name).read_bytes())
    other = load_images(DataConfig(dataset=f"folder:{tmp_path / 'other'}"), [run], other_images=True)
    number = len(other.test)
    assert other.unlike_run[-1] == f"{number} of the {number} images of its test split were trained or validated on"


def test_classes_in_another_order_are_brought_into_that_of_the_run(pets, tmp_path):
    data = DataConfig(dataset=f"folder:{pets}")
    there = load_dataset(data).with_classes(("cat", "ant", "bee"))
    assert {"cat": 0, "ant": 1, "bee": 2}["ant"] == 1
    run = Workdir(tmp_path / "run")
    run.path.mkdir()
    record_images(there, run)
    found = load_images(data, [run])
    assert found.class_names == ("cat", "ant", "bee")
    assert found.unlike_run == ()
    assert found.identity.hash == read_record(run).identity.hash
    for split in (found.train, found.validation, found.test):  # ant is dark, bee is not, cat is bright
        for image, label in zip(split.images, split.labels, strict=True):
            assert found.class_names[label] == ("ant", "bee", "cat")[int(image.mean()) // 80]


def test_the_order_of_the_classes_does_not_make_other_images_of_a_set_without_names():
    digits = load_dataset(DataConfig(dataset="digits", train_examples=20))
    backwards = digits.with_classes(digits.class_names[::-1])
    assert (backwards.train.labels == 9 - digits.train.labels).all()
    assert backwards.identity.splits == digits.identity.splits
    assert backwards.identity.hash != digits.identity.hash


def test_a_run_without_a_record_is_believed_on_a_dataset_by_name(tmp_path, capsys):
    data = DataConfig(dataset="digits")
    run = begin(tmp_path, data)
    run.images_file.unlink()
    with pytest.raises(UserError, match=r"no images\.json to compare folder:x with; use it once without --dataset"):
        load_images(DataConfig(dataset="folder:x"), [run])
    load_images(dataclasses.replace(data, train_examples=20), [run])  # another part than the run takes
    assert "had not recorded its images" in capsys.readouterr().out
    assert read_record(run).identity.hash == load_dataset(data).identity.hash
    record_images(load_training_images(data, run), run)
    assert capsys.readouterr().out == ""


def test_a_run_without_a_record_is_not_believed_on_a_folder(pets, tmp_path):
    data = DataConfig(dataset=f"folder:{pets}")
    run = begin(tmp_path, data)
    run.images_file.unlink()
    for load in (lambda: load_images(data, [run], other_images=True), lambda: load_training_images(data, run)):
        with pytest.raises(UserError, match=r"not known which images .* was trained on .*; train anew"):
            load()
    assert not run.images_file.exists()
    run.model_file("cifs").unlink()  # nothing was trained yet: the images of now are as good as any
    record_images(load_training_images(data, run), run)
    assert run.images_file.exists()


def test_a_warm_start_does_not_know_the_validation_images(pets, tmp_path):
    run = Workdir(tmp_path / "run")
    run.path.mkdir()
    data = DataConfig(dataset=f"folder:{pets}", image_size=8, val_examples=2)
    record_images(load_dataset(data), run)
    check_warm_start(load_dataset(data), run)
    check_warm_start(load_dataset(dataclasses.replace(data, val_examples=0)), run)
    with pytest.raises(UserError, match=r"--warm_start: .*give that run's images and --val_examples, or 0"):
        check_warm_start(load_dataset(dataclasses.replace(data, val_examples=3)), run)


def test_a_chain_of_warm_starts_is_followed_by_run_not_by_name(tmp_path, monkeypatch):
    """From another folder its names lead elsewhere; another run may lie where one was."""
    data = DataConfig(dataset="digits", val_examples=8)

    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "here").mkdir()
    begin_at(elsewhere / "base", data)
    monkeypatch.chdir(tmp_path / "here")
    base = begin_at(Path("base"), dataclasses.replace(data, val_examples=0))  # has seen all images
    middle = Workdir(begin_at(Path("middle"), data, warm_start="base").path.absolute())
    origin = {"path": str(base.path.absolute()), "run": base.key, "images": read_record(base).identity.hash}
    assert read_record(middle).begun_from == origin
    dataset = load_dataset(data)
    monkeypatch.chdir(elsewhere)  # whose own base held the images out
    with pytest.raises(UserError, match="not known to have held out the images"):
        _check_origin(dataset, middle)
    (tmp_path / "here" / "base").rename(tmp_path / "here" / "old")
    for again in (None, dataclasses.replace(data, val_examples=9)):
        if again:
            begin_at(tmp_path / "here" / "base", again)
        with pytest.raises(UserError, match=r"began from the weights of base, of which it is not .*put that run back"):
            _check_origin(dataset, middle)


@pytest.mark.parametrize(
    "begun_from",
    [{}, {"path": "x"}, {"path": 5, "run": "a", "images": "b"}, {"path": "a\0b", "run": "a", "images": "b"}],
)
def test_a_damaged_origin_is_a_sentence(begun_from, pets, tmp_path):
    run = begin(tmp_path, DataConfig(dataset=f"folder:{pets}"))
    damage(run, lambda record: record.update(begun_from=begun_from))
    with pytest.raises(UserError, match=r"images\.json cannot be read \(begun_from .* train anew in another --workdir"):
        read_record(run)


def test_a_parent_that_was_trained_anew_on_other_images_is_not_the_parent(pets, tmp_path):
    """Its key is a hash of options alone, which are the same."""
    data = DataConfig(dataset=f"folder:{pets}", image_size=8, val_examples=2)

    base = begin_at(tmp_path / "base", data)
    middle = begin_at(tmp_path / "middle", data, warm_start=str(base.path))
    dataset = load_dataset(data)
    _check_origin(dataset, middle)
    key = base.key
    shutil.rmtree(base.path)
    first = next(file for file in sorted(pets.rglob("*.png")))
    Image.new("RGB", (8, 8), (1, 2, 3)).save(first)
    assert begin_at(tmp_path / "base", data).key == key
    with pytest.raises(UserError, match=r"began from the weights of .*base, of which it is not known"):
        _check_origin(dataset, middle)


def test_a_warm_start_across_unnamed_images_is_told(pets, tmp_path, capsys):
    run = begin(tmp_path, DataConfig(dataset="digits"))
    other = load_dataset(DataConfig(dataset=f"folder:{pets}"))
    digits = read_record(run).identity
    check_warm_start(dataclasses.replace(other, class_names=digits.class_names), run)
    assert "is not recorded: whether they share some is not known" in capsys.readouterr().out


def test_a_warm_start_does_not_know_the_test_images(pets, tmp_path):
    """From the same images, and from more of them; not from other classes, or from what is tested on here."""
    data = DataConfig(dataset=f"folder:{pets}")
    run = begin(tmp_path, data)
    check_warm_start(load_dataset(data), run)
    add(pets)
    check_warm_start(load_dataset(dataclasses.replace(data, val_examples=0)), run)
    with pytest.raises(UserError, match=r"--warm_start: .*which choose the best epoch"):
        check_warm_start(load_dataset(dataclasses.replace(data, val_examples=2)), run)  # others than were held out
    record = json.loads(run.images_file.read_text())
    for name in record["splits"]["train"]:
        target = tmp_path / "other" / ("test" if "bee" in name else "train") / name
        for each in (target, tmp_path / "other" / "test" / name, tmp_path / "other" / "train" / name):
            each.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((pets / name).read_bytes())
    for name in ("train/bee", "test/ant", "test/cat"):
        Image.new("RGB", (8, 8), (9, 9, len(name))).save(tmp_path / "other" / name / "new.png")
    other = load_dataset(DataConfig(dataset=f"folder:{tmp_path / 'other'}"))
    known = sum("bee" in name for name in record["splits"]["train"])
    with pytest.raises(UserError, match=rf"--warm_start: .*{known} of the test images of .* were trained"):
        check_warm_start(other, run)
    with pytest.raises(UserError, match=r"--warm_start: .*trained on the classes ant, bee, cat"):
        check_warm_start(other.with_classes(("bee", "ant", "cat")), run)
    run.images_file.unlink()
    with pytest.raises(UserError, match=r"--warm_start: .*not known which images"):
        check_warm_start(other, run)


def test_images_may_change_while_nothing_is_trained(pets, tmp_path):
    data = DataConfig(dataset=f"folder:{pets}")
    run = begin(tmp_path, data)
    run.model_file("cifs").unlink()
    add(pets)
    dataset = load_training_images(data, run)
    with pytest.raises(UserError, match="1 file added"):
        check_recorded_images(dataset, run)  # what a worker does: it must see what the chief sees
    record_images(dataset, run)
    check_recorded_images(dataset, run)


def damage(run, change):
    record = json.loads(run.images_file.read_text())
    change(record)
    run.images_file.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda run: run.images_file.write_text(""), "Expecting value"),
        (lambda run: run.images_file.write_bytes(run.images_file.read_bytes()[:-99]), "line"),
        (lambda run: run.images_file.write_bytes(b"\xff"), "decode"),
        (lambda run: run.images_file.write_text("[]"), "record"),
        (lambda run: damage(run, lambda record: record.update(schema=2)), "schema 2"),
        (lambda run: damage(run, lambda record: record.pop("division")), "division"),
        (lambda run: damage(run, lambda record: record["splits"]["test"].clear()), "hash"),
        (lambda run: damage(run, lambda record: record.update(run="0" * 16)), "another run"),
    ],
)
def test_a_damaged_record_is_one_sentence(spoil, reason, tmp_path):
    data = DataConfig(dataset="digits")
    run = begin(tmp_path, data)
    spoil(run)
    for load in (lambda: load_images(data, [run]), lambda: load_training_images(data, run)):
        with pytest.raises(UserError, match=rf"images\.json cannot be read \(.*{reason}.*restore it"):
            load()


def test_images_divided_otherwise_are_no_continuation(tmp_path):
    run = begin(tmp_path, DataConfig(dataset="digits"))
    other = load_dataset(DataConfig(dataset="digits", val_examples=3))
    with pytest.raises(UserError, match=r"took other images of it for train, validation;"):
        record_images(other, run)


def test_a_search_records_what_its_trials_begin_from(tmp_path):
    """Its config.yaml is no run's: it has options of its own."""
    data = DataConfig(dataset="digits")
    base, search = begin_at(tmp_path / "base", data), Workdir(tmp_path / "search")
    dataset = load_dataset(data)
    with search.open(SearchConfig(data=data, train=TrainConfig(warm_start=str(base.path)))):
        record_images(dataset, search, str(base.path))
    expected = {"path": str(base.path), "run": base.key, "images": dataset.identity.hash}
    assert read_record(search).begun_from == expected


def test_workers_that_begin_at_once_leave_one_record(tmp_path):
    """Without the lock, which each holds: a record is written whole, and who comes later compares."""
    dataset, failures = load_dataset(DataConfig(dataset="digits")), []
    run = Workdir(tmp_path)

    def work():
        try:
            with run.open(RunConfig()):
                record_images(dataset, run)
        except UserError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("another process is at work" in failure for failure in failures)
    assert read_record(run).identity.hash == dataset.identity.hash
    assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", "config.yaml", "images.json"]


SMALL = ("--width=4", "--epochs=1", "--twin=null", "--attacks=fgsm", "--attack_betas=0", "--eval_audit=false")
SMALL = (*SMALL, "--export=false")


@pytest.mark.slow
def test_every_program_refuses_other_images(pets, tmp_path):
    """A run, then one file more: continued, evaluated, analysed and exported only on what it was trained on."""
    train = ["--dataset", f"folder:{pets}", *SMALL, "--workdir=run"]
    code, _, err = run_here(*train, cwd=tmp_path)
    assert code == 0, err
    judge = ["--model=run", "--suite=paper", "--attacks=fgsm", "--attack_betas=0", "--audit=false"]
    programs = [
        ("run.py", train),
        ("evaluate.py", judge),
        ("evaluate.py", ["--model=run/cifs/last.keras", *judge[1:], "--workdir=judged"]),
        ("analyse.py", ["--run=run", "--attack=fgsm"]),
        ("../serving/export.py", ["--run=run"]),
    ]
    before = sorted(tmp_path.glob("run/**/*"))
    for change, said in ((rename, "1 class gone: ant; 1 class new: zebra"), (add, "1 file added: ant/new.png")):
        change(pets)
        for program, argv in programs:
            code, _, err = run_here(*argv, cwd=tmp_path, program=program)
            assert code == 2, (program, err)
            assert said in err
            assert len(err.strip().splitlines()) == 1
        assert sorted(tmp_path.glob("run/**/*")) == before
        if change is rename:
            (pets / "zebra").rename(pets / "ant")

    code, out, err = run_here(*judge, "--other_images", cwd=tmp_path, program="evaluate.py")
    assert code == 0, err
    folder = tmp_path / "run" / "cifs" / "evaluation" / "last" / "paper-other-images"
    assert said in " ".join(out.split())
    report = json.loads((folder / "report.json").read_text())
    assert report["about"]["unlike_run"] == [said]
    assert all(said in (folder / f"report.{kind}").read_text() for kind in ("md", "html"))
    (pets / "ant" / "new.png").unlink()
    code, _, err = run_here(*judge, cwd=tmp_path, program="evaluate.py")
    assert code == 0, err
    own = json.loads((folder.with_name("paper") / "report.json").read_text())["about"]
    assert own["unlike_run"] == []
    assert own["class_names"] == ["ant", "bee", "cat"]
