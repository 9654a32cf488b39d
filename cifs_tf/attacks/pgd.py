"""The projected gradient family: FGSM, PGD, and C&W's margin by PGD."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from cifs_tf.attacks.attack import Attack
from cifs_tf.attacks.objective import HeadsFn, fooled, per_example, value_and_gradient
from cifs_tf.attacks.random import fold_in, normal
from cifs_tf.errors import UserError
from cifs_tf.losses import CW_KAPPA, contract, cross_entropy, cw_margin, kl_divergence

LOSSES = ("cross_entropy", "cw_margin", "kl_divergence")
STARTS = ("uniform", "gaussian")
GAUSSIAN_START = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient descent (Madry et al. 2018), on any weighting of the heads.

    x <- project(x + step_size * steepest(grad sum_h w_h loss_h(x))), where steepest is the sign in L-infinity and the
    normalised gradient in L2. One compiled loop; no variable is touched, and the label enters the loss only. It is
    called as every `Attack`; random starts need a seed.

    Args:
        epsilon: radius, in the units of the images, see `Ball`.
        step_size: > 0, in the same units.
        num_steps: >= 0; 0 returns the starting point.
        random_start: start at a random point, see `start`, instead of at the image. Default False.
        start: the random point: `"uniform"` (default) in the ball, or `"gaussian"`, the image and noise of standard
            deviation 0.001, not clipped (TRADES, MART).
        num_restarts: >= 1; the best of them is kept for each example: one that fools the final head if any does, then
            the one of the highest loss. Needs random_start to make a difference. Default 1.
        keep: `"last"` (default) returns the last iterate; `"fooling"` returns the first iterate that fools the final
            head, or else the last, and stops when all examples are fooled: what a worst case asks for.
        loss: `"cross_entropy"` (default), `"cw_margin"`, or `"kl_divergence"` from the prediction on the image itself,
            which does not read the labels (TRADES).
        kappa: confidence of the C&W margin. Default 50.
        norm: see `Ball`.
        bounds: see `Ball`.

    Example:
        >>> attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)
        >>> x_adv = attack(model.heads_fn(), images, labels, head_weights=head_weights(2, model.num_probes))
    """

    step_size: float | tf.Tensor
    num_steps: int
    random_start: bool = False
    start: str = "uniform"
    num_restarts: int = 1
    keep: str = "last"
    loss: str = "cross_entropy"
    kappa: float = CW_KAPPA

    def __post_init__(self) -> None:
        super().__post_init__()
        if not tf.is_tensor(self.step_size) and not self.step_size > 0:
            raise UserError("step_size", self.step_size, "give a number above 0")
        if self.num_restarts < 1:
            raise UserError("num_restarts", self.num_restarts, "give 1 or more")
        if self.keep not in ("last", "fooling"):
            raise UserError("keep", self.keep, "give last or fooling")
        for name, known in (("loss", LOSSES), ("start", STARTS)):
            if getattr(self, name) not in known:
                raise UserError(name, getattr(self, name), f"give one of {', '.join(known)}")

    @property
    def needs_seed(self) -> bool:
        return self.random_start

    def search(
        self,
        heads_fn: HeadsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        head_weights: tf.Tensor | np.ndarray,
        seed: tf.Tensor | None,
        target_rank: int | tf.Tensor,
    ) -> tf.Tensor:
        weighted_loss = self._weighted_loss(heads_fn, images, labels, head_weights)
        x_adv = self._run(weighted_loss, images, labels, seed)
        if self.num_restarts == 1:
            return x_adv

        def restart(
            index: tf.Tensor, best: tf.Tensor, best_loss: tf.Tensor, best_fooled: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            candidate = self._run(weighted_loss, images, labels, None if seed is None else fold_in(seed, index))
            loss, now_fooled = score(candidate)
            better = (now_fooled & ~best_fooled) | ((now_fooled == best_fooled) & (loss > best_loss))
            best = tf.where(per_example(better, images), candidate, best)
            return index + 1, best, tf.where(better, loss, best_loss), best_fooled | now_fooled

        def score(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            loss, heads = weighted_loss(x)
            return loss, fooled(heads, labels)

        return tf.while_loop(
            lambda index, *best: index < self.num_restarts,
            restart,
            (1, x_adv, *score(x_adv)),
            parallel_iterations=1,
        )[1]

    def iterates(
        self,
        heads_fn: HeadsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        head_weights: tf.Tensor | np.ndarray,
        after: tuple[int, ...],
    ) -> list[tf.Tensor]:
        """Return where an attack from the image itself is after some numbers of steps, rising; each like the images."""
        weighted_loss = self._weighted_loss(heads_fn, images, labels, head_weights)
        found = [images]
        for number, before in zip(after, (0, *after[:-1]), strict=True):
            found.append(self._climb(weighted_loss, images, labels, found[-1], number - before))
        return found[1:]

    def _weighted_loss(
        self, heads_fn: HeadsFn, images: tf.Tensor, labels: tf.Tensor, head_weights: tf.Tensor | np.ndarray
    ) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
        """Make the function that the attack climbs: x -> (values (batch,), heads)."""
        natural = tf.stop_gradient(heads_fn(images)) if self.loss == "kl_divergence" else None

        def weighted_loss(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            heads = heads_fn(x)
            if self.loss == "kl_divergence":
                return contract(kl_divergence(natural, heads), head_weights), heads
            if self.loss == "cw_margin":
                return contract(cw_margin(heads, labels, self.kappa), head_weights), heads
            return contract(cross_entropy(heads, labels), head_weights), heads

        return weighted_loss

    def _first(self, images: tf.Tensor, seed: tf.Tensor | None) -> tf.Tensor:
        """Return the point at which the attack starts."""
        if not self.random_start:
            return images
        if self.start == "gaussian":
            return images + GAUSSIAN_START * normal(seed, images.shape[1:], images.dtype)
        return self.random_point(images, seed)

    def _run(
        self,
        weighted_loss: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor | None,
    ) -> tf.Tensor:
        x = self._first(images, seed)
        return self._climb(weighted_loss, images, labels, x, self.num_steps)

    def _climb(
        self,
        weighted_loss: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
        images: tf.Tensor,
        labels: tf.Tensor,
        x: tf.Tensor,
        num_steps: int,
    ) -> tf.Tensor:
        project = self.around(images)

        def step(x: tf.Tensor, done: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            _, heads, gradient = value_and_gradient(weighted_loss, x)
            ahead = project(x + self.step_size * self.steepest(gradient))
            if self.keep == "last":
                return ahead, done
            done |= fooled(heads, labels)
            return tf.where(per_example(done, images), x, ahead), done

        if num_steps == 0:
            return project(x)
        return tf.while_loop(
            lambda x, done: tf.reduce_any(~done),
            step,
            (x, tf.zeros_like(labels, tf.bool)),
            maximum_iterations=num_steps,
            parallel_iterations=1,
        )[0]


def fgsm(epsilon: float, **kwargs: object) -> PGD:
    """Make the fast gradient sign method (Goodfellow et al. 2015): one PGD step of the whole radius.

    Args:
        epsilon: radius, in the units of the images.
        **kwargs: other fields of `PGD`.

    Returns:
        the attack.
    """
    return PGD(epsilon=epsilon, step_size=epsilon or 1.0, num_steps=1, **kwargs)  # type: ignore[arg-type]
