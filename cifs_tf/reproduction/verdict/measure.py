"""From the run and the evaluations of a cell to its file; what they did not measure is measured here."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from cifs_tf.analysis import measure_channels
from cifs_tf.attacks import PGD
from cifs_tf.config import RunConfig
from cifs_tf.data import ImageDataset, Split
from cifs_tf.errors import UserError
from cifs_tf.evaluation import as_attacked, evaluate, make_attacks
from cifs_tf.evaluation.ledger import Ledger
from cifs_tf.evaluation.networks.attacked import fingerprint_of
from cifs_tf.evaluation.tasks import Crafted, Natural
from cifs_tf.files import now, read_results
from cifs_tf.models import Classifier
from cifs_tf.reproduction.verdict.cells import CHANNELS, CHECKPOINTS, SCHEMA, Cell, pack_bits
from cifs_tf.reproduction.verdict.study import Study
from cifs_tf.runs.curves import VALIDATION_STEPS, best_epoch
from cifs_tf.runs.images import load_images
from cifs_tf.runs.precision import tf32_disabled
from cifs_tf.runs.provenance import revision
from cifs_tf.runs.trained import find_network
from cifs_tf.runs.workdir import Workdir

DIGITS = 4
# Options that say where a run was.
PLACES = ("workdir", "data_dir", "cache", "cache_dir")


def measure_cell(cell: Cell, study: Study, workdir: Path, data_dir: str | None = None) -> dict[str, Any]:
    """Collect a cell, whose run and evaluations are finished.

    Measures what those did not: robust accuracy on training images, attacked in inference mode, where no label enters
    the mask (what `fit` logs for CIFS has it there), and the share of activation on negatively-relevant channels.

    Returns:
        plain types only: `arm`, `seed`, `commands`, `config`, `curves` (a list over the epochs for each quantity),
        `labels` of the test images, and for each of the `checkpoints` the `epoch`, a verdict of each image as
        hexadecimal digits (see `pack_bits`): `natural`, `paper` (by attack and beta_atk) and `worst_case`; `audit`,
        `training` (accuracies on training images), `channels` (means over the test images) and `seconds`.

    Raises:
        UserError: if an evaluation is of another network than the run's, or of other images or another epsilon.
    """
    run = Workdir(workdir / cell.training.folder)
    config = run.read_config()
    if data_dir is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=data_dir))
    dataset = load_images(config.data, [run])
    history, result = find_network(run.path).history(), read_results(run.result_file)
    epochs = {"last": config.train.epochs, "best": best_epoch(history) or config.train.epochs}
    found: dict[str, Any] = {}
    for checkpoint, planned in zip(CHECKPOINTS, cell.evaluations, strict=True):
        evaluation = planned.resolved(workdir)
        if evaluation.checkpoint not in found:
            folder = workdir / evaluation.folder
            network = find_network(run.path, checkpoint=evaluation.checkpoint)
            classifier, report = network.load(), read_results(folder / "report.json")
            if different := network.differences(report, study.suite, fingerprint_of(classifier)):
                advice = f"{folder} is of other {', '.join(different)} than {run.path}; remove it, and start again"
                raise UserError("--study", cell.name, advice)
            own = workdir / "measurements" / cell.name / evaluation.checkpoint
            with tf32_disabled():
                found[evaluation.checkpoint] = {
                    "epoch": epochs[checkpoint],
                    **_verdicts(folder),
                    "training": _on_training_images(classifier, dataset, config, study, own),
                    "channels": _channels(classifier, dataset.test.class_balanced(study.examples, ""), config, own),
                }
        found[checkpoint] = found[evaluation.checkpoint]
    evaluated = read_results(workdir / cell.evaluations[0].resolved(workdir).report_file)
    jobs = dict.fromkeys(job.resolved(workdir) for job in cell.jobs)
    return {
        "schema": SCHEMA,
        "arm": cell.arm.name,
        "seed": cell.seed,
        "commands": [job.command(Path("WORKDIR")) for job in jobs],
        "config": {name: value for name, value in config.flat().items() if name not in PLACES},
        "parameters": result["networks"][cell.training["defense"]]["parameters"],
        "revisions": {
            "training": result["revision"],
            "evaluation": evaluated["about"]["revision"],
            "cell": revision(),
        },
        "code": evaluated["key"]["code"],
        "versions": result["versions"],
        "machine": result["machine"],
        "started": result["started"],
        "finished": now(),
        "images": evaluated["key"]["data"],
        "labels": _labels(workdir / cell.evaluations[0].resolved(workdir).folder),
        "class_names": list(dataset.class_names),
        "training_images": len(dataset.train),
        "curves": {
            name: [None if entry.get(name) is None else round(entry[name], DIGITS) for entry in history]
            for name in dict.fromkeys(name for entry in history for name in entry)
        },
        "checkpoints": found,
    }


def _verdicts(folder: Path) -> dict[str, Any]:
    """Return the verdict of each image in the ledger of an evaluation: true if the final prediction was right."""
    ledger, report = Ledger.read(folder / "ledger.jsonl"), read_results(folder / "report.json")
    ids = ledger.ids("natural")

    def right(task: str) -> str:
        return pack_bits(~np.isin(ids, ledger.fooled(task)))

    paper: dict[str, dict[str, str]] = {}
    for task in report["tasks"]:
        if task["section"] == "paper":
            paper.setdefault(task["family"], {})[str(task["beta"])] = right(task["name"])
    return {
        "natural": right("natural"),
        "paper": paper,
        "worst_case": pack_bits(np.array([name is None for name in report["broken_by"]])),
        "broke_first": {f"{row['attack']} ({row['section']})": row["broke_first"] for row in report["attacks"]},
        "audit": {check["name"]: check["verdict"] for check in report["audit"] if check["verdict"] != "pass"},
        "audit_passed": report["believable"],
        "seconds": report["wall_clock"]["seconds"],
    }


def _labels(folder: Path) -> list[int]:
    return Ledger.read(folder / "ledger.jsonl").values("natural", "labels").tolist()  # type: ignore[no-any-return]


def _on_training_images(
    classifier: Classifier, dataset: ImageDataset, config: RunConfig, study: Study, folder: Path
) -> dict[str, Any]:
    """Measure accuracies on training images under the attack of the validation images, PGD-10 on the final logits."""
    images: Split = dataset.train.class_balanced(min(study.training_examples, len(dataset.train)), "training_examples")
    epsilon = float(config.attack.epsilon)
    attack = PGD(epsilon=epsilon, step_size=epsilon / 4, num_steps=VALIDATION_STEPS)
    attacked = as_attacked(classifier)
    name = f"pgd{VALIDATION_STEPS}"
    tasks = [
        Natural(),
        Crafted(name=name, attack=attack, mask_gradient=attacked.mask_gradients[0], on="all", family=name),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    ledger_file = folder / "training.jsonl"
    report = evaluate(attacked, images, tasks, epsilon=epsilon, ledger_file=ledger_file, seed=config.train.seed)
    fooled = len(Ledger.read(ledger_file).fooled(name))
    return {
        "images": len(images),
        "attack": name,
        "natural": round(report["natural"]["accuracy"], DIGITS),
        "robust": round(1 - fooled / len(images), DIGITS),
    }


def _channels(classifier: Classifier, images: Split, config: RunConfig, folder: Path) -> dict[str, Any]:
    """Return means over the images under PGD-20 on the final logits, see `cifs_tf.analysis.Measurement.per_example`."""
    attack = make_attacks(["pgd20"], config.attack.epsilon)["pgd20"]
    found = measure_channels(classifier, images, attack, seed=config.train.seed, folder=folder / "channels")
    values = found.per_example()
    means = {name: float(np.nanmean(values[name])) if np.isfinite(values[name]).any() else None for name in CHANNELS}
    return {name: None if mean is None else round(mean, DIGITS) for name, mean in means.items()}
