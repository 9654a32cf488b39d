"""Layouts of folders that people have: each file is used as what it is, or named with the reason."""

import io
import os
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image

from cifs_tf.config import DataConfig
from cifs_tf.data import load_dataset
from cifs_tf.data.decoding.files import decode_file
from cifs_tf.data.folder_scan import find_layout
from cifs_tf.data.identity import hash_division
from cifs_tf.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), np.uint8)


def make(root, layout, **options):
    """Write image files: how many of each pattern."""
    images = iter(PIXELS)
    for pattern, count in layout.items():
        for index in range(count):
            path = root / pattern.format(index)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(next(images)).save(path, **options)
    return root


def load(root, **options):
    return load_dataset(DataConfig(dataset=f"folder:{root}", **options))


def counts(dataset):
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {name: np.bincount(split.labels, minlength=dataset.num_classes).tolist() for name, split in splits.items()}


def total(dataset):
    return sum(map(sum, counts(dataset).values()))


@pytest.mark.parametrize("suffix", ["webp", "WEBP", "jfif", "JPG", "gif", "bmp", "png"])
def test_what_the_decoder_reads_is_used(tmp_path, suffix):
    make(tmp_path, {"a/{}.png": 12, "b/{}.png": 3})
    for index in range(9):
        kind = {"jpg": "JPEG", "jfif": "JPEG"}.get(suffix.lower(), suffix.upper())
        Image.fromarray(PIXELS[100 + index]).save(tmp_path / "b" / f"other{index}.{suffix}", kind)
    assert total(load(tmp_path)) == 24


def test_a_file_is_taken_by_its_content(tmp_path):
    """PNG files without a suffix and with a wrong one are used, a text is left out and named."""
    make(tmp_path, {"a/{}.png": 6, "b/{}.png": 6})
    for name in ("plain", "wrong.jpg", "odd.dat"):
        buffer = io.BytesIO()
        Image.fromarray(PIXELS[200]).save(buffer, "PNG")
        (tmp_path / "a" / name).write_bytes(buffer.getvalue())
    (tmp_path / "a" / "notes.txt").write_text("seen on Monday")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"")
    (tmp_path / "readme.md").write_text("of no class")
    dataset = load(tmp_path)
    assert total(dataset) == 15
    assert {left.file: left.reason for left in dataset.left_out} == {
        "readme.md": "it lies in no class folder",
        "a/notes.txt": "its content is no image",
        "a/.hidden.png": "a hidden file",
    }


@pytest.mark.parametrize("kind", ["tiff", "ppm", "avif", "jp2"])
def test_images_that_are_not_read_are_refused_by_name(tmp_path, kind):
    make(tmp_path, {"a/{}.png": 6, "b/{}.png": 6})
    Image.fromarray(PIXELS[0]).save(tmp_path / "b" / f"scan.{kind}")
    with pytest.raises(UserError, match=rf"scan\.{kind} cannot be read.*JPEG, PNG, WebP, GIF and BMP"):
        load(tmp_path)
    dataset = load(tmp_path, on_corrupt="skip")
    assert (total(dataset), dataset.unreadable) == (12, (f"b/scan.{kind}",))


def test_folders_below_a_class_belong_to_it(tmp_path):
    dataset = load(make(tmp_path, {"a/{}.png": 20, "b/{}.png": 10, "b/deeper/{}.png": 10, "b/deeper/still/{}.png": 4}))
    assert total(dataset) == 44


@pytest.mark.parametrize(
    ("train", "test"), [("Training", "Testing"), ("Train", "Test"), ("TRAIN", "VALID"), ("train", "val")]
)
def test_names_of_splits(tmp_path, train, test):
    dataset = load(make(tmp_path, {f"{s}/{c}/{{}}.png": n for s, n in ((train, 20), (test, 10)) for c in "ab"}))
    assert counts(dataset)["test"] == [10, 10]
    assert total(dataset) == 60


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_three_splits_are_what_they_are_called(tmp_path, validation):
    sizes = {"train": 20, validation: 10, "test": 6}
    root = make(tmp_path, {f"{split}/{name}/{{}}.png": size for split, size in sizes.items() for name in "ab"})
    assert counts(load(root)) == {"train": [20, 20], "validation": [10, 10], "test": [6, 6]}
    assert counts(load(root, val_examples=4)) == {"train": [20, 20], "validation": [2, 2], "test": [6, 6]}
    with pytest.raises(UserError, match="--val_examples: received 21; give at most 20"):
        load(root, val_examples=21)


def test_what_lies_beside_the_splits_is_said(tmp_path):
    make(tmp_path, {f"{split}/{name}/{{}}.png": 4 for split in ("train", "test") for name in "ab"})
    make(tmp_path, {"extra/a/{}.png": 1})
    assert [(left.file, left.reason) for left in load(tmp_path).left_out] == [("extra", "it lies beside the splits")]


def test_two_folders_for_one_split_are_refused(tmp_path):
    make(tmp_path, {f"{split}/{name}/{{}}.png": 4 for split in ("train", "val", "valid") for name in "ab"})
    with pytest.raises(UserError, match="val and valid both stand for the validation split"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (("val/a", "val/b", "test/a", "test/b"), "it has val and test, and no train beside"),
        (("test/a", "test/b"), "it has test, and no train beside"),
        (("a", "b", "test/a", "test/b"), "it has test, and no train beside"),
        (
            ("train_set/a", "train_set/b", "test_set/a", "test_set/b"),
            "train_set and test_set have the same sub-folders",
        ),
        (
            ("seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test/a", "seg_test/seg_test/b"),
            "seg_train and seg_test look like splits",
        ),
        (("a/train", "a/test", "b/train", "b/test"), "class a has the sub-folders test and train"),
        (("train/Cat", "train/dog", "test/cat", "test/dog"), "they differ in Cat, cat"),
        (("dev/a", "dev/b", "eval/a", "eval/b"), "it has dev and eval, and no train beside"),
        (("train/a", "train/b", "dev/a", "dev/b", "val/a", "val/b"), "val and dev both stand|dev and val both stand"),
        (("train/a", "train/b", "val/a", "val/b", "test/a", "test/b", "eval/a"), "val and eval both stand"),
        (("train", "test"), "test and train are splits without folders for classes"),
        (("fold1/a", "fold1/b", "fold2/a", "fold2/b"), "fold1 and fold2 are parts with the same sub-folders"),
        (("images/a", "images/b", "masks/a", "masks/b"), "images and masks are pictures and what belongs to them"),
        (("train/images", "train/labels", "val/images", "val/labels"), "images and labels are pictures"),
        (("JPEGImages", "Annotations", "SegmentationClass"), "are pictures and what belongs to them"),
    ],
)
def test_folders_that_look_like_splits_are_no_classes(tmp_path, layout, words):
    make(tmp_path, {f"{folder}/{{}}.png": 4 for folder in layout})
    with pytest.raises(UserError, match=words):
        load(tmp_path)


def test_sub_folders_of_classes_may_be_the_same(tmp_path):
    dataset = load(make(tmp_path, {f"{name}/{side}/{{}}.png": 5 for name in ("ant", "bee") for side in ("l", "r")}))
    assert dataset.class_names == ("ant", "bee")
    assert total(dataset) == 20
    assert dataset.notes == (
        "all classes have the same sub-folders (l, r); if those are the classes, put them at the top",
    )


@pytest.mark.parametrize(
    ("splits", "held_out"),
    [
        (("train", "dev", "eval"), {"validation": "dev", "test": "eval"}),
        (("train", "eval", "test"), {"validation": "eval", "test": "test"}),
        (("train", "dev"), {"test": "dev"}),
        (("training", "evaluation"), {"test": "evaluation"}),
    ],
)
def test_dev_and_eval_are_splits(tmp_path, splits, held_out):
    sizes = dict(zip(splits, (9, 5, 4), strict=False))
    make(tmp_path, {f"{split}/{name}/{{}}.png": size for split, size in sizes.items() for name in "ab"})
    found = counts(load(tmp_path))
    for split, folder in held_out.items():
        assert found[split] == 2 * [sizes[folder]]
    assert total(load(tmp_path)) == 2 * sum(sizes.values())


@pytest.mark.parametrize(
    ("layout", "noted"),
    [
        (("figure", "image", "label", "table"), []),
        (("valid", "invalid"), []),
        (("train", "bus", "car"), []),
        (("fold/a", "fold/b", "plain"), []),
        (("cat", "dog", "test"), ["test"]),
        (("fold1", "fold2"), ["fold1", "fold2"]),
    ],
)
def test_classes_whose_names_are_those_of_parts_are_said(tmp_path, layout, noted):
    dataset = load(make(tmp_path, {f"{folder}/{{}}.png": 8 for folder in layout}))
    assert [note.split()[2] for note in dataset.notes] == noted
    assert all("taken for a class; if it is not one" in note for note in dataset.notes)


@pytest.mark.parametrize(("first", "second"), [("Cat", "cat"), ("caf\u00e9", "cafe\u0301")])
def test_classes_that_look_alike_are_said(tmp_path, first, second):
    dataset = load(make(tmp_path, {f"{name}/{{}}.png": 5 for name in (first, second, "dog")}))
    assert set(dataset.class_names) == {first, second, "dog"}
    assert len(dataset.notes) == 1
    assert " and ".join(sorted((first, second))) in dataset.notes[0]


def test_the_form_of_letters_in_names_changes_nothing(tmp_path):
    """A folder as macOS writes it (NFD): the same classes in the same order, the same splits, the same images."""
    composed = make(tmp_path / "composed", {"\u00e9t\u00e9/{}\u00fc.png": 9, "f/\u00e9/{}.png": 6, "f/{}.png": 6})
    for file in composed.rglob("*.png"):
        copy = tmp_path / "decomposed" / unicodedata.normalize("NFD", str(file.relative_to(composed)))
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    ours, theirs = load(composed), load(tmp_path / "decomposed")
    assert theirs.class_names == ours.class_names == ("f", "\u00e9t\u00e9")
    assert theirs.identity.hash == ours.identity.hash
    assert hash_division(theirs.splits) == hash_division(ours.splits)
    both = make(tmp_path / "both", {"a/\u00e9{}.png": 1, "a/e\u0301{}.png": 1, "a/{}.png": 3, "b/{}.png": 3})
    assert sum(load(both).identity.counts.values()) == sum(map(len, load(both).identity.splits.values())) == 8


@pytest.mark.parametrize("name", [b"a/\xff.png", b"\xffclass/1.png", b"a/\xff.txt"])
def test_names_that_are_not_utf8_are_refused(tmp_path, name):
    make(tmp_path, {"a/{}.png": 5, "b/{}.png": 5})
    odd = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.dirname(odd), exist_ok=True)
    with open(odd, "wb") as file:
        file.write((tmp_path / "a" / "0.png").read_bytes() if name.endswith(b"png") else b"text")
    with pytest.raises(UserError, match=r"the name '.*\\udcff.*' is not UTF-8"):
        load(tmp_path)


@pytest.mark.parametrize("where", ["", "a", "a/plain"])
def test_what_cannot_be_opened_is_one_sentence(tmp_path, where, monkeypatch):
    """A folder or a file without a suffix that the system does not open; nothing is passed over."""
    make(tmp_path, {"a/{}.png": 5, "b/{}.png": 5})
    (tmp_path / "a" / "plain").write_bytes((tmp_path / "a" / "0.png").read_bytes())
    shut = tmp_path / where
    scandir, file_open = os.scandir, type(tmp_path).open

    def refuse(path):
        if str(path) == str(shut):
            raise PermissionError(13, "Permission denied", str(path))

    def scan(path="."):
        refuse(path)
        return scandir(path)

    def open_file(path, *args, **kwargs):
        refuse(path)
        return file_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(os, "listdir", lambda path=".": refuse(path) or [entry.name for entry in scandir(path)])
    monkeypatch.setattr(type(tmp_path), "open", open_file)
    with pytest.raises(UserError, match=rf"{shut} cannot be read \(Permission denied\)"):
        load(tmp_path)


def test_links_are_followed_to_files_and_classes_and_no_further(tmp_path):
    """A linked file and a linked class are used, a linked folder below a class is named, a dead link is refused."""
    make(tmp_path, {"set/a/{}.png": 5, "set/b/{}.png": 5, "else/{}.png": 4})
    (tmp_path / "set" / "a" / "linked.png").symlink_to(tmp_path / "else" / "0.png")
    (tmp_path / "set" / "a" / "loop").symlink_to(tmp_path / "set" / "a")
    (tmp_path / "set" / "c").symlink_to(tmp_path / "else")
    dataset = load(tmp_path / "set")
    assert (dataset.class_names, total(dataset)) == (("a", "b", "c"), 15)
    assert [(left.file, left.reason) for left in dataset.left_out] == [("a/loop", "a link to a folder")]
    dead = tmp_path / "set" / "a" / "dead.png"
    dead.symlink_to(tmp_path / "nothing.png")
    with pytest.raises(UserError, match=r"dead\.png cannot be read as an image \(No such file"):
        load(tmp_path / "set")
    assert load(tmp_path / "set", on_corrupt="skip").unreadable == ("a/dead.png",)
    dead.unlink()
    (tmp_path / "set" / "d").symlink_to(tmp_path / "not mounted")
    with pytest.raises(UserError, match=r"the link .*d leads nowhere"):
        load(tmp_path / "set")


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("CMYK", "jpg"), ("L", "jpg"), ("LA", "png"), ("1", "png"), ("P", "png"), ("P", "gif"), ("1", "bmp")),
        *(("L", "bmp"), ("RGBA", "png"), ("RGBA", "webp"), ("RGBA", "bmp"), ("I;16", "png")),
    ],
)
def test_pixels_are_those_that_pillow_reads(tmp_path, mode, kind):
    """Of every mode: what an independent decoder makes of the file, to the rounding of JPEG."""
    make(tmp_path, {"b/{}.png": 4})
    (tmp_path / "a").mkdir()
    for index in range(4):
        picture = Image.fromarray(PIXELS[index])
        if mode == "I;16":
            picture = Image.fromarray(PIXELS[index][..., 0].astype(np.uint16) * 256 + PIXELS[index][..., 1])
        elif mode != "RGB":
            picture = picture.convert(mode)
        picture.save(tmp_path / "a" / f"{index}.{kind}", **({"lossless": True} if kind == "webp" else {}))
    dataset = load(tmp_path)
    assert total(dataset) == 8
    for split in (dataset.train, dataset.test):
        for image, name in zip(split.images[split.labels == 0], np.array(split.names)[split.labels == 0], strict=True):
            with Image.open(tmp_path / "a" / name) as picture:
                wide = np.asarray(picture) // 256 if mode == "I;16" else np.asarray(picture.convert("RGB"))
            expected = np.broadcast_to(wide[..., None] if wide.ndim == 2 else wide, image.shape)
            assert np.abs(image.astype(int) - expected).max() <= (3 if kind == "jpg" else 0)


def test_a_class_with_one_image_is_refused(tmp_path):
    make(tmp_path, {"a/{}.png": 20, "rare/{}.png": 1})
    with pytest.raises(UserError, match="the class rare has one image"):
        load(tmp_path)


@pytest.mark.parametrize("val_examples", [None, 0, 8])
def test_a_class_with_two_images_is_trained_on(tmp_path, val_examples):
    found = counts(load(make(tmp_path, {"a/{}.png": 20, "b/{}.png": 20, "rare/{}.png": 2}), val_examples=val_examples))
    assert (found["train"][2], found["test"][2]) == (1, 1)


def test_every_split_has_the_rare_class(tmp_path):
    found = counts(load(make(tmp_path, {"ok/{}.png": 250, "defect/{}.png": 10}), val_examples=25))
    assert min(part[0] for part in found.values()) >= 1
    assert sum(found["validation"]) == 25


def test_a_part_of_the_training_images_has_every_class(tmp_path):
    root = make(tmp_path, {"ok/{}.png": 250, "defect/{}.png": 10})
    assert counts(load(root, train_examples=6))["train"][0] == 1
    with pytest.raises(UserError, match=r"--train_examples: received 1; .* has no training image"):
        load(root, train_examples=1)


def test_a_palette_bmp_has_its_colours(tmp_path):
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / name).mkdir()
        for index in range(10):
            picture = Image.new("P", (8, 8), index % 2)
            picture.putpalette([*colour, 255, 255, 255, *([0] * 762)])
            picture.save(tmp_path / name / f"{index}.bmp")
    pixels = {tuple(image[0, 0].tolist()) for image in load(tmp_path).train.images}
    assert pixels == {(255, 0, 0), (0, 0, 255), (255, 255, 255)}


def test_a_photograph_is_turned_upright(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(6):
            picture = Image.fromarray(PIXELS[index][:, :4])
            exif = picture.getexif()
            exif[274] = 6
            picture.save(tmp_path / name / f"{index}.jpg", exif=exif)
    assert load(tmp_path).image_shape == (4, 8, 3)


def png(bits, colour, pixels, side=8):
    header = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    parts = (struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_an_image_of_too_many_pixels_is_refused(tmp_path):
    """A file of 200 kB that says that it is 40,000 pixels high and wide."""
    make(tmp_path, {"a/{}.png": 5, "b/{}.png": 5})
    (tmp_path / "a" / "huge.png").write_bytes(png(1, 0, b"", 40_000))
    with pytest.raises(UserError, match=r"huge\.png cannot be read as an image \(it has too many pixels"):
        load(tmp_path)
    (left,) = load(tmp_path, on_corrupt="skip").left_out
    assert left.reason.startswith("it has too many pixels")


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize(("top", "bits"), [(2**12, "12 or fewer"), (2**14, "14 or fewer"), (2**16, None)])
def test_bits_that_16_bit_images_do_not_fill_are_said(colour, channels, top, bits):
    """Of grey and colour, without and with an opaque transparency, which fills all 16."""
    pixels = np.random.default_rng(0).integers(0, top, (8, 8, channels)).astype(">u2")
    pixels[0, 0], pixels[..., channels - 1] = top - 1, 2**16 - 1 if colour in (4, 6) else pixels[..., channels - 1]
    _, oddity = decode_file(png(16, colour, b"".join(b"\0" + row.tobytes() for row in pixels)), None, "crop")
    assert (oddity is None) if bits is None else bits in oddity


def test_transparency_and_twelve_bits_are_said(tmp_path):
    make(tmp_path, {"a/{}.png": 6, "b/{}.png": 6})
    Image.fromarray(np.dstack([PIXELS[0], np.full((8, 8), 100, np.uint8)])).save(tmp_path / "a" / "ghost.png")
    Image.fromarray(np.dstack([PIXELS[0], np.full((8, 8), 255, np.uint8)])).save(tmp_path / "a" / "opaque.png")
    Image.fromarray(PIXELS[0][..., 0].astype(np.uint16) * 16).save(tmp_path / "a" / "xray.png")
    frames = [Image.fromarray(image) for image in PIXELS[:2]]
    frames[0].save(tmp_path / "a" / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b" / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    dataset = load(tmp_path)
    for number, words in (("1 file:", "transparent"), ("1 file:", "16 bits"), ("2 files:", "animated")):
        assert sum(note.startswith(number) and words in note for note in dataset.notes) == 1
    assert len(dataset.notes) == 3
    moving = [
        image
        for split in dataset.splits.values()
        for image, name in zip(split.images, split.names, strict=True)
        if name == "moving.webp"
    ]
    np.testing.assert_array_equal(moving, PIXELS[:1])


@pytest.mark.slow
def test_another_file_moves_no_file(tmp_path):
    """Each of 20 files in turn comes and goes: all others stay in their splits."""
    make(tmp_path, {"a/{}.png": 60, "b/{}.png": 60})
    where = split_of(load(tmp_path))
    for index in range(20):
        extra = tmp_path / "a" / f"extra{index}.png"
        Image.fromarray(PIXELS[-1 - index]).save(extra)
        now = split_of(load(tmp_path))
        assert {name: split for name, split in now.items() if name in where} == where
        extra.unlink()
        (tmp_path / "b" / f"{index}.png").unlink()
        del where["b", f"{index}.png"]
        assert split_of(load(tmp_path)) == where


def split_of(dataset):
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {
        (dataset.class_names[label], file): name
        for name, split in splits.items()
        for file, label in zip(split.names, split.labels, strict=True)
    }


@pytest.mark.parametrize(
    "name", ["@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", ".thumbnails", "lost+found", "__pycache__", ".git"]
)
def test_folders_of_systems_are_no_classes_and_hold_no_images(tmp_path, name):
    make(tmp_path, {"a/{}.png": 6, "b/{}.png": 6, f"{name}/a/{{}}.png": 2, f"a/{name}/{{}}.png": 2})
    for file in ("Thumbs.db", ".DS_Store", "desktop.ini", "._0.png"):
        (tmp_path / "a" / file).write_bytes(b"none")
    dataset = load(tmp_path)
    assert (dataset.class_names, total(dataset)) == (("a", "b"), 12)
    assert {left.file for left in dataset.left_out} == {
        *(name, f"a/{name}", "a/Thumbs.db", "a/.DS_Store", "a/desktop.ini", "a/._0.png")
    }


def test_a_class_that_is_a_link_to_others_is_refused(tmp_path):
    make(tmp_path, {"a/{}.png": 6, "b/{}.png": 6})
    for target in (tmp_path / "a", tmp_path):
        (tmp_path / "c").symlink_to(target)
        with pytest.raises(UserError, match=r"the class c is a link to .*, with the images of a; remove it"):
            load(tmp_path)
        (tmp_path / "c").unlink()


def test_names_that_look_alike_are_said_and_others_refused(tmp_path):
    make(tmp_path, {"a b/{}.png": 3, "a  b /{}.png": 3})
    assert "differ in capitals, spaces or encoding only" in load(tmp_path).notes[0]
    make(tmp_path, {"c\nd/{}.png": 3})
    with pytest.raises(UserError, match=r"the name 'c\\nd' has a control character, rename it"):
        load(tmp_path)


def test_an_empty_file_is_called_so(tmp_path):
    make(tmp_path, {"a/{}.png": 3, "b/{}.png": 3})
    (tmp_path / "a" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"0\.png cannot be read as an image \(it is empty\)"):
        load(tmp_path)


def test_images_of_zeros_and_ones_are_said_and_a_folder_of_them_refused(tmp_path):
    make(tmp_path, {"a/{}.png": 3, "b/{}.png": 3})
    mask = Image.fromarray(PIXELS[0, ..., 0] // 128)
    mask.save(tmp_path / "a" / "mask.png")
    assert load(tmp_path).notes == ("1 file: its pixels are 0 and 1 of 255 only: the image is black",)
    for file in tmp_path.rglob("*.png"):
        mask.save(file)
    with pytest.raises(UserError, match="all its images are 0 and 1 of 255; write them times 255"):
        load(tmp_path)


def bmp(header, body, colours=b""):
    start = 14 + len(header) + len(colours)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + colours + body


def test_bitmaps_of_all_kinds_are_read(tmp_path):
    """Of 16 bits (5, 6 and 5), and OS/2's of 24: written by hand, read as they are."""
    make(tmp_path, {"a/{}.png": 3, "b/{}.png": 3})
    for file in tmp_path.rglob("*.png"):
        file.unlink()
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    info = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 16, 3, 128, 0, 0, 0, 0)
    kinds = [bmp(info, struct.pack("<H", 0xF800) * 64, masks)]  # red
    kinds.append(bmp(struct.pack("<IHHHH", 12, 8, 8, 1, 24), bytes((0, 0, 255)) * 64))
    for name in ("a", "b"):
        for index, content in enumerate(kinds * 2):
            (tmp_path / name / f"{index}.bmp").write_bytes(content)
    images = load(tmp_path).train.images
    assert (np.asarray(images) == (255, 0, 0)).all()


def test_a_link_to_what_is_no_file_is_left_out(tmp_path):
    """To read a pipe, or /dev/zero, would never end."""
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(3):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "set" / name / f"{index}.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "set" / "a" / "x.png").symlink_to(tmp_path / "pipe")
    (tmp_path / "set" / "b" / "y.png").symlink_to("/dev/zero")
    layout = find_layout(tmp_path / "set", "folder:set")
    assert [(left.file, left.reason) for left in layout.left_out] == [
        ("a/x.png", "no regular file"),
        ("b/y.png", "no regular file"),
    ]
