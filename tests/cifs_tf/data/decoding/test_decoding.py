"""Decoding against Pillow: every orientation in every format that carries one."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from cifs_tf.data.decoding.graph import decode_image
from cifs_tf.data.decoding.orientation import NUMBERS, ORIENTATION_MARKS, exif_orientation

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
    """The pixels are those of Pillow, and so of the client, to the bit."""
    encoded = encode(Image.fromarray(PIXELS), "JPEG", exif=exif(orientation))
    assert exif_orientation(tf.io.decode_raw(encoded, tf.uint8)) == orientation
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(decode_image(tf.constant(encoded), 3), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_file_without_exif_is_left_alone(kind):
    encoded = encode(Image.fromarray(PIXELS), kind)
    np.testing.assert_array_equal(decode_image(tf.constant(encoded), 3), Image.open(io.BytesIO(encoded)).convert("RGB"))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_is_ignored(orientation):
    encoded = encode(Image.fromarray(PIXELS), "PNG", exif=exif(orientation))
    np.testing.assert_array_equal(decode_image(tf.constant(encoded), 3), PIXELS)


def tiff(kind, value, endian, count=1):
    """EXIF of one entry, the orientation, of some TIFF type."""

    def number(value, size):
        return value.to_bytes(size, endian)

    entry = number(274, 2) + number(kind, 2) + number(count, 4) + value.ljust(4, b"\0")
    return (b"II" if endian == "little" else b"MM") + number(42, 2) + number(8, 4) + number(1, 2) + entry + bytes(4)


XMP_6 = b'<x:xmpmeta><rdf:Description tiff:Make="tiff:Orientation" tiff:Orientation="6"/></x:xmpmeta>'
XMP_8 = b"<x:xmpmeta><tiff:Orientation>8</tiff:Orientation></x:xmpmeta>"


def jpeg(**options):
    return encode(Image.fromarray(PIXELS), "JPEG", **options)


def with_exif(kind, size, endian, count=1):
    return jpeg(exif=b"Exif\0\0" + tiff(kind, (6).to_bytes(size, endian), endian, count))


def filled(before):
    encoded = jpeg(exif=exif(6))
    at = encoded.index(b"\xff\xe1")
    return encoded[:at] + before + encoded[at:]


ODD_WRITINGS = {
    **{
        f"type {kind}, {endian}": with_exif(kind, size, endian)
        for size, kinds in NUMBERS.items()
        for kind in kinds
        for endian in ("little", "big")
    },
    "bytes": with_exif(1, 1, "big"),
    "of no known type": with_exif(99, 2, "little"),
    "of two values": with_exif(8, 2, "little", count=2),
    "twice the name": jpeg(exif=b"Exif\0\0Exif\0\0" + tiff(3, b"\6\0", "little")),
    "fill bytes": filled(b"\xff\xff\xff"),
    "junk": filled(b"\0\1\2"),
    "escaped bytes": filled(b"\xff\0\xff\0"),
    "a restart marker": filled(b"\xff\xd0"),
    "XMP in JPEG": jpeg(xmp=XMP_6),
    "XMP element in JPEG": jpeg(xmp=XMP_8),
    "XMP beside EXIF": jpeg(xmp=XMP_8, exif=exif(6)),
    "XMP beside EXIF without": jpeg(xmp=XMP_8, exif=b"Exif\0\0" + tiff(99, b"\6\0", "little")),
    "XMP in WebP": encode(Image.fromarray(PIXELS), "WEBP", lossless=True, xmp=XMP_6),
    "XMP at the end": jpeg(xmp=b"tiff:Orientation"),
    "XMP without a number": jpeg(xmp=b'tiff:Orientation="x"'),
}
_INFO = PngInfo()
_INFO.add_itxt("XML:com.adobe.xmp", XMP_6.decode())
ODD_WRITINGS["XMP in PNG"] = encode(Image.fromarray(PIXELS), "PNG", pnginfo=_INFO)


@pytest.fixture(scope="module")
def read():
    return tf.function(exif_orientation, input_signature=[tf.TensorSpec([None], tf.uint8)])


@pytest.mark.filterwarnings("ignore:Metadata Warning")
@pytest.mark.parametrize("name", ODD_WRITINGS)
def test_orientation_is_read_as_pillow_reads_it(name, read):
    encoded = ODD_WRITINGS[name]
    with Image.open(io.BytesIO(encoded)) as image:
        expected = image.getexif().get(274, 1)
    expected = expected if isinstance(expected, int) else 1
    assert int(read(np.frombuffer(encoded, np.uint8))) == expected
    assert expected == 1 or any(mark in encoded for mark in ORIENTATION_MARKS)


@pytest.mark.filterwarnings("ignore:Metadata Warning")
def test_most_odd_writings_turn():
    turned = [name for name, encoded in ODD_WRITINGS.items() if Image.open(io.BytesIO(encoded)).getexif().get(274) == 6]
    assert len(turned) >= 16


def test_damaged_exif_ends_the_search_and_nothing_else(read):
    """Each byte of the EXIF part in turn set to 0 and 255, and files cut short: no error, whatever is read."""
    encoded = encode(Image.fromarray(PIXELS), "JPEG", exif=exif(6))
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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [True, False])
def test_webp_is_read_with_the_channels_that_are_wanted(channels, mode, lossless):
    image = Image.fromarray(np.concatenate([PIXELS, PIXELS[..., :1]], axis=2)[..., : len(mode)], mode)
    encoded = encode(image, "WEBP", lossless=lossless, exact=True)
    found = decode_image(tf.constant(encoded), channels)
    colours = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGBA"))[..., :3]
    assert found.shape == (*colours.shape[:2], channels)
    expected = colours if channels == 3 else tf.image.rgb_to_grayscale(colours)
    np.testing.assert_array_equal(found, expected)
