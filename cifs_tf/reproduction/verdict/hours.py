"""The cost of a cell before it is computed: floating-point operations, at a pace that was measured."""

from pathlib import Path

from cifs_tf.attack_names import parse_attack_name
from cifs_tf.reproduction.costs import AUDIT_STEPS, CPU_CORE, STRICT_QUERIES, STRICT_STEPS, training_passes
from cifs_tf.reproduction.verdict.cells import CHECKPOINTS, Cell
from cifs_tf.reproduction.verdict.study import Study
from cifs_tf.runs.curves import VALIDATION_STEPS

# Forward pass of ResNet-10 of width 16 on an image of 32 pixels (`cifs_tf.models.count_flops`, a test counts again).
FLOPS = 32_344_576
TRAINING_IMAGES = 4_000
BETAS = 9
# Share of the test images that survive the paper's protocol, and that the audit's curves attack on average.
SURVIVORS, AUDITED = 0.2, 0.3


def hours(cell: Cell, study: Study, workdir: Path) -> float:
    """Estimate what is left of a cell, in hours of one quiet core; parts that are finished cost nothing."""
    images = (cell.training["train_examples"] or TRAINING_IMAGES) - cell.training["val_examples"]
    passes = 0.0 if cell.training.is_done(workdir) else training_passes(cell.training, images)
    for evaluation in cell.evaluations:
        if not evaluation.resolved(workdir).is_done(workdir):
            passes += _evaluation_passes(cell, study)
    # Training images under attack, and channels.
    passes += len(CHECKPOINTS) * (study.training_examples * (2 * VALIDATION_STEPS + 2) + study.examples * 43)
    return passes * FLOPS * CPU_CORE.training / 3600


def _evaluation_passes(cell: Cell, study: Study) -> float:
    betas = 1 if cell.training["defense"] == "vanilla" else BETAS
    paper = betas * sum(2 * parse_attack_name(attack, "attacks")[1] + 1 for attack in study.attacks)
    strict = SURVIVORS * (2 * STRICT_STEPS + STRICT_QUERIES) + AUDITED * 2 * AUDIT_STEPS
    return study.examples * (paper + strict)
