"""Options of `serving/export.py`.

They have a module of their own because reading options executes the imports that their module makes for types, and
TensorFlow's takes seconds.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from cifs_tf.errors import UserError

FORMATS = ("savedmodel", "onnx")


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What to publish, and where.

    Args:
        run: workdir of a run.
        format: savedmodel, onnx, or both.
        version: number of the version, 1 or more; null takes the one after the highest there.
        defense: which network of the run; null is its own, not the twin.
        checkpoint: the network after its last epoch, or after its best on the validation images.
        model_base_path: folder of the versions, such as a server's models/NAME; null is export/DEFENSE in the run's
            workdir.
        resize: let the signature encoded resize images of another size, which are an error otherwise.
        int8: write model.int8.onnx too, the network in 8 bits, and measure its robust accuracy beside the float one's.
        int8_examples: class-balanced test images to measure it on; null is 200, or all if there are fewer.
        int8_queries: queries of the Square attack on each of them.
        warmup_batch_sizes: sizes of the requests that a server runs before it answers.
        dataset: where the run's images are now; null is where they were.
        data_dir: where TFDS data lies; null is the run's, or TFDS' own default.
    """

    run: str
    format: str = "savedmodel,onnx"
    version: int | None = None
    defense: Literal["cifs", "cas", "vanilla"] | None = None
    checkpoint: Literal["last", "best"] = "last"
    model_base_path: str | None = None
    resize: bool = False
    int8: bool = False
    int8_examples: int | None = None
    int8_queries: int = 1000
    warmup_batch_sizes: tuple[int, ...] = (1,)
    dataset: str | None = None
    data_dir: str | None = None

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise UserError("--format", self.format, "give savedmodel, onnx, or savedmodel,onnx")
        if self.int8 and "onnx" not in self.formats:
            raise UserError("--int8", True, "it is made of the ONNX file, give --format onnx or savedmodel,onnx")
        if self.int8_examples is not None and self.int8_examples < 1:
            raise UserError("--int8_examples", self.int8_examples, "give a number of 1 or more")
        if self.int8_queries < 0:
            raise UserError("--int8_queries", self.int8_queries, "give a number of 0 or more")
        if not self.warmup_batch_sizes or min(self.warmup_batch_sizes) < 1:
            raise UserError("--warmup_batch_sizes", list(self.warmup_batch_sizes), "give numbers of 1 or more")

    @property
    def formats(self) -> tuple[str, ...]:
        """What `--format` names."""
        return tuple(name.strip(" '\"") for name in self.format.strip().removeprefix("[").removesuffix("]").split(","))
