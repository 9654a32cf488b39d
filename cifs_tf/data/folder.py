"""Images from a folder of one's own: one sub-folder of image files per class."""

import collections
import errno
import io
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from cifs_tf.config import DataConfig
from cifs_tf.data.decoding import decode_image
from cifs_tf.data.folder_scan import ImageFile, LeftOut, find_layout, is_image_by_content
from cifs_tf.data.memory import check_memory, resize
from cifs_tf.data.source import Source
from cifs_tf.data.split import Split
from cifs_tf.errors import UserError

TEST_SHARE = 0.2
CHANNELS = 3
READ_AS_ARE = "JPEG, PNG, WebP, GIF and BMP are"
# Of a PNG file of 16 bits a channel whose values fill 12: the greatest.
TWELVE_BITS = 4095

_decode = tf.function(lambda encoded: decode_image(encoded, CHANNELS), input_signature=[tf.TensorSpec([], tf.string)])


def load_folder(path: str, config: DataConfig) -> Source:
    """Load PATH/train/CLASS/*, PATH/validation/CLASS/* and PATH/test/CLASS/*, or PATH/CLASS/*.

    Files are taken for images by their content, in the folder of a class and in those below it. `training`, `valid`,
    `val` and `testing` name splits too, in upper or lower case; a validation folder without a test folder beside it is
    the test split. Without either, about a fifth of each class is, chosen by the names of the files. Grey images become
    RGB, and photographs are turned upright as EXIF says.

    Args:
        path: the folder.
        config: `image_size` and `on_corrupt` are read.

    Returns:
        what lies there.

    Raises:
        UserError: if there are no images, if they differ in size and no size is given, if a file is no image (unless
            such files are skipped), if a class has no training image, or if the splits have different classes.
    """
    root = Path(os.path.expanduser(path))
    if not root.is_dir():
        raise UserError("--dataset", config.dataset, "there is no such folder; give one with a sub-folder per class")
    try:
        layout = find_layout(root, config.dataset)
    except OSError as error:
        raise UserError("--dataset", config.dataset, f"{error.filename} cannot be read ({error.strerror})") from error
    reader = _Reader(config, root, layout.class_names)
    num_files = sum(len(files) for files in layout.splits.values())
    splits = {name: reader.read(files, num_files) for name, files in layout.splits.items()}
    train = splits["train"]
    if "test" not in splits:
        for label, count in enumerate(np.bincount(train.labels, minlength=len(layout.class_names))):
            if count < 2:
                advice = (
                    f"the class {layout.class_names[label]} has one image; give two, one to train on and one to test"
                )
                raise UserError("--dataset", config.dataset, advice)
        splits["test"], train = train.divide_by_share(TEST_SHARE, "test")
    return Source(
        train=train,
        validation=splits.get("validation"),
        test=splits["test"],
        class_names=layout.class_names,
        left_out=(*layout.left_out, *reader.left_out),
        notes=(*reader.notes(), *_alike(layout.class_names)),
    )


def _alike(class_names: Sequence[str]) -> list[str]:
    """Return a sentence for classes whose names a person may take for one."""
    forms: dict[str, list[str]] = {}
    for name in class_names:
        forms.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
    return [
        f"the classes {' and '.join(names)} are different ones, though their names differ in capitals or encoding only"
        for names in forms.values()
        if len(names) > 1
    ]


class _Reader:
    """Read image files into memory, and remember what was odd about them."""

    def __init__(self, config: DataConfig, root: Path, class_names: Sequence[str]):
        self.config, self.root, self.class_names = config, root, class_names
        side = config.image_size
        self.shape = None if side is None else (side, side, CHANNELS)
        self.left_out: list[LeftOut] = []
        self.odd: collections.Counter[str] = collections.Counter()

    def read(self, files: Sequence[ImageFile], num_all: int) -> Split:
        """Read one split; `num_all` images share the memory."""
        config = self.config
        images: np.ndarray | None = None
        kept: list[ImageFile] = []
        for file in files:
            image = self._decode(file.path)
            if image is None:
                continue
            if config.image_size is not None:
                image = resize(image, config.image_size)
            self.shape = self.shape or tuple(image.shape)
            if tuple(image.shape) != self.shape:
                size = f"{image.shape[1]}x{image.shape[0]}"
                advice = f"{file.path} is {size} and others are not; give the side to resize them to"
                raise UserError("--image_size", None, advice)
            if images is None:
                check_memory(config.dataset, num_all, self.shape)
                images = np.empty((len(files), *self.shape), np.uint8)
            images[len(kept)] = image.numpy()
            kept.append(file)
        if images is None:
            raise UserError("--dataset", config.dataset, f"no file in {self.root} can be read as an image")
        labels = np.array([file.label for file in kept], np.int32)
        counts = np.bincount(labels, minlength=len(self.class_names))
        if not counts.all():
            missing = self.class_names[int(np.argmin(counts))]
            folder = next(file.path for file in files if self.class_names[file.label] == missing).parent
            advice = f"no image of the class {missing} in {folder} can be read; fill its folder or remove it"
            raise UserError("--dataset", config.dataset, advice)
        return Split(images[: len(labels)], labels, tuple(file.name for file in kept))

    def notes(self) -> list[str]:
        """Return a sentence for each oddity, with the number of files."""
        return [f"{count:,} {'file' if count == 1 else 'files'}: {oddity}" for oddity, count in self.odd.items()]

    def _decode(self, file: Path) -> tf.Tensor | None:
        """Decode an image file; return None if it cannot be decoded and such files are skipped."""
        try:
            content = self._look_at(file.read_bytes())
            return _decode(content)
        except (tf.errors.InvalidArgumentError, OSError) as error:
            reason = f"it cannot be decoded, {READ_AS_ARE}" if not _readable(file) else "it is damaged or cut short"
            if isinstance(error, OSError):
                reason = str(error.strerror)
            if self.config.on_corrupt == "refuse":
                advice = f"the file {file} cannot be read as an image ({reason}); remove it, or give --on_corrupt skip"
                raise UserError("--dataset", self.config.dataset, advice) from error
            self.left_out.append(LeftOut(str(file.relative_to(self.root)), reason, is_unreadable=True))
            return None

    def _look_at(self, content: bytes) -> bytes:
        """Count what a person should know of a file; return it as TensorFlow reads it rightly."""
        try:
            with Image.open(io.BytesIO(content)) as image:
                if oddity := _oddity(image):
                    self.odd[oddity] += 1
                is_moving_webp = image.format == "WEBP" and getattr(image, "n_frames", 1) > 1
                if is_moving_webp or (image.format == "BMP" and image.mode in ("1", "P", "L")):
                    return _as_png(image)
        except Image.DecompressionBombError as error:  # TensorFlow would try, and end the process for want of memory
            raise OSError(errno.EFBIG, "it has too many pixels to be a photograph, make it smaller") from error
        except Exception:  # Pillow raises many kinds; whether the file can be read is for TensorFlow to say
            return content
        return content


def _oddity(image: Image.Image) -> str | None:
    """Say what is lost of an image when it is decoded to 8 bits of red, green and blue."""
    if image.mode.startswith("I") and np.asarray(image).max() <= TWELVE_BITS:
        return "16 bits a channel, of which 12 or fewer are used: the image is nearly black"
    if getattr(image, "n_frames", 1) > 1:
        return "animated: the first frame is used"
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        return "transparent: the colours below the transparency are used"
    return None


def _as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    ImageOps.exif_transpose(image).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _readable(file: Path) -> bool:
    try:
        return is_image_by_content(file)
    except OSError:
        return True
