"""Options of `analyse.py`.

In a module of their own, because jsonargparse executes what a module imports for type checkers alone: TensorFlow would
be loaded before a bad option is refused.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from cifs_tf.errors import UserError

ATTACK = re.compile(r"fgsm|(pgd|cw)[1-9]\d*")


@dataclasses.dataclass(frozen=True)
class AnalyseOptions:
    """Draw what channels do under attack, training curves and class-wise robustness of every network of a run.

    Args:
        run: workdirs of runs, drawn side by side.
        names: what figures and tables call the networks: one for each, in the order of the runs, in a run
            the twin first; empty is their defenses, of several runs behind the run's name.
        checkpoint: the networks after their last epoch, or after their best on the validation images.
        examples: a class-balanced subset of so many test images; null is all those of the run.
        classes: names or numbers of the classes to draw the channels of, or all; null is the most and the
            least robust class of the last network. The files of numbers have every class.
        attack: fgsm, pgdN or cwN with N steps, as in the run's evaluation.
        attack_beta: beta_atk of the attack, see Eq. (3); null is the one that left the fewest images standing in the
            run's evaluation, or the run's own beta if it was not evaluated with this attack.
        data_dir: where TFDS data lies; null is the run's, or TFDS' own default.
        batch_size: images per batch.
        workdir: folder to write to; null is RUN/analysis. Of several runs it is runs/analysis/NAMES then, and what was
            measured stays in the RUN/analysis of each, so that it is not measured again.
    """

    run: tuple[str, ...]
    names: tuple[str, ...] = ()
    checkpoint: Literal["last", "best"] = "last"
    examples: int | None = None
    classes: tuple[int | str, ...] | None = None
    attack: str = "pgd20"
    attack_beta: int | float | str | None = None
    data_dir: str | None = None
    batch_size: int = 250
    workdir: str | None = None

    def __post_init__(self) -> None:
        if not self.run or len(set(self.run)) < len(self.run):
            raise UserError("--run", list(self.run), "give the workdir of a run, or several different ones")
        for name in ("examples", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name}", value, "give a number of 1 or more")
        if not ATTACK.fullmatch(self.attack):
            advice = "give fgsm, pgdN or cwN with a number of steps N, such as pgd20"
            raise UserError("--attack", self.attack, advice)

    @property
    def attack_title(self) -> str:
        """The attack as the paper writes it: PGD-20."""
        return re.sub(r"(?<=\D)(?=\d)", "-", self.attack.upper(), count=1)
