"""The folders of networks that the page shows.

    python -m cifs_tf.playground.models [NAME ...] [--data_dir DIR]

writes those of the presets, or of these, into docs/playground/models; DIR holds their datasets.

NAME/heads_and_gradient.onnx and NAME/labels.json are those of any exported version; NAME/playground.json adds `name`,
`epsilon`, test images (`pixels`: base64 of uint8, `labels`) and what was measured.
"""

import argparse
import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifs_tf.config import DataConfig
from cifs_tf.data import ImageDataset, load_dataset
from cifs_tf.export import GRADIENT_FILE, write_gradient_onnx
from cifs_tf.models import Classifier
from cifs_tf.presets import from_preset, preset_card, preset_names
from cifs_tf.runs.images import load_images
from cifs_tf.runs.trained import TrainedNetwork, find_network

NUM_IMAGES = 100


def write_model(
    folder: Path,
    classifier: Classifier,
    dataset: ImageDataset,
    name: str,
    epsilon: float,
    measured: dict[str, Any] | None = None,
) -> None:
    """Write the folder of a network.

    Args:
        folder: made, with its parents.
        classifier: a float32 classifier.
        dataset: its test images, at most a hundred of them, class-balanced, go with it.
        name: what the page calls it.
        epsilon: where the page's slider starts, in (0, 1].
        measured: `natural`, `paper` and `strict` accuracy, see the card of a preset. Default nothing.

    Raises:
        ExportError: if the gradient has no ONNX form.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_gradient_onnx(classifier, folder / GRADIENT_FILE)
    test = dataset.test
    if len(test) > NUM_IMAGES:
        test = test.class_balanced(NUM_IMAGES, "--examples")
    about = {
        "name": name,
        "epsilon": epsilon,
        "labels": [int(label) for label in test.labels],
        "pixels": base64.b64encode(np.asarray(test.images).tobytes()).decode(),
        "measured": measured or {},
    }
    (folder / "labels.json").write_text(json.dumps(list(dataset.class_names), ensure_ascii=False) + "\n")
    (folder / "playground.json").write_text(json.dumps(about, ensure_ascii=False, indent=0) + "\n")


def write_presets(folder: Path, names: Sequence[str] = (), data_dir: str | None = None) -> None:
    """Write the folders of presets into a folder.

    Args:
        folder: made, with its parents.
        names: of the presets. Default all.
        data_dir: where prepared datasets are. Default that of TFDS.

    Raises:
        UserError: for an unknown name, or a dataset that is not there.
    """
    for name in names or preset_names():
        card = preset_card(name)
        dataset = load_dataset(DataConfig(dataset=card["data"]["dataset"], data_dir=data_dir))
        title = card["recipe"]["defense"]
        measured = {**card["measured"], "dataset": card["data"]["dataset"]}
        write_model(folder / name, from_preset(name), dataset, title, card["data"]["epsilon"], measured)


def write_run(run: str, folder: Path) -> list[str]:
    """Write the folders of a run's networks, the vanilla twin first, if there is one.

    Args:
        run: the run's folder.
        folder: where to.

    Returns:
        the names of the folders.

    Raises:
        UserError: if there is no finished run.
        ExportError: if a gradient has no ONNX form.
    """
    names = []
    for network in networks_of(run):
        dataset = load_images(network.config.data, [network.run])
        name = f"{network.path.name}_{network.defense}"
        write_model(folder / name, network.load(), dataset, network.defense, float(network.config.attack.epsilon))
        names.append(name)
    return names


def networks_of(run: str) -> Sequence[TrainedNetwork]:
    """Find the networks of a run, the twin first."""
    own = find_network(run)
    twin = own.config.output.twin
    if twin is None or twin == own.defense or not own.run.model_file(twin).exists():
        return [own]
    return [find_network(run, twin), own]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the networks that the page shows.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of presets; default all")
    parser.add_argument("--data_dir", help="where prepared datasets are")
    options = parser.parse_args()
    write_presets(Path("docs/playground/models"), options.names, options.data_dir)
