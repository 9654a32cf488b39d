"""The robustness card: a report with the adversarial image that broke each image, so that others verify it in a minute.

A file of lines of JSON, each with a checksum. The first holds the hashes of weights, images and code; each further one
adversarial images of one attack, appended while the evaluation runs; the last the report, and a hash of all lines
before it. The smallest form in which an image is still misclassified is kept: differences of 8-bit pixels, in float16,
or the pixels in float32.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import tensorflow as tf

from cifs_tf.attacks import HeadsFn
from cifs_tf.data import Split, to_float
from cifs_tf.errors import UserError
from cifs_tf.evaluation.lines import BEGINNING, check_file, decode, encode
from cifs_tf.evaluation.records import Header, Report
from cifs_tf.evaluation.tasks import SAME, Crafted
from cifs_tf.files import write_atomically
from cifs_tf.losses import margin

SCHEMA = 1
LEVELS = 255
FORMS = {"uint8": np.uint8, "float16": np.float16, "float32": np.float32}
# Of a report, what verifying reads.
FIELDS: dict[str, type] = {
    **dict.fromkeys(("about", "key", "natural", "worst_case"), dict),
    **dict.fromkeys(("attacks", "audit", "broken_by", "tasks"), list),
    "num_examples": int,
}
# Encoded bytes of a card, at most: of 10,000 images of CIFAR-10 about 10 MB are needed.
MOST_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class Shown:
    """The adversarial image of one image.

    Args:
        task: the attack that made it.
        form: see `FORMS`.
        values: of this type, like the image: difference modulo 256, difference in [0, 1], or pixels in [0, 1].
    """

    task: str
    form: str
    values: np.ndarray

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """Return the adversarial image, float32 in [0, 1], of an image uint8 (height, width, channels)."""
        if self.form == "uint8":
            return to_float(image + self.values).numpy()
        if self.form == "float16":
            return np.clip(to_float(image).numpy() + self.values.astype(np.float32), 0, 1)
        return self.values


class Card:
    """A robustness card, in memory, and in a file if there is one.

    Args:
        header: of the evaluation's ledger.
        file: where to keep it, opened for appending; None keeps it in memory only.

    Example:
        >>> card = Card.read(workdir / "cifs/evaluation/last/standard/card.jsonl")
        >>> card.report["worst_case"]["accuracy"]
        0.554
    """

    def __init__(self, header: Mapping[str, Any], file: IO[bytes] | None = None):
        self.header = {"schema": SCHEMA, "key": header["key"], "shard": header["shard"]}
        self.report: Report | None = None
        self.shown: dict[int, Shown] = {}
        self._size = 0
        self._file = file

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: str | os.PathLike[str], header: Header) -> Iterator[Card]:
        """Create a card, or go on with the one in the file where it is of the same evaluation.

        Call it while the evaluation's ledger is open, which keeps other processes out.
        """
        path = Path(path)
        check_file("card", path)
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        card, kept = cls(header), list[bytes]()
        first = encode(card.header).encode()
        if path.exists() and not (lines[:1] or [path.read_bytes()])[0].startswith(BEGINNING[: path.stat().st_size]):
            raise UserError("card", path, "it is no card, move it away")
        for line in lines[1:] if lines[:1] == [first] else ():
            with contextlib.suppress(ValueError, KeyError, TypeError, zlib.error):
                record, _ = decode(line.decode())
                if "report" not in record:
                    card._take(record)
                    kept.append(line)
        if lines[: 1 + len(kept)] != [first, *kept]:  # another evaluation's, or damaged
            path.write_bytes(b"".join(each + b"\n" for each in (first, *kept)))
        with open(path, "r+b") as file:
            file.truncate(sum(len(each) + 1 for each in (first, *kept)))
            file.seek(0, os.SEEK_END)
            card._file = file
            yield card

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Card:
        """Read a card that is finished.

        Raises:
            UserError: if it is no card, not finished, damaged or edited, naming the line.
        """
        number = 1
        try:
            content = Path(path).read_bytes()
            if content.count(b"\n") < 2:
                raise ValueError("has not the lines of a card")
            *lines, last = content.split(b"\n")[:-1]
            header, is_checked = decode(lines[0].decode())
            card = cls(header)
            if header != card.header or not is_checked:
                raise ValueError("was written by another version")
            for line in lines[1:]:
                number += 1
                record, is_checked = decode(line.decode())
                if not is_checked or "report" in record:
                    raise ValueError("was edited")
                card._take(record)
            number += 1
            seal, is_checked = decode(last.decode())
            card.report, wanted, images = seal["report"], seal["sha256"], seal["shown"]
            if odd := [name for name, kind in FIELDS.items() if not isinstance(seal["report"].get(name), kind)]:
                raise ValueError(f"has no whole report ({', '.join(odd)})")
        except OSError as error:
            raise UserError("card", path, f"it cannot be read ({error.strerror}), give a card.jsonl") from error
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, zlib.error) as error:
            reason = str(error) if type(error) is ValueError else "is damaged"
            advice = f"line {number} {reason}, give a card as a finished evaluation leaves it"
            raise UserError("card", path, advice) from error
        before = content[: -len(last) - 1]
        if not is_checked or hashlib.sha256(before).hexdigest() != wanted or images != len(card.shown):
            raise UserError("card", path, "its lines are not those that were sealed, give it as it was written")
        return card

    @property
    def is_full(self) -> bool:
        """True where no further image has its place."""
        return self._size > MOST_BYTES

    def keep(self, task: Crafted, split: Split, ids: np.ndarray, x_adv: np.ndarray, heads_fn: HeadsFn) -> None:
        """Keep adversarial images, each in the smallest form that the network still misclassifies.

        Args:
            task: that made them.
            split: the images of the evaluation.
            ids: int (n,), of those that it broke; images that have one already are left out.
            x_adv: float32 (n, height, width, channels) in [0, 1].
            heads_fn: of the attacked network.
        """
        new = np.array([i not in self.shown for i in ids.tolist()], bool)
        if not new.any() or self.is_full:
            return
        ids, x_adv, ball = ids[new], np.asarray(x_adv[new], np.float32), task.attack
        images, labels = split.images[ids], split.labels[ids]
        shift = x_adv - to_float(images).numpy()
        level = np.trunc(shift * LEVELS + np.copysign(1e-3, shift))
        if ball.norm == "linf":  # where rounding to the nearest keeps in the ball
            most = np.floor(float(ball.epsilon) * LEVELS + 1e-3)
            level = np.clip(np.rint(shift * LEVELS), -most, most)
        half = shift.astype(np.float16)
        half = np.where(np.abs(half) > np.abs(shift), np.nextafter(half, np.float16(0)), half)
        left = np.ones(len(ids), bool)
        for form, values in (("uint8", level.astype(np.int16).astype(np.uint8)), ("float16", half), ("float32", x_adv)):
            pixels = [Shown("", form, each).pixels(image) for each, image in zip(values, images, strict=True)]
            chosen = left & (form == "float32" or relative_lead(heads_fn, np.stack(pixels), labels) < -SAME)
            left &= ~chosen
            if chosen.any():
                data = base64.b64encode(zlib.compress(np.ascontiguousarray(values[chosen]).tobytes(), 9)).decode()
                shape = list(images.shape[1:])
                named = {"task": task.name, "ids": ids[chosen].tolist()}
                record = {**named, "form": form, "shape": shape, "data": data}
                self._take(record)
                self._write(encode(record))

    def finish(self, report: Report) -> None:
        """Write the report and seal the card."""
        self.report = report
        if self._file is None:
            return
        self._file.flush()
        before = Path(self._file.name).read_bytes()
        seal = {"report": report, "shown": len(self.shown), "sha256": hashlib.sha256(before).hexdigest()}
        self._write(encode(seal))

    def _take(self, record: Mapping[str, Any]) -> None:
        dtype, shape, ids = FORMS[record["form"]], tuple(map(int, record["shape"])), record["ids"]
        size = len(ids) * int(np.prod(shape)) * np.dtype(dtype).itemsize
        # No more is unpacked than there should be: a small file may hold much.
        packed = zlib.decompressobj()
        content = packed.decompress(base64.b64decode(record["data"], validate=True), size + 1)
        if len(content) != size or not packed.eof:
            raise ValueError("has other images than it names")
        if any(not isinstance(i, int) or i < 0 or i in self.shown for i in ids) or len(set(ids)) < len(ids):
            raise ValueError("has an image twice, or one that does not exist")
        self._size += len(record["data"])
        for i, values in zip(ids, np.frombuffer(content, dtype).reshape(len(ids), *shape), strict=True):
            self.shown[i] = Shown(str(record["task"]), record["form"], values)

    def _write(self, line: str) -> None:
        if self._file is not None:
            self._file.write(line.encode() + b"\n")
            self._file.flush()


def merge_cards(cards: Sequence[Path], target: Path, header: Header, report: Report) -> None:
    """Join the cards of all shards, where each has left one, to one with the report of the whole."""
    if not all(path.exists() for path in cards):
        return
    lines = [line for path in cards for line in path.read_bytes().split(b"\n")[1:-2]]
    write_atomically(
        target, lambda path: path.write_bytes(b"\n".join([encode(Card(header).header).encode(), *lines, b""]))
    )
    with Card.open(target, header) as card:
        card.finish(report)


def relative_lead(heads_fn: HeadsFn, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the lead of the label in the final prediction, as a share of its largest entry: float (n,).

    Below 0 the image is misclassified; minus infinity where an answer is no number.
    """
    heads = heads_fn(tf.constant(pixels, tf.float32))[:, :1]
    lead = margin(heads, tf.constant(labels, tf.int32))[:, 0] / tf.maximum(
        1.0, tf.reduce_max(tf.abs(heads), axis=[1, 2])
    )
    return np.nan_to_num(lead.numpy(), nan=-np.inf)
