"""Names of suites, and of the paper's white-box attacks: fgsm, pgdN and cwN.

These are N steps on the cross-entropy and on the margin.
"""

import re
from typing import Literal, get_args

from cifs_tf.errors import UserError

# fmt: off
Suite = Literal[
    "quick", "paper", "paper_aa", "apgd", "fast", "standard", "plus", "rand", "adaptive", "strict", "minimal",
    "corruptions",
]
# fmt: on
SUITES: tuple[str, ...] = get_args(Suite)
# Those of L2 and L1 too.
NORM_SUITES = ("standard", "plus", "strict", "minimal", "fast", "rand")
# Images of a suite that is not meant for all of them.
SUITE_EXAMPLES = {"quick": 200, "paper_aa": 2000}


def parse_attack_name(name: str, argument: str) -> tuple[str, int]:
    """Return the kind of an attack (fgsm, pgd, cw) and its number of steps.

    Args:
        name: of the attack.
        argument: names it in the error.

    Raises:
        UserError: if there is no such attack.

    Example:
        >>> parse_attack_name("pgd20", "attack")
        ('pgd', 20)
    """
    match = re.fullmatch(r"(fgsm)|(pgd|cw)([1-9]\d*)", name)
    if match is None:
        raise UserError(argument, name, "give fgsm, pgdN or cwN with a number of steps N, such as pgd20")
    return match[1] or match[2], int(match[3] or 1)


def attack_title(name: str) -> str:
    """Write the name of an attack as the paper does.

    Example:
        >>> attack_title("cw30")
        'C&W-30'
    """
    kind, num_steps = parse_attack_name(name, "attack")
    return "FGSM" if kind == "fgsm" else f"{'C&W' if kind == 'cw' else 'PGD'}-{num_steps}"
