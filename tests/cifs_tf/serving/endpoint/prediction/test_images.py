"""What the headers of image files say, before one of them is decoded."""

import io
import struct

import pytest
from PIL import Image

from cifs_tf.serving.endpoint.prediction.images import check_image_files
from cifs_tf.serving.endpoint.status import StatusError


def bmp(mode):
    buffer = io.BytesIO()
    Image.new(mode, (8, 8)).save(buffer, "BMP")
    return buffer.getvalue()


def bmp_of_os2():
    """24 bits a pixel, after a header of 12 bytes."""
    pixels = bytes(8 * 24)
    return b"BM" + struct.pack("<IHHI", 26 + len(pixels), 0, 0, 26) + struct.pack("<IHHHH", 12, 8, 8, 1, 24) + pixels


@pytest.mark.parametrize("file", [bmp("P"), bmp("1"), bmp("L"), bmp_of_os2()], ids=["colours", "ink", "grey", "OS/2"])
def test_bmp_files_that_the_model_would_misread_are_refused(file):
    with pytest.raises(StatusError, match=r"Image 1 is a BMP file with a palette or of OS/2.*send PNG"):
        check_image_files([bmp("RGB"), file], 1000)


def test_pixels_of_all_images_count():
    check_image_files([bmp("RGB"), bmp("RGB")], 128)
    with pytest.raises(StatusError, match=r"Images of more than 127 pixels.*image 1 has 64"):
        check_image_files([bmp("RGB"), bmp("RGB")], 127)
