"""Images from a folder of one's own: one sub-folder of image files per class."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cifs_tf.config import DataConfig
from cifs_tf.data.folder_scan import ImageFile, find_layout
from cifs_tf.data.reading import Reader
from cifs_tf.data.source import Source
from cifs_tf.data.split import Split
from cifs_tf.data.stored import UnreadImages
from cifs_tf.errors import UserError


def load_folder(path: str, config: DataConfig) -> Source:
    """Find PATH/train/CLASS/*, PATH/validation/CLASS/* and PATH/test/CLASS/*, or PATH/CLASS/*; decode nothing yet.

    Files are taken for images by their content, in the folder of a class and in those below it. `training`, `valid`,
    `val` and `testing` name splits too, in upper or lower case; a validation folder without a test folder beside it is
    the test split. Without either, about a fifth of each class is, chosen by the names of the files. Grey images become
    RGB, and photographs are turned upright as EXIF says.

    Args:
        path: the folder.
        config: what `Reader` reads.

    Returns:
        what lies there, unread, and its reader.

    Raises:
        UserError: if there are no images, or if the splits have different classes.
    """
    root = Path(os.path.expanduser(path))
    if not root.is_dir():
        raise UserError("--dataset", config.dataset, "there is no such folder; give one with a sub-folder per class")
    try:
        layout = find_layout(root, config.dataset)
    except OSError as error:
        raise UserError("--dataset", config.dataset, f"{error.filename} cannot be read ({error.strerror})") from error
    splits = {name: _unread(files) for name, files in layout.splits.items()}
    return Source(
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        class_names=layout.class_names,
        left_out=layout.left_out,
        notes=layout.notes,
        reader=Reader(config, root),
    )


def _unread(files: Sequence[ImageFile]) -> Split:
    labels = np.array([file.label for file in files], np.int32)
    return Split(UnreadImages(files), labels, tuple(file.name for file in files))
