"""Compare the suites `fast` and `standard` on six networks, and write their table to docs/evaluation.md.

    python docs/fast.py --data_dir FOLDER                     all of them, or what is left of them
    python docs/fast.py --networks digits_vanilla,recording   some, which need no images from elsewhere

Three networks come with the project; three are trained adversarially for a few epochs. Both suites run without sanity
checks; seconds are those of the processor, compiling included. Numbers go to docs/results/fast.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import json
import time
from pathlib import Path

import keras

from cifs_tf import AdversarialTrainer, Classifier, PGDTraining, evaluate, from_preset, head_weights, load_dataset
from cifs_tf.attacks import PGD
from cifs_tf.benchmarks.attack import Recording
from cifs_tf.command_line import parse_options, run_program
from cifs_tf.config import DataConfig
from cifs_tf.data import Split
from cifs_tf.evaluation import AttackedModel, as_attacked, make_suite
from cifs_tf.files import write_text
from cifs_tf.tables import Table

DOCS = Path(__file__).resolve().parent
RECORDING = DOCS.parent / "tests/reference/golden/autoattack_fashion_mnist.npz"
# Epsilon, and how many images to train on: None for all that there are, of which some have few.
TRAINED = {"fashion_mnist": (0.05, 10_000), "svhn": (2 / 255, None), "cifar10": (8 / 255, None)}
SEEN = 40_000  # training images, with their repetitions
MARKS = ("<!-- docs/fast.py: -->\n", "<!-- end -->")


@dataclasses.dataclass(frozen=True)
class FastOptions:
    """Compare `fast` with `standard`.

    Args:
        networks: which to measure anew; null is those without numbers.
        data_dir: where the images of TFDS lie.
        examples: images of each network.
    """

    networks: tuple[str, ...] | None = None
    data_dir: str | None = None
    examples: int = 200


def load(name: str, options: FastOptions) -> tuple[AttackedModel, Split, float]:
    """Return a network, its images and its epsilon."""
    if name == "recording":
        recording = Recording.load(RECORDING, options.examples)
        return recording.network, recording.split, recording.epsilon
    if name.startswith("digits"):
        digits = load_dataset(DataConfig(dataset="digits")).test
        return as_attacked(from_preset(name)), digits.class_balanced(options.examples, "examples"), 0.1
    epsilon, train_examples = TRAINED[name]
    config = DataConfig(name, options.data_dir, train_examples=train_examples, test_examples=options.examples)
    data = load_dataset(config)
    keras.utils.set_random_seed(0)
    image = x = keras.Input(data.test.image_shape)
    for filters in (16, 32, 64):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    logits = keras.layers.Dense(data.num_classes)(keras.layers.Flatten()(x))
    classifier = Classifier(keras.Model(image, logits), {})
    attack = PGD(epsilon=epsilon, step_size=epsilon / 3, num_steps=5)
    trainer = AdversarialTrainer(classifier, PGDTraining(head_weights=head_weights(0, 0), attack=attack))
    trainer.compile(optimizer=keras.optimizers.Adam(1e-3))
    steps = data.train.steps_per_epoch(128)
    epochs = round(SEEN / len(data.train))
    trainer.fit(data.train.training_batches(128, seed=0), epochs=epochs, steps_per_epoch=steps, verbose=0)
    return as_attacked(classifier), data.test, epsilon


def main(argv: list[str]) -> int:
    """Measure what is missing, and write the table."""
    options = parse_options(FastOptions, "fast.py", argv, __doc__ or "")
    file = DOCS / "results" / "fast.json"
    numbers = json.loads(file.read_text()) if file.exists() else {}
    everything = ("digits_vanilla", "digits_cifs", "recording", *TRAINED)
    for name in options.networks or [name for name in everything if name not in numbers]:
        network, split, epsilon = load(name, options)
        found: dict[str, float] = {"images": len(split)}
        for suite in ("fast", "standard"):
            started = time.process_time()
            report = evaluate(network, split, make_suite(suite, network, epsilon, audit=False), epsilon=epsilon)
            found[f"{suite}_seconds"] = round(time.process_time() - started, 1)
            found |= {"natural": report["natural"]["count"], suite: report["worst_case"]["count"]}
            print(name, suite, found, flush=True)
        numbers[name] = found
        write_text(file, json.dumps(numbers, indent=1) + "\n")
    keys = ("images", "natural", "fast", "standard", "fast_seconds", "standard_seconds")
    rows = [
        [name, *(f"{each[key]:g}" for key in keys), f"{each['fast_seconds'] / each['standard_seconds']:.2f}"]
        for name, each in sorted(numbers.items())
    ]
    header = ["network", "images", "right", "survive fast", "survive standard", "fast s", "standard s", "cost"]
    page = DOCS / "evaluation.md"
    before, after = page.read_text().split(MARKS[0])
    table = Table(header, rows).markdown()
    write_text(page, f"{before}{MARKS[0]}\n{table}\n\n{MARKS[1]}{after.split(MARKS[1], 1)[1]}")
    return 0


if __name__ == "__main__":
    run_program(main)
