"""Square Attack: random search that asks for logits only (Andriushchenko et al. 2020)."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from cifs_tf.attacks.attack import Attack
from cifs_tf.attacks.bumps import SMALLEST, Bumps, bring_to_surface, tiles
from cifs_tf.attacks.objective import HeadsFn, choose, fooled
from cifs_tf.attacks.random import fold_in, uniform
from cifs_tf.errors import UserError
from cifs_tf.losses import contract, margin

# After so many queries of 10,000, the share of pixels in a square is halved.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
DRAWN_AT_ONCE = 100
ROWS_AT_ONCE = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Square Attack: squares of +-2 epsilon in L-infinity, bumps in L2 and L1, kept if the label's lead shrinks.

    Each example draws squares of its own, from its own seed; an example is done when it is fooled. No gradient is
    taken; the lead is that of the weighted heads. It is called as every `Attack`.

    Args:
        epsilon: radius, in the units of the images, see `Ball`.
        num_queries: >= 0. Default 5000, AutoAttack's.
        initial_share: share of the pixels that the first squares cover, in (0, 1]. Default 0.8.
        norm: see `Ball`; for L2 and L1 see `cifs_tf.attacks.bumps`.
        bounds: see `Ball`.
        compat: draw one window and one sign per channel for the whole batch, as the reference implementation does,
            instead of one for each example; the result then depends on the batch. Default False.

    Reference:
        Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search",
        ECCV 2020.

    Example:
        >>> attack = Square(epsilon=8 / 255)
        >>> x_adv = attack(model.heads_fn(), images, labels, head_weights=head_weights(0, 2), seed=seeds)
    """

    num_queries: int = 5000
    initial_share: float = 0.8
    compat: bool = False

    needs_seed = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.initial_share <= 1:
            raise UserError("initial_share", self.initial_share, "give a number above 0, at most 1")

    @property
    def cost(self) -> float:
        return self.num_queries / 3

    def sides(self, height: int, width: int) -> np.ndarray:
        """Return the side in pixels of the square of each query: int32 (num_queries,)."""
        halvings = np.searchsorted(HALVINGS, np.arange(self.num_queries), side="left")
        pixels = self.initial_share / 2.0**halvings * height * width
        sides = np.round(np.sqrt(pixels))
        if self.norm != "linf":
            sides = np.maximum(sides, SMALLEST) // 2 * 2 + 1
        return np.clip(sides, 1, min(height, width)).astype(np.int32)

    def search(
        self,
        heads_fn: HeadsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        head_weights: tf.Tensor | np.ndarray,
        seed: tf.Tensor | None,
        target_rank: int | tf.Tensor,
    ) -> tf.Tensor:
        if self.num_queries == 0:
            return images
        start = self._start(images, self._shared(seed))
        already = fooled(heads_fn(images), labels)
        lead, broken = self._judge(heads_fn, start, labels, head_weights)

        def stretch(
            index: tf.Tensor, x: tf.Tensor, lead: tf.Tensor, broken: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
            # Most examples fall early: the rest are packed together.
            rows = tf.where(~broken)[:, 0]
            unbroken = [tf.gather(values, rows) for values in (images, labels, seed, x, lead)]
            found = self._search(heads_fn, head_weights, index, *unbroken)
            x, lead, broken = (
                tf.tensor_scatter_nd_update(values, rows[:, None], new)
                for values, new in zip((x, lead, broken), found, strict=True)
            )
            return index + DRAWN_AT_ONCE, x, lead, broken

        _, x, _, broken = tf.while_loop(
            lambda index, x, lead, broken: (index < self.num_queries) & tf.reduce_any(~broken),
            stretch,
            (tf.constant(0), start, lead, broken | already),
            parallel_iterations=1,
        )
        return choose(broken & ~already, x, images)

    def _start(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Return the first point: vertical stripes, or bumps all over the image."""
        _, height, width, channels = images.shape
        if self.norm == "linf":
            stripes = tf.sign(uniform(seed, tf.TensorShape([1, width, channels]), -1.0, 1.0, images.dtype))
            return self.around(images)(images + self.epsilon * stripes)
        signs = tf.sign(uniform(seed, tf.TensorShape([height, width, channels]), -1.0, 1.0, images.dtype))
        return bring_to_surface(self, images, tiles(height, width, self.norm, signs))

    def _search(
        self,
        heads_fn: HeadsFn,
        head_weights: tf.Tensor | np.ndarray,
        first: tf.Tensor,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor,
        x: tf.Tensor,
        lead: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Make the queries from `first` to the next hundred; return x, the label's lead, and which are fooled."""
        _, height, width, channels = images.shape
        sides = tf.constant(self.sides(height, width))
        # The reference never draws the last place.
        places = tf.constant([height, width]) + (0 if self.compat else 1)
        is_bump = self.norm != "linf"
        shape = tf.TensorShape([DRAWN_AT_ONCE, (5 if is_bump else 2) + channels])
        bumps = Bumps(self, self.sides(height, width), images.shape) if is_bump else None
        seed = self._shared(fold_in(seed, 1 + first // DRAWN_AT_ONCE))
        drawn = uniform(seed, shape, 0.0, 1.0, images.dtype)
        # A square takes its pixels to the far side of the ball: to the lowest or the highest value there.
        project = self.around(images)
        lowest, highest = (_flat(project(images + shift * self.epsilon)) for shift in (-2, 2))

        def query(
            index: tf.Tensor, x: tf.Tensor, lead: tf.Tensor, broken: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
            side, numbers = sides[index], drawn[:, index - first]
            corners = tf.cast(numbers[:, :2] * tf.cast(places - side, numbers.dtype), tf.int32)
            if bumps is not None:
                others = tf.cast(numbers[:, 2:4] * tf.cast(places - side, numbers.dtype), tf.int32)
                moved = bumps.move(images, x, side, corners, others, numbers[:, 4], numbers[:, 5:])
                changed = tf.reduce_any(moved != x, axis=[1, 2, 3]) & ~broken
                return judge(index, x, lead, broken, changed, lambda asked: tf.gather(moved, asked))
            # The square's pixels alone are looked at: most squares are small.
            steps = tf.range(side)
            inside = (corners[:, :1, None] + steps[:, None]) * width + corners[:, 1:, None] + steps
            inside = tf.reshape(inside, [-1, side * side])
            own_lowest, own_highest, own = (
                tf.gather(values, inside, axis=1, batch_dims=1) for values in (lowest, highest, _flat(x))
            )
            wanted = tf.where(numbers[:, None, 2:] < 0.5, own_lowest, own_highest)
            changed = tf.reduce_any(wanted != own, axis=[1, 2]) & ~broken

            def draw(asked: tf.Tensor) -> tf.Tensor:
                pixels = tf.gather(inside, asked)
                row = tf.tile(tf.range(tf.shape(asked)[0])[:, None], [1, side * side])
                found = tf.tensor_scatter_nd_update(
                    _flat(tf.gather(x, asked)), tf.stack([row, pixels], axis=-1), tf.gather(wanted, asked)
                )
                return tf.reshape(found, [-1, height, width, channels])

            return judge(index, x, lead, broken, changed, draw)

        def judge(
            index: tf.Tensor,
            x: tf.Tensor,
            lead: tf.Tensor,
            broken: tf.Tensor,
            changed: tf.Tensor,
            draw: Callable[[tf.Tensor], tf.Tensor],
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
            # Many squares find every pixel where they would put it: only what has changed is worth a query.
            asked = _first_rows(changed)
            candidate = draw(asked)
            new_lead, now_fooled = self._judge(heads_fn, candidate, tf.gather(labels, asked), head_weights)
            accept = tf.gather(changed, asked) & ((new_lead < tf.gather(lead, asked)) | now_fooled)
            accepted = tf.where(accept)[:, 0]
            rows = tf.gather(asked, accepted)[:, None]
            x, lead, broken = (
                tf.tensor_scatter_nd_update(values, rows, tf.gather(new, accepted))
                for values, new in ((x, candidate), (lead, new_lead), (broken, now_fooled))
            )
            return index + 1, x, lead, broken

        last = tf.minimum(first + DRAWN_AT_ONCE, self.num_queries)
        _, x, lead, broken = tf.while_loop(
            lambda index, x, lead, broken: index < last,
            query,
            (first, x, lead, tf.zeros_like(labels, tf.bool)),
            parallel_iterations=1,
        )
        return x, lead, broken

    def _judge(
        self, heads_fn: HeadsFn, x: tf.Tensor, labels: tf.Tensor, head_weights: tf.Tensor | np.ndarray
    ) -> tuple[tf.Tensor, tf.Tensor]:
        heads = heads_fn(x)
        return contract(margin(heads, labels), head_weights), fooled(heads, labels)

    def _shared(self, seed: tf.Tensor) -> tf.Tensor:
        """Return one seed for all examples, if `compat`."""
        return tf.tile(seed[:1], [tf.shape(seed)[0], 1]) if self.compat else seed


def _flat(images: tf.Tensor) -> tf.Tensor:
    """Return (batch, pixels, channels)."""
    _, height, width, channels = images.shape
    return tf.reshape(images, [-1, height * width, channels])


def _first_rows(chosen: tf.Tensor) -> tf.Tensor:
    """Return the indices of the rows chosen (batch,), and of a few more, so that only few batch sizes occur."""
    order = tf.argsort(tf.cast(chosen, tf.int32), direction="DESCENDING", stable=True)
    needed = tf.reduce_sum(tf.cast(chosen, tf.int32))
    return order[: tf.maximum(-(-needed // ROWS_AT_ONCE), 1) * ROWS_AT_ONCE]
