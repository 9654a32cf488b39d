"""Names of folders that tell what they are: splits, parts of a dataset, pictures beside their masks; no classes."""

import re
import unicodedata
from collections.abc import Collection, Mapping

from cifs_tf.errors import UserError

# Names of folders, in lower case, for each split.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing"),
}
# Stands for the test split, or for the validation split where a test folder lies beside it.
EVALUATION = ("eval", "evaluation")
# Other tasks have pictures in one folder and what belongs to them in another.
_PICTURES = frozenset(("images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "frames", "rgb", "inputs"))
_BELONGING = frozenset(
    (
        *("masks", "mask", "labels", "label", "annotations", "annotation", "annots", "segmentations", "segmentation"),
        *("segmentationclass", "segmentationobject", "trimaps", "gt", "groundtruth", "targets", "depth", "bboxes"),
        *("imagesets",),
    )
)
_PART = re.compile(r"(k?fold|split|part|subset|shard|chunk|batch|cv)[-_. ]?\d+")


def check_class_names(below: Mapping[str, Collection[str]], dataset: str) -> None:
    """Refuse folders that are no classes, all of them, as their names say.

    Args:
        below: names of the sub-folders of each.
        dataset: as given on the command line, for the error.

    Raises:
        UserError: that says how to lay them out.
    """
    words = {re.sub(r"[-_ ]", "", name.lower()) for name in below}
    what = " and ".join(sorted(below))
    if words <= _PICTURES | _BELONGING and words & _PICTURES and words & _BELONGING:
        advice = f"{what} are pictures and what belongs to them, no classes; give a folder of pictures for each class"
        raise UserError("--dataset", dataset, advice)
    if len(below) > 1 and words <= {*(name for names in SPLITS.values() for name in names), *EVALUATION}:
        advice = f"{what} are splits without folders for classes; put images into SPLIT/CLASS/"
        raise UserError("--dataset", dataset, advice)
    if len(below) > 1 and _have_same_sub_folders(below) and all(_PART.fullmatch(name.lower()) for name in below):
        advice = f"{what} are parts with the same sub-folders; join them to one folder for each class, or to splits"
        raise UserError("--dataset", dataset, f"{advice} (train/CLASS and test/CLASS)")


def odd_class_names(below: Mapping[str, Collection[str]]) -> list[str]:
    """Say which classes a person may take for one, and which may be none.

    Args:
        below: names of the sub-folders of each class.

    Returns:
        a sentence for each oddity.
    """
    forms: dict[str, list[str]] = {}
    for name in below:
        forms.setdefault("".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    told = [
        f"the classes {' and '.join(names)} are different ones, though their names differ in capitals, spaces or "
        "encoding only"
        for names in forms.values()
        if len(names) > 1
    ]
    splits = {*SPLITS["validation"], *SPLITS["test"], *EVALUATION}  # not `train`, which may be a class of vehicles
    for name in below:
        is_valid = f"in{name.lower()}" in forms
        if not is_valid and (name.lower() in splits or _PART.fullmatch(name.lower())):
            told.append(
                f"the class {name} is called as a part of a dataset is, and taken for a class; if it is not one, move "
                "it away, or lay the images out as SPLIT/CLASS/"
            )
    if len(below) > 1 and _have_same_sub_folders(below):
        inner = ", ".join(sorted(next(iter(below.values())))[:3])
        told.append(f"all classes have the same sub-folders ({inner}); if those are the classes, put them at the top")
    return told


def _have_same_sub_folders(below: Mapping[str, Collection[str]]) -> bool:
    kinds = {frozenset(names) for names in below.values()}
    return len(kinds) == 1 and len(next(iter(kinds))) > 1
