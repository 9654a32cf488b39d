"""The paper's attacks by their names: fgsm, pgd20, cw30, ..."""

from collections.abc import Mapping, Sequence

from cifs_tf.attack_names import parse_attack_name
from cifs_tf.attacks import PGD, fgsm
from cifs_tf.errors import UserError

PAPER_ATTACKS = ("fgsm", "pgd20", "cw30", "pgd100")


def make_attacks(
    names: Sequence[str],
    epsilon: float,
    step_size: float | None = None,
    step_sizes: Mapping[str, float] | None = None,
    norm: str = "linf",
) -> dict[str, PGD]:
    """Make the paper's white-box attacks (Section 4.1, Appendix B.1): no random start, last iterate.

    Args:
        names: `fgsm`, `pgdN` (N steps on the cross-entropy) or `cwN` (N steps on the C&W margin).
        epsilon: radius of the ball, above 0; in L-infinity at most 1.
        step_size: of attacks with steps; None (default) is epsilon/10.
        step_sizes: step size of single attacks, by name; those of attacks that are not asked for are left out.
        norm: of the ball, see `cifs_tf.attacks.Ball`. Default `"linf"`.

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
        parse_attack_name(name, "eval_step_sizes")
        if not size > 0:
            raise UserError("eval_step_sizes", f"{name}: {size}", "give steps above 0")
    attacks = {}
    for name in names:
        kind, num_steps = parse_attack_name(name, "attacks")
        attacks[name] = (
            fgsm(epsilon, norm=norm)
            if kind == "fgsm"
            else PGD(
                epsilon=epsilon,
                step_size=step_sizes.get(name, epsilon / 10 if step_size is None else step_size),
                num_steps=num_steps,
                norm=norm,
                loss="cw_margin" if kind == "cw" else "cross_entropy",
            )
        )
    return attacks
