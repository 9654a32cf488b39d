"""Auto-PGD: projected gradient ascent that chooses its own step size, on any weighting of the heads."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from cifs_tf.attacks.apgd_l1 import search_l1
from cifs_tf.attacks.attack import Attack
from cifs_tf.attacks.objective import HeadsFn, choose, fooled, per_example, select_target, value_and_gradient
from cifs_tf.attacks.packing import loop_packed
from cifs_tf.attacks.random import normal
from cifs_tf.errors import UserError
from cifs_tf.losses import contract, cross_entropy, dlr, margin, targeted_dlr

MINIMUM_CLASSES = {"cross_entropy": 2, "margin": 2, "dlr": 3, "targeted_dlr": 4}


class _State(NamedTuple):
    """State of the loop, from one iteration to the next: points (batch, ...) and values (batch,)."""

    x_adv: tf.Tensor
    broken: tf.Tensor
    x: tf.Tensor
    previous: tf.Tensor
    gradient: tf.Tensor
    best: tf.Tensor
    best_loss: tf.Tensor
    best_gradient: tf.Tensor
    step_size: tf.Tensor
    loss: tf.Tensor
    num_rises: tf.Tensor
    halved: tf.Tensor
    loss_at_check: tf.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """Auto-PGD (Croce and Hein 2020), on any weighting of the heads; called as every `Attack`.

    Momentum, a step size of 2 epsilon that is halved for each example by itself where the loss has stopped rising, with
    a return to the best point. In L1 steps are sparse, and begin in larger balls, see `search_l1`. An example that is
    fooled on the way comes back as its first misclassified iterate (in L1 the last); the others, and those that are
    misclassified without an attack, come back as they were.

    Args:
        epsilon: radius, in the units of the images, see `Ball`.
        num_steps: iterations, >= 0. Default 100, AutoAttack's.
        loss: `"cross_entropy"` (default), `"margin"` (the lead of the label, whose gradient never fades), `"dlr"` (3
            classes or more) or `"targeted_dlr"` (4 classes or more).
        rho: share of the steps between two checks that must have raised the loss. Default 0.75.
        norm: see `Ball`.
        bounds: see `Ball`.
        compat: count the first step as the reference implementation does, which compares its loss with 0 instead of
            with the loss at the start. Default False.

    Reference:
        Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks", ICML 2020.

    Example:
        >>> attack = APGD(epsilon=8 / 255)
        >>> x_adv = attack(model.heads_fn(), images, labels, head_weights=head_weights(2, 2), seed=seeds)
    """

    num_steps: int = 100
    loss: str = "cross_entropy"
    rho: float = 0.75
    compat: bool = False

    needs_seed = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in MINIMUM_CLASSES:
            raise UserError("loss", self.loss, f"give one of {', '.join(MINIMUM_CLASSES)}")

    @property
    def is_targeted(self) -> bool:
        return self.loss == "targeted_dlr"

    def checkpoints(self) -> list[int]:
        """Return the numbers of finished iterations at which the step size is reviewed: 22, 41, 57, 70, ... of 100."""
        length, shrink, shortest = (max(self.num_steps * percent // 100, 1) for percent in (22, 3, 6))
        finished, found = 0, []
        while finished + length <= self.num_steps:
            finished += length
            found.append(finished)
            length = max(length - shrink, shortest)
        return found

    def search(
        self,
        heads_fn: HeadsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        head_weights: tf.Tensor | np.ndarray,
        seed: tf.Tensor | None,
        target_rank: int | tf.Tensor,
    ) -> tf.Tensor:
        natural = heads_fn(images)
        if natural.shape[-1] < MINIMUM_CLASSES[self.loss]:
            advice = f"the network has {natural.shape[-1]} classes, this loss needs {MINIMUM_CLASSES[self.loss]}"
            raise UserError("loss", self.loss, f"{advice}; give another")
        if self.num_steps == 0:
            return images
        targets = labels
        if self.is_targeted:
            targets = self.select_targets(heads_fn, images, labels, head_weights, target_rank, natural)

        def objective(x: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            heads = heads_fn(x)
            return contract(self._per_head_loss(heads, labels, targets), head_weights), heads

        already = fooled(natural, labels)
        if self.norm == "l1":
            start = images + normal(seed, images.shape[1:], images.dtype)
            return search_l1(
                self, self.num_steps, lambda x: objective(x, labels, targets), images, labels, already, start
            )
        start = self.random_surface_point(images, seed)
        loss, heads, gradient = value_and_gradient(lambda x: objective(x, labels, targets), start)
        start_fooled = fooled(heads, labels)
        zeros = tf.zeros_like(loss)
        state = _State(
            x_adv=choose(start_fooled & ~already, start, images),
            broken=already | start_fooled,
            x=start,
            previous=start,
            gradient=gradient,
            best=start,
            best_loss=loss,
            best_gradient=gradient,
            step_size=zeros + 2 * self.epsilon,
            loss=zeros if self.compat else loss,
            num_rises=zeros,
            halved=tf.ones_like(already),
            loss_at_check=loss,
        )
        checkpoints = self.checkpoints()
        # Length of the stretch that ends at each checkpoint, by number of finished iterations; 0 elsewhere.
        stretch = np.zeros(self.num_steps + 1)
        stretch[checkpoints] = np.diff(checkpoints, prepend=0)

        def iterate(index: tf.Tensor, values: Sequence[tf.Tensor], constants: Sequence[tf.Tensor]) -> _State:
            state, (images, labels, targets) = _State(*values), constants
            x = self._move(index, state, self.around(images))
            loss, heads, gradient = value_and_gradient(lambda x: objective(x, labels, targets), x)
            now_fooled = fooled(heads, labels)
            state = state._replace(
                x_adv=choose(now_fooled & ~state.broken, x, state.x_adv), broken=state.broken | now_fooled
            )
            return self._review(state, x, loss, gradient, tf.constant(stretch, loss.dtype)[index + 1])

        return loop_packed(
            iterate,
            lambda *values: _State(*values).broken,
            state,
            (images, labels, targets),
            num_steps=self.num_steps,
            num_results=1,
        )[0]

    def select_targets(
        self,
        heads_fn: HeadsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        head_weights: tf.Tensor | np.ndarray,
        target_rank: int | tf.Tensor,
        natural: tf.Tensor,
    ) -> tf.Tensor:
        """Return the class that each example is attacked towards, int32 (batch,): of a rank in its natural heads."""
        return select_target(natural, target_rank)

    def _move(self, index: tf.Tensor, state: _State, project: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        """Make a projected step, mixed with the one before it (momentum)."""
        share = tf.where(index == 0, tf.ones([], state.x.dtype), tf.constant(0.75, state.x.dtype))
        step_size = per_example(state.step_size, state.x)
        ahead = project(state.x + step_size * self.steepest(state.gradient))
        return project(state.x + share * (ahead - state.x) + (1 - share) * (state.x - state.previous))

    def _review(self, state: _State, x: tf.Tensor, loss: tf.Tensor, gradient: tf.Tensor, length: tf.Tensor) -> _State:
        """Take in a new point; at a checkpoint halve the steps that failed to rise, and go back to the best point.

        Args:
            length: of the stretch that ends here; 0 where there is no checkpoint.
        """
        better = loss > state.best_loss
        best_loss = tf.where(better, loss, state.best_loss)
        num_rises = state.num_rises + tf.cast(loss > state.loss, loss.dtype)
        state = state._replace(
            x=x,
            previous=state.x,
            gradient=gradient,
            best=choose(better, x, state.best),
            best_gradient=choose(better, gradient, state.best_gradient),
            best_loss=best_loss,
            loss=loss,
            num_rises=num_rises,
        )

        def check() -> _State:
            oscillates = num_rises <= self.rho * length
            stalls = ~state.halved & (state.loss_at_check >= best_loss)
            halve = oscillates | stalls
            return state._replace(
                x=choose(halve, state.best, x),
                gradient=choose(halve, state.best_gradient, gradient),
                step_size=tf.where(halve, state.step_size / 2, state.step_size),
                num_rises=tf.zeros_like(num_rises),
                halved=halve,
                loss_at_check=best_loss,
            )

        return _State(*tf.cond(length > 0, check, lambda: state))

    def _per_head_loss(self, heads: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        if self.loss == "cross_entropy":
            return cross_entropy(heads, labels)
        if self.loss == "margin":
            return -margin(heads, labels)
        return dlr(heads, labels) if self.loss == "dlr" else targeted_dlr(heads, labels, targets)
