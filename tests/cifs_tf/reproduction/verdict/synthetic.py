"""Cells as the study writes them, with numbers that a test chooses."""

import functools

import numpy as np

from cifs_tf.reproduction.plan import ATTACK_BETAS
from cifs_tf.reproduction.verdict.cells import CHANNELS, pack_bits, plan_cells, scale_of
from cifs_tf.reproduction.verdict.study import load_study

IMAGES, CLASSES = load_study().examples, 10


def make_cell(arm, seed, *, last=0.1, best=0.2, training=0.9, curve=(0.1, 0.2, 0.1), gap=0.05, scale="full"):
    """A cell whose worst case keeps the first images: a share `last` or `best` of them.

    The paper's protocol keeps `gap` more at the last beta_atk. The curve goes on as it ends, or is cut, to the scale's
    epochs.
    """
    config, study = dict(_config(arm, seed, scale)), load_study(scale)
    images = np.arange(study.examples)
    curve = [*curve, *[curve[-1]] * config["epochs"]][: config["epochs"]]

    peak = int(np.argmax(curve)) + 1
    betas = ["0"] if config["defense"] == "vanilla" else list(map(str, ATTACK_BETAS))

    def at(share, epoch):
        def first(share):
            return pack_bits(images < round(share * len(images)))

        return {
            "epoch": epoch,
            "natural": first(0.5),
            "paper": {name: dict.fromkeys(betas, first(0.45)) for name in study.attacks}
            | {study.attacks[1]: {**dict.fromkeys(betas, first(share + 0.2)), betas[-1]: first(share + gap)}},
            "worst_case": first(share),
            "broke_first": {"pgd20 (paper)": round(0.5 * len(images)) - round(share * len(images))},
            "audit": {},
            "audit_passed": True,
            "training": {"images": study.training_examples, "attack": "pgd10", "natural": 0.99, "robust": training},
            "channels": dict.fromkeys(CHANNELS, 0.4),
            "seconds": 1.0,
        }

    return {
        "schema": 1,
        "arm": arm,
        "seed": seed,
        "commands": [],
        "config": config,
        "code": "abc",
        "revisions": {"training": "abc", "evaluation": "abc", "cell": "abc"},
        "finished": "2026-01-01T00:00:00Z",
        "images": "pixels",
        "labels": [int(i) % CLASSES for i in images],
        "class_names": [f"class{i}" for i in range(CLASSES)],
        "curves": {"val_robust_accuracy": list(curve), "robust_accuracy": list(curve), "loss": list(curve)},
        "checkpoints": {"last": at(last, len(curve)), "best": at(best if peak < len(curve) else last, peak)},
    }


@functools.cache
def _config(arm, seed, scale):
    study = load_study(scale)
    training = plan_cells(study, scale_of(study, scale), seed + 1, [arm])[-1].training
    return {name: training[name] for name, _ in training.config}
