"""Options of a publication; TensorFlow is not needed to refuse a bad one."""

import dataclasses
from typing import Literal

from cifs_tf.config import Defense, Group, bounded
from cifs_tf.errors import UserError
from cifs_tf.sizes import Resize


@dataclasses.dataclass(frozen=True)
class ExportOptions(Group):
    """A network of a run to publish, and the folder of its versions.

    Args:
        run: workdir of a run.
        format: what to write, of savedmodel, onnx and gradient (heads_and_gradient.onnx, for attacks in onnxruntime).
        version: number of the version, 1 or more; null takes the one after the highest there.
        defense: which network of the run; null is its own, not the twin.
        checkpoint: the network after its last epoch, or after its best on the validation images.
        model_base_path: folder of the versions, such as a server's models/NAME; null is export/DEFENSE in the run's
            workdir.
        resize: how the signature encoded resizes images of another size, crop, stretch or pad; true is as the run did,
            or stretch; false is not at all, they are an error then; null is as the run did, if it did.
        int8: write model.int8.onnx too, the network in 8 bits, and measure its robust accuracy beside the float one's.
        int8_examples: class-balanced test images to measure it on; null is 200, or all if there are fewer.
        int8_queries: queries of the Square attack on each of them.
        warmup_batch_sizes: sizes of the requests that a server runs before it answers.
        dataset: where the run's images are now; null is where they were.
        data_dir: where TFDS data lies; null is the run's, or TFDS' own default.
    """

    run: str
    format: tuple[Literal["savedmodel", "onnx", "gradient"], ...] = ("savedmodel", "onnx", "gradient")
    version: int | None = None
    defense: Defense | None = None
    checkpoint: Literal["last", "best"] = "last"
    model_base_path: str | None = None
    resize: Resize | bool | None = None
    int8: bool = False
    int8_examples: int | None = bounded(None, low=1)
    int8_queries: int = bounded(1000, low=0)
    warmup_batch_sizes: tuple[int, ...] = bounded((1,), low=1)
    dataset: str | None = None
    data_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("format", "warmup_batch_sizes"):
            if not getattr(self, name):
                raise UserError(f"--{name}", "an empty list", "give one at least")
        if self.int8 and "onnx" not in self.format:
            raise UserError(
                "--int8", True, "it is made of the ONNX file, give --format onnx or savedmodel,onnx,gradient"
            )
