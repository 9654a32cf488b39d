"""Resizing in TensorFlow, in the exported decoder and in the client: the same image, to one level of 255."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from cifs_tf.config import DataConfig
from cifs_tf.data.folder_scan import ImageFile
from cifs_tf.data.reading import Reader
from cifs_tf.data.resizing import mode_of, resize, resize_array, served_mode
from cifs_tf.models.signature_functions import decode_images
from cifs_tf.serving.client.images import to_array
from cifs_tf.sizes import halvings, largest_part, scaled_into

RNG = np.random.default_rng(0)
# Smooth, and noise on it; odd, even, tall, wide, smaller than the result.
SHAPES = [(40, 61), (61, 40), (33, 33), (9, 31), (20, 12)]


def photograph(height, width):
    small = Image.fromarray(RNG.integers(0, 256, (5, 5, 3), np.uint8)).resize((width, height), Image.BICUBIC)
    noisy = np.asarray(small, int) + RNG.integers(-20, 20, (height, width, 1))
    return noisy.clip(0, 255).astype(np.uint8)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
@pytest.mark.parametrize("mode", ["crop", "stretch", "pad"])
def test_training_export_and_client_agree_to_one_level(mode, size):
    for shape in SHAPES:
        image = photograph(*shape)
        trained = resize(tf.constant(image), size, mode).numpy().astype(int)
        decoded = decode_images(tf.constant([png(image)]), (*size, 3), mode)[0].numpy()
        np.testing.assert_array_equal(np.round(decoded * 255), trained)
        sent = np.round(to_array(png(image), (*size, 3), mode) * 255)
        assert np.abs(sent - trained).max() <= 1, (mode, shape)


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (64, 48)])
@pytest.mark.parametrize("mode", ["crop", "stretch", "pad"])
def test_arrays_are_resized_to_the_bit(mode, size):
    """Matrices of TensorFlow's own weights: larger, smaller, of one pixel, and of one channel."""
    for shape in [*SHAPES, (1, 50), (500, 7), size]:
        image = photograph(*shape)
        for channels in (1, 3):
            chosen = np.ascontiguousarray(image[..., :channels])
            expected = resize(tf.constant(chosen), size, mode).numpy()
            np.testing.assert_array_equal(resize_array(chosen, size, mode), expected)


def test_crop_takes_the_middle_and_pad_leaves_margins():
    """Red left and right of a green square, twice as wide as high."""
    image = np.zeros((16, 32, 3), np.uint8)
    image[..., 0] = 200
    image[:, 8:24] = (0, 200, 0)
    assert resize(tf.constant(image), (16, 16), "crop").numpy()[..., 0].max() == 0
    padded = resize(tf.constant(image), (16, 16), "pad").numpy()
    assert padded[:4].max() == padded[12:].max() == 0
    assert padded[8, 0].tolist() == [200, 0, 0]
    assert padded[8, 8].tolist() == [0, 200, 0]
    stretched = resize(tf.constant(image), (16, 16), "stretch").numpy()
    assert stretched[0, 0].tolist() == [200, 0, 0]
    np.testing.assert_array_equal(resize(tf.constant(image[:, :16]), (16, 16), "pad").numpy(), image[:, :16])


def test_sizes_of_very_long_images():
    assert largest_part(1, 1000, (8, 8)) == (1, 1)
    assert scaled_into(1, 1000, (8, 8)) == (1, 8)
    assert scaled_into(1000, 3, (8, 16)) == (8, 1)
    assert largest_part(30, 30, (12, 20)) == (18, 30)


def test_an_exif_orientation_is_followed_before_the_size_is_looked_at():
    """A photograph that lies on its side: training, export and client turn it first."""
    image, buffer = photograph(20, 30), io.BytesIO()
    picture, exif = Image.fromarray(image), Image.Exif()
    exif[274] = 6
    picture.save(buffer, "PNG", exif=exif)
    turned = np.rot90(image, -1)
    exported = decode_images(tf.constant([buffer.getvalue()]), (16, 16, 3), "crop")[0].numpy() * 255
    np.testing.assert_array_equal(np.round(exported), resize(tf.constant(turned.copy()), (16, 16), "crop").numpy())
    assert np.abs(to_array(buffer.getvalue(), (16, 16, 3), "crop") * 255 - exported).max() < 1.01
    np.testing.assert_array_equal(np.round(to_array(buffer.getvalue(), (30, 20, 3)) * 255), turned)


def test_auto_crops_photographs_only_and_models_resize_as_their_run_did():
    folder, named = DataConfig(dataset="folder:pets", image_size=64), DataConfig(dataset="tfds:pets", image_size=64)
    assert (mode_of(folder), mode_of(named)) == ("crop", "stretch")
    assert mode_of(DataConfig(dataset="folder:pets", resize="pad")) == "pad"
    whole = DataConfig(dataset="digits")
    assert [served_mode(folder, asked) for asked in (None, True, False, "pad")] == ["crop", "crop", None, "pad"]
    assert [served_mode(whole, asked) for asked in (None, True, False, "pad")] == [None, "stretch", None, "pad"]


def jpeg(image, orientation=None, **options):
    buffer, exif = io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[274] = orientation
    Image.fromarray(image).save(buffer, "JPEG", quality=90, exif=exif, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "orientation"),
    [
        ("crop", 8),
        *(pytest.param(*way, marks=pytest.mark.slow) for way in (("crop", None), ("stretch", 6), ("pad", 5))),
    ],
)
def test_a_large_jpeg_is_decoded_smaller_alike_by_folder_export_and_client(mode, orientation, tmp_path):
    """At 1/1 to 1/8: the reader of folders to the bit of the export, the client to one level."""
    for number, side in enumerate((50, 70, 140, 270)):
        file = tmp_path / f"{number}.jpg"
        file.write_bytes(jpeg(photograph(side, side + 31), orientation, progressive=number == 2))
        exported = decode_images(tf.constant([file.read_bytes()]), (16, 16, 3), mode)[0].numpy() * 255
        read = Reader(DataConfig(image_size=16, resize=mode), tmp_path)._decode(ImageFile(file, 0, file.name))
        np.testing.assert_array_equal(read.image, np.round(exported))
        sent = to_array(file.read_bytes(), (16, 16, 3), mode) * 255
        assert np.abs(sent - exported).max() < 1.01


def test_what_is_decoded_smaller_looks_as_if_it_was_not():
    """Stripes too fine for the result: decoded at half its size and antialiased, against antialiased alone."""
    rows = np.arange(400)[:, None, None]
    image = np.broadcast_to(120 + 60 * (rows // 3 % 2) + rows // 8, (400, 300, 3)).astype(np.uint8)
    assert [halvings(400, 300, (side, side), "crop") for side in (100, 75, 64, 32, 16)] == [0, 1, 1, 2, 3]
    for mode in ("crop", "stretch", "pad"):
        shrunk = decode_images(tf.constant([jpeg(image)]), (64, 64, 3), mode)[0].numpy() * 255
        whole = resize(tf.io.decode_jpeg(jpeg(image)), (64, 64), mode).numpy()
        assert np.abs(shrunk - whole).mean() < 2
