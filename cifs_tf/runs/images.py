"""The images of a run: recorded in its workdir at the first start, and compared whenever the run is used again."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from cifs_tf.config import DataConfig
from cifs_tf.data import ImageDataset, Split, load_dataset
from cifs_tf.data.identity import Identity, differences, hash_division
from cifs_tf.data.source import SPLITS
from cifs_tf.errors import UserError
from cifs_tf.files import hold_lock, write_json
from cifs_tf.runs.workdir import LOCK_FILE, Workdir

FOLDER = "folder:"
# The splits whose pixels a measurement needs.
MEASURED = ("test",)
OTHERWISE = "restore them, or measure on these knowingly with --other_images"
TRAIN_ANEW = "restore them, or train anew in another --workdir"


@dataclasses.dataclass(frozen=True)
class Record:
    """Content of `images.json`.

    Args:
        identity: the images that the run was begun with, all of them.
        division: which of them it takes for what, see `hash_division`; empty of a run made before there were records.
        begun_from: `path`, `run` (its key) and `images` (their hash) of the run whose weights it began with,
            as they were then. Default none, or not recorded.
    """

    identity: Identity
    division: dict[str, str]
    begun_from: dict[str, str | None] | None = None


def load_images(
    data: DataConfig,
    runs: Sequence[Workdir],
    option: str = "--run",
    *,
    other_images: bool = False,
    advice: str = "restore them",
    splits: Collection[str] = SPLITS,
    test_part: Callable[[Split], Split] | None = None,
) -> ImageDataset:
    """Load images for trained networks, and refuse others than those that their runs were trained on.

    Classes in another order are brought into that of the runs. A run that was made before runs recorded their images is
    believed on a dataset by name, whose splits are as they were, and records it now; a folder was divided otherwise
    then.

    Args:
        data: where the images are now.
        runs: the folders of the runs, one at least.
        option: names a run in errors. Default `"--run"`.
        other_images: accept others of the same classes; `ImageDataset.unlike_run` says in what they differ. Default
            False.
        advice: what to do about other images. Default: to restore those of the run.
        splits: those whose pixels are wanted, see `load_dataset`. Default all.
        test_part: of the test images, see `load_dataset`. Default None: all.

    Returns:
        the images.

    Raises:
        UserError: for other images or classes, or a record that cannot be read.
    """
    records = {run: read_record(run, option) for run in runs}
    for run, record in records.items():
        if record is None:
            _check_unrecorded(data, run, option)
    dataset = load_dataset(data, splits, test_part)
    recorded = {run: record.identity for run, record in records.items() if record}
    if len({identity.class_names for identity in recorded.values()}) > 1:
        names = ", ".join(str(run.path) for run in recorded)
        raise UserError(option, names, "their classes are others, or in another order; give runs on the same classes")
    for run, identity in recorded.items():
        dataset = _match(dataset, identity, run, advice, other_images)
    for run in records.keys() - recorded.keys():
        # One that cannot be written to, or is busy, is recorded another time.
        with contextlib.suppress(OSError), hold_lock(run.path / LOCK_FILE):
            if not run.images_file.exists():
                _write_record(dataset, run, {}, None)  # what is loaded here may be another part than the run takes
    return dataset


def load_training_images(data: DataConfig, run: Workdir) -> ImageDataset:
    """Load the images to train on: those that the run was begun with, if anything was trained.

    Raises:
        UserError: as for `load_images`.
    """
    record = read_record(run, "--workdir") if run.has_begun else None
    if record is None and run.has_begun:
        _check_unrecorded(data, run, "--workdir")
    dataset = load_dataset(data)
    return dataset if record is None else _match(dataset, record.identity, run, TRAIN_ANEW)


def record_images(dataset: ImageDataset, run: Workdir, warm_start: str | None = None) -> None:
    """Record the images of a run that begins, or compare those of one that has begun; its lock must be held.

    Args:
        dataset: the images.
        run: the folder of the run, or of a search.
        warm_start: the run whose weights it begins from; None (default) for none.

    Raises:
        UserError: as for `check_recorded_images`.
    """
    if run.has_begun and run.images_file.exists():
        check_recorded_images(dataset, run)
    else:
        _write_record(dataset, run, hash_division(dataset.splits), warm_start)


def check_recorded_images(dataset: ImageDataset, run: Workdir) -> None:
    """Refuse images that are not those that a run has recorded, or another division of them.

    Raises:
        UserError: if so.
    """
    record, division = read_record(run, "--workdir"), hash_division(dataset.splits)
    if record is None:
        raise UserError("--workdir", run.path, f"its {run.images_file.name} is gone; {TRAIN_ANEW}")
    _match(dataset, record.identity, run, TRAIN_ANEW)
    if changed := [name for name in record.division if division[name] != record.division[name]]:
        advice = f"the run in {run.path} took other images of it for {', '.join(changed)}; {TRAIN_ANEW}"
        raise UserError("--dataset", dataset.name, advice)


def held_out_by(run: Workdir) -> str:
    """Return the hash of the validation images that a run held out itself.

    Raises:
        UserError: if it is not known that it did: it was trained on some of them, or may have been.
    """
    record, begun_from = read_record(run, "--model"), run.read_config("--model").train.warm_start
    if begun_from is not None:
        advice = f"the run in {run.path} began from the weights of {begun_from}, which may have seen them; give test"
        raise UserError("--split", "validation", advice)
    if record is None or "validation" not in record.division:
        advice = f"it is not known which images the run in {run.path} held out; give test"
        raise UserError("--split", "validation", advice)
    return record.division["validation"]


def check_held_out(dataset: ImageDataset, run: Workdir, expected: str) -> None:
    """Refuse validation images other than those with the hash of `held_out_by`.

    Raises:
        UserError: if so, or there are none.
    """
    if not len(dataset.validation):
        advice = f"the run in {run.path} held no images out (val_examples 0); give test, or train with --val_examples"
        raise UserError("--split", "validation", advice)
    if hash_division(dataset.splits)["validation"] != expected:
        advice = f"it is not known that these are the images that the run in {run.path} held out; give test"
        raise UserError("--split", "validation", advice)


def check_warm_start(dataset: ImageDataset, run: Workdir) -> None:
    """Refuse to start from the weights of a run on other classes, or on images that are not for training here.

    Args:
        dataset: the images to train on.
        run: the folder of the run that the weights come from.

    Raises:
        UserError: if so, or if it is not known what that run was trained on.
    """
    record = read_record(run, "--warm_start")
    if record is None:
        _check_unrecorded(DataConfig(dataset=dataset.name), run, "--warm_start")
        return
    if record.identity.class_names != dataset.class_names:
        advice = f"it was trained on the classes {', '.join(record.identity.class_names)}, give a run on the same ones"
        raise UserError("--warm_start", run.path, f"{advice}, in the same order")
    is_same = record.identity.hash == dataset.identity.hash
    trained_on_here = _digests(dataset.identity, ("train", "validation"))  # test images among them are told anyway
    tested = [digest for digest in dataset.identity.splits["test"].values() if digest not in trained_on_here]
    if not is_same and (unnamed := [each for each in (dataset.identity, record.identity) if not each.has_names]):
        what = " and ".join("those here" if each is dataset.identity else f"those of {run.path}" for each in unnamed)
        print(f"note: which single images are {what} is not recorded: whether they share some is not known")
    if not is_same and (known := _count_known(tested, record.identity)):
        advice = f"{known:,} of the test images of {dataset.name} were trained or validated on there, give another run"
        raise UserError("--warm_start", run.path, advice)
    of_names = {**dataset.identity.splits["train"], **dataset.identity.splits.get("validation", {})}
    files = zip(dataset.validation.labels, dataset.validation.names or (), strict=False)
    validated = [of_names.get(f"{dataset.class_names[label]}/{name}", "") for label, name in files]
    if is_same:
        held_out = hash_division(dataset.splits)["validation"]
        is_held_out = not len(dataset.validation) or record.division.get("validation") == held_out
    else:
        is_held_out = not _count_known(validated, record.identity)
    if not is_held_out:
        advice = "it is not known to have held out the images that are for validation here, which choose the best epoch"
        raise UserError("--warm_start", run.path, f"{advice}; give that run's images and --val_examples, or 0")


def read_record(run: Workdir, option: str = "--run") -> Record | None:
    """Read which images a run was begun with.

    Args:
        run: the run's folder.
        option: names the run in errors. Default `"--run"`.

    Returns:
        the record; None if there is none.

    Raises:
        UserError: if it is damaged, or of another version.
    """
    try:
        found = json.loads(run.images_file.read_text(encoding="utf-8"))
        record = Record(Identity.from_json(found), dict(found["division"]), _begun_from(found.get("begun_from")))
        if found["hash"] != record.identity.hash:
            raise ValueError("its hash is not that of its content")
        if run.key is not None and found.get("run") not in (None, run.key):
            raise ValueError("it is of another run")
        return record
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        advice = f"its {run.images_file.name} cannot be read ({reason}); restore it, or train anew in another --workdir"
        raise UserError(option, run.path, advice) from error


def _write_record(dataset: ImageDataset, run: Workdir, division: dict[str, str], warm_start: str | None) -> None:
    if run.has_begun:
        print(f"note: {run.path} had not recorded its images; they are taken for those of {dataset.name} of now")
    described: dict[str, Any] = {
        "run": run.key,
        "dataset": dataset.name,
        "hash": dataset.identity.hash,
        "division": division,
    }
    if warm_start is not None and not run.has_begun:
        # Its name may lead elsewhere another time, or to what was trained anew on other images.
        source = Workdir(warm_start)
        record = read_record(source, "--warm_start")
        images = record and record.identity.hash
        described["begun_from"] = {"path": str(source.path.absolute()), "run": source.key, "images": images}
    write_json(run.images_file, {**described, **dataset.identity.to_json()})


def _begun_from(value: Any) -> dict[str, str | None] | None:
    """Check what a record says of the run that its own began from."""
    if value is None:
        return None
    if not isinstance(value, dict) or value.keys() != {"path", "run", "images"}:
        raise ValueError("begun_from is no path, run and images")
    if not all(text is None or (isinstance(text, str) and text and "\0" not in text) for text in value.values()):
        raise ValueError("begun_from has something else than text")
    return value


def _check_unrecorded(data: DataConfig, run: Workdir, option: str) -> None:
    """Refuse a run without a record, unless it was trained on a dataset by name, which is what is loaded now."""
    trained_on = str(run.stored("dataset"))
    if trained_on.startswith(FOLDER):
        advice = (
            f"it has no {run.images_file.name}, so it is not known which images of {trained_on} it was trained on "
            "(runs made before there was such a record divided folders otherwise); train anew in another --workdir"
        )
        raise UserError(option, run.path, advice)
    if data.dataset != trained_on:
        advice = (
            f"it has no {run.images_file.name} to compare {data.dataset} with; use it once without --dataset, on "
            f"{trained_on}, which records that"
        )
        raise UserError(option, run.path, advice)


def _match(
    dataset: ImageDataset, recorded: Identity, run: Workdir, advice: str, other_images: bool = False
) -> ImageDataset:
    """Bring the classes into the run's order, and compare."""
    if dataset.class_names != recorded.class_names and set(dataset.class_names) == set(recorded.class_names):
        dataset = dataset.with_classes(recorded.class_names)
    different = differences(recorded, dataset.identity)
    if not different:
        # The run's own: it may know the pixels of more of them, or of fewer.
        return dataclasses.replace(dataset, identity=recorded)
    said = f"its images are not those of the run in {run.path} ({'; '.join(different)})"
    if dataset.class_names != recorded.class_names and other_images:
        raise UserError("--dataset", dataset.name, f"{said}; give images of the same classes")
    if not other_images:
        raise UserError("--dataset", dataset.name, f"{said}; {advice}")
    if known := _count_known(dataset.identity.splits["test"].values(), recorded):
        number = len(dataset.identity.splits["test"])
        different.append(f"{known:,} of the {number:,} images of its test split were trained or validated on")
    return dataclasses.replace(dataset, unlike_run=tuple(dict.fromkeys((*dataset.unlike_run, *different))))


def _count_known(digests: Iterable[str], recorded: Identity) -> int:
    """Count the images that a run was trained or validated on, as far as it recorded single images."""
    known = _digests(recorded, ("train", "validation"))
    return sum(digest in known for digest in digests)


def _digests(identity: Identity, splits: Collection[str]) -> set[str]:
    return {digest for split in splits for digest in identity.splits.get(split, {}).values() if digest}
