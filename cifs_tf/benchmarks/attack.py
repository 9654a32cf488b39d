"""Time the attacks of AutoAttack on a recording of the official ones: `benchmark.py attack`.

A recording is an `.npz` with the weights of a small network, its images, the radius, and for every official attack, run
alone on all images, which of them survived and how many seconds it took. A `.json` beside it is of another ball.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.attacks import APGD, FABT, Square
from cifs_tf.benchmarks.options import STANDARD_ATTACKS, AttackOptions
from cifs_tf.benchmarks.timing import Say
from cifs_tf.data import Split, to_float
from cifs_tf.evaluation.engine import header_of, run_tasks
from cifs_tf.evaluation.ledger import Ledger
from cifs_tf.evaluation.networks.attacked import AttackedModel, as_attacked
from cifs_tf.evaluation.suites import L1_TARGETS, MAX_TARGETS, STARTS
from cifs_tf.evaluation.tasks import Crafted, Natural, Task
from cifs_tf.files import read_json

COLUMNS = ("apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square")


def run(options: AttackOptions, report: Say) -> dict[str, Any]:
    """Run every attack of a recording.

    Returns:
        `standing`, by attack how many images survive; `seconds`, see `Recording.run`; and both of the official attacks.
    """
    if options.threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    recording = Recording.load(options.recording)
    report(f"{recording.name}: {len(recording.split)} images, epsilon {recording.epsilon:g}")
    robust, seconds = recording.run(batch_size=options.batch_size, report=report)
    return {
        "standing": {column: int(found.sum()) for column, found in robust.items()},
        "official_standing": {column: int(found.sum()) for column, found in recording.robust.items()},
        "seconds": seconds,
        "official_seconds": options.official_seconds() or recording.seconds,
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """A recording of the official AutoAttack.

    Args:
        name: of the file.
        network: that was attacked.
        split: its images.
        epsilon: radius of the ball.
        norm: of the ball.
        robust: by attack, bool (examples,): which images survived the official implementation; `standard` is the union.
        seconds: by attack, how long that took.
        clean_deviation: largest difference of our network's logits from the recorded ones, relative to the largest.
    """

    name: str
    network: AttackedModel
    split: Split
    epsilon: float
    norm: str
    robust: dict[str, np.ndarray]
    seconds: dict[str, float]
    clean_deviation: float

    @classmethod
    def load(cls, path: str | Path, limit: int | None = None) -> Self:
        """Rebuild the network of a recording: 3x3 convolutions of stride 2 with ReLU, flattened, one dense layer.

        Args:
            path: the `.npz`, or a `.json` of `tests/reference/official_seconds.py`, with the `.npz` beside it.
            limit: take the first so many images; None (default) takes all.
        """
        path = Path(path)
        other = read_json(path) if path.suffix == ".json" else None
        with np.load(path if other is None else path.parent / other["recording"]) as archive:
            arrays = dict(archive)
        if other is not None:
            stand = {name: np.array(list(each)) == "1" for name, each in other["stand"].items()}
            if set(STANDARD_ATTACKS) <= set(stand):
                stand["standard"] = np.logical_and.reduce([stand[name] for name in STANDARD_ATTACKS])
            arrays = {name: each for name, each in arrays.items() if not name.startswith(("robust_", "seconds_"))}
            arrays |= {f"robust_{name}": each for name, each in stand.items()}
            arrays |= {f"seconds_{name}": each for name, each in other["seconds"].items()}
            arrays["epsilon"] = other["epsilon"]
            limit = min(limit or len(arrays["images"]), *map(len, stand.values()))
        for name in arrays:
            if name in ("images", "labels", "clean_logits") or name.startswith("robust_"):
                arrays[name] = arrays[name][:limit]
        images = arrays["images"]
        network = _network(arrays, images.shape[1:])
        logits = network(to_float(images), training=False).numpy()
        deviation = np.max(np.abs(logits - arrays["clean_logits"])) / np.max(np.abs(arrays["clean_logits"]))
        return cls(
            name=path.name,
            network=as_attacked(network, path.stem),
            split=Split(images, arrays["labels"].astype(np.int32)),
            epsilon=float(arrays["epsilon"]),
            norm="linf" if other is None else other["norm"],
            robust={name.removeprefix("robust_"): arrays[name] for name in arrays if name.startswith("robust_")},
            seconds={
                name.removeprefix("seconds_"): float(arrays[name]) for name in arrays if name.startswith("seconds_")
            },
            clean_deviation=float(deviation),
        )

    def tasks(self, column: str) -> list[Task]:
        """Return the tasks of one attack alone on all images that are right without it, one for each of its targets."""
        ball: dict[str, Any] = {"epsilon": self.epsilon, "norm": self.norm}
        attack = {
            "apgd_ce": APGD(**ball),
            "apgd_dlr": APGD(**ball, loss="dlr"),
            "apgd_t": APGD(**ball, loss="targeted_dlr"),
            "fab_t": FABT(**ball),
            "square": Square(**ball),
        }[column]
        most = L1_TARGETS if (self.norm, column) == ("l1", "apgd_t") else MAX_TARGETS
        ranks = range(2, 2 + (min(most, self.network.num_classes - 1) if column.endswith("_t") else 1))
        starts = range(1, 1 + (STARTS if (self.norm, column) == ("l1", "apgd_ce") else 1))
        return [
            Crafted(
                name=f"{column}, {rank}" + (f", start {start}" if start > 1 else ""),
                family=column,
                attack=attack,
                pool=column,
                target_rank=rank,
            )
            for rank in ranks
            for start in starts
        ]

    def run(
        self, columns: Sequence[str] = COLUMNS, batch_size: int = 250, report: Say = lambda line: None
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Run attacks, each alone on all images.

        Returns:
            by attack, which images survive, bool (examples,), with `standard` for all of AutoAttack's standard version
            if it is among the columns; and by attack its seconds, compiling included, which `ATTACK, compiling` shows
            apart.
        """
        all_tasks: list[Task] = [Natural(), *(task for column in columns for task in self.tasks(column))]
        ledger = Ledger(header_of(self.network, self.split, all_tasks, seed=0, about={}))
        run_tasks(self.network, self.split, [Natural()], ledger, batch_size=batch_size)
        robust, seconds = {}, {}
        for column in columns:
            started, compiled = time.perf_counter(), ledger.compile_seconds
            run_tasks(self.network, self.split, self.tasks(column), ledger, batch_size=batch_size)
            seconds[column] = time.perf_counter() - started
            seconds[f"{column}, compiling"] = ledger.compile_seconds - compiled
            robust[column] = np.isin(np.arange(len(self.split)), ledger.survivors(column))
            report(f"{column}: {int(robust[column].sum())} survive, {seconds[column]:.1f} s")
        if set(STANDARD_ATTACKS) <= set(columns):
            robust["standard"] = np.logical_and.reduce([robust[column] for column in STANDARD_ATTACKS])
        return robust, seconds


class _Convolution(keras.layers.Conv2D):
    """Pad one pixel on each side, as PyTorch does; TensorFlow's "same" would pad less at even sizes.

    Inside the convolution, which saves copies of the images, forwards and backwards.
    """

    def convolution_op(self, inputs, kernel):
        is_odd = inputs.shape[1] % 2 == 1 and inputs.shape[2] % 2 == 1
        return tf.nn.conv2d(inputs, kernel, self.strides, "SAME" if is_odd else [[0, 0], [1, 1], [1, 1], [0, 0]])

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        return batch, (height + 1) // 2, (width + 1) // 2, self.filters


def _network(arrays: dict[str, np.ndarray], image_shape: tuple[int, ...]) -> keras.Model:
    image = x = keras.Input(image_shape, name="image")
    names = sorted(name.removesuffix("_kernel") for name in arrays if name.startswith("conv") and "_kernel" in name)
    for name in names:
        x = _Convolution(arrays[f"{name}_kernel"].shape[-1], 3, strides=2, activation="relu", name=name)(x)
    logits = keras.layers.Dense(arrays["dense_kernel"].shape[-1], name="dense")(keras.layers.Flatten()(x))
    network = keras.Model(image, logits)
    for name in (*names, "dense"):
        network.get_layer(name).set_weights([arrays[f"{name}_kernel"], arrays[f"{name}_bias"]])
    return network
