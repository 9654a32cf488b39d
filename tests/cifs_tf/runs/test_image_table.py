"""What is said of the images before a training."""

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cifs_tf.config import DataConfig
from cifs_tf.data import load_dataset
from cifs_tf.runs.image_table import show_images


def show(dataset, width=200):
    console = Console(file=io.StringIO(), width=width)
    described = show_images(dataset, console)
    return described, console.file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two classes of 20; one picture is trained and tested on, one has two labels; a text and an animation."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(
                    tmp_path / split / name / f"{index}.png"
                )
    for index in range(5):  # whichever of them are taken
        (tmp_path / f"test/ant/{index}.png").write_bytes((tmp_path / "train/ant/0.png").read_bytes())
    (tmp_path / "train/bee/1.png").write_bytes((tmp_path / "train/ant/1.png").read_bytes())
    for index in range(7):
        (tmp_path / f"train/ant/{index}.txt").write_text("no image")
    frames = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(2)]
    frames[0].save(tmp_path / "train/bee/moving.gif", save_all=True, append_images=frames[1:])
    return tmp_path


def test_images_are_counted_and_what_is_odd_is_said(folder):
    described, text = show(load_dataset(DataConfig(dataset=f"folder:{folder}", val_examples=4, test_examples=6)))
    assert described["classes"] == {
        "ant": {"train": 18, "validation": 2, "test": 3},
        "bee": {"train": 19, "validation": 2, "test": 3},
    }
    assert described["not_taken"] == 4
    assert described["left_out"] == {"its content is no image": [f"train/ant/{index}.txt" for index in range(7)]}
    assert described["duplicates"] == {"train_and_test": 1, "two_labels": 1}
    assert [
        " ".join(line.split()) for line in text.splitlines() if line.split()[:1] in (["ant"], ["bee"], ["all"])
    ] == [
        "ant 18 2 3",
        "bee 19 2 3",
        "all 37 4 6",
    ]
    for words in (
        "left out, its content is no image: 7 files: train/ant/0.txt, ",
        "not taken, by --train_examples, --val_examples or --test_examples: 4 images",
        "note: 1 file: animated: the first frame is used",
        "warning: 1 image trained on and tested on",
        "warning: 1 image with two labels",
    ):
        assert words in text


def test_of_many_classes_those_with_the_fewest_images_are_shown(tmp_path):
    for label in range(40):
        (tmp_path / f"c{label:02}").mkdir()
        for index in range(2 if label == 33 else 4):
            Image.new("RGB", (2, 2), (label, index, 0)).save(tmp_path / f"c{label:02}" / f"{index}.png")
    described, text = show(load_dataset(DataConfig(dataset=f"folder:{tmp_path}", val_examples=0)))
    assert len(described["classes"]) == 40
    assert "c33" in text
    assert "the 30 of 40 classes with the fewest training images" in text
