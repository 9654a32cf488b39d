"""Single-step adversarial training with noise, for people without a GPU."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cifs_tf.adversarial.methods import PGDTraining, register_method
from cifs_tf.attacks.noisy_fgsm import NoisyFGSM
from cifs_tf.config import RunConfig

# Of the accuracy under one step, what several steps leave of it at most when training has collapsed; and the difference
# that is no chance of a few images. Without a collapse several steps leave most of it.
COLLAPSED = 0.5
GAP = 0.1


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

    The network learns to answer one step and nothing else: on the same validation images, and at the same radius, the
    accuracy under several steps is less than half of that under one, and ten points less. Robust overfitting, of which
    both fall, is something else.

    Args:
        history: what each epoch logged, see `AdversarialTrainer`: `val_robust_accuracy` and
            `val_single_step_accuracy`.

    Returns:
        a sentence with the numbers, or None.

    Example:
        >>> catastrophic_overfitting([{"val_robust_accuracy": 0.01, "val_single_step_accuracy": 0.8}])[:40]
        'Catastrophic overfitting after epoch 1: '
    """
    logs = history[-1] if history else {}
    several, one = logs.get("val_robust_accuracy"), logs.get("val_single_step_accuracy")
    if several is None or one is None or not (several < COLLAPSED * one and one - several > GAP):  # NaN is neither
        return None
    return (
        f"Catastrophic overfitting after epoch {len(history)}: of the validation images {one:.1%} are right under one "
        f"step of the attack, {several:.1%} under several. The best epoch is kept, and exported by --export_checkpoint "
        "best. More noise (--method nfgsm --nfgsm_noise), a smaller radius or several steps (--method pgd --num_steps) "
        "avoid it."
    )
