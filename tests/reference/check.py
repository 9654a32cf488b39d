"""Compare this implementation with numbers recorded from the official PyTorch code.

    python tests/reference/check.py DIR

checks every `resnet18_*.npz` in DIR, each with its `.json` beside it: the network is rebuilt from the parameter rules
in the json, run in float64 and in float32, and every recorded array is compared. One line per array gives the largest
deviation relative to the largest recorded value. Tolerances: float64, 1e-6 for every array and 99.9% of PGD pixels
within 1e-9; float32, 1e-4 for logits, relevances, importances and losses, while gradients and PGD images are printed
but not judged (a ReLU on the other side of zero moves them by up to 2%), nor what is computed from them: the logits
and the loss of the PGD images (measured: up to 1.5e-2) and the network after two SGD steps (up to 2.6e-2).

It checks every `autoattack_*.npz` in DIR too, and every `autoattack_*.json` (other balls) beside it: our attacks run on
the network inside, each alone on all images, and every adversarial image is verified to lie in the ball. They may leave
at most max(3 images, 0.6 points) more standing than the official ones in any column, and max(2 images, 0.4 points) in
the union of the standard version. They must agree on 98% of the images, those aside that we break and the official
attack does not: being stronger never fails.

Exits with 1 if a tolerance is exceeded, with 2 if there is nothing to check.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import dataclasses
import json
import math
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.adversarial import SGD, Standard
from cifs_tf.attacks import PGD
from cifs_tf.benchmarks.attack import COLUMNS, Recording
from cifs_tf.config import ModelConfig
from cifs_tf.losses import contract, cross_entropy, head_weights
from cifs_tf.models import Classifier, build_classifier

TOLERANCE = {"float64": 1e-6, "float32": 1e-4}
MAX_FAR_PIXELS = 1e-3
FAR_PIXEL = 1e-9
BETA = 2.0
# More images standing than officially: so many, or this share of all, whichever is more.
MOST_WEAKER = {"column": (3, 0.006), "union": (2, 0.004)}
MOST_DIFFERENT = 0.02
# In float32 a single rounding decides these: printed, not judged.
DISCRETE = ("gradient", "pgd10", "after_two", "running_")


@dataclasses.dataclass(frozen=True)
class Deviation:
    """How far one array is from its recording.

    Args:
        array: its name.
        value: the deviation.
        limit: what is allowed; None if the array is not judged.
    """

    array: str
    value: float
    limit: float | None

    @property
    def passed(self) -> bool:
        """Whether the limit is kept; NaN never keeps one."""
        return self.limit is None or self.value <= self.limit


def parameter(seed: int, spec: dict) -> np.ndarray:
    """Make one parameter, in PyTorch's shape, by its rule."""
    rule, _, factor = spec["rule"].partition(" * ")
    rng, shape = np.random.default_rng([seed, spec["index"]]), spec["shape"]
    if rule == "standard_normal*sqrt(2/fan_in)":
        value = rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    elif rule == "0.1*standard_normal":
        value = 0.1 * rng.standard_normal(shape)
    elif rule == "uniform(0.5,1.5)":
        value = rng.uniform(0.5, 1.5, shape)
    else:
        raise ValueError(f"parameter {spec['name']}: unknown rule {spec['rule']!r}")
    return (value * float(factor or 1)).astype(np.float32)


def find_variable(classifier: Classifier, name: str) -> tf.Variable:
    """Find the variable that a PyTorch parameter name stands for."""
    *path, leaf = name.split(".")
    attribute = {"running_mean": "moving_mean", "running_var": "moving_variance"}.get(leaf)
    if path[0].startswith("layer"):
        stage, block = int(path[0][5:]), int(path[1]) + 1
        prefix, part = f"stage{stage}_block{block}", path[2:]
        if part[0] in ("Probe", "CAS"):
            probe = classifier.cuts[f"{prefix}_out"].probe
            layer = probe.hidden if part[-2:] == ["0", "fc"] else probe.dense
        else:
            suffix = {"0": "shortcut_conv", "1": "shortcut_bn"}[part[1]] if part[0] == "shortcut" else part[0]
            layer = classifier.backbone.get_layer(f"{prefix}_{suffix}")
    else:
        layer = classifier.backbone.get_layer({"conv1": "stem_conv", "bn1": "stem_bn", "linear": "logits"}[path[0]])
    if attribute is None:
        is_bn = hasattr(layer, "moving_mean")
        attribute = {"weight": "gamma" if is_bn else "kernel", "bias": "beta" if is_bn else "bias"}[leaf]
    return getattr(layer, attribute)


def set_parameters(classifier: Classifier, description: dict) -> None:
    """Give the network the recorded network's weights, converted from PyTorch's layouts."""
    for spec in description["parameters"]:
        value = parameter(description["seed"], spec)
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)  # OIHW -> HWIO
        elif value.ndim == 2:
            value = value.T
        find_variable(classifier, spec["name"]).assign(value)


def defense_of(description: dict) -> str:
    """Tell from the parameter names which of the three networks was recorded."""
    names = " ".join(spec["name"] for spec in description["parameters"])
    return "cas" if ".CAS." in names else "cifs" if ".Probe." in names else "vanilla"


class Replay:
    """This project's network, doing what the official one was recorded doing."""

    def __init__(self, description: dict, images: np.ndarray, labels: np.ndarray, precision: str):
        self.description = description
        keras.config.set_floatx(precision)  # the optimizer keeps its learning rate in floatx
        num_classes = next(s["shape"][0] for s in description["parameters"] if s["name"] == "linear.bias")
        width = next(s["shape"][0] for s in description["parameters"] if s["name"] == "conv1.weight")
        config = ModelConfig(arch="resnet18", width=width, defense=defense_of(description))
        self.classifier = build_classifier(config, images.shape[1:], num_classes, precision)
        self.weights = head_weights(BETA, self.classifier.num_probes)
        self.images, self.labels = tf.constant(images, precision), tf.constant(labels)
        set_parameters(self.classifier, description)

    def run(self) -> dict[str, np.ndarray]:
        """Return every array that a recording may have, by its name there."""
        arrays = {**self._inference(), **self._attack(), **self._training()}
        return {name: np.asarray(value) for name, value in arrays.items()}

    def _inference(self) -> dict:
        explained = self.classifier.explain(self.images)
        arrays = self._heads("eval", explained["heads"])
        for index, name in enumerate(self.classifier.cuts):
            arrays[f"eval_relevance_{index}"] = explained["relevance"][name]
            arrays[f"eval_importance_{index}"] = explained["importance"][name]
            top_k = tf.math.top_k(explained["heads"][:, 1 + index], k=self.classifier.cuts[name].top_k)
            arrays[f"eval_topk_{index}"] = tf.sort(top_k.indices, axis=1)
        for mask_gradient in ("detached", "full"):
            with tf.GradientTape() as tape:
                tape.watch(self.images)
                loss = self._loss(self.classifier.heads_fn(mask_gradient)(self.images))
            arrays[f"eval_input_gradient_{mask_gradient}"] = tape.gradient(loss, self.images)
        return {**arrays, "eval_loss_beta2": loss}

    def _attack(self) -> dict:
        attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)
        heads_fn = self.classifier.heads_fn("detached")
        x_adv = tf.function(attack)(heads_fn, self.images, self.labels, head_weights=self.weights)
        heads = heads_fn(x_adv)
        return {"pgd10_images": x_adv, "pgd10_logits": heads[:, 0], "pgd10_loss_beta2": self._loss(heads)}

    def _training(self) -> dict:
        method = Standard(head_weights=self.weights)
        optimizer = SGD(0.01, momentum=0.9, weight_decay=2e-4)
        variables = self.classifier.trainable_variables
        optimizer.build(variables)
        arrays = {}
        for step in range(2):
            with tf.GradientTape() as tape:
                per_example_loss, heads = method.loss(self.classifier, self.images, self.images, self.labels)
                loss = tf.reduce_mean(per_example_loss)
            gradients = tape.gradient(loss, variables)
            if step == 0:
                norms = {v.path: tf.norm(g) for v, g in zip(variables, gradients, strict=True)}
                names = [s["name"] for s in self.description["parameters"] if "running" not in s["name"]]
                arrays = self._heads("train", heads)
                arrays["train_loss_beta2"] = loss
                arrays["train_gradient_names"] = names
                arrays["train_gradient_norms"] = [norms[find_variable(self.classifier, n).path] for n in names]
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
        arrays["after_two_sgd_steps_eval_logits"] = self.classifier(self.images, training=False)[:, 0]
        for statistic in ("running_mean", "running_var"):
            names = [s["name"] for s in self.description["parameters"] if s["name"].endswith(statistic)]
            arrays[f"{statistic}_norms_after_two_steps"] = [
                np.linalg.norm(find_variable(self.classifier, name).numpy()) for name in names
            ]
        return arrays

    def _loss(self, heads: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(contract(cross_entropy(heads, self.labels), self.weights))

    def _heads(self, mode: str, heads: tf.Tensor) -> dict:
        probes = {f"{mode}_probe_logits_{i}": heads[:, 1 + i] for i in range(self.classifier.num_probes)}
        return {f"{mode}_logits": heads[:, 0], **probes}


def compare(recorded: dict[str, np.ndarray], ours: dict[str, np.ndarray], precision: str) -> list[Deviation]:
    """Compare every recorded array with ours."""
    deviations = []
    for name, expected in recorded.items():
        if name in ("images", "labels"):
            continue
        limit = None if precision == "float32" and any(word in name for word in DISCRETE) else TOLERANCE[precision]
        if name not in ours or ours[name].shape != expected.shape:
            deviations.append(Deviation(name, math.nan, 0.0))
        elif name == "train_gradient_names":
            # By name, so that the norms below are compared parameter by parameter.
            deviations.append(Deviation(name, float(np.sum(ours[name] != expected)), 0.0))
        elif "topk" in name:
            deviations.append(Deviation(name, float(np.sum(ours[name] != np.sort(expected, axis=1))), 0.0))
        else:
            difference = np.abs(ours[name] - expected)
            if name == "pgd10_images":
                far = float(np.mean(difference > FAR_PIXEL))
                deviations.append(
                    Deviation(f"{name}, share of pixels off by over {FAR_PIXEL:g}", far, limit and MAX_FAR_PIXELS)
                )
                # A sign that flips at a gradient of zero moves a pixel by a step: the share above judges it.
                limit = None
            deviations.append(Deviation(name, float(np.max(difference) / np.max(np.abs(expected))), limit))
    return deviations


def check_recording(path: Path, precision: str) -> list[Deviation]:
    """Replay one recording and compare it.

    Args:
        path: the `.npz`, with its `.json` beside it.
        precision: `"float64"` or `"float32"`.

    Returns:
        one deviation per recorded array.
    """
    description = json.loads(path.with_suffix(".json").read_text())
    with np.load(path) as archive:
        recorded = dict(archive)
    ours = Replay(description, recorded["images"], recorded["labels"], precision).run()
    return compare(recorded, ours, precision)


def check_autoattack(path: Path, limit: int | None = None) -> list[Deviation]:
    """Run our attacks on the network of an AutoAttack recording.

    Args:
        path: the `.npz`, or the `.json` of another ball.
        limit: take the first so many images; None (default) takes all.

    Returns:
        of every recorded column how many images more are standing than officially, and on which share we disagree.
    """
    recording = Recording.load(path, limit)
    columns = [column for column in COLUMNS if column in recording.robust]
    robust, _ = recording.run(columns)
    deviations = [Deviation("clean_logits", recording.clean_deviation, TOLERANCE["float32"])]
    for column, expected in recording.robust.items():
        if column not in robust:
            deviations.append(Deviation(f"{column}, not run", math.nan, 0.0))
            continue
        images, share = MOST_WEAKER["union" if column == "standard" else "column"]
        weaker, limit = int(robust[column].sum()) - int(expected.sum()), max(images, share * len(expected))
        deviations.append(Deviation(f"{column}, {robust[column].sum()} standing for {expected.sum()}", weaker, limit))
        differ = float(np.mean(robust[column] != expected))
        # Where we break more than the official attack, we differ from it; that is no fault.
        stronger = float(np.mean(expected & ~robust[column]))
        deviations.append(Deviation(f"{column}, share of images that differ", differ, MOST_DIFFERENT + stronger))
    return deviations


def main(argv: list[str]) -> int:
    """Check a folder of recordings; returns the exit code."""
    if len(argv) != 1 or not Path(argv[0]).is_dir():
        print(f"check.py: DIR: received {argv}; give one folder with recordings.", file=sys.stderr)
        return 2
    networks, attacks = (sorted(Path(argv[0]).glob(pattern)) for pattern in ("resnet18_*.npz", "autoattack_*.*"))
    if not networks and not attacks:
        print(
            f"check.py: DIR: received {argv[0]}; it has no resnet18_*.npz or autoattack_*.npz recordings.",
            file=sys.stderr,
        )
        return 2
    failures = 0
    for path in attacks:
        print(path.name, flush=True)
        failures += print_deviations(check_autoattack(path))
    for path in networks:
        for precision in TOLERANCE:
            print(f"{path.name}, {precision}", flush=True)
            failures += print_deviations(check_recording(path, precision))
    print(f"{failures} lines beyond their tolerance" if failures else "all within their tolerance")
    return int(failures > 0)


def print_deviations(deviations: list[Deviation]) -> int:
    """Print a line for each; returns how many are beyond their limit."""
    for deviation in deviations:
        limit = "not judged" if deviation.limit is None else f"limit {deviation.limit:g}"
        verdict = "ok  " if deviation.passed else "FAIL"
        print(f"  {verdict} {deviation.array:58} {deviation.value:9.2e}  {limit}", flush=True)
    return sum(not deviation.passed for deviation in deviations)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
