"""Plant deceptions and honest networks, evaluate each, and write what the audit says of them.

    python docs/deceptions.py                            all of them, or what is left of them
    python docs/deceptions.py --names '[noise, decoy]'   some anew; the others keep their numbers

Networks are trained on handwritten digits. For each deception, an attack that knows the trick (it differentiates what
lies behind it, and is judged by the real network) says how many images can stand at most. The numbers go to
docs/results/deceptions.json, and from there into docs/deceptions.md. Exits with 1 if a deception is neither broken nor
flagged, or an honest network is flagged.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifs_tf import AdversarialTrainer, Classifier, PGDTraining, evaluate, head_weights, load_dataset
from cifs_tf.attack_names import Suite
from cifs_tf.attacks import PGD
from cifs_tf.command_line import parse_options, run_program
from cifs_tf.config import DataConfig
from cifs_tf.data import to_float
from cifs_tf.evaluation import AttackedModel, as_attacked, load_attacked
from cifs_tf.files import write_atomically
from cifs_tf.layers import CAS, EWAS, BatchNormalization
from cifs_tf.presets import from_preset
from cifs_tf.templates import template_environment

DOCS = Path(__file__).resolve().parent
EPSILON, IMAGES = 0.1, 100
OUT = [[0, 0], [0, 1]]
Function = Callable[[tf.Tensor], tf.Tensor]
stop = tf.stop_gradient
DATA = load_dataset(DataConfig(dataset="digits"))
KNOWN = tf.reshape(to_float(DATA.train.images), [-1, 64])


@dataclasses.dataclass(frozen=True)
class DeceptionOptions:
    """Measure hits and false alarms of the audit.

    Args:
        names: of the networks to evaluate anew; null is those without numbers.
        suite: which evaluates them.
        results: file for the numbers.
    """

    names: tuple[str, ...] | None = None
    suite: Suite = "apgd"
    results: str = str(DOCS / "results" / "deceptions.json")


@dataclasses.dataclass(frozen=True)
class Case:
    """What a network hides, how it is made, and what a knowing attack differentiates in its place (None: nothing)."""

    what: str
    network: Callable[[], Any]
    knowing: Function | None = None
    is_honest: bool = False


class Planted(keras.Model):
    """A network whose answers a function gives."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Answer."""
        return self.function(images)


def backbone(kind: str) -> keras.Model:
    """Build a small network."""
    image = x = keras.Input((8, 8, 1), name="image")
    for index, (filters, stride) in enumerate(((16, 1), (32, 2)), start=1):
        x = keras.layers.Conv2D(filters, 3, strides=stride, padding="same", name=f"conv{index}")(x)
        x = BatchNormalization(name=f"bn{index}")(x) if kind in ("normalised", "cas", "ewas") else x
        x = keras.layers.Activation("tanh" if kind == "tanh" else "relu", name=f"out{index}")(x)
    x = keras.layers.Dense(64, activation="relu", name="hidden")(keras.layers.Flatten(name="flat")(x))
    return keras.Model(image, keras.layers.Dense(10, name="logits")(x))


@functools.cache
def trained(kind: str, seed: int = 0) -> Any:
    """Train a network: `robust` and `flat` by PGD, `plain`, `tanh`, `normalised`, `cas` and `ewas` naturally."""
    keras.utils.set_random_seed(seed)
    cuts = {"out1": CAS(), "out2": CAS()} if kind == "cas" else {"out2": EWAS()} if kind == "ewas" else {}
    classifier = Classifier(backbone(kind), cuts)
    attack = PGD(epsilon=EPSILON, step_size=EPSILON / 3, num_steps=5 if kind in ("robust", "flat") else 0)
    method = PGDTraining(head_weights=head_weights(2, classifier.num_probes), attack=attack)
    trainer = AdversarialTrainer(classifier, method)
    trainer.compile(optimizer=keras.optimizers.Adam(2e-3, weight_decay=0.5 if kind == "flat" else None))
    batches = DATA.train.training_batches(64, seed=seed)
    trainer.fit(batches, epochs=10, steps_per_epoch=DATA.train.steps_per_epoch(64), verbose=0)
    return classifier if cuts else classifier.backbone


def rounded(x: tf.Tensor, levels: int) -> tf.Tensor:
    """Round pixels to so many steps; the gradient is lost."""
    return tf.round(x * levels) / levels


def through(change: Function, network: Function) -> Function:
    """Return the network behind a change of its images, with a gradient that ignores the change."""
    return lambda x: network(x + stop(change(x) - x))


def jpeg(x: tf.Tensor) -> tf.Tensor:
    """Quantise an image's cosine transform in NumPy, which has no gradient."""
    place = np.arange(8)
    basis = np.sqrt(2 / 8) * np.cos(np.pi * (2 * place[None] + 1) * place[:, None] / 16)
    basis[0] /= np.sqrt(2)

    def quantise(images: np.ndarray) -> np.ndarray:
        found = np.einsum("ij,bjkc,lk->bilc", basis, images, basis)
        back = np.einsum("ij,bikc,kl->bjlc", basis, np.round(found * 4) / 4, basis)
        return np.clip(back, 0, 1).astype(np.float32)

    return tf.ensure_shape(tf.numpy_function(quantise, [x], tf.float32), x.shape)


def k_winners(x: tf.Tensor) -> tf.Tensor:
    """Answer as the plain network, with the six largest entries of its hidden layer only (Xiao et al. 2020)."""
    network = trained("plain")
    features = keras.Model(network.input, network.get_layer("hidden").output)(x)
    kept = tf.math.top_k(features, 6).values[:, -1:]
    return network.get_layer("logits")(tf.where(features >= kept, features, 0))


def distances(x: tf.Tensor) -> tf.Tensor:
    """Return the squared distances to the training images, but for a constant."""
    return tf.reduce_sum(KNOWN**2, 1) - 2 * tf.reshape(x, [-1, 64]) @ tf.transpose(KNOWN)


def nearest(x: tf.Tensor) -> tf.Tensor:
    """Answer with the label of the nearest training image."""
    return stop(10.0 * tf.one_hot(tf.gather(DATA.train.labels, tf.argmin(distances(x), 1)), 10))


def softly_nearest(x: tf.Tensor) -> tf.Tensor:
    """Answer as `nearest` does, smoothly."""
    return tf.math.log(tf.nn.softmax(-10 * distances(x)) @ tf.one_hot(DATA.train.labels, 10) + 1e-9)


def shifted(x: tf.Tensor) -> tf.Tensor:
    """Resize and pad at random, the same for the whole batch."""
    side = tf.random.uniform((), 6, 9, tf.int32)
    small = tf.image.resize(x, [side, side])
    top = tf.random.uniform((), 0, 9 - side, tf.int32)
    return tf.ensure_shape(tf.image.pad_to_bounding_box(small, top, 8 - side - (8 - side) // 2, 8, 8), x.shape)


def on_grid(x: tf.Tensor) -> tf.Tensor:
    """Tell which images have 8-bit pixels."""
    return tf.reduce_all(tf.abs(x * 255 - tf.round(x * 255)) < 1e-3, axis=[1, 2, 3])[:, None]


def blurred(x: tf.Tensor) -> tf.Tensor:
    """Blur."""
    return tf.nn.avg_pool2d(x, 3, 1, "SAME")


def votes(network: Function) -> Function:
    """Return the share of four shifted copies that are put into each class."""
    moves = ((0, 0), (0, 1), (1, 0), (1, 1))

    def answer(x: tf.Tensor) -> tf.Tensor:
        heads = [tf.one_hot(tf.argmax(network(tf.roll(x, move, [1, 2])), 1), 10) for move in moves]
        return stop(tf.add_n(heads))

    return answer


def half(policy: str) -> keras.Model:
    """Return the plain network under another policy of precision, with a softmax at its end."""
    network = trained("plain")
    config = network.get_config()
    for layer in config["layers"][1:]:
        layer["config"]["dtype"] = policy
    copy = keras.Model.from_config(config)
    copy.set_weights(network.get_weights())
    return keras.Model(copy.input, keras.layers.Softmax(dtype="float32")(copy.output))


def saved() -> AttackedModel:
    """Return the robust network as a foreign SavedModel."""
    folder = tempfile.mkdtemp()
    trained("robust").export(folder, verbose=False)
    return load_attacked(folder)


def cases() -> dict[str, Case]:
    """List the networks by name."""

    def network(kind: str, seed: int = 0) -> Function:
        """Return a network that is trained when it is first asked."""
        return lambda x: trained(kind, seed)(x)

    plain, robust, other = network("plain"), network("robust"), network("plain", 1)
    decoy = tf.constant(np.random.default_rng(0).normal(size=(64, 10)), tf.float32)
    mean = tf.reduce_mean(to_float(DATA.train.images), axis=0)

    def bait(x: tf.Tensor) -> tf.Tensor:
        return 1e-3 * (tf.reshape(x, [-1, 64]) @ decoy)

    def hard(x: tf.Tensor, network: Function) -> tf.Tensor:
        return 10.0 * stop(tf.one_hot(tf.argmax(network(x), 1), 10))

    def detector(x: tf.Tensor) -> tf.Tensor:
        odd = tf.reduce_mean(tf.abs(x - blurred(x)), axis=[1, 2, 3])[:, None] > 0.17
        return tf.where(odd, hard(x, lambda y: robust(blurred(y))), plain(x))

    def normalise(x: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(x - tf.reduce_mean(x, 0, keepdims=True) + mean, 0.0, 1.0)

    def training(x: tf.Tensor) -> tf.Tensor:
        return trained("normalised", 1)(x, training=True)

    def levels(number: int) -> Function:
        return lambda x: rounded(x, number)

    def bits(x: tf.Tensor) -> tf.Tensor:
        return tf.add_n([tf.cast(x > (i + 0.5) / 8, tf.float32) for i in range(8)]) / 8

    def in_half(x: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(tf.cast(30 * plain(x), tf.float16))

    def off_grid(network: Function) -> Function:
        return lambda x: tf.where(on_grid(x), plain(x), network(x))

    def either(x: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.random.uniform(()) < 0.5, plain(x), other(x))

    def sharpen(x: tf.Tensor) -> tf.Tensor:
        return tf.sigmoid(200 * (x - 0.5))

    def noisy(x: tf.Tensor) -> tf.Tensor:
        return plain(x + tf.random.normal(tf.shape(x), stddev=0.2))

    def own_noise(x: tf.Tensor) -> tf.Tensor:
        seeds = tf.cast(tf.reduce_sum(1e5 * x, axis=[1, 2, 3]), tf.int32)

        def draw(seed: tf.Tensor) -> tf.Tensor:
            return tf.random.stateless_normal(x.shape[1:], tf.stack([seed, 0]))

        drawn = tf.map_fn(draw, seeds, fn_output_signature=tf.float32)
        return plain(x + 0.2 * stop(drawn))

    def ripples(x: tf.Tensor) -> tf.Tensor:
        return plain(x) + 0.3 * tf.sin(100 * tf.reshape(x, [-1, 64]) @ decoy)

    def astray(x: tf.Tensor) -> tf.Tensor:
        elsewhere = plain(tf.random.uniform(tf.shape(x)) + 0.001 * x)
        return stop(plain(x) - elsewhere) + elsewhere

    def shadows(x: tf.Tensor) -> tf.Tensor:
        logits = plain(x)
        return tf.concat([logits, tf.reduce_max(logits, 1, keepdims=True) - tf.range(1.0, 11.0) / 100], 1)

    def large_batches(x: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.shape(x)[0] > 16, hard(x, robust), plain(x))

    def elsewhere(x: tf.Tensor) -> tf.Tensor:
        """Where no four pixels share a value that no image has, as attacks that saturate make them, the plain one."""
        values = tf.sort(tf.reshape(x, [-1, 64]), 1)
        alike = (values[:, 1:] - values[:, :-1] < 2e-5) & (
            tf.abs(values[:, 1:] * 16 - tf.round(values[:, 1:] * 16)) > 0.1
        )
        is_made = tf.reduce_sum(tf.cast(alike, tf.int32), 1, keepdims=True) >= 4
        logits, others = robust(x), plain(x)
        own = tf.reduce_sum(others * tf.one_hot(tf.argmax(logits, 1), 10), 1, keepdims=True)
        lead = tf.nn.relu(tf.reduce_max(others, 1, keepdims=True) - own)
        return logits + tf.where(is_made, 0.0, 20 * lead * tf.one_hot(tf.argmax(others, 1), 10))

    def noisy_decoy(x: tf.Tensor) -> tf.Tensor:
        return stop(plain(x)) + bait(x) + 1e-3 * tf.random.normal([tf.shape(x)[0], 10])

    calls = tf.Variable(0, trainable=False)

    def later(x: tf.Tensor) -> tf.Tensor:
        return tf.cond(calls.assign_add(1) <= 20, lambda: plain(x), lambda: robust(x))

    planted: dict[str, tuple[str, Function, Function | None]] = {
        "decoy": ("a linear map has the gradient, the network has none", lambda x: stop(plain(x)) + bait(x), plain),
        "hard labels": ("one-hot answers of a robust network", lambda x: hard(x, robust), robust),
        "hard labels and decoy": ("the same, and a linear map", lambda x: hard(x, robust) + bait(x), robust),
        "steep softmax and decoy": (
            "probabilities that are 0 or 1, and a linear map",
            lambda x: stop(tf.nn.softmax(100 * robust(x))) + bait(x),
            robust,
        ),
        "gradient turned round": ("it points the other way", lambda x: stop(2 * plain(x)) - plain(x), plain),
        "gradient from elsewhere": ("that of another image, drawn anew each time", astray, plain),
        "ripples": ("fine waves on the logits have nearly all of the gradient", ripples, plain),
        "shadow classes": ("ten more, each just below the highest logit", shadows, plain),
        "softmax times 30": ("probabilities that are 0 or 1", lambda x: tf.nn.softmax(30 * plain(x)), plain),
        "sigmoids times 10": ("a sigmoid per class, saturated", lambda x: tf.sigmoid(10 * plain(x)), plain),
        "logits times 100": ("as after distillation at a temperature of 100", lambda x: 100 * plain(x), plain),
        "logits times 1e4": ("the cross-entropy is 0 in float32", lambda x: 1e4 * plain(x), plain),
        "softmax in float16": ("of 30 times the logits", in_half, plain),
        "rounded logits": ("to whole numbers, of a class of its own", lambda x: tf.round(plain(x)), plain),
        "grey levels": ("five of them", lambda x: plain(rounded(x, 4)), through(levels(4), plain)),
        "JPEG": ("a rounded cosine transform in NumPy", lambda x: plain(jpeg(x)), through(jpeg, plain)),
        "thermometer": ("pixels as bits of eight thresholds", lambda x: plain(bits(x)), through(levels(8), plain)),
        "steep pixels": ("pixels through a steep sigmoid", lambda x: plain(sharpen(x)), through(sharpen, plain)),
        "k winners": ("the largest tenth of the hidden layer only", k_winners, plain),
        "nearest neighbour": ("the label of the nearest training image", nearest, softly_nearest),
        "votes": ("the votes of four shifted copies", votes(plain), plain),
        "detector": ("odd images are answered by another, hard-labelled network", detector, plain),
        "answers off the grid": (
            "off 8-bit pixels a robust network's hard labels answer",
            off_grid(lambda x: hard(x, robust)),
            through(levels(255), plain),
        ),
        "gradient on the grid": ("off 8-bit pixels there is none", off_grid(lambda x: stop(plain(x))), plain),
        "corners": ("another network where pixels share a new value, as at the corners of the ball", elsewhere, None),
        "graph": (
            "another network where TensorFlow compiles",
            lambda x: (plain if tf.executing_eagerly() else robust)(x),
            plain,
        ),
        "calls": ("another network after 20 calls", later, None),
        "decoy and noise": ("the decoy, with faint noise on its logits", noisy_decoy, plain),
        "large batches": ("over 16 images get a robust network's hard labels", large_batches, None),
        "batch mean": ("the mean of the batch is removed", lambda x: plain(normalise(x)), None),
        "batch statistics": ("batch normalisation in training mode", training, None),
        "neighbours": ("images are blended with others", lambda x: robust(0.7 * x + 0.3 * x[::-1]), None),
        "noise": ("noise of 0.2 on the pixels", noisy, None),
        "noise off the grid": ("on images that have no 8-bit pixels", off_grid(noisy), None),
        "noise of the image's own": ("noise of 0.2, drawn from the image's pixels", own_noise, None),
        "random resizing": ("images resized and padded at random", lambda x: plain(shifted(x)), None),
        "dropout": ("dropout left on", lambda x: plain(tf.nn.dropout(x, 0.2)), None),
        "coin": ("one of two networks, by a coin", either, None),
        "pixels of 0 to 255": ("it was trained on other pixels", lambda x: plain(x / 255), None),
        "pixels of -1 to 1": ("it was trained on other pixels", lambda x: plain((x + 1) / 2), None),
    }

    def ending(kind: str, end: Callable[[Any], Any]) -> Callable[[], keras.Model]:
        return lambda: keras.Model(trained(kind).input, end(trained(kind).output))

    def answering(function: Function) -> Callable[[], keras.Model]:
        return lambda: Planted(function)

    honest: dict[str, tuple[str, Callable[[], Any]]] = {
        "natural training": ("", lambda: trained("plain")),
        "adversarial training": ("the preset digits_vanilla", lambda: from_preset("digits_vanilla")),
        "CIFS": ("adversarial training, the preset digits_cifs", lambda: from_preset("digits_cifs")),
        "flat": ("adversarial training, weight decay 0.5", lambda: trained("flat")),
        "batch normalisation": ("in inference mode", lambda: trained("normalised")),
        "tanh": ("natural training", lambda: trained("tanh")),
        "softmax": ("a last layer", ending("robust", keras.layers.Softmax())),
        "sigmoids": ("a sigmoid per class", ending("plain", keras.ops.sigmoid)),
        "log-probabilities": ("of a class of its own", answering(lambda x: tf.nn.log_softmax(robust(x)))),
        "probabilities": ("of a class of its own", answering(lambda x: tf.nn.softmax(robust(x)))),
        "mixed precision": ("mixed_float16, softmax", lambda: half("mixed_float16")),
        "half precision": ("float16, softmax", lambda: half("float16")),
        "several outputs": ("a dict", ending("robust", lambda x: {"logits": x, "all": x[:, :3]})),
        "ensemble": ("the mean of two networks", answering(lambda x: (plain(x) + other(x)) / 2)),
        "a class ruled out": ("by a logit of -1e9", answering(lambda x: tf.pad(robust(x), OUT, constant_values=-1e9))),
        "small logits": ("divided by 100", answering(lambda x: robust(x) / 100)),
        "SavedModel": ("of another program", saved),
    }
    # Their masks jump, and the evaluation at hand takes each mask as a constant; the knowing attack is no such thing.
    selecting = {
        "CAS": ("channel selection in two layers, natural training", "cas"),
        "EWAS": ("a scale for each activation, natural training", "ewas"),
    }
    return {
        **{name: Case(what, functools.partial(Planted, each), known) for name, (what, each, known) in planted.items()},
        **{name: Case(what, functools.partial(trained, kind)) for name, (what, kind) in selecting.items()},
        **{name: Case(what, each, is_honest=True) for name, (what, each) in honest.items()},
    }


def standing(case: Case, network: Any, victim: AttackedModel, images: tf.Tensor, labels: tf.Tensor) -> int | None:
    """Count what an attack leaves that differentiates what lies behind the trick, judged by the real network."""
    knowing = case.knowing
    if isinstance(network, Classifier) and not case.is_honest:
        # Through every gradient of the mask, at several head weights.
        betas = [head_weights(beta, victim.num_probes) for beta in (0, 2, "infinity")]
        seen = [(heads_fn, weights) for heads_fn in victim.heads_fns.values() for weights in betas]
    elif knowing is None:
        return None
    else:
        seen = [(lambda x: knowing(x)[:, None], np.ones(1))]
        knowing(images)  # trains what it needs, outside any graph

    answers = next(iter(victim.heads_fns.values()))

    def right(x: tf.Tensor) -> np.ndarray:
        return np.argmax(answers(x)[:, 0], 1) == labels.numpy()

    left = right(images)
    for heads_fn, weights in seen:
        for loss in ("cross_entropy", "cw_margin"):
            attack = PGD(epsilon=25 / 255, step_size=EPSILON / 10, num_steps=40, loss=loss)
            crafted = tf.function(attack)(heads_fn, images, labels, head_weights=weights)
            left &= right(crafted) & right(rounded(crafted, 255))
    return int(left.sum())


def measure(case: Case, suite: str) -> dict[str, Any]:
    """Evaluate a network, and compare with what a knowing attack leaves."""
    test = DATA.test.class_balanced(IMAGES, "examples")
    network = case.network()
    victim = network if isinstance(network, AttackedModel) else as_attacked(network, image_shape=(8, 8, 1))
    report = evaluate(victim, test, suite, epsilon=EPSILON)
    flags = [check["name"] for check in report["audit"] if check["verdict"] == "fail"]
    most = standing(case, network, victim, to_float(test.images), tf.constant(test.labels, tf.int32))
    worst = report["worst_case"]["count"]
    # Where nothing stands there is nothing too much.
    is_broken = worst == 0 or (most is not None and worst <= most + 1)
    return {
        "what": case.what,
        "honest": case.is_honest,
        "natural": report["natural"]["count"],
        "worst_case": worst,
        "knowing": most,
        "flags": flags,
        "shares": {check["name"]: round(check["number"], 3) for check in report["audit"] if check["number"]},
        "right": not flags if case.is_honest else bool(flags) or is_broken,
    }


def margins(found: dict[str, Any]) -> list[tuple[str, int, float, float]]:
    """List for each check how many deceptions it flags, their lowest share, and the highest of an honest network."""
    rows = []
    for check in dict.fromkeys(flag for case in found.values() for flag in case["flags"]):
        flagged = [
            case["shares"].get(check, 0) for case in found.values() if check in case["flags"] and not case["honest"]
        ]
        honest = [case["shares"].get(check, 0) for case in found.values() if case["honest"]]
        rows.append((check, len(flagged), min(flagged, default=0), max(honest, default=0)))
    return rows


def main(argv: Sequence[str]) -> int:
    """Evaluate the networks asked for, or those that are left, and write the numbers and the page."""
    options = parse_options(DeceptionOptions, "deceptions.py", argv, __doc__ or "")
    file, listed = Path(options.results), cases()
    found = json.loads(file.read_text()) if file.exists() else {}
    for name in options.names or [name for name in listed if name not in found]:
        found[name] = measure(listed[name], options.suite)
        print(("ok    " if found[name]["right"] else "FAULT ") + f"{name}: {found[name]}", flush=True)
        lines = [f"{json.dumps(key)}: {json.dumps(found[key])}" for key in listed if key in found]
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        write_atomically(file, functools.partial(Path.write_text, data=text))
    if file == DOCS / "results" / "deceptions.json":
        page = template_environment(DOCS / "templates").get_template("deceptions.md.j2")
        text = page.render(cases=found, margins=margins(found), suite=options.suite, images=IMAGES, epsilon=EPSILON)
        (DOCS / "deceptions.md").write_text(text)
    return int(not all(case["right"] for case in found.values()))


if __name__ == "__main__":
    run_program(main)
