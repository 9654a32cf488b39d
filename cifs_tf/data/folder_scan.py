"""The layout of a folder: its image files by class and split."""

import collections
import dataclasses
import os
import re
import unicodedata
from pathlib import Path

from cifs_tf.data.layout_names import EVALUATION, SPLITS, check_class_names, odd_class_names
from cifs_tf.errors import UserError
from cifs_tf.files import check_utf8

# Folders that systems put beside one's own, in lower case: thumbnails, recycle bins, what a ZIP of macOS holds.
SYSTEM_FOLDERS = frozenset(
    (
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin"),
        *("__macosx", "__pycache__", "lost+found", "system volume information"),
    )
)
# What begins the content of a file that the decoder reads.
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")
RIFF, WEBP = b"RIFF", b"WEBP"
# Suffixes by which people call images; a file of such a name that cannot be read is refused, not passed over.
IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("avif", "bmp", "dib", "gif", "heic", "heif", "ico", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg", "jxl"),
        *("pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"),
    )
)


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A file that is not used, and why.

    Args:
        file: below the dataset's folder.
        reason: as a sentence goes on after "left out:".
        is_unreadable: whether it is an image file that could not be decoded.
    """

    file: str
    reason: str
    is_unreadable: bool = False


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """A file to read.

    Args:
        path: of the file.
        label: of its class.
        name: below its class folder, with / between folders, in Unicode's form NFC, whichever the disk has: what its
            split and its identity depend on.
    """

    path: Path
    label: int
    name: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """The files of a folder.

    Args:
        class_names: in alphabetical order, that of the labels; in Unicode's form NFC, as the names of files.
        splits: files by split: `train`, and `validation` and `test` where there are folders for them.
        left_out: files that are no images, or lie where no class is.
        notes: what is odd about the classes.
    """

    class_names: tuple[str, ...]
    splits: dict[str, tuple[ImageFile, ...]]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]


def find_layout(root: Path, dataset: str) -> Layout:
    """Find the images of ROOT/SPLIT/CLASS/... or of ROOT/CLASS/....

    Args:
        root: the folder.
        dataset: as given on the command line, for errors.

    Returns:
        the files; a validation folder without a test folder beside it stands for the test split.

    Raises:
        UserError: if there are no classes, a class has no image, the splits have different classes, folders look like
            splits and are not called so, or a name is not UTF-8.
        OSError: if a folder cannot be read.
    """
    found = _split_folders(root, dataset)
    if "train" not in found:
        _check_no_splits(root, found, dataset)
        class_names, files, left_out = _read_split(root, root, dataset)
        return _checked(Layout(class_names, {"train": files}, tuple(left_out), _notes(root)), dataset)
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    others = [child for child in sorted(root.iterdir()) if child not in found.values()]
    left_out = [LeftOut(str(child.relative_to(root)), "it lies beside the splits") for child in others]
    splits: dict[str, tuple[ImageFile, ...]] = {}
    names: tuple[str, ...] = ()
    for split, folder in found.items():
        split_names, splits[split], more = _read_split(folder, root, dataset)
        left_out += more
        names = names or split_names
        if split_names != names:
            different = ", ".join(sorted(set(names) ^ set(split_names)))
            counts = f"{found['train'].name} has {len(names)} classes and {folder.name} has {len(split_names)}"
            advice = f"{counts}, they differ in {different}; give both the same sub-folders"
            raise UserError("--dataset", dataset, advice)
    return _checked(Layout(names, splits, tuple(left_out), _notes(found["train"])), dataset)


def is_image_by_content(file: Path) -> bool:
    """Return whether a file begins as those do that the decoder reads."""
    with file.open("rb") as opened:
        start = opened.read(16)
    return start.startswith(SIGNATURES) or (start.startswith(RIFF) and start[8:12] == WEBP)


def _split_folders(root: Path, dataset: str) -> dict[str, Path]:
    """Return the folders that hold splits, the training split first; a class may be called train, but holds images."""
    found: dict[str, Path] = {}
    for split, names in SPLITS.items():
        folders = [child for child in _folders(root) if child.name.lower() in names and _folders(child)]
        if len(folders) > 1:
            both = " and ".join(sorted(folder.name for folder in folders))
            raise UserError("--dataset", dataset, f"{both} both stand for the {split} split; leave one")
        if folders:
            found[split] = folders[0]
    for child in _folders(root):
        if child.name.lower() in EVALUATION and _folders(child):
            split = "validation" if "test" in found else "test"
            if split in found:
                raise UserError(
                    "--dataset", dataset, f"{found[split].name} and {child.name} both stand for it; leave one"
                )
            found[split] = child
    return found


def _check_no_splits(root: Path, found: dict[str, Path], dataset: str) -> None:
    """Refuse folders that look like splits where there is no training split: their images would be of no class."""
    advice = "call folders of splits train, validation and test, above those of the classes"
    if found:
        names = " and ".join(folder.name for folder in found.values())
        raise UserError("--dataset", dataset, f"it has {names}, and no train beside; {advice}")
    below = _below(root)
    for name, classes in below.items():
        same = [other for other in below if classes and other != name and below[other] == classes]
        if same and SPLITS["train"][0] in name.lower():
            both = " and ".join([name, *same])
            raise UserError("--dataset", dataset, f"{both} have the same sub-folders; {advice}")
        as_splits = {split for split, names in SPLITS.items() if {child.lower() for child in classes} & set(names)}
        if "train" in as_splits and len(as_splits) > 1:
            splits = " and ".join(sorted(classes))
            raise UserError("--dataset", dataset, f"the class {name} has the sub-folders {splits}; {advice}")
    # Such as seg_train/seg_train/CLASS beside seg_test.
    words = {name: set(re.split(r"[^a-z]+", name.lower())) for name, classes in below.items() if classes}
    training = [name for name in words if words[name] & set(SPLITS["train"])]
    others = [name for name in words if words[name] & {*SPLITS["validation"], *SPLITS["test"]}]
    if training and others:
        raise UserError("--dataset", dataset, f"{' and '.join(training + others)} look like splits; {advice}")


def _below(root: Path) -> dict[str, set[str]]:
    """Return the names of the sub-folders of each folder."""
    return {folder.name: {child.name for child in _folders(folder)} for folder in sorted(_folders(root))}


def _notes(root: Path) -> tuple[str, ...]:
    return tuple(odd_class_names(_below(root)))


def _checked(layout: Layout, dataset: str) -> Layout:
    """Refuse names that no other program could read or write."""
    files = (str(file.path) for split in layout.splits.values() for file in split)
    for name in (*layout.class_names, *files, *(left.file for left in layout.left_out)):
        check_utf8("--dataset", dataset, name)
        if not name.isprintable() and any(unicodedata.category(letter) == "Cc" for letter in name):
            raise UserError("--dataset", dataset, f"the name {name!a} has a control character, rename it")
    return layout


def _read_split(folder: Path, root: Path, dataset: str) -> tuple[tuple[str, ...], tuple[ImageFile, ...], list[LeftOut]]:
    classes = sorted(_folders(folder), key=_order)
    if not classes:
        raise UserError("--dataset", dataset, f"{folder} has no sub-folders with images; make one for each class")
    files: list[ImageFile] = []
    beside = [child for child in sorted(folder.iterdir()) if child not in classes]
    if dead := next((child for child in beside if not child.exists()), None):
        raise UserError("--dataset", dataset, f"the link {dead} leads nowhere; mend or remove it")
    left_out = [LeftOut(str(child.relative_to(root)), "it lies in no class folder") for child in beside]
    _check_apart(classes, dataset)
    check_class_names(_below(folder), dataset)
    for label, class_folder in enumerate(classes):
        images, others = _read_class(class_folder, label, root)
        if not images:
            reason = f": {others[0].file} is left out, {others[0].reason}" if others else ""
            raise UserError("--dataset", dataset, f"{class_folder} has no images; fill it or remove it{reason}")
        files += images
        left_out += others
    return tuple(_in_one_form([child.name for child in classes])), tuple(files), left_out


def _check_apart(classes: list[Path], dataset: str) -> None:
    """Refuse a class that is a link to the folder of another, or to one around it: images would have two labels."""
    real = {folder: folder.resolve() for folder in classes}
    for folder in filter(Path.is_symlink, classes):
        for other in classes:
            if other != folder and real[folder] in (real[other], *real[other].parents):
                advice = f"the class {folder.name} is a link to {real[folder]}, with the images of {other.name}"
                raise UserError("--dataset", dataset, f"{advice}; remove it")


def _read_class(folder: Path, label: int, root: Path) -> tuple[list[ImageFile], list[LeftOut]]:
    """Find the images of a class in its folder and all folders below."""
    files: list[ImageFile] = []
    left_out: list[LeftOut] = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        here = Path(parent)
        for name in sorted(folders):
            kind = "a hidden folder, or of the system" if _is_aside(name) else "a link to a folder"
            if _is_aside(name) or (here / name).is_symlink():
                left_out.append(LeftOut(str((here / name).relative_to(root)), kind))
        folders[:] = sorted((name for name in folders if not _is_aside(name)), key=_order)
        for name in sorted(names, key=_order):
            file = here / name
            if reason := _reason_against(file):
                left_out.append(LeftOut(str(file.relative_to(root)), reason))
            else:
                files.append(ImageFile(file, label, file.relative_to(folder).as_posix()))
    names = _in_one_form([file.name for file in files])
    return [dataclasses.replace(file, name=name) for file, name in zip(files, names, strict=True)], left_out


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _order(file: str | Path) -> tuple[str, str]:
    """Return the place of a file or folder in the order of its kin, which is the same in both forms."""
    name = os.path.basename(file)
    return _nfc(name), name


def _in_one_form(names: list[str]) -> list[str]:
    """Return names in the form NFC, but for those that would be two of one name.

    A disk of macOS has names in the form NFD, and copies of it may have either.
    """
    counts = collections.Counter(map(_nfc, names))
    return [name if counts[_nfc(name)] > 1 else _nfc(name) for name in names]


def _reason_against(file: Path) -> str | None:
    if file.name.startswith("."):
        return "a hidden file"
    # A file that is called an image is read, and refused if that fails, as where a link leads nowhere.
    is_called_image = file.suffix.lower() in IMAGE_SUFFIXES
    if not file.is_file() and not (is_called_image and file.is_symlink() and not file.exists()):
        return "no regular file"
    is_image = is_called_image or is_image_by_content(file)
    return None if is_image else "its content is no image"


def _raise(error: OSError) -> None:
    raise error


def _folders(root: Path) -> list[Path]:
    return [child for child in root.iterdir() if child.is_dir() and not _is_aside(child.name)]


def _is_aside(name: str) -> bool:
    """Return whether a folder is hidden, or the system's."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS
