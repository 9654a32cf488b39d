"""The fifteen common corruptions of CIFAR-10-C at five severities (Hendrycks and Dietterich 2019), for any image.

Made from the definitions and parameters of that benchmark, for images of 32 pixels. Lengths grow with the shorter side
where that is longer, so an image looks as corrupted in any size; elastic displacements are shares of the side.
Photographs of frost, which the original mixes in, are drawn instead, so accuracies under frost cannot be compared with
published ones; those under the others only roughly, since blurs and compression come from other libraries.

Reference: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
ICLR 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from scipy import ndimage, signal

from cifs_tf.errors import UserError

SIDE = 32
SEVERITIES = (1, 2, 3, 4, 5)
Rng = np.random.Generator
# How ndimage continues an image beyond its edge.
EDGE = "mirror"
FROST = np.array([0.86, 0.93, 1.0])


def corrupt(image: np.ndarray, kind: str, severity: int, seed: int | Sequence[int]) -> np.ndarray:
    """Corrupt an image.

    Args:
        image: float (height, width, channels) in [0, 1].
        kind: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of everything random, one or several whole numbers >= 0.

    Returns:
        float32, like the image, in [0, 1]; multiples of 1/255, as in a file of 8 bits.

    Raises:
        UserError: for an unknown kind or severity.

    Example:
        >>> bool(corrupt(np.zeros((8, 8, 1)), "brightness", 5, seed=0).max() > 0.29)
        True
    """
    if kind not in CORRUPTIONS:
        raise UserError("kind", kind, f"give one of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise UserError("severity", severity, "give 1, 2, 3, 4 or 5")
    function, parameters = CORRUPTIONS[kind]
    changed = function(np.asarray(image, np.float64), np.random.default_rng(seed), *parameters[severity - 1])
    return (np.rint(255 * np.clip(changed, 0, 1)) / 255).astype(np.float32)


def _gaussian_noise(x: np.ndarray, rng: Rng, deviation: float) -> np.ndarray:
    return x + rng.normal(scale=deviation, size=x.shape)


def _shot_noise(x: np.ndarray, rng: Rng, photons: float) -> np.ndarray:
    return rng.poisson(x * photons) / photons


def _impulse_noise(x: np.ndarray, rng: Rng, share: float) -> np.ndarray:
    draw = rng.random(x.shape)
    return np.where(draw < share, draw < share / 2, x)


def _defocus_blur(x: np.ndarray, rng: Rng, radius: float, smooth: float) -> np.ndarray:
    radius, smooth = radius * _scale(x), smooth * _scale(x)
    reach = math.ceil(radius + 3 * smooth)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = ndimage.gaussian_filter((rows**2 + columns**2 <= radius**2).astype(float), smooth, mode="constant")
    return _convolved(x, disk)


def _glass_blur(x: np.ndarray, rng: Rng, sigma: float, reach: int, times: int) -> np.ndarray:
    """Swap each pixel with one nearby, one after the other, between two blurs."""
    (height, width), reach = x.shape[:2], round(reach * _scale(x))
    sigma *= _scale(x)
    order = list(range(height * width))
    for _ in range(times):
        moves = rng.integers(-reach, reach, (height, width, 2))
        moves = (moves[..., 0] * width + moves[..., 1]).ravel().tolist()
        for row in range(height - reach, reach, -1):
            for here in range(row * width + width - reach, row * width + reach, -1):
                there = here + moves[here]
                order[here], order[there] = order[there], order[here]
    return _blur(_blur(x, sigma).reshape(height * width, -1)[order].reshape(x.shape), sigma)


def _motion_blur(
    x: np.ndarray, rng: Rng, radius: float, sigma: float, low: float = -45, high: float = 45
) -> np.ndarray:
    """Average along half a Gaussian, in a random direction."""
    angle = np.radians(rng.uniform(low, high))
    reach = 2 * round(radius * _scale(x))
    places = np.arange(reach + 1)
    weights = np.exp(-0.5 * (places / (sigma * _scale(x))) ** 2)
    kernel = np.zeros((2 * reach + 3, 2 * reach + 3))
    # Each point of the line is divided among the four places around it.
    rows, columns = (reach + 1 + places * each for each in (np.sin(angle), np.cos(angle)))
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        near = np.floor(rows).astype(int) + row, np.floor(columns).astype(int) + column
        np.add.at(kernel, near, weights * (1 - np.abs(rows - near[0])) * (1 - np.abs(columns - near[1])))
    return _convolved(x, kernel)


def _zoom_blur(x: np.ndarray, rng: Rng, most: float) -> np.ndarray:
    factors = np.arange(1, most, 0.01)
    return np.mean([x, *(_zoomed(x, factor) for factor in factors)], axis=0)


def _snow(
    x: np.ndarray,
    rng: Rng,
    mean: float,
    deviation: float,
    zoom: float,
    least: float,
    radius: float,
    sigma: float,
    share: float,
) -> np.ndarray:
    flakes = _zoomed(rng.normal(mean, deviation, (*x.shape[:2], 1)), zoom * _scale(x))
    flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
    flakes = _motion_blur(flakes, rng, radius, sigma, -90)
    grey = x.mean(axis=2, keepdims=True)
    return share * x + (1 - share) * np.maximum(x, 1.5 * grey + 0.5) + flakes + flakes[::-1, ::-1]


def _frost(x: np.ndarray, rng: Rng, share: float, amount: float) -> np.ndarray:
    """Mix in crystals: the ridges of two fractals, in the colour of ice."""
    ridges = [1 - np.abs(2 * _fractal(x.shape[:2], rng, decay) - 1) for decay in (1.6, 2.5)]
    ice = np.maximum(*ridges)[..., None] ** 2 * (FROST if x.shape[2] == len(FROST) else FROST.mean())
    return share * x + amount * ice


def _fog(x: np.ndarray, rng: Rng, amount: float, decay: float) -> np.ndarray:
    brightest = x.max()
    return (x + amount * _fractal(x.shape[:2], rng, decay)[..., None]) * brightest / (brightest + amount)


def _brightness(x: np.ndarray, rng: Rng, amount: float) -> np.ndarray:
    """Raise the value of the HSV colour."""
    value = x.max(axis=2, keepdims=True)
    raised = np.minimum(value + amount, 1)
    return np.where(value > 0, x * raised / np.maximum(value, 1e-9), raised)


def _contrast(x: np.ndarray, rng: Rng, share: float) -> np.ndarray:
    mean = x.mean(axis=(0, 1))
    return mean + share * (x - mean)


def _elastic(x: np.ndarray, rng: Rng, amount: float, sigma: float, shear: float) -> np.ndarray:
    """Move three points of the image, then every pixel by smooth noise; all lengths are shares of the side."""
    height, width, channels = x.shape
    side = min(height, width)
    third = side / 3
    corners = np.array([[1, 1], [1, -1], [-1, -1]]) * third
    moved = corners + rng.uniform(-shear * side, shear * side, (3, 2))
    turn = np.linalg.lstsq(np.c_[moved, np.ones(3)], corners, rcond=None)[0]
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    places = np.moveaxis(np.mgrid[:height, :width], 0, -1) - middle
    noise = ndimage.gaussian_filter(
        rng.uniform(-1, 1, (height, width, 2)), (sigma * side, sigma * side, 0), mode="reflect", truncate=3
    )
    rows, columns = np.moveaxis((places + amount * side * noise) @ turn[:2] + turn[2] + middle, -1, 0)
    layers = [ndimage.map_coordinates(x[..., k], (rows, columns), order=1, mode=EDGE) for k in range(channels)]
    return np.stack(layers, axis=-1)


def _pixelate(x: np.ndarray, rng: Rng, share: float) -> np.ndarray:
    small = [max(int(share * side), 1) for side in x.shape[:2]]
    boxes = tf.image.resize(tf.constant(x, tf.float32), small, method="area")
    return tf.image.resize(boxes, x.shape[:2], method="nearest").numpy()


def _jpeg(x: np.ndarray, rng: Rng, quality: int) -> np.ndarray:
    """Compress the image in colour, or each of its channels where it has others than three."""
    pixels = np.rint(255 * x).astype(np.uint8)
    parts = [pixels] if x.shape[2] == 3 else np.split(pixels, x.shape[2], axis=2)
    packed = [tf.io.decode_jpeg(tf.io.encode_jpeg(part, quality=quality)).numpy() for part in parts]
    return np.concatenate(packed, axis=2) / 255


def _scale(x: np.ndarray) -> float:
    """Return how many times a length of the benchmark an image's lengths are."""
    return max(min(x.shape[:2]) / SIDE, 1.0)


def _convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Average with weights, odd in number; the image is mirrored at its edges."""
    reach = len(kernel) // 2
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return signal.fftconvolve(padded, (kernel / kernel.sum())[..., None], mode="valid", axes=(0, 1))


def _blur(x: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge the middle of an image to all of it."""
    middle = (np.array(x.shape) - 1) / 2
    shrink = np.array([1 / factor, 1 / factor, 1])
    return ndimage.affine_transform(x, shrink, middle - shrink * middle, order=1, mode=EDGE)


def _fractal(shape: Sequence[int], rng: Rng, decay: float) -> np.ndarray:
    """Draw a map of heights in [0, 1], whose details of half the size are a decay squared as high."""
    heights, amount = rng.uniform(-1, 1, (1, 1)), 1.0
    while len(heights) < max(shape):
        amount /= decay**2
        heights = ndimage.zoom(heights, 2, order=1, mode="grid-wrap", grid_mode=True)
        heights = heights + amount * rng.uniform(-1, 1, heights.shape)
    heights = heights[: shape[0], : shape[1]]
    return (heights - heights.min()) / max(np.ptp(heights), 1e-9)


def _each(*values: float) -> list[tuple[float, ...]]:
    return [(value,) for value in values]


CORRUPTIONS: dict[str, tuple[Callable[..., np.ndarray], list[tuple[float, ...]]]] = {
    "gaussian_noise": (_gaussian_noise, _each(0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, _each(500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, _each(0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (_defocus_blur, [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)]),
    "glass_blur": (_glass_blur, [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)]),
    "motion_blur": (_motion_blur, [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)]),
    "zoom_blur": (_zoom_blur, _each(1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (
        _snow,
        [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
    ),
    "frost": (_frost, [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)]),
    "fog": (_fog, [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)]),
    "brightness": (_brightness, _each(0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, _each(0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (
        _elastic,
        [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
    ),
    "pixelate": (_pixelate, _each(0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (_jpeg, _each(80, 65, 58, 50, 40)),
}
"""By name: a function of (image, random numbers, parameters), and the parameters of each severity."""
