"""Options of `evaluate.py`, in a module of their own for the reason that `analyse_options` gives."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from cifs_tf.config import MachineConfig, MaskGradient, Ratio
from cifs_tf.errors import UserError

Suite = Literal["quick", "paper", "paper_aa", "apgd", "standard", "adaptive", "strict"]


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Attack a trained classifier, and write a report: JSON, Markdown and one HTML page.

    Args:
        model: workdir of a run, .keras file, or SavedModel folder.
        suite: quick (a first look, with an audit), paper (Section 4.1, every beta_atk), paper_aa (Appendix B.1, APGD
            and Square), apgd (APGD-CE and APGD-T, three targets), standard (AutoAttack), adaptive (paper, then short
            runs of APGD at every beta_atk through every mask gradient) or strict (per image, the worst case over all
            of it).
        checkpoint: of a run: the network after its last epoch, or after its best on the validation images.
        defense: which network of a run; null is its own, not the twin.
        dataset: as for run.py; null is that of the run in whose workdir the model lies.
        data_dir: where TFDS data lies; null is the run's, or TFDS' own default.
        examples: attack a class-balanced subset of so many test images; null is 200 for quick, 2000 for paper_aa, and
            all of them otherwise.
        epsilon: radius of the L-infinity ball; null is that of the run, or of the dataset's recipe.
        attacks: of the suites paper, adaptive and strict: fgsm, pgdN, cwN; null is the run's, or those of the dataset's
            recipe.
        attack_betas: the attacker's settings of beta in Eq. (3); null is the run's, or the paper's nine.
        mask_gradients: attack through these gradients of the mask, first the one for paper; null is all there are.
        audit: look for gradient masking; null does so in quick, adaptive and strict.
        surrogate: another model, for a transfer attack in the audit.
        batch_size: images per batch.
        seed: of everything random; null is that of the run, or 0.
        shard: i/n, attack only the i-th of n parts of the images; see merge.
        strategy: one (one device), mirrored (all GPUs of this machine), or auto: mirrored where there are several GPUs.
        replicas: mirrored only: how many GPUs; without a GPU the processor is divided into so many devices, which is no
            faster. null is all GPUs.
        workdir: folder for ledger and report; null is DEFENSE/evaluation/SUITE in the run's workdir, or
            runs/evaluation/MODEL/SUITE.
    """

    model: str
    suite: Suite = "quick"
    checkpoint: Literal["last", "best"] = "last"
    defense: Literal["cifs", "cas", "ewas", "vanilla"] | None = None
    dataset: str | None = None
    data_dir: str | None = None
    examples: int | None = None
    epsilon: Ratio | None = None
    attacks: tuple[str, ...] | None = None
    attack_betas: tuple[int | float | str, ...] | None = None
    mask_gradients: tuple[MaskGradient, ...] | None = None
    audit: bool | None = None
    surrogate: str | None = None
    batch_size: int = 250
    seed: int | None = None
    shard: str = "1/1"
    strategy: Literal["auto", "one", "mirrored"] = "auto"
    replicas: int | None = None
    workdir: str | None = None

    def __post_init__(self) -> None:
        for name in ("examples", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name}", value, "give a number of 1 or more")
        if self.epsilon is not None and not 0 < self.epsilon <= 1:
            raise UserError("--epsilon", self.epsilon, "give a number above 0 and at most 1")
        if self.seed is not None and not 0 <= self.seed < 2**31:
            raise UserError("--seed", self.seed, f"give a number from 0 to {2**31 - 1}")
        match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", self.shard)
        if match is None or int(match[1]) > int(match[2]):
            raise UserError("--shard", self.shard, "give i/n with i from 1 to n, such as 1/4")
        self.machine_config()

    def machine_config(self) -> MachineConfig:
        """Return the devices that share the attacks."""
        return MachineConfig(strategy=self.strategy, replicas=self.replicas)
