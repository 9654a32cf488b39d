"""Named attacks, and the suites made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cifs_tf.attacks import PGD, fgsm
from cifs_tf.errors import UserError

ATTACK_NAME = re.compile(r"(?P<kind>pgd|cw)(?P<num_steps>[1-9]\d*)")


def make_attacks(
    names: Sequence[str],
    epsilon: float,
    step_size: float | None = None,
    step_sizes: Mapping[str, float] | None = None,
) -> dict[str, PGD]:
    """Make the paper's white-box attacks (Section 4.1, Appendix B.1): no random start, last iterate.

    Args:
        names: `fgsm`, `pgdN` (N steps on the cross-entropy) or `cwN` (N steps on the C&W margin).
        epsilon: radius of the L-infinity ball, in (0, 1].
        step_size: of attacks with steps; None (default) is epsilon/10.
        step_sizes: step size of single attacks, by name.

    Returns:
        the attacks by name, in the given order.

    Raises:
        UserError: for a name of no attack.

    Example:
        >>> make_attacks(["pgd20"], epsilon=0.1)["pgd20"].num_steps
        20
    """
    step_sizes = step_sizes or {}
    for name in step_sizes:
        if name not in names:
            raise UserError("--eval_step_sizes", name, f"name one of the attacks {', '.join(names)}")
    attacks = {}
    for name in names:
        match = ATTACK_NAME.fullmatch(name)
        if name == "fgsm":
            attacks[name] = fgsm(epsilon)
        elif match:
            attacks[name] = PGD(
                epsilon=epsilon,
                step_size=step_sizes.get(name, step_size or epsilon / 10),
                num_steps=int(match["num_steps"]),
                loss="cw_margin" if match["kind"] == "cw" else "cross_entropy",
            )
        else:
            raise UserError("--attacks", name, "give fgsm, pgdN or cwN with a number of steps N, such as pgd20")
    return attacks
