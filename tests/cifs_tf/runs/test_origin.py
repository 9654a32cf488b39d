"""What a model file tells of its images, and how it is believed."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from cifs_tf.config import DataConfig
from cifs_tf.data import load_dataset
from cifs_tf.errors import UserError
from cifs_tf.export import describe_files, write_origin
from cifs_tf.runs.checkpoints import write_arrays
from cifs_tf.runs.origin import Origin, load_for_origin, match_origin, read_origin

NAMES = [str(label) for label in range(10)]


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(dataset="digits"))


def version(folder, names=NAMES):
    """A version as `cifs_tf.export.export` writes it, without its SavedModel's content."""
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "variables" / "variables.index").write_bytes(b"weights")
    (folder / "labels.json").write_text(json.dumps(names))
    return folder


def test_a_run_s_export_tells_its_images_and_classes(digits, tmp_path):
    """Named by the version or by the folder of versions, whose highest is taken; unused files may go."""
    write_origin(version(tmp_path / "base" / "1", ["other"]), {"images": "0" * 16})
    newest = version(tmp_path / "base" / "12")
    write_origin(newest, {"images": digits.identity.hash})
    assert read_origin(newest / "model.onnx") == Origin(digits.identity.hash, tuple(NAMES))
    (newest / "model.onnx").unlink()
    for path in (newest, tmp_path / "base"):
        assert read_origin(path) == Origin(digits.identity.hash, tuple(NAMES))
    assert read_origin(tmp_path / "base" / "1").class_names == ("other",)


def test_a_published_version_tells_them_in_its_card(digits, tmp_path):
    folder = version(tmp_path / "1")
    card = {"data": {"images": digits.identity.hash}, "files": describe_files(folder, "model_card.json")}
    (folder / "model_card.json").write_text(json.dumps(card))
    assert read_origin(folder) == Origin(digits.identity.hash, tuple(NAMES))


def test_the_images_of_a_run_on_a_part_are_known_elsewhere(tmp_path):
    """The run looked at 16 files of 40 for its hash; an evaluation of 6 others looks at those and at its own."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 12), ("test", 8)):
        for name in ("ant", "bee"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for index in range(number):
                file = tmp_path / "set" / split / name / f"{index}.png"
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file)
    whole = DataConfig(dataset=f"folder:{tmp_path / 'set'}")
    of_run = dataclasses.replace(whole, train_examples=8, val_examples=4, test_examples=4)
    exported = version(tmp_path / "1", ["ant", "bee"])
    recipe = {"train_examples": 8, "val_examples": 4, "test_examples": 4}
    write_origin(exported, {"images": load_dataset(of_run).identity.hash}, recipe)
    origin = read_origin(exported)

    def load(**options):
        dataset = load_for_origin(whole, origin, lambda test: test.class_balanced(6, ""), **options)
        return match_origin(dataset, origin, exported, **options)

    assert (len(load().test), load().num_test_images, load().unlike_run) == (6, 16, ())
    Image.new("RGB", (8, 8)).save(next((tmp_path / "set" / "train" / "ant").iterdir()))
    for file in (tmp_path / "set" / "train" / "bee").iterdir():
        Image.new("RGB", (8, 8)).save(file)
    with pytest.raises(UserError, match="these are not the images of the run"):
        load()
    assert len(load(other_images=True).unlike_run) == 1


def test_others_tell_less(tmp_path):
    """An export by itself may name its classes; a network of a run tells its images, a foreign file nothing."""
    assert read_origin(version(tmp_path / "numbered")) == Origin()
    assert read_origin(version(tmp_path / "named", ["ant", "bee"])) == Origin(None, ("ant", "bee"))
    write_arrays(tmp_path / "last.keras", [np.zeros(1)], {"key": "k", "images": "0123456789abcdef"})
    assert read_origin(tmp_path / "last.keras") == Origin("0123456789abcdef")
    (tmp_path / "foreign.keras").write_bytes(b"no archive")
    assert read_origin(tmp_path / "foreign.keras") == Origin()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("labels.json", '["0"]', "labels.json changed after it was exported"),
        ("variables/variables.index", "w", "variables/variables.index changed after it was exported"),
        ("variables/more", "w", "variables/more changed after it was exported"),
        ("labels.json", "[", "its labels.json is damaged"),
        ("run.json", "{}", "its run.json is damaged"),
        ("run.json", "", "its run.json is damaged"),
    ],
)
def test_what_was_changed_is_refused(name, content, said, tmp_path):
    folder = version(tmp_path / "1")
    write_origin(folder, {"images": "0123456789abcdef"})
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=f"^--model: received {folder}; {said}.*export it again"):
        read_origin(folder)


def test_classes_are_brought_into_the_order_of_the_model(digits, tmp_path):
    """The label of an image is the place of its class among the model's names; the images are still those of the run.

    With the names reversed, the label of an image is 9 less its label before.
    """
    reversed_names = tuple(reversed(NAMES))
    hash_then = digits.with_classes(reversed_names).identity.hash
    found = match_origin(digits, Origin(hash_then, reversed_names), tmp_path)
    np.testing.assert_array_equal(found.test.labels, 9 - digits.test.labels)
    assert (found.class_names, found.unlike_run) == (reversed_names, ())
    assert match_origin(digits, Origin(), tmp_path) is digits


def test_other_classes_and_other_images_are_refused(digits, tmp_path):
    with pytest.raises(UserError, match=r"--model: .*its classes are ant, bee; the images are of 0, 1"):
        match_origin(digits, Origin(None, ("ant", "bee")), tmp_path, other_images=True)
    other = Origin("0123456789abcdef", tuple(NAMES))
    with pytest.raises(UserError, match=r"--dataset: received digits; these are not the images.*--other_images"):
        match_origin(digits, other, tmp_path)
    (told,) = match_origin(digits, other, tmp_path, other_images=True).unlike_run
    assert "0123456789abcdef" in told
    assert digits.identity.hash in told
    known = dataclasses.replace(digits, unlike_run=("1 file added: ant/new.png",))  # the run's record told more
    assert match_origin(known, other, tmp_path, other_images=True) is known
