"""Tasks that differ in beta_atk, mask gradient, target or start, with the names that a ledger knows them by."""

from collections.abc import Mapping, Sequence
from typing import Any

from cifs_tf.attacks import APGD
from cifs_tf.evaluation.tasks import Crafted, Task

# Rank of the first target.
NEAREST = 2
DLR_CLASSES = 3


def grid_tasks(
    attacks: Mapping[str, Any],
    mask_gradients: Sequence[str],
    betas: Sequence[float | str],
    *,
    section: str,
    on: str,
    suffix: str = "",
    target_rank: int = 0,
    kind: type[Crafted] = Crafted,
) -> list[Task]:
    """List every attack through every mask gradient at every beta_atk."""
    target = f", target {target_rank}" if target_rank > NEAREST else ""
    return [
        kind(
            name=f"{name}{target}, beta {beta}, {mask}{suffix}",
            on=on,
            counts=True,
            section=section,
            family=name,
            attack=attack,
            beta=beta,
            mask_gradient=mask,
            target_rank=target_rank or 2,
        )
        for name, attack in attacks.items()
        for mask in mask_gradients
        for beta in betas
    ]


def scale_free_attack(num_classes: int, epsilon: float, **fields: Any) -> dict[str, APGD]:
    """Return APGD, by its family, on a loss whose gradient large logits do not hide: DLR, of two classes the margin."""
    loss = "dlr" if num_classes >= DLR_CLASSES else "margin"
    return {f"apgd_{loss}": APGD(epsilon=epsilon, loss=loss, **fields)}


def autoattack_task(family: str, attack: Any, mask: str, target_rank: int = 0, start: int = 1) -> Task:
    """Return an attack on the final head alone, on the survivors."""
    target = f", target {target_rank}" if target_rank else ""
    again = f", start {start}" if start > 1 else ""
    return Crafted(
        name=f"{family}{target}, beta 0, {mask}{again}",
        counts=True,
        section="autoattack",
        family=family,
        attack=attack,
        mask_gradient=mask,
        target_rank=target_rank or 2,
    )
