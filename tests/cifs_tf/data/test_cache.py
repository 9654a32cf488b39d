"""Images on disk: the same pixels and batches as in memory, decoded once, whatever ends the process."""

import dataclasses
import hashlib
import os
import shutil
import signal
import threading

import numpy as np
import pytest
from PIL import Image

from cifs_tf.config import DataConfig
from cifs_tf.data import load_dataset, reading, stored
from cifs_tf.data.stored import Records, StoredImages, digest_of
from cifs_tf.errors import UserError

SHAPE = (4, 4, 3)


@pytest.fixture
def pets(tmp_path):
    """Two classes of 40 photographs, portrait and landscape."""
    rng = np.random.default_rng(0)
    for level, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(40):
            height, width = (24, 18) if index % 2 else (18, 24)
            pixels = rng.integers(100 * level, 100 * level + 100, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{index:02}.jpg")
    return tmp_path / "pets"


def config(pets, cache="disk", **options):
    options = {"image_size": 16, "val_examples": 12, **options}
    return DataConfig(dataset=f"folder:{pets}", cache=cache, cache_dir=str(pets.parent / "cache"), **options)


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that were decoded, in order."""
    names, decode = [], reading.Reader._decode

    def noted(self, file):
        names.append(file.name)
        return decode(self, file)

    monkeypatch.setattr(reading.Reader, "_decode", noted)
    return names


def batches(split, number, **options):
    made = split.training_batches(8, seed=3, augmentation="resized_crop_flip", **options).take(number)
    return [(images, labels) for images, labels in made.as_numpy_iterator()]


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_memory_disk_and_cache_are_the_same_to_the_bit(pets, decoded):
    memory, disk = load_dataset(config(pets, "memory")), load_dataset(config(pets))
    number = len(decoded)
    cached = load_dataset(config(pets))
    assert len(decoded) == number == 2 * 80
    assert "memory" in memory.home
    assert str(pets.parent / "cache") in disk.home
    for other in (disk, cached):
        assert other.identity == memory.identity
        for name, split in memory.splits.items():
            np.testing.assert_array_equal(np.asarray(other.splits[name].images), split.images)
            np.testing.assert_array_equal(other.splits[name].labels, split.labels)
        assert_same(batches(other.train, 12), batches(memory.train, 12))
        assert_same(batches(other.train, 2, start_step=10), batches(memory.train, 12)[10:])
        assert_same(
            *(data.validation.validation_batches(5).as_numpy_iterator() for data in (other, memory)),
        )
        digests = [hashlib.sha256(), hashlib.sha256()]
        for data, digest in zip((memory, other), digests, strict=True):
            data.test.add_to(digest)
        assert digests[0].digest() == digests[1].digest()


def test_batches_that_are_kept_stay_as_they_are(pets):
    """Arrays are used again when nobody has them, neither a tensor nor a part of one."""
    train = load_dataset(config(pets)).train
    tensors, parts = [], []
    for images, _ in train.training_batches(8, seed=0).take(40):
        tensors.append(images)
        parts.append(np.asarray(images)[3:])
        if len(parts) > 3:
            parts.pop(0), tensors.pop(0)
        kept = [part.copy() for part in parts]
    np.testing.assert_array_equal(parts, kept)
    again = [images for images, _ in train.training_batches(8, seed=0).take(40).as_numpy_iterator()]
    np.testing.assert_array_equal([tensor.numpy() for tensor in tensors], again[-len(tensors) :])
    np.testing.assert_array_equal(parts, [images[3:] for images in again[-len(parts) :]])


def test_parts_of_a_batch_are_those_of_the_whole(pets, monkeypatch):
    """Each of two workers makes its half, and reads no image of the other's."""
    train = load_dataset(config(pets)).train
    whole, read = batches(train, 3), []
    original = Records.read
    monkeypatch.setattr(Records, "read", lambda self, *record: read.append(record) or original(self, *record))
    halves = [batches(train, 3, share=(index, 2)) for index in range(2)]
    for step in range(3):
        for part in range(2):
            joined = np.concatenate([halves[index][step][part] for index in range(2)])
            np.testing.assert_array_equal(joined, whole[step][part])
    assert len(read) <= 2 * 4 * (3 + 10)  # what is read ahead is half batches too


def test_only_what_is_used_is_decoded(pets, decoded):
    dataset = load_dataset(config(pets, "memory", train_examples=24, test_examples=6, val_examples=4))
    assert len(decoded) == 24 + 6 + 4
    assert sum(dataset.identity.counts.values()) == 80
    known = [digest for images in dataset.identity.splits.values() for digest in images.values() if digest]
    assert len(known) == 34
    decoded.clear()
    measured = load_dataset(config(pets, "memory"), ("test",))
    assert len(decoded) == len(measured.test)
    assert measured.image_shape == (16, 16, 3)
    decoded.clear()
    part = load_dataset(config(pets, "memory"), ("test",), lambda test: test.class_balanced(3, "--examples"))
    assert len(decoded) == len(part.test) == 3
    chosen = measured.test.class_balanced(3, "--examples")
    np.testing.assert_array_equal(part.test.images, chosen.images)
    assert part.num_test_images == len(measured.test)
    with pytest.raises(RuntimeError, match="were not loaded"):
        measured.train.images[0]


def test_what_changed_is_decoded_again(pets, decoded):
    load_dataset(config(pets))
    decoded.clear()
    Image.new("RGB", (30, 20), (1, 2, 3)).save(pets / "dog" / "05.jpg")
    Image.new("RGB", (30, 20), (7, 8, 9)).save(pets / "dog" / "new.jpg")
    dataset = load_dataset(config(pets, val_examples=0))
    assert sorted(decoded) == ["05.jpg", "new.jpg"]
    plain = {
        name
        for split in (dataset.train, dataset.test)
        for name, image in zip(split.names, np.asarray(split.images), strict=True)
        if np.ptp(image, (0, 1)).max() == 0
    }
    assert plain == {"05.jpg", "new.jpg"}
    decoded.clear()
    load_dataset(config(pets, resize="pad"))
    assert len(decoded) == 81


def test_a_damaged_record_is_named_and_decoded_again(pets, decoded):
    load_dataset(config(pets))
    (file,) = pets.parent.glob("cache/*/pixels.bin")
    content = bytearray(file.read_bytes())
    content[5 * 16 * 16 * 3 + 7] ^= 1
    file.write_bytes(content)
    decoded.clear()
    dataset = load_dataset(config(pets))

    def read():
        with dataset.naming_faults():
            for split in dataset.splits.values():
                list(split.validation_batches(4))

    with pytest.raises(UserError, match=r"its record of cat/\d\d.jpg is damaged; the same command"):
        read()
    assert decoded == []
    healed = load_dataset(config(pets))
    assert len(decoded) == 1
    whole = load_dataset(config(pets, "memory"))
    for name, split in healed.splits.items():
        np.testing.assert_array_equal(np.asarray(split.images), whole.splits[name].images)


def test_several_at_a_time(pets, decoded):
    """Two of them decode each file once between them."""
    found = [None, None]

    def load(index):
        found[index] = load_dataset(config(pets))

    threads = [threading.Thread(target=load, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 80
    np.testing.assert_array_equal(np.asarray(found[0].train.images), np.asarray(found[1].train.images))


def image(number):
    return np.full(SHAPE, number, np.uint8)


def add_images(folder, numbers):
    with Records(folder).writing(SHAPE) as add:
        for number in numbers:
            add(image(number), f"{number}.png", (number, number, 0), digest_of(image(number)), None)


def killed_after(folder, what):
    """Write images 6 to 11 in a process of its own, which kills itself at a moment: what it leaves."""
    child = os.fork()
    if child == 0:
        stored.FLUSHED_TOGETHER = 2
        sync, calls = os.fsync, []

        def end(descriptor):
            calls.append(descriptor)
            if len(calls) == 2:
                if what == "cut line":
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size - 9)
                os.kill(os.getpid(), signal.SIGKILL)
            sync(descriptor)

        os.fsync = end if what != "before the index" else sync
        os.fdatasync = end if what == "before the index" else sync
        try:
            add_images(folder, range(6, 12))
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize(("moment", "kept"), [("before the index", 8), ("in the index", 10), ("cut line", 9)])
def test_a_process_may_be_killed_at_any_moment(tmp_path, moment, kept):
    """Of ten or twelve images those whose line is whole are there; the rest is written by the next."""
    add_images(tmp_path, range(6))
    killed_after(tmp_path, moment)
    assert len(Records(tmp_path).entries) == kept
    add_images(tmp_path, range(kept, 12))
    records = Records(tmp_path)
    assert len(records.entries) == 12
    numbers = np.array([records.find(f"{number}.png", (number, number, 0)).record for number in range(12)])
    assert StoredImages(records, numbers)[:][:, 0, 0, 0].tolist() == list(range(12))


def test_all_damaged_records_are_written_again_by_one_command(pets, decoded):
    """An index of another time: many records are not what it says, in one run they are all found."""
    load_dataset(config(pets))
    (file,) = pets.parent.glob("cache/*/pixels.bin")
    pixels = np.fromfile(file, np.uint8).reshape(80, -1)
    np.concatenate([np.roll(pixels[:10], 1, axis=0), pixels[10:]]).tofile(file)
    decoded.clear()
    with pytest.raises(UserError, match=r"is damaged, as 9 others are; the same command"):
        np.asarray(load_dataset(config(pets)).train.images)
    mended, memory = load_dataset(config(pets)), load_dataset(config(pets, "memory"))
    assert len(decoded) == 10 + 80
    for name, split in mended.splits.items():
        np.testing.assert_array_equal(np.asarray(split.images), memory.splits[name].images)


@pytest.mark.parametrize("line", ['["cat/00.jpg", 1, 2, 3, 0.5, "00", null, 7]', "null", "[" * 10_000, '{"name": 1}'])
def test_an_index_that_says_nonsense_is_none(tmp_path, line):
    add_images(tmp_path, range(3))
    with (tmp_path / "index.jsonl").open("a") as index:
        index.write(line + "\n")
    assert Records(tmp_path).entries == {}


@pytest.mark.parametrize(("old", "new"), [(b', 1, "', b', 2, "'), (b"null", b"true"), (b"0.png", b"1.png")])
def test_an_index_in_which_a_letter_changed_is_none(tmp_path, old, new):
    """The number of a record, an oddity, a name: they would make others of the images."""
    add_images(tmp_path, range(3))
    index = tmp_path / "index.jsonl"
    assert old in index.read_bytes()
    index.write_bytes(index.read_bytes().replace(old, new, 1))
    assert Records(tmp_path).entries == {}


def test_folders_that_change_names_keep_their_pixels(tmp_path):
    """Files of one size, of one moment, as an archive writes them: their names alone say which is which."""
    folders = [tmp_path / "pets" / name for name in ("cat", "dog")]
    for level, folder in enumerate(folders):
        folder.mkdir(parents=True)
        for index in range(10):
            Image.fromarray(np.full((16, 16, 3), 100 * level + index, np.uint8)).save(folder / f"{index}.bmp")
    with pytest.MonkeyPatch.context() as patch:
        # As if all had been written in one tick of the clock that says when a file was changed.
        patch.setattr(reading, "_stamp", lambda status: (status.st_size, 1, status.st_ino))
        load_dataset(config(tmp_path / "pets", val_examples=0))
        for source, target in ((folders[0], "x"), (folders[1], "cat"), (tmp_path / "pets" / "x", "dog")):
            source.rename(tmp_path / "pets" / target)
        found = load_dataset(config(tmp_path / "pets", val_examples=0))
    for split in found.splits.values():
        brightness = split.images[:][:, 0, 0, 0]
        assert np.all((brightness < 100) == (split.labels == 1))


def test_a_cache_that_is_removed_or_cut_meanwhile_is_named(pets):
    """What was read and checked before, too: never are pixels taken that are not there."""
    dataset = load_dataset(config(pets))
    whole = np.asarray(dataset.train.images)
    (pixels,) = pets.parent.glob("cache/*/pixels.bin")
    os.truncate(pixels, pixels.stat().st_size // 2)
    with pytest.raises(UserError, match="damaged, as"), dataset.naming_faults():
        list(dataset.train.validation_batches(4))
    np.testing.assert_array_equal(np.asarray(load_dataset(config(pets)).train.images), whole)
    unread = load_dataset(config(pets))
    shutil.rmtree(pixels.parent)
    with pytest.raises(UserError, match=r"^--cache_dir: .*it cannot be read any more \(No such file"):
        np.asarray(unread.train.images)


def test_lost_pixels_are_written_again(tmp_path):
    add_images(tmp_path, range(6))
    os.truncate(tmp_path / "pixels.bin", 3 * 48 + 5)
    assert len(Records(tmp_path).entries) == 3
    (tmp_path / "index.jsonl").write_text("no index\n")
    assert Records(tmp_path).entries == {}


def test_a_folder_that_cannot_be_written_is_refused(pets):
    (pets.parent / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"^--cache_dir: received .*it cannot be"):
        load_dataset(config(pets))


def test_what_does_not_fit_is_said_before(pets, monkeypatch):
    monkeypatch.setattr("cifs_tf.data.memory.free_memory", lambda: 100_000)
    with pytest.raises(UserError, match=r"^--cache: received memory; its images take .* at the peak"):
        load_dataset(config(pets, "memory"))
    assert "read from" in load_dataset(config(pets, "auto")).home
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"^--cache_dir: .* its disk has"):
        load_dataset(config(pets, "auto", resize="stretch"))


def test_unreadable_files_make_room_for_others(pets):
    """Of a part that is taken, those that cannot be read are left out, and as many are taken as were asked for."""
    for index in range(0, 40, 2):
        (pets / "cat" / f"{index:02}.jpg").write_bytes(b"\xff\xd8\xff no photograph")
    for cache in ("memory", "disk"):
        dataset = load_dataset(config(pets, cache, train_examples=20, on_corrupt="skip"))
        assert len(dataset.train) == 20
        cats = np.array(dataset.train.names)[dataset.train.labels == 0]
        assert all(int(name[:2]) % 2 for name in cats)
        assert len(dataset.unreadable) >= 1


def test_files_that_were_exchanged_by_their_names_are_decoded_again(tmp_path):
    """Of one size, and with the time of their content, as some archives leave them."""
    rng = np.random.default_rng(0)
    for place in ("ant/0", "ant/1", "ant/2", "bee/0", "bee/1", "bee/2"):
        file = tmp_path / "set" / f"{place}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file)
        os.utime(file, ns=(10**18, 10**18))
    config = DataConfig(dataset=f"folder:{tmp_path / 'set'}", cache="disk", cache_dir=str(tmp_path / "cache"))
    before = load_dataset(config).identity.hash
    first, second, free = (tmp_path / "set" / name for name in ("ant/0.bmp", "bee/0.bmp", "free"))
    first.rename(free)
    second.rename(first)
    free.rename(second)
    assert load_dataset(config).identity.hash != before
    assert load_dataset(config).identity.hash == load_dataset(dataclasses.replace(config, cache="memory")).identity.hash


@pytest.mark.parametrize("key", [(0, 1), (Ellipsis, 0), None, [[0, 1], [2, 3]]])
def test_images_on_disk_take_one_index(tmp_path, key):
    add_images(tmp_path, range(4))
    with pytest.raises(IndexError, match="take one index, a slice or a list of indices"):
        StoredImages(Records(tmp_path), np.arange(4))[key]


def test_a_cache_in_the_datasets_folder_is_refused(pets):
    with pytest.raises(UserError, match=r"^--cache_dir: .*it lies in the dataset's folder"):
        load_dataset(dataclasses.replace(config(pets), cache_dir=str(pets / "cache")))
    assert not (pets / "cache").exists()


def test_a_long_name_of_a_folder_is_cut(pets):
    long = pets.rename(pets.parent / ("a" * 240))
    assert len(load_dataset(config(long)).train) > 0
