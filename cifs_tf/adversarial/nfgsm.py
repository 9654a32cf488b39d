"""Single-step adversarial training with noise, for people without a GPU."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cifs_tf.adversarial.methods import PGDTraining, register_method
from cifs_tf.attacks.noisy_fgsm import NoisyFGSM
from cifs_tf.config import RunConfig

# Of the best robust accuracy on validation images, what is left when training has collapsed.
COLLAPSED = 0.5
# In the first epoch there is no earlier one to fall from: robust accuracy on training images so much above that on
# validation images, which several steps attack, is no overfitting yet.
FIRST_GAP = 0.25
ADVICE = (
    "More noise (--method nfgsm --nfgsm_noise), a smaller radius or several steps (--method pgd --num_steps) avoid it."
)


@register_method("nfgsm")
@dataclasses.dataclass(frozen=True, kw_only=True)
class NFGSM(PGDTraining):
    """N-FGSM (de Jorge et al. 2022): Eq. (3) on images that one gradient makes, see `NoisyFGSM`.

    A step costs two forward and backward passes, with PGD-10 eleven. Training with one gradient may collapse, see
    `catastrophic_overfitting`.

    Args:
        head_weights: float (1 + P,), of the loss and of the attack on it; or a function of the epoch.
        attack: a `NoisyFGSM`.

    The other fields are those of `PGDTraining`.
    """

    attack: NoisyFGSM

    @classmethod
    def attack_of(cls, config: RunConfig) -> NoisyFGSM:
        """Make the training attack of a config: one step of the whole radius, whatever step size it has for PGD."""
        epsilon = config.attack.epsilon
        return NoisyFGSM(epsilon=epsilon, step_size=epsilon, noise=config.train.nfgsm_noise)


def catastrophic_overfitting(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Tell whether the last epoch shows catastrophic overfitting (Wong et al. 2020), which one gradient a step risks.

    The network learns to answer the one step of its training attack and nothing else: robust accuracy on validation
    images, under several steps, falls below half of its best, while that on training images, under one step, has risen
    since then; or the first epoch ends with less than half of what it has on training images, and 25 points less.

    Args:
        history: what each epoch logged, see `AdversarialTrainer`: `val_robust_accuracy` and `robust_accuracy`.

    Returns:
        a sentence with the numbers, or None.

    Example:
        >>> before, after = (0.30, 0.35), (0.01, 0.80)
        >>> names = ("val_robust_accuracy", "robust_accuracy")
        >>> catastrophic_overfitting([dict(zip(names, values)) for values in (before, after)])[:40]
        'Catastrophic overfitting: robust accurac'
    """
    names = ("val_robust_accuracy", "robust_accuracy")
    points = {
        epoch: (entry[names[0]], entry[names[1]])
        for epoch, entry in enumerate(history, 1)
        if None not in (entry.get(names[0]), entry.get(names[1]))
    }
    if len(history) not in points:
        return None
    best = max(points, key=lambda epoch: points[epoch][0])
    (then, trained_then), (now, trained) = points[best], points[len(history)]
    if len(history) == 1 and now < COLLAPSED * trained and trained - now > FIRST_GAP:
        return (
            f"Catastrophic overfitting: after the first epoch robust accuracy on validation images, under several "
            f"steps, is {now:.1%}, on training images, under one step, {trained:.1%}. {ADVICE}"
        )
    if now >= COLLAPSED * then or trained <= trained_then:
        return None
    return (
        f"Catastrophic overfitting: robust accuracy on validation images, under several steps, fell from {then:.1%} "
        f"(epoch {best}) to {now:.1%} (epoch {len(history)}), while that on training images, under one step, rose from "
        f"{trained_then:.1%} to {trained:.1%}. The best epoch is kept. {ADVICE}"
    )
