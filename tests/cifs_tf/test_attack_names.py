"""Names of the paper's attacks."""

import pytest

from cifs_tf.attack_names import attack_title, parse_attack_name
from cifs_tf.errors import UserError


@pytest.mark.parametrize(
    ("name", "parts", "title"),
    [("fgsm", ("fgsm", 1), "FGSM"), ("pgd100", ("pgd", 100), "PGD-100"), ("cw30", ("cw", 30), "C&W-30")],
)
def test_names(name, parts, title):
    assert parse_attack_name(name, "attack") == parts
    assert attack_title(name) == title


@pytest.mark.parametrize("name", ["pgd", "pgd0", "fgsm1", "cw-3", "xpgd2", "pgd2\n", ""])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match="--attack: received"):
        parse_attack_name(name, "--attack")
