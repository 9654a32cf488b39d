"""Photographs for tests, made of seeds: JPEG files of about 256 pixels, whose classes can be told apart."""

import numpy as np
from PIL import Image

NUM_CLASSES = 4
SIDE = 256
PATTERNS = 24


def make_photographs(folder, number, splits=("train", "test")):
    """Write so many files as FOLDER/SPLIT/CLASS/NUMBER.jpg, a fifth of them for the test; portrait and landscape.

    A class is a colour of the light and a direction of stripes; everything else is drawn for each file by itself.
    """
    rng = np.random.default_rng(0)
    patterns = [_pattern(rng, index % NUM_CLASSES) for index in range(PATTERNS)]
    for index in range(number):
        label = index % NUM_CLASSES
        path = folder / splits[index // NUM_CLASSES % 5 == 4] / f"class_{label}" / f"{index:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pattern = patterns[rng.integers(PATTERNS // NUM_CLASSES) * NUM_CLASSES + label]
        long = int(rng.integers(SIDE, SIDE + 80))
        height, width = (long, SIDE) if rng.random() < 0.5 else (SIDE, long)
        top, left = rng.integers(0, len(pattern) - height), rng.integers(0, len(pattern) - width)
        Image.fromarray(pattern[top : top + height, left : left + width]).save(path, quality=80)


def _pattern(rng, label):
    """A large picture to cut files from, uint8 (480, 480, 3)."""
    rows, columns = np.mgrid[:480, :480] / 480
    stripes = np.sin(2 * np.pi * 8 * (rows if label % 2 else columns) + rng.uniform(0, 6))[..., None]
    colour = np.eye(3)[label % 3] * 60
    blots = Image.fromarray(rng.integers(0, 120, (20, 20, 3), np.uint8)).resize((480, 480), Image.BICUBIC)
    noise = rng.integers(-10, 10, (480, 480, 1))
    return (np.asarray(blots) + 40 * stripes + colour + 50 + noise).clip(0, 255).astype(np.uint8)
