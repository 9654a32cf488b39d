"""What Square tries in the L2 and L1 balls: it moves the perturbation of one window, as a bump, into another."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from cifs_tf.attacks.ball import TINY, Ball

SMALLEST = 3
TILES = 5


def bump(side: int, norm: str) -> np.ndarray:
    """Return a square of two halves, one above 0 and one below, each highest in its middle; of length 1.

    Args:
        side: in pixels.
        norm: `"l2"` or `"l1"`; the steps towards the middle fall with the square or the fourth power of their number.

    Returns:
        float32 (side, side).
    """
    power = 2 if norm == "l2" else 4

    def half(height: int) -> np.ndarray:
        rows, columns = np.arange(height)[:, None], np.arange(side)[None, :]
        distance = np.maximum(np.abs(rows - height // 2), np.abs(columns - side // 2))
        steps = np.cumsum((1.0 / np.arange(1, max(height, side) // 2 + 2) ** power)[::-1])[::-1]
        values = steps[distance]
        return values / _length(values, norm)

    both = half(side) if side < 2 else np.concatenate([half(side // 2), -half(side - side // 2)])
    return (both / _length(both, norm)).astype(np.float32)


def tiles(height: int, width: int, norm: str, signs: tf.Tensor) -> tf.Tensor:
    """Return bumps side by side, five in each direction at least, with a random sign for each and each channel.

    Args:
        height: of the images.
        width: of the images.
        norm: see `bump`.
        signs: +-1, float (batch, height, width, channels), of which each tile reads one of its own.

    Returns:
        like `signs`.
    """
    side = max(min(height, width) // TILES, 1)
    counts = height // side, width // side
    pattern, rows, columns = np.zeros((height, width), np.float32), np.zeros(height, int), np.zeros(width, int)
    first = (height - counts[0] * side) // 2, (width - counts[1] * side) // 2
    one = bump(side, norm)
    for row in range(counts[0]):
        for column in range(counts[1]):
            top, left = first[0] + row * side, first[1] + column * side
            pattern[top : top + side, left : left + side] = one.T if (row + column) % 2 else one
            rows[top : top + side], columns[left : left + side] = row, column
    signs = tf.gather(tf.gather(signs, rows, axis=1), columns, axis=2)
    return signs * pattern[:, :, None]


def bring_to_surface(ball: Ball, images: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """Return the images, shifted; in L2 by epsilon, in L1 by what is left of the shift in the ball; in the bounds."""
    if ball.norm == "l1":
        return ball.around(images)(images + shift)
    length = tf.sqrt(tf.reduce_sum(tf.square(shift), axis=[1, 2, 3], keepdims=True))
    return tf.clip_by_value(images + ball.epsilon * shift / (length + TINY), *ball.bounds)


class Bumps:
    """The moves of a search.

    Args:
        ball: in L2 or L1.
        sides: in pixels, of the windows that occur.
        shape: (batch, height, width, channels) of the images.
    """

    def __init__(self, ball: Ball, sides: np.ndarray, shape: tf.TensorShape):
        _, self._height, self._width, self._channels = shape
        self._ball, largest = ball, int(sides.max(initial=1))
        # By side: the bump and its transpose, in the upper left corner.
        table = np.zeros((largest + 1, 2, largest, largest), np.float32)
        for side in np.unique(sides):
            one = bump(int(side), ball.norm)
            table[side, :, :side, :side] = one, one.T
        self._table = table

    def move(
        self,
        images: tf.Tensor,
        x: tf.Tensor,
        side: tf.Tensor,
        corners: tf.Tensor,
        others: tf.Tensor,
        coin: tf.Tensor,
        signs: tf.Tensor,
    ) -> tf.Tensor:
        """Empty a second window of each image, and spend that and what the ball has left on a bump in the first.

        Args:
            images: float (batch, height, width, channels).
            x: like the images.
            side: int (), of both windows.
            corners: int (batch, 2), row and column of the first.
            others: those of the second.
            coin: float (batch,) in [0, 1): whether the bump lies or stands.
            signs: float (batch, channels) in [0, 1): whether it is turned upside down.

        Returns:
            like the images.
        """
        shift, dtype = x - images, images.dtype
        rows, columns = tf.range(self._height)[None, :], tf.range(self._width)[None, :]

        def window(corner: tf.Tensor) -> tf.Tensor:
            in_rows = (rows >= corner[:, :1]) & (rows < corner[:, :1] + side)
            in_columns = (columns >= corner[:, 1:]) & (columns < corner[:, 1:] + side)
            return tf.cast(in_rows[:, :, None] & in_columns[:, None, :], dtype)[..., None]

        first, second = window(corners), window(others)
        table = tf.gather(tf.constant(self._table, dtype)[side], tf.cast(coin < 0.5, tf.int32))
        most = table.shape[-1] - 1
        placed = tf.gather(table, tf.clip_by_value(rows - corners[:, :1], 0, most), axis=1, batch_dims=1)
        placed = tf.gather(placed, tf.clip_by_value(columns - corners[:, 1:], 0, most), axis=2, batch_dims=1)
        new = first * placed[..., None] * tf.sign(signs - 0.5)[:, None, None, :]
        new += first * shift / (TINY + self._of_channels(first * shift))
        budget, spent = self._ball.epsilon, self._ball.distance(x, images)[:, None, None, None]
        freed = self._of_channels(tf.maximum(first, second) * shift)
        if self._ball.norm == "l2":
            left = tf.maximum(budget**2 - spent**2, 0.0)
            size = tf.sqrt(left / self._channels + freed**2)
        else:
            size = tf.maximum(budget - spent, 0.0) + self._channels * freed
        new *= size / (TINY + self._of_channels(new))
        return bring_to_surface(self._ball, images, tf.where(first > 0, new, shift * (1 - second)))

    def _of_channels(self, values: tf.Tensor) -> tf.Tensor:
        """Return the length of each channel, with the rank kept."""
        if self._ball.norm == "l2":
            return tf.sqrt(tf.reduce_sum(tf.square(values), axis=[1, 2], keepdims=True))
        return tf.reduce_sum(tf.abs(values), axis=[1, 2], keepdims=True)


def _length(values: np.ndarray, norm: str) -> float:
    return float(np.sqrt(np.sum(values**2)) if norm == "l2" else np.sum(np.abs(values)))
