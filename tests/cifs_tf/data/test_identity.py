"""What is said when images are not those that a run was trained on."""

import json

import numpy as np
import pytest

from cifs_tf.data.identity import Identity, differences, identify
from cifs_tf.data.source import Source
from cifs_tf.data.split import Split

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), np.uint8)


def source(train, test, class_names=("ant", "bee")):
    """Splits of (class, name, index of the pixels)."""

    def split(rows):
        images = PIXELS[[pixels for *_, pixels in rows]]
        return Split(images, np.array([label for label, *_ in rows]), tuple(name for _, name, _ in rows))

    return Source(split(train), None, split(test), class_names)


TRAIN = [(0, "1.png", 0), (0, "2.png", 1), (1, "1.png", 2), (1, "2.png", 3)]
TEST = [(0, "3.png", 4), (1, "3.png", 5)]


@pytest.mark.parametrize(
    ("train", "test", "class_names", "expected"),
    [
        (TRAIN, TEST, ("ant", "bee"), []),
        (TRAIN[::-1], TEST, ("ant", "bee"), []),
        ([*TRAIN, (0, "new.png", 9)], TEST, ("ant", "bee"), ["1 file added: ant/new.png"]),
        (TRAIN[1:], TEST, ("ant", "bee"), ["1 file gone: ant/1.png"]),
        ([(0, "1.png", 30), *TRAIN[1:]], TEST, ("ant", "bee"), ["1 file of other pixels: ant/1.png"]),
        (TRAIN[1:], [*TEST, TRAIN[0]], ("ant", "bee"), ["1 file in another split: ant/1.png"]),
        (TRAIN, TEST, ("bee", "zebra"), ["1 class gone: ant", "1 class new: zebra"]),
        (TRAIN, TEST, ("bee", "ant"), ["the classes are in another order"]),
    ],
)
def test_each_difference_is_named(train, test, class_names, expected):
    recorded, _ = identify(source(TRAIN, TEST))
    found, _ = identify(source(train, test, class_names))
    assert differences(recorded, found) == expected


def test_many_files_are_counted():
    recorded, _ = identify(source(TRAIN, TEST))
    found, _ = identify(source([*TRAIN, *((0, f"x{index}.png", 10 + index) for index in range(9))], TEST))
    assert differences(recorded, found) == [
        "9 files added: ant/x0.png, ant/x1.png, ant/x2.png, ant/x3.png, ant/x4.png, ..."
    ]


def test_images_without_names_differ_by_split():
    def of(pixels):
        return Source(Split(pixels, np.arange(20) % 2), None, Split(PIXELS[20:], np.arange(20) % 2), ("0", "1"))

    recorded, _ = identify(of(PIXELS[:20]))
    assert differences(recorded, identify(of(PIXELS[:20].copy()))[0]) == []
    changed = PIXELS[:20].copy()
    changed[3, 1, 1, 0] ^= 1
    assert differences(recorded, identify(of(changed))[0]) == ["the train split has other images (20 then, 20 now)"]


def test_a_record_survives_its_file():
    recorded, _ = identify(source(TRAIN, TEST))
    assert Identity.from_json(json.loads(json.dumps(recorded.to_json()))) == recorded


@pytest.mark.parametrize("damage", [{}, [], {"schema": 2}, {"schema": 1, "class_names": 3}])
def test_what_is_no_record_is_refused(damage):
    with pytest.raises(ValueError, match=r"schema|record"):
        Identity.from_json(damage)


def test_identical_images_are_counted():
    """Pixels 0 are trained and tested on, and have two labels; pixels 3 are trained on twice, which is no fault."""
    train = [*TRAIN, (1, "4.png", 3)]
    _, duplicates = identify(source(train, [*TEST, (1, "same.png", 0)]))
    assert duplicates == {"train_and_test": 1, "two_labels": 1}
