"""Run the binarisation test on networks of `docs/deceptions.py`, and write its table to docs/evaluation.md.

    python docs/binarisation.py                        all of NAMES, or what is left of them
    python docs/binarisation.py --names '[JPEG]'       some anew; the others keep their numbers

Numbers go to docs/results/binarisation.json.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

from deceptions import DATA, EPSILON, IMAGES, cases

from cifs_tf import evaluate
from cifs_tf.command_line import parse_options, run_program
from cifs_tf.evaluation import AttackedModel, as_attacked
from cifs_tf.evaluation.checks.binarisation import Binarised
from cifs_tf.evaluation.tasks import Natural
from cifs_tf.files import write_text
from cifs_tf.tables import Table

DOCS = Path(__file__).resolve().parent
# Those with a linear last layer that can be seen.
NAMES = (
    *("grey levels", "JPEG", "thermometer", "k winners", "steep pixels", "softmax times 30"),
    *("natural training", "adversarial training", "CIFS", "flat", "tanh", "softmax"),
    *("batch normalisation", "mixed precision"),
)
MARKS = ("<!-- docs/binarisation.py: -->\n", "<!-- end -->")


@dataclasses.dataclass(frozen=True)
class BinarisationOptions:
    """Look for known adversarial examples.

    Args:
        names: of the networks to evaluate anew; null is those without numbers.
    """

    names: tuple[str, ...] | None = None


def main(argv: Sequence[str]) -> int:
    """Test the networks asked for, or those that are left, and write the table."""
    options, listed = parse_options(BinarisationOptions, "binarisation.py", argv, __doc__ or ""), cases()
    file = DOCS / "results" / "binarisation.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    test = DATA.test.class_balanced(IMAGES, "examples")
    for name in options.names or [name for name in NAMES if name not in found]:
        network = listed[name].network()
        attacked = network if isinstance(network, AttackedModel) else as_attacked(network, image_shape=(8, 8, 1))
        tasks = [Natural(), Binarised(epsilon=EPSILON, mask_gradient=attacked.mask_gradients[0])]
        report = evaluate(attacked, test, tasks)
        (check,) = [check for check in report["audit"] if check["name"] == "known adversarial examples are found"]
        known = re.search(r"(\d+) of (\d+)", check["sentence"])
        found[name] = {"honest": listed[name].is_honest, "verdict": check["verdict"], "found": known and known[0]}
        print(name, found[name], flush=True)
        write_text(file, json.dumps({key: found[key] for key in NAMES if key in found}, indent=1) + "\n")
    rows = [
        [name, "honest network" if each["honest"] else "deception", each["found"] or "-", each["verdict"]]
        for name, each in found.items()
    ]
    page = DOCS / "evaluation.md"
    before, after = page.read_text().split(MARKS[0])
    table = Table(["network", "what it is", "finds", "verdict"], rows, 2).markdown()
    write_text(page, f"{before}{MARKS[0]}\n{table}\n\n{MARKS[1]}{after.split(MARKS[1], 1)[1]}")
    return 0


if __name__ == "__main__":
    run_program(main)
