"""All images of a source, before a run takes its part."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from cifs_tf.data.folder_scan import LeftOut

if TYPE_CHECKING:
    from cifs_tf.data.reading import Reader
    from cifs_tf.data.split import Split

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """All images of a dataset.

    Args:
        train: to train on and, if there is no validation split, to take one from.
        validation: a split of the source's own; None if it has none.
        test: images that only a final evaluation sees; None if it has none, then a part of `train` is taken for it.
        class_names: one name per class, in the order of the labels.
        left_out: files that are not used, and why.
        notes: what a person should know of the images, a sentence each.
        reader: of files that are not decoded yet; None if there are none.
        home: where the images are that need no reader, as a sentence goes on after "images are"; empty in memory.
    """

    train: Split
    validation: Split | None
    test: Split | None
    class_names: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    reader: Reader | None = None
    home: str = ""

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        named = dict(zip(SPLITS, (self.train, self.validation, self.test), strict=True))
        return {name: split for name, split in named.items() if split is not None}
