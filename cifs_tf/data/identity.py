"""The identity of a dataset: names, splits and pixels of its images, so that others are not taken for them."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cifs_tf.data.source import Source
from cifs_tf.data.split import Split
from cifs_tf.data.stored import StoredImages, UnreadImages, digest_of

SCHEMA = 1
NAMED_AT_MOST = 5


@dataclasses.dataclass(frozen=True)
class Identity:
    """The images of a dataset: all their names, and the pixels of those that a run uses.

    Args:
        class_names: in the order of the labels.
        splits: by the source's split (`train`, `validation`, `test`) the images: by name, `CLASS/NAME`, the hash of
            their pixels, empty if they were not looked at, because the run takes a part of the images; of a set whose
            images have no names, `""` and the hash of all pixels and labels.
        counts: number of images by split.
    """

    class_names: tuple[str, ...]
    splits: Mapping[str, Mapping[str, str]]
    counts: Mapping[str, int]

    @property
    def has_names(self) -> bool:
        """Whether its images have names, so that single ones can be told from those of another set."""
        return not any("" in images for images in self.splits.values())

    @functools.cached_property
    def hash(self) -> str:
        """A hash of all of it, 16 hexadecimal digits: that of other images, splits or classes is another."""
        return digest_of(json.dumps(self.to_json(), sort_keys=True).encode())

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON file has it."""
        return {
            "schema": SCHEMA,
            "class_names": list(self.class_names),
            "counts": dict(self.counts),
            "splits": {split: dict(images) for split, images in self.splits.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Identity:
        """Read what `to_json` returned.

        Raises:
            ValueError: if it is something else.
        """
        try:
            if value["schema"] != SCHEMA:
                raise ValueError(f"schema {value['schema']}")
            splits = {
                str(split): {str(k): str(v) for k, v in images.items()} for split, images in value["splits"].items()
            }
            counts = {str(split): int(count) for split, count in value["counts"].items()}
            return cls(tuple(map(str, value["class_names"])), splits, counts)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no record of images: {error}") from error


def identify(source: Source) -> tuple[Identity, dict[str, int]]:
    """Take down the images of a source, and count those that are there more than once; a second for 300 MB in memory.

    Returns:
        the identity, and `train_and_test` and `two_labels`: how many images are, pixel by pixel, both trained and
        tested on, and how many have two labels.
    """
    present = source.splits
    digests = {name: _digests(split, source) for name, split in present.items()}
    identity = Identity(
        class_names=source.class_names,
        splits={name: _record(split, digests[name], source.class_names) for name, split in present.items()},
        counts={name: len(split) for name, split in present.items()},
    )
    label_of: dict[bytes, int] = {}
    two_labels = {
        digest
        for name, split in present.items()
        for digest, label in zip(digests[name], split.labels.tolist(), strict=True)
        if digest and label_of.setdefault(digest, label) != label
    }
    return identity, {
        "train_and_test": len(set(filter(None, digests["train"])) & set(filter(None, digests["test"]))),
        "two_labels": len(two_labels),
    }


def hash_division(splits: Mapping[str, Split]) -> dict[str, str]:
    """Hash which images of a source a run takes for what: their order, by name or, where they have none, by label.

    Args:
        splits: what the run takes, by what for.

    Returns:
        a hash for each; it says nothing of pixels, which `identify` has seen.
    """
    return {
        name: digest_of("\n".join(split.names or ()).encode() + split.labels.astype("<i4").tobytes())
        for name, split in splits.items()
    }


def differences(recorded: Identity, found: Identity) -> list[str]:
    """Say in what two sets of images differ.

    Args:
        recorded: the images as they were.
        found: as they are.

    Returns:
        a phrase for each difference; none if they are the same, as far as both were looked at.
    """
    said = [
        *_listed("class", "gone", [name for name in recorded.class_names if name not in found.class_names], "classes"),
        *_listed("class", "new", [name for name in found.class_names if name not in recorded.class_names], "classes"),
    ]
    if not said and recorded.class_names != found.class_names:
        said.append("the classes are in another order")
    if said:  # every file of a renamed class would be named
        return said
    before, after = _by_name(recorded), _by_name(found)
    if "" in before or "" in after:
        changed = [s for s in {**recorded.splits, **found.splits} if recorded.splits.get(s) != found.splits.get(s)]
        counts = [(split, recorded.counts.get(split, 0), found.counts.get(split, 0)) for split in changed]
        return [f"the {split} split has other images ({then:,} then, {now:,} now)" for split, then, now in counts]
    both = [name for name in before if name in after]
    moved = [name for name in both if before[name].keys() != after[name].keys()]
    repainted = [name for name in both if name not in moved and _is_repainted(before[name], after[name])]
    return [
        *_listed("file", "added", [name for name in after if name not in before]),
        # One that was never looked at was no image of the run.
        *_listed("file", "gone", [name for name in before if name not in after and any(before[name].values())]),
        *_listed("file", "of other pixels", repainted),
        *_listed("file", "in another split", moved),
    ]


def _record(split: Split, digests: Sequence[bytes], class_names: Sequence[str]) -> dict[str, str]:
    if split.names is None:
        # By name, as for files: the same images are the same when their classes come in another order.
        ranks = np.argsort(np.argsort(class_names, kind="stable"))[split.labels]
        return {"": digest_of(b"".join(digests) + ranks.astype("<i4").tobytes())}
    named = zip(split.names, split.labels, digests, strict=True)
    return {f"{class_names[label]}/{name}": digest.hex() for name, label, digest in named}


def _digests(split: Split, source: Source) -> list[bytes]:
    """Return the hash of each image's pixels; of a file that was not decoded nothing."""
    if isinstance(split.images, UnreadImages):
        return source.reader.digests(split.images.files) if source.reader else [b""] * len(split)
    if isinstance(split.images, StoredImages):
        return split.images.digests()
    return [bytes.fromhex(digest_of(image)) for image in split.images]


def _is_repainted(before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    """Return whether an image has other pixels than it had, where both were looked at."""
    return any(before[split] and after[split] and before[split] != after[split] for split in before)


def _by_name(identity: Identity) -> dict[str, dict[str, str]]:
    """Return the hashes by name and split: a name may stand in several splits."""
    found: dict[str, dict[str, str]] = {}
    for split, images in identity.splits.items():
        for name, digest in images.items():
            found.setdefault(name, {})[split] = digest
    return found


def _listed(noun: str, what: str, names: Iterable[str], plural: str | None = None) -> list[str]:
    names = list(names)
    if not names:
        return []
    shown = ", ".join(names[:NAMED_AT_MOST]) + (", ..." if len(names) > NAMED_AT_MOST else "")
    return [f"{len(names):,} {noun if len(names) == 1 else plural or noun + 's'} {what}: {shown}"]
