"""Square Attack: random search that asks for logits only (Andriushchenko et al. 2020)."""

import dataclasses

import numpy as np
import tensorflow as tf

from cifs_tf.attacks.attack import Attack
from cifs_tf.attacks.bumps import SMALLEST, Bumps, bring_to_surface, tiles
from cifs_tf.attacks.objective import HeadsFn, fooled, per_example
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
        return tf.where(per_example(broken & ~already, images), x, images)

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
        rows, columns = tf.range(height)[None, :], tf.range(width)[None, :]
        sides = tf.constant(self.sides(height, width))
        # The reference never draws the last place.
        places = tf.constant([height, width]) + (0 if self.compat else 1)
        project = self.around(images)
        is_bump = self.norm != "linf"
        shape = tf.TensorShape([DRAWN_AT_ONCE, (5 if is_bump else 2) + channels])
        bumps = Bumps(self, self.sides(height, width), images.shape) if is_bump else None
        seed = self._shared(fold_in(seed, 1 + first // DRAWN_AT_ONCE))
        drawn = uniform(seed, shape, 0.0, 1.0, images.dtype)

        def query(
            index: tf.Tensor, x: tf.Tensor, lead: tf.Tensor, broken: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
            side, numbers = sides[index], drawn[:, index - first]
            corners = tf.cast(numbers[:, :2] * tf.cast(places - side, numbers.dtype), tf.int32)
            if bumps is not None:
                others = tf.cast(numbers[:, 2:4] * tf.cast(places - side, numbers.dtype), tf.int32)
                return judge(
                    index, x, lead, broken, bumps.move(images, x, side, corners, others, numbers[:, 4], numbers[:, 5:])
                )
            in_rows = (rows >= corners[:, :1]) & (rows < corners[:, :1] + side)
            in_columns = (columns >= corners[:, 1:]) & (columns < corners[:, 1:] + side)
            inside = tf.cast(in_rows[:, :, None] & in_columns[:, None, :], images.dtype)
            shift = 2 * self.epsilon * tf.sign(numbers[:, 2:] - 0.5)
            return judge(index, x, lead, broken, project(x + inside[..., None] * shift[:, None, None, :]))

        def judge(
            index: tf.Tensor, x: tf.Tensor, lead: tf.Tensor, broken: tf.Tensor, candidate: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
            # Many squares find every pixel where they would put it: only what has changed is worth a query.
            changed = tf.reduce_any(candidate != x, axis=[1, 2, 3]) & ~broken
            asked = _first_rows(changed)
            new_lead, now_fooled = self._judge(
                heads_fn, tf.gather(candidate, asked), tf.gather(labels, asked), head_weights
            )
            new_lead = tf.tensor_scatter_nd_update(lead, asked[:, None], new_lead)
            now_fooled = tf.tensor_scatter_nd_update(broken, asked[:, None], now_fooled)
            accept = changed & ((new_lead < lead) | now_fooled)
            x = tf.where(per_example(accept, images), candidate, x)
            return index + 1, x, tf.where(accept, new_lead, lead), broken | (accept & now_fooled)

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


def _first_rows(chosen: tf.Tensor) -> tf.Tensor:
    """Return the indices of the rows chosen (batch,), and of a few more, so that only few batch sizes occur."""
    order = tf.argsort(tf.cast(chosen, tf.int32), direction="DESCENDING", stable=True)
    needed = tf.reduce_sum(tf.cast(chosen, tf.int32))
    return order[: tf.maximum(-(-needed // ROWS_AT_ONCE), 1) * ROWS_AT_ONCE]
