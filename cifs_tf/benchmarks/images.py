"""Time the ways from image files to batches beside each other, and beside Keras': `benchmark.py images`."""

import contextlib
import io
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.benchmarks import timing
from cifs_tf.benchmarks.options import ImagesOptions, NetworkOptions
from cifs_tf.benchmarks.tables import IMAGES
from cifs_tf.benchmarks.timing import Say
from cifs_tf.config import DataConfig
from cifs_tf.data import Split, load_dataset, to_float
from cifs_tf.data.folder_scan import find_layout
from cifs_tf.data.resizing import resize

# Ways that are not ours.
OTHERS = ("keras", "same pixels")
STEPS_A_TURN = 5


def run(options: ImagesOptions, report: Say) -> dict[str, Any]:
    """Take turns, each a pass over the training images of a folder, in batches of floats.

    Returns:
        `images`, how many there are, of each way, by turn, `images_per_second` and `images_per_processor_second`,
        which others on the machine disturb less; and `step`, the ratios of a training step on images from the cache to
        one on images from memory.
    """
    root = Path(options.folder).expanduser()
    is_split = "test" in find_layout(root, f"folder:{root}").splits
    found: dict[str, list[float]] = {way: [] for way in IMAGES}
    by_processor: dict[str, list[float]] = {way: [] for way in IMAGES}
    with tempfile.TemporaryDirectory(dir=options.cache_dir) as folder:
        data = DataConfig(
            dataset=f"folder:{root}", image_size=options.image_size, val_examples=0, cache="disk", cache_dir=folder
        )
        in_cache = _train(data)
        in_memory = Split(np.asarray(in_cache.images), in_cache.labels)
        for turn in range(options.turns):
            ways: dict[str, Callable[[], tf.data.Dataset]] = {
                "keras": lambda: _keras(root / "train" if is_split else root, options),
                "same pixels": lambda: _same_pixels(root / "train" if is_split else root, options),
                "cold": lambda turn=turn: _ours(  # type: ignore[misc]
                    _train(DataConfig(**{**vars(data), "cache_dir": f"{folder}/{turn}"})), options
                ),
                "cache": lambda: _ours(in_cache, options),
                "memory": lambda: _ours(in_memory, options),
            }
            for way in list(ways)[:: 1 if turn % 2 == 0 else -1]:
                most = math.inf if way in OTHERS else len(in_memory)
                per_second, per_processor_second = _speeds(ways[way], most)
                found[way].append(per_second)
                by_processor[way].append(per_processor_second)
            latest = ", ".join(f"{way} {found[way][-1]:,.0f}" for way in found)
            report(f"turn {turn + 1} of {options.turns}, images per second: {latest}")
        step = _time_steps({"cache": in_cache, "memory": in_memory}, options, report)
    return {
        "images": len(in_memory),
        "images_per_second": found,
        "images_per_processor_second": by_processor,
        "step": step,
    }


def _time_steps(homes: Mapping[str, Split], options: ImagesOptions, report: Say) -> dict[str, Any]:
    """Time steps of a small network, which leave the input pipeline little time; of the labels any will do."""
    network = NetworkOptions("resnet10", width=4, batch_size=options.batch_size, image_size=options.image_size)
    config = network.run_config(num_steps=1)
    subjects = {}
    for home, split in homes.items():
        labelled = Split(split.images, split.labels % timing.NUM_CLASSES)
        subjects[home] = timing.training_step(config, timing.build_network(config), labelled)
    found = timing.time_in_turns(subjects, STEPS_A_TURN * options.turns, report)
    return timing.ratios_of(found["cache"], found["memory"])


def _train(data: DataConfig) -> Split:
    return load_dataset(data, ("train",)).train


def _ours(split: Split, options: ImagesOptions) -> tf.data.Dataset:
    steps = math.ceil(len(split) / options.batch_size)  # the last is filled up from the next pass
    return split.training_batches(options.batch_size, seed=0).take(steps)


def _keras(folder: Path, options: ImagesOptions) -> tf.data.Dataset:
    with contextlib.redirect_stdout(io.StringIO()):
        batches = keras.utils.image_dataset_from_directory(
            folder, image_size=(options.image_size,) * 2, batch_size=options.batch_size, seed=0
        )
    return batches.map(lambda images, labels: (to_float(images), labels), tf.data.AUTOTUNE).prefetch(2)


def _same_pixels(folder: Path, options: ImagesOptions) -> tf.data.Dataset:
    """Return batches of the pixels that ours have, by tf.data alone: cropped, antialiased; EXIF is not looked at."""
    files = sorted(str(file) for file in folder.glob("*/*"))
    classes = {name: label for label, name in enumerate(sorted({Path(file).parent.name for file in files}))}
    labels = [classes[Path(file).parent.name] for file in files]

    def read(file: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.io.decode_image(tf.io.read_file(file), 3, expand_animations=False)
        return resize(tf.ensure_shape(image, (None, None, 3)), (options.image_size,) * 2, "crop"), label

    shuffled = tf.data.Dataset.from_tensor_slices((files, labels)).shuffle(len(files), seed=0)
    batches = shuffled.map(read, tf.data.AUTOTUNE).batch(options.batch_size)
    return batches.map(lambda images, labels: (to_float(images), labels), tf.data.AUTOTUNE).prefetch(2)


def _speeds(make: Callable[[], tf.data.Dataset], most: float) -> tuple[float, float]:
    """Return images per second and per processor second of all threads, of which no more than so many count."""
    started, cpu_started, number = time.perf_counter(), time.process_time(), 0.0
    for images, _ in make():
        number += len(images)
    number = min(number, most)
    return number / (time.perf_counter() - started), number / (time.process_time() - cpu_started)
