"""`benchmark.py scale`: steps on several devices are timed in turns, and what the devices exchange in a step."""

import json

import keras
import pytest
import tensorflow as tf
from tensorflow.python.distribute.cross_device_ops import CrossDeviceOps

from cifs_tf.benchmarks import timing
from cifs_tf.config import AttackConfig, DataConfig, RunConfig, TrainConfig
from cifs_tf.distribute import mirrored_strategy
from cifs_tf.errors import UserError
from cifs_tf.layers import CIFS, BatchNormalization
from cifs_tf.models import Classifier
from cifs_tf.programs import benchmark
from cifs_tf.runs.training import make_trainer


def two_cuts():
    """Two convolutions, each with batch normalisation and a CIFS layer."""
    image = x = keras.Input((8, 8, 3))
    for name in ("low", "high"):
        x = keras.layers.Conv2D(4, 3, strides=2, name=name)(x)
        x = keras.layers.ReLU(name=f"{name}_out")(BatchNormalization()(x))
    backbone = keras.Model(image, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))
    return Classifier(backbone, {"low_out": CIFS("linear"), "high_out": CIFS("linear")})


@pytest.mark.slow
def test_all_reduces_of_a_step_are_counted(monkeypatch):
    """In a trace: 4 for each of two batch-norm layers, all gradients in one, 2 of bookkeeping in one process.

    docs/scaling.md counts with them.
    """
    config = RunConfig(data=DataConfig(image_size=8), train=TrainConfig(batch_size=4), attack=AttackConfig(num_steps=1))
    counted = []
    batch_reduce = CrossDeviceOps.batch_reduce

    def counting(self, operation, values, **arguments):
        counted.append([value.values[0].shape.num_elements() for value, _ in values])
        return batch_reduce(self, operation, values, **arguments)

    monkeypatch.setattr(CrossDeviceOps, "batch_reduce", counting)
    with mirrored_strategy(["CPU:0", "CPU:1"]).scope():
        classifier = two_cuts()
        trainer = make_trainer(config, config.model, classifier, steps_per_epoch=1)
    batch = timing.random_images(config)
    trainer.prepare_first_step()
    counted.clear()
    trainer.fit(tf.cast(batch.images, tf.float32) / 255, batch.labels, batch_size=4, verbose=0)

    # Traced twice when variables are made in it, else once.
    traces = sum(len(sizes) == len(classifier.trainable_variables) for sizes in counted)
    # 3x3 convolutions of 3*4 and 4*4, their biases, gammas and betas; two probes and the logits of 4*10 + 10.
    assert sum(max(counted, key=len)) == 9 * 12 + 4 + 9 * 16 + 4 + 4 * 4 + 3 * 50
    assert counted.count([4]) == traces * 8
    assert len(counted) == traces * (8 + 1 + 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pairs=0"], ["--pairs", "0", "1 or more"]),
        (["--replicas=[1,3]"], ["--replicas", "[1, 3]", "divide the batch of 64"]),
        (["--replicas=[0]"], ["--replicas", "[0]", "1 or more"]),
        (["--width=0"], ["--width", "0"]),
        (["--replica=[2]"], ["--replica", "did you mean --replicas"]),
    ],
)
def test_errors_name_the_option_and_the_value(arguments, words):
    with pytest.raises(UserError) as error:
        benchmark.main(["scale", *arguments])
    assert all(word in str(error.value) for word in words)


@pytest.mark.soak
def test_replicas_are_measured_beside_one_device(tmp_path, capsys):
    file = tmp_path / "scale.json"
    tiny = ["--arch=resnet10", "--width=4", "--image_size=8", "--batch_size=4", "--num_steps=1", "--pairs=2"]
    benchmark.main(["scale", *tiny, "--replicas=[2]", "--json", str(file)])
    result = json.loads(file.read_text())
    assert set(result["replicas"]) == {"1", "2"}
    pairs = zip(*(result["replicas"][count]["seconds"] for count in ("2", "1")), strict=True)
    assert result["ratios"]["2"]["ratio"]["pairs"] == pytest.approx([two / one for two, one in pairs])
    assert result["options"]["replicas"] == [2]
    assert "replicas" in capsys.readouterr().out
