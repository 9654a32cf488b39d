"""What a model file of this project tells of the images that its network was trained on."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cifs_tf.config import DataConfig
from cifs_tf.data import ImageDataset, Split, load_dataset
from cifs_tf.errors import UserError
from cifs_tf.evaluation.networks.loading import version_folder
from cifs_tf.export import ORIGIN_FILE, changed_files
from cifs_tf.files import CARD_FILE
from cifs_tf.runs.images import MEASURED
from cifs_tf.runs.keys import read_stamp

# What `serving/export.py` leaves in a version, in place of `ORIGIN_FILE`.
LABELS_FILE = "labels.json"
# Files of a version that decide what it answers.
ANSWERS = ("saved_model.pb", "variables/", LABELS_FILE)
# Options that say which part of the images a run takes.
PARTS = ("train_examples", "val_examples", "test_examples")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a model is from, as far as it tells.

    Args:
        images: `ImageDataset.identity.hash` of the images of its run. Default None: it does not tell.
        class_names: in the order of its answers. Default None: it does not tell.
        parts: `train_examples`, `val_examples` and `test_examples` of its run, whose pixels alone the hash is made of.
    """

    images: str | None = None
    class_names: tuple[str, ...] | None = None
    parts: Mapping[str, int | None] = dataclasses.field(default_factory=dict)


def read_origin(path: Path, option: str = "--model") -> Origin:
    """Read what a `.keras` file of a run, or the folder of an export (or of its versions), tells.

    Args:
        path: of the model; what is not of this project tells nothing.
        option: names the model in errors. Default `"--model"`.

    Raises:
        UserError: if files of an export are not those that were exported, or what tells of them is damaged.
    """
    if path.is_file() and path.suffix != ".onnx":
        try:
            told = read_stamp(path, {"key": None})
        except ValueError:  # whatever it is, who loads it says so
            told = {}
        names = told.get("class_names")
        return Origin(told.get("images"), None if names is None else tuple(names))
    folder, file = path.parent if path.is_file() else version_folder(path), None
    try:
        names = _read(file := folder / LABELS_FILE)
        if (told := _read(file := folder / ORIGIN_FILE)) is not None:
            images, recipe = told["origin"]["images"], told.get("recipe", {})
        elif (told := _read(file := folder / CARD_FILE)) is not None:
            images, recipe = told["data"].get("images"), told.get("recipe", {})
        else:  # of `cifs_tf.export.export` by itself, which numbers classes that nobody named
            is_numbered = names == [str(label) for label in range(len(names or ()))]
            return Origin(class_names=None if names is None or is_numbered else tuple(names))
        parts = {name: int(recipe[name]) for name in PARTS if recipe.get(name) is not None}
        changed = [name for name in changed_files(folder, told["files"]) if name.startswith(ANSWERS)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(option, path, f"its {file and file.name} is damaged; export it again") from error
    if changed:
        raise UserError(option, path, f"{', '.join(changed)} changed after it was exported; export it again")
    return Origin(images, tuple(names or ()), parts)


def load_for_origin(
    data: DataConfig, origin: Origin, test_part: Callable[[Split], Split], *, other_images: bool = False
) -> ImageDataset:
    """Load test images for a model outside its run, and what is needed to compare them with those of the run.

    Args:
        data: where the images are.
        origin: what the model tells.
        test_part: see `load_dataset`.
        other_images: they may be others. Default False.

    Returns:
        the part of the test images, as `test`. Its identity is of the images that the run took, if it took a part and
        they are there.

    Raises:
        UserError: as `load_dataset`.
    """
    if origin.images is None:
        return load_dataset(data, MEASURED, test_part)
    if origin.parts and not other_images:
        # Where there are too few, they are others: the comparison says so.
        with contextlib.suppress(UserError):
            parts: dict[str, Any] = {**dict.fromkeys(PARTS), **origin.parts}
            own = load_dataset(dataclasses.replace(data, **parts))
            return dataclasses.replace(load_dataset(data, MEASURED, test_part), identity=own.identity)
    dataset = load_dataset(data)
    return dataclasses.replace(dataset, test=test_part(dataset.test))


def match_origin(
    dataset: ImageDataset, origin: Origin, path: Path, *, option: str = "--model", other_images: bool = False
) -> ImageDataset:
    """Bring the classes of images into the order of a model's answers, and refuse other images than those of its run.

    Args:
        dataset: the images.
        origin: what the model tells.
        path: of the model.
        option: names the model in errors. Default `"--model"`.
        other_images: accept others of the same classes; `ImageDataset.unlike_run` says that they are. Default False.

    Returns:
        the images.

    Raises:
        UserError: for other classes or images.
    """
    names = origin.class_names
    if names is not None and names != dataset.class_names:
        if sorted(names) != sorted(dataset.class_names):
            advice = f"its classes are {', '.join(names)}; the images are of {', '.join(dataset.class_names)}"
            raise UserError(option, path, advice)
        dataset = dataset.with_classes(names)
    if origin.images in (None, dataset.identity.hash) or dataset.unlike_run:
        return dataset
    said = f"their hash is {dataset.identity.hash}, that of the images it was trained beside {origin.images}"
    if not other_images:
        advice = f"these are not the images of the run that {path} is from ({said})"
        raise UserError("--dataset", dataset.name, f"{advice}; measure on these knowingly with --other_images")
    return dataclasses.replace(dataset, unlike_run=(said,))


def _read(file: Path) -> Any:
    """Read a JSON file; return None if there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
