"""Robustness cards: what broke each image is kept, verified without attacks, and named where it was edited."""

import base64
import dataclasses
import hashlib
import json
import shutil
import zlib

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.attacks import PGD
from cifs_tf.data import Split
from cifs_tf.errors import UserError
from cifs_tf.evaluation import evaluate
from cifs_tf.evaluation.cards.card import Card, Shown, merge_cards
from cifs_tf.evaluation.cards.verification import verify
from cifs_tf.evaluation.lines import decode, encode
from cifs_tf.evaluation.tasks import Crafted, Natural

EPSILON = 0.1


def tasks(epsilon=EPSILON):
    attack = PGD(epsilon=epsilon, step_size=epsilon / 4, num_steps=8, keep="fooling")
    fields = {"family": "pgd", "mask_gradient": "detached", "counts": True}
    return [Natural(), Crafted(name="pgd", on="all", attack=attack, **fields)]


@pytest.fixture(scope="module")
def whole(make_victim, tmp_path_factory):
    """A card of five grey images of label 0, which the network answers for brightness below 0.5; one is wrong."""
    levels = np.array([100, 110, 120, 126, 140], np.uint8)
    split = Split(np.ones((5, 8, 8, 1), np.uint8) * levels[:, None, None, None], np.zeros(5, np.int32))
    victim, path = make_victim(), tmp_path_factory.mktemp("card") / "card.jsonl"
    report = evaluate(victim, split, tasks(), epsilon=EPSILON, card_file=path)
    return victim, split, path, report


@pytest.fixture
def found(whole, tmp_path):
    """A copy of it, to be edited."""
    victim, split, path, report = whole
    shutil.copy(path, tmp_path / "card.jsonl")
    return victim, split, tmp_path / "card.jsonl", report


NOTHING = base64.b64encode(zlib.compress(b"")).decode()


def failures(victim, split, path):
    return [check.name for check in verify(Card.read(path), victim, split) if check.verdict == "fail"]


def reseal(path, change_report=None, change_line=None):
    """Edit a card as someone would who knows its checksums and its seal."""
    header, *lines, last = (decode(line)[0] for line in path.read_text().splitlines())
    if change_line:
        change_line(lines[0])
    if change_report:
        change_report(last["report"])
    before = "".join(encode(record) + "\n" for record in (header, *lines))
    last |= {"sha256": hashlib.sha256(before.encode()).hexdigest(), "shown": sum(len(line["ids"]) for line in lines)}
    path.write_text(before + encode(last) + "\n")


def test_what_broke_each_image_is_shown(found):
    """Levels 110 to 126 are within 25.5 of 127.5, 100 is not; 140 is wrong. All are broken by 8-bit images."""
    victim, split, path, report = found
    assert report["broken_by"] == [None, "pgd", "pgd", "pgd", "natural"]
    card = Card.read(path)
    assert sorted(card.shown) == [1, 2, 3]
    assert {each.form for each in card.shown.values()} == {"uint8"}
    for i, each in card.shown.items():
        assert np.abs(each.pixels(split.images[i]) - split.images[i] / 255).max() <= 25 / 255 + 1e-6
    assert failures(victim, split, path) == []


def test_a_card_of_another_network_or_of_other_images_does_not_hold(found, make_victim):
    victim, split, path, _ = found
    assert failures(dataclasses.replace(victim, fingerprint="g"), split, path) == ["weights"]
    assert "images" in failures(victim, Split(split.images + np.uint8(1), split.labels), path)
    bright = make_victim(lambda images: tf.tile(tf.constant([[[1.0, 0.0]]]), [tf.shape(images)[0], 2, 1]))
    assert {"natural predictions", "broken"} <= set(failures(bright, split, path))


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (lambda path: reseal(path, lambda report: report["worst_case"].update(count=4, accuracy=0.8)), "numbers"),
        (lambda path: reseal(path, lambda report: report["natural"].update(accuracy=1.0)), "numbers"),
        (lambda path: reseal(path, lambda report: report["broken_by"].__setitem__(0, "pgd")), "numbers"),
        (lambda path: reseal(path, change_line=lambda line: line.update(ids=[1, 2, 4])), "numbers"),
        (lambda path: reseal(path, lambda report: report["about"].update(epsilon=0.05)), "inside the ball"),
        (lambda path: reseal(path, lambda report: report["about"].update(norm="l2")), "inside the ball"),
        (lambda path: reseal(path, lambda report: report["about"].update(epsilon_given="8/255")), "numbers"),
        (lambda path: reseal(path, lambda report: report["about"].update(epsilon_given="0_0.1")), "numbers"),
        (
            lambda path: reseal(path, lambda report: report["about"].update(epsilon=np.nan, epsilon_given=None)),
            "numbers",
        ),
        (lambda path: reseal(path, lambda report: report["worst_case"].update(interval=[0.9, 0.95])), "numbers"),
        (lambda path: reseal(path, lambda report: report.update(believable=True)), "numbers"),
        (lambda path: reseal(path, lambda report: report["tasks"][1]["attack"].update(epsilon=-1)), "inside the ball"),
        (lambda path: reseal(path, change_line=lambda line: line.update(ids=[], data=NOTHING)), "broken"),
    ],
)
def test_a_card_that_was_edited_with_care_does_not_hold(edit, name, found):
    victim, split, path, _ = found
    edit(path)
    assert name in failures(victim, split, path)


@pytest.mark.parametrize("field", ["broken_by", "attacks", "natural", "tasks", "about", "num_examples", "key", "audit"])
def test_a_report_without_a_field_is_named(field, found):
    path = found[2]
    reseal(path, lambda report: report.pop(field))
    with pytest.raises(UserError, match=f"line 3 has no whole report .{field}."):
        Card.read(path)


def test_a_report_of_other_things_is_no_traceback(found):
    victim, split, path, _ = found
    reseal(path, lambda report: report.update(tasks=[1]))
    with pytest.raises(UserError, match="a report that is none"):
        failures(victim, split, path)


def test_a_part_of_an_evaluation_is_not_verified(found):
    victim, split, path, _ = found
    card = Card.read(path)
    card.header["shard"] = "1/2"
    with pytest.raises(UserError, match="part 1/2 of an evaluation; merge all parts first"):
        verify(card, victim, split)


def test_other_adversarial_images_are_found_out(found):
    """The images themselves, which are not misclassified, and images at twice epsilon."""
    victim, split, path, _ = found

    def store(values):
        data = base64.b64encode(zlib.compress(np.full((3, 8, 8, 1), values, np.uint8).tobytes())).decode()
        reseal(path, change_line=lambda line: line.update(data=data))
        return failures(victim, split, path)

    assert store(0) == ["broken"]
    assert store(51) == ["inside the ball"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: text.replace('"ids":[1,2,3]', '"ids":[1,2,0]'), "line 2 was edited"),
        (lambda text: text.replace('"form":"uint8"', '"form":"float64"'), "line 2 was edited"),
        (lambda text: text[:-40], "line 2 is damaged"),
        (lambda text: "".join(text.splitlines(True)[:1] + text.splitlines(True)[2:]), "not those that were sealed"),
        (lambda text: "no card\n", "line 1 has not the lines of a card"),
    ],
)
def test_a_damaged_card_is_named(edit, words, found):
    *_, path, _ = found
    path.write_text(edit(path.read_text()))
    with pytest.raises(UserError, match=words):
        Card.read(path)


def test_an_image_that_needs_more_than_8_bits(make_victim, tmp_path):
    """Below 0.6 of a level: no 8-bit image but the image itself lies in the ball, and 127.4 is not enough."""
    split = Split(np.full((1, 8, 8, 1), 127, np.uint8), np.zeros(1, np.int32))
    victim, path = make_victim(), tmp_path / "card.jsonl"
    evaluate(victim, split, tasks(0.6 / 255), epsilon=0.6 / 255, card_file=path)
    assert Card.read(path).shown[0].form in ("float16", "float32")
    assert failures(victim, split, path) == []


def test_a_card_goes_on_where_it_was_cut_off(found, tmp_path):
    """Finished again with the same lines; one of another evaluation begins anew."""
    victim, split, path, _ = found
    whole = path.read_bytes()
    evaluate(victim, split, tasks(), epsilon=EPSILON, card_file=path)
    assert path.read_bytes().split(b"\n")[:-2] == whole.split(b"\n")[:-2]
    path.write_bytes(whole[: len(whole) // 3])
    evaluate(victim, split, tasks(), epsilon=EPSILON, card_file=path)
    assert path.read_bytes().split(b"\n")[:-2] == whole.split(b"\n")[:-2]
    evaluate(victim, split, tasks(0.05), epsilon=0.05, card_file=path)
    assert failures(victim, split, path) == []
    assert json.loads(whole.split(b"\n")[0]) != json.loads(path.read_bytes().split(b"\n")[0])


def test_cards_of_shards_are_joined(found, tmp_path):
    victim, split, path, report = found
    parts = [tmp_path / f"card-{part}-of-2.jsonl" for part in (1, 2)]
    for part, file in enumerate(parts, start=1):
        evaluate(victim, split, tasks(), epsilon=EPSILON, card_file=file, shard=f"{part}/2")
    header = {"key": Card.read(path).header["key"], "shard": "1/1"}
    merge_cards(parts, tmp_path / "joined.jsonl", header, report)
    assert sorted(Card.read(tmp_path / "joined.jsonl").shown) == [1, 2, 3]
    assert failures(victim, split, tmp_path / "joined.jsonl") == []


def test_pixels_of_each_form():
    image = np.array([[[250]]], np.uint8)
    assert Shown("", "uint8", np.array([[[254]]], np.uint8)).pixels(image) == pytest.approx(248 / 255)
    assert Shown("", "float16", np.array([[[0.5]]], np.float16)).pixels(image) == 1.0
    assert Shown("", "float32", np.array([[[0.25]]], np.float32)).pixels(image) == 0.25
