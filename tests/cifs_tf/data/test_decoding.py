"""Decoding against Pillow: every orientation in every format that carries one."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from cifs_tf.data.decoding import decode_image, exif_orientation

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}}


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation, endian="<"):
    made = Image.Exif()
    made.endian = endian
    made[271] = "a maker, so that the orientation is not the first entry"
    made[274] = orientation
    return made


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", LOSSLESS)
def test_an_image_is_turned_as_pillow_turns_it(kind, orientation, endian):
    encoded = encode(Image.fromarray(PIXELS), kind, exif=exif(orientation, endian), **LOSSLESS[kind])
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))))
    np.testing.assert_array_equal(decode_image(tf.constant(encoded), 3), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned(orientation):
    """Its pixels as TensorFlow decodes them, turned by Pillow."""
    encoded = encode(Image.fromarray(PIXELS), "JPEG", exif=exif(orientation))
    assert exif_orientation(tf.io.decode_raw(encoded, tf.uint8)) == orientation
    decoded = Image.fromarray(tf.io.decode_jpeg(encoded).numpy())
    decoded.getexif()[274] = orientation
    np.testing.assert_array_equal(decode_image(tf.constant(encoded), 3), ImageOps.exif_transpose(decoded))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_file_without_exif_is_left_alone(kind):
    encoded = encode(Image.fromarray(PIXELS), kind)
    expected = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    np.testing.assert_array_equal(decode_image(tf.constant(encoded), 3), expected)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_is_ignored(orientation):
    encoded = encode(Image.fromarray(PIXELS), "PNG", exif=exif(orientation))
    np.testing.assert_array_equal(decode_image(tf.constant(encoded), 3), PIXELS)


def test_damaged_exif_ends_the_search_and_nothing_else():
    """Each byte of the EXIF part in turn set to 0 and 255, and files cut short: no error, whatever is read."""
    encoded = encode(Image.fromarray(PIXELS), "JPEG", exif=exif(6))
    read = tf.function(exif_orientation, input_signature=[tf.TensorSpec([None], tf.uint8)])
    for position in range(2, min(len(encoded), 160)):
        for value in (0, 255):
            content = np.frombuffer(encoded, np.uint8).copy()
            content[position] = value
            read(content)
    for length in range(0, 160, 7):
        assert 0 <= int(read(np.frombuffer(encoded[:length], np.uint8))) < 2**16


def test_a_bmp_with_a_palette_is_refused():
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    with pytest.raises(tf.errors.InvalidArgumentError, match="palette"):
        decode_image(tf.constant(encode(picture, "BMP")), 3)


def test_inside_a_graph():
    """As the exported signature calls it: over files of different sizes and formats."""
    files = [encode(Image.fromarray(PIXELS), "PNG", exif=exif(o)) for o in (1, 6)] + [
        encode(Image.fromarray(PIXELS), "WEBP", lossless=True)
    ]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def heights(encoded):
        return tf.map_fn(lambda one: tf.shape(decode_image(one, 3))[0], encoded, fn_output_signature=tf.int32)

    assert heights(tf.constant(files)).numpy().tolist() == [6, 10, 6]
