"""Images as a client sends them: the bytes of a PNG or JPEG file, or a float array of the network's shape."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cifs_tf.errors import UserError
from cifs_tf.sizes import ORIENTATION_TAG, Resize, draft, largest_part, scaled_into

Picture = str | Path | bytes | np.ndarray
Shape = tuple[int, int, int]

SUFFIXES = (".png", ".jpg", ".jpeg")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """List image files, taken whatever their suffix, and those in folders with a suffix of `SUFFIXES`, by name.

    Raises:
        UserError: if there is no such file, or a folder without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise UserError("images", path, f"the folder has no {', '.join(SUFFIXES)} file, give another")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError("images", path, "there is no such file, give PNG or JPEG files, or folders of them")
    if not found:
        raise UserError("images", "none", "give PNG or JPEG files, or folders of them, in front of the options")
    return found


def to_bytes(image: Picture, resize_to: Shape | None = None, resize: Resize | bool = True) -> bytes:
    """Turn an image into the bytes of a PNG or JPEG file.

    Args:
        image: a file, its bytes, or a uint8 array (height, width, channels) or (height, width).
        resize_to: height, width and channels of the result, which is PNG then if it has to be resized. Default None:
            the bytes of a file as they are, whatever its size; the server says whether it takes them.
        resize: how, `"crop"`, `"stretch"` or `"pad"`; True (default) is `"stretch"`.

    Raises:
        UserError: if it is no image.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            advice = "give a uint8 array, or take a signature whose input is a float image, such as serving_default"
            raise UserError("images", f"an array of {image.dtype}", advice)
        picture = _from_array(image)
        return _png(picture if resize_to is None else _resize(picture, resize_to, resize))
    content = _content(image)
    picture = _open(content, image_name(image), resize_to, resize)
    return content if resize_to is None or _fits(picture, resize_to) else _png(_resize(picture, resize_to, resize))


def to_array(image: Picture, shape: Shape, resize: Resize | bool = False) -> np.ndarray:
    """Turn an image into a float array of the network's shape.

    Args:
        image: a file, its bytes, a uint8 array, or a float array in [0, 1] that has the shape.
        shape: height, width and channels that the network takes; 1 channel is grey, 3 are red, green and blue.
        resize: how an image of another size is resized, as for `to_bytes`. Default False: it is refused.

    Returns:
        float32 in [0, 1]; one that was resized may differ by 1/255 here and there from what the server makes of it.

    Raises:
        UserError: if it is no image, or its size is not that of the network.
    """
    if isinstance(image, np.ndarray) and image.dtype != np.uint8:
        if image.shape != shape:
            raise UserError("images", f"an array of shape {image.shape}", f"the network takes {shape}, give that")
        return image.astype(np.float32)
    if shape[2] not in _MODES:
        raise UserError("images", image_name(image), f"the network takes {shape[2]} channels, give float arrays")
    picture = _picture(image, shape, resize)
    if not _fits(picture, shape):
        if not resize:
            raise wrong_size(image_name(image), picture.size, shape)
        picture = _resize(picture, shape, resize)
    return (np.asarray(_eight_bits(picture).convert(_MODES[shape[2]]), np.float32) / 255).reshape(shape)


def find_wrong_size(images: Sequence[Picture], shape: Shape) -> UserError | None:
    """Say which image, if any, has not the network's size."""
    for image in images:
        picture = _picture(image)
        if not _fits(picture, shape):
            return wrong_size(image_name(image), picture.size, shape)
    return None


def wrong_size(name: str, size: tuple[int, int], shape: Shape) -> UserError:
    """Refuse an image whose size is not that of the network."""
    advice = f"the network takes {shape[1]} by {shape[0]} pixels, give such images, or --resize to have them resized"
    return UserError("images", f"{name}, {size[0]} by {size[1]} pixels", advice)


def image_name(image: Picture) -> str:
    """Return the name of an image in messages and tables."""
    if isinstance(image, np.ndarray):
        return "an array"
    return f"{len(image)} bytes" if isinstance(image, bytes) else str(image)


def _picture(image: Picture, shape: Shape | None = None, resize: Resize | bool = False) -> Image.Image:
    if isinstance(image, np.ndarray):
        return _from_array(image)
    return _open(_content(image), image_name(image), shape, resize)


def _content(image: str | Path | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise UserError("images", image, f"give a readable PNG or JPEG file ({error.strerror})") from error


def _open(content: bytes, name: str, shape: Shape | None, resize: Resize | bool) -> Image.Image:
    """Open an image file, upright; a JPEG file that is to be resized is decoded smaller, see `halvings`."""
    try:
        opened = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        if shape is not None and resize:
            mode = "stretch" if resize is True else resize
            draft(opened, opened.getexif().get(ORIENTATION_TAG), shape[:2], mode)
        return ImageOps.exif_transpose(opened)  # which loads it
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError("images", name, "it cannot be read as an image, give PNG or JPEG files") from error


def _from_array(array: np.ndarray) -> Image.Image:
    squeezed = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if squeezed.ndim not in (2, 3) or (squeezed.ndim == 3 and squeezed.shape[2] != 3):
        advice = "give (height, width, channels) with 1 or 3 channels, one image at a time"
        raise UserError("images", f"an array of shape {array.shape}", advice)
    return Image.fromarray(squeezed)


def _fits(picture: Image.Image, shape: Shape) -> bool:
    return picture.size == (shape[1], shape[0])


def _resize(picture: Image.Image, shape: Shape, resize: Resize | bool) -> Image.Image:
    """Resize as `cifs_tf.data.resizing` does, to one level of 255."""
    picture, size = _eight_bits(picture).convert(_MODES.get(shape[2], "RGB")), shape[:2]
    if resize == "crop":
        height, width = largest_part(picture.height, picture.width, size)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    height, width = scaled_into(picture.height, picture.width, size) if resize == "pad" else size
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    if picture.size != (shape[1], shape[0]):
        whole = Image.new(picture.mode, (shape[1], shape[0]))
        whole.paste(picture, ((shape[1] - width) // 2, (shape[0] - height) // 2))
        picture = whole
    return picture


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Keep the upper 8 bits of 16, as the server does; Pillow's conversion would cut off what is above 255."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).astype(np.int32) >> 8).clip(0, 255).astype(np.uint8))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
