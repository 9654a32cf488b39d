"""The networks that come with the package: they load, read what their cards say, and one's own can be saved."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import cifs_tf
from cifs_tf.config import DataConfig
from cifs_tf.data import load_dataset, to_float
from cifs_tf.presets import FOLDER, from_preset, preset_card, preset_names
from cifs_tf.statistics import wilson_interval
from tests.running import SHARED


def images_of(card):
    """The test images that a card's numbers are of."""
    data, recipe = card["data"], card["recipe"]
    if data["dataset"] != "digits" and not SHARED.is_dir():
        pytest.skip(f"needs {data['dataset']}, and {SHARED} is not there")
    config = DataConfig(
        dataset=data["dataset"], data_dir=str(SHARED / "data"), test_examples=recipe["test_examples"], val_examples=0
    )
    return load_dataset(config).test


def test_weights_are_small():
    assert {"digits_cifs", "digits_vanilla"} <= set(preset_names())
    for file in FOLDER.rglob("model.keras"):
        assert file.stat().st_size < 1e6


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "digits_cifs" else pytest.mark.slow) for name in preset_names()]
)
def test_natural_accuracy_is_the_cards(name):
    card, network = preset_card(name), from_preset(name)
    measured, test = card["measured"], images_of(card)
    heads = network.predict(to_float(test.images), batch_size=180, verbose=0)
    assert np.sum(heads[:, 0].argmax(-1) == test.labels) == measured["natural"]["count"]
    assert len(test) == measured["natural"]["of"]
    assert card["network"]["parameters"] == network.count_params()
    assert measured["natural"]["accuracy"] >= measured["paper"]["accuracy"] > 0.5
    for found in filter(None, (measured["natural"], measured["paper"], measured["strict"])):
        assert found["interval"] == pytest.approx(wilson_interval(found["count"], found["of"]))


@pytest.mark.slow
def test_a_fresh_process_loads_one(tmp_path):
    code = "import cifs_tf; print(cifs_tf.from_preset('digits_cifs').image_shape)"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=FOLDER.parents[1]
    )
    assert done.stdout == "(8, 8, 1)\n", done.stderr


def test_ones_own_network_is_saved_and_read_again(make_classifier, make_images, tmp_path):
    network, images = make_classifier(), make_images((2, 8, 8, 3))
    network.save_to_preset(tmp_path / "mine", {"note": "ours"})
    again = cifs_tf.from_preset(tmp_path / "mine")
    np.testing.assert_array_equal(again(images), network(images))
    card = json.loads((tmp_path / "mine" / "card.json").read_text())
    assert (card["name"], card["note"], card["network"]["num_classes"]) == ("mine", "ours", 5)
    with pytest.raises(cifs_tf.UserError, match="holds a preset already"):
        network.save_to_preset(tmp_path / "mine")


@pytest.mark.parametrize("name", ["no_such", "../presets", ""])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(cifs_tf.UserError, match="give one of digits_cifs, digits_vanilla"):
        from_preset(name)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "model.keras").write_text("no network")
    with pytest.raises(cifs_tf.UserError, match="Keras cannot load"):
        from_preset(tmp_path)
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(cifs_tf.UserError, match="damaged"):
        preset_card(tmp_path)


def test_the_pages_networks_are_the_presets(make_images):
    """The gradient artefacts of the playground answer as the presets do."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from cifs_tf.playground.server import PAGE

    for name in preset_names():
        file = PAGE / "models" / name / "heads_and_gradient.onnx"
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        network = from_preset(name)
        images = make_images((8, *network.image_shape)).numpy()
        num_heads = 1 + network.num_probes
        feeds = {
            "image": images,
            "label": np.zeros(8, np.int32),
            "head_weights": np.ones(num_heads, np.float32),
            "upstream": np.zeros((8, num_heads, 10), np.float32),
        }
        if network.num_probes:
            feeds["mask_gradient"] = np.zeros(2, np.float32)
        (heads,) = session.run(["heads"], feeds)
        np.testing.assert_allclose(heads, network(tf.constant(images)), atol=1e-5)
