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
        step_sizes: step size of single attacks, by name; those of attacks that are not asked for are left out.

    Returns:
        the attacks by name, in the given order.

    Raises:
        UserError: for a name of no attack, no name, or a step size that is not positive.

    Example:
        >>> make_attacks(["pgd20"], epsilon=0.1)["pgd20"].num_steps
        20
    """
    step_sizes = step_sizes or {}
    if not names:
        raise UserError("attacks", list(names), "name one attack at least, such as pgd20")
    for name, size in step_sizes.items():
        _parse_name(name, "eval_step_sizes")
        if not size > 0:
            raise UserError("eval_step_sizes", f"{name}: {size}", "give steps above 0")
    attacks = {}
    for name in names:
        kind, num_steps = _parse_name(name, "attacks")
        attacks[name] = (
            fgsm(epsilon)
            if kind == "fgsm"
            else PGD(
                epsilon=epsilon,
                step_size=step_sizes.get(name, step_size or epsilon / 10),
                num_steps=num_steps,
                loss="cw_margin" if kind == "cw" else "cross_entropy",
            )
        )
    return attacks


def _parse_name(name: str, argument: str) -> tuple[str, int]:
    """Return the kind of an attack and its number of steps."""
    if name == "fgsm":
        return name, 1
    match = ATTACK_NAME.fullmatch(name)
    if match is None:
        raise UserError(argument, name, "give fgsm, pgdN or cwN with a number of steps N, such as pgd20")
    return match["kind"], int(match["num_steps"])
