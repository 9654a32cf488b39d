"""All images of a source, before a run takes its part."""

import dataclasses

from cifs_tf.data.folder_scan import LeftOut
from cifs_tf.data.split import Split


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """All images of a dataset.

    Args:
        train: to train on and, if there is no validation split, to take one from.
        validation: a split of the source's own; None if it has none.
        test: images that only a final evaluation sees.
        class_names: one name per class, in the order of the labels.
        left_out: files that are not used, and why.
        notes: what a person should know of the images, a sentence each.
    """

    train: Split
    validation: Split | None
    test: Split
    class_names: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
