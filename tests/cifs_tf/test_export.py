"""SavedModel and ONNX: what is published agrees with the live model, and nothing else is published."""

from __future__ import annotations

import io
import json

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from PIL import Image

from cifs_tf.config import ModelConfig
from cifs_tf.errors import UserError
from cifs_tf.export import ExportError, export
from cifs_tf.layers import CIFS
from cifs_tf.models import Classifier, build_classifier

SHAPE = (8, 12, 3)
CLASSES = 5


def make(defense="cifs", precision="float32", **kwargs):
    keras.utils.set_random_seed(1)
    config = ModelConfig(arch="resnet10", width=4, defense=defense, importance_scale="mean_one", **kwargs)
    return build_classifier(config, SHAPE, CLASSES, precision)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(size=(3, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def classifier():
    return make()


@pytest.fixture(scope="module")
def exported(classifier, tmp_path_factory):
    base = tmp_path_factory.mktemp("export") / "cifs"
    return export(classifier, base, class_names=["ä", "b", "c", "d", "e"])


def assert_close(received, expected):
    limit = 1e-5 * max(1.0, float(np.max(np.abs(expected))))
    assert np.max(np.abs(np.asarray(received) - np.asarray(expected))) <= limit


def assert_agrees(outputs, heads):
    assert_close(outputs["logits"], heads[:, 0])
    assert_close(outputs["probabilities"], tf.nn.softmax(heads[:, 0]))
    assert_close(outputs["probe_logits"], heads[:, 1:])


def test_layout(exported):
    assert exported.name == "1"
    assert {"saved_model.pb", "variables", "model.onnx", "labels.json"} <= {file.name for file in exported.iterdir()}
    assert json.loads((exported / "labels.json").read_text())[0] == "ä"
    assert [child.name for child in exported.parent.iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("defense", "config"),
    [("cifs", {"importance": "softplus"}), ("cifs", {"importance": "sigmoid"}), ("cas", {}), ("vanilla", {})],
)
def test_every_network_converts_to_onnx(defense, config, images, tmp_path):
    model = make(defense, **config)
    path = export(model, tmp_path / "model", formats=["onnx"]) / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = {output.name for output in session.get_outputs()}
    assert outputs == {"logits", "probabilities"} | ({"probe_logits"} if defense != "vanilla" else set())
    assert_close(session.run(["logits"], {"image": images})[0], model(images, training=False)[:, 0])


def test_saved_model_agrees(classifier, exported, images):
    loaded = tf.saved_model.load(str(exported))
    signature = loaded.signatures["serving_default"]
    assert list(signature.structured_input_signature[1]) == ["image"]
    for batch in (images, images[:1], np.repeat(images, 5, axis=0)):
        assert_agrees(signature(image=tf.constant(batch)), classifier(batch, training=False))


def test_onnx_agrees(classifier, exported, images):
    model = onnx.load(exported / "model.onnx")
    assert next(opset.version for opset in model.opset_import if opset.domain == "") == 17
    assert [value.name for value in model.graph.input] == ["image"]
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for batch in (images, images[:1]):
        outputs = dict(zip(names, session.run(None, {"image": batch}), strict=True))
        assert_agrees(outputs, classifier(batch, training=False))


def test_encoded_takes_image_files(classifier, exported, images):
    loaded = tf.saved_model.load(str(exported))
    pixels = (images * 255).astype(np.uint8)
    files = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append(buffer.getvalue())
    outputs = loaded.signatures["encoded"](image_bytes=tf.constant(files))
    assert_agrees(outputs, classifier(pixels.astype(np.float32) / 255, training=False))


def test_encoded_takes_jpeg(exported, images):
    loaded = tf.saved_model.load(str(exported))
    jpeg = tf.io.encode_jpeg((images[0] * 255).astype(np.uint8))
    assert loaded.signatures["encoded"](image_bytes=jpeg[None])["logits"].shape == (1, CLASSES)


@pytest.mark.parametrize("mask_gradient", ["detached", "full"])
def test_heads_can_be_differentiated_after_loading(classifier, exported, images, mask_gradient):
    loaded = tf.saved_model.load(str(exported))
    x = tf.constant(images)

    def gradient(heads_fn):
        with tf.GradientTape() as tape:
            tape.watch(x)
            heads = heads_fn(x)
            loss = tf.reduce_sum(heads * tf.range(1.0, 1 + CLASSES))
        return heads, tape.gradient(loss, x)

    heads, live = gradient(classifier.heads_fn(mask_gradient))
    signature = loaded.signatures[f"heads_{mask_gradient}"]
    served_heads, served = gradient(lambda image: signature(image=image)["heads"])
    assert_close(served_heads, heads)
    assert_close(served, live)
    assert np.max(np.abs(live)) > 0


def test_the_two_mask_gradients_differ(exported, images):
    loaded = tf.saved_model.load(str(exported))
    gradients = []
    for name in ("heads_detached", "heads_full"):
        x = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(loaded.signatures[name](image=x)["heads"][:, 0, 0])
        gradients.append(tape.gradient(loss, x).numpy())
    assert not np.allclose(*gradients, rtol=1e-3)


@pytest.mark.parametrize("shape", [(8, 12), (8, 12, 3), (1, 12, 8, 3), (1, 8, 12, 1), (1, 1, 8, 12, 3)])
def test_wrong_shape_is_an_error_not_a_crash(exported, shape):
    loaded = tf.saved_model.load(str(exported))
    with pytest.raises((ValueError, TypeError, tf.errors.InvalidArgumentError)):
        loaded.signatures["serving_default"](image=tf.zeros(shape))


def test_versions_count_up_and_are_not_overwritten(classifier, exported):
    base = exported.parent
    assert export(classifier, base, formats=["savedmodel"]).name == "2"
    with pytest.raises(UserError, match="version: received 1"):
        export(classifier, base, version=1)


def test_mixed_precision_is_exported_in_float32(images, tmp_path):
    model = make(precision="mixed_bfloat16")
    path = export(model, tmp_path / "model", formats=["savedmodel"])
    outputs = tf.saved_model.load(str(path)).signatures["serving_default"](image=tf.constant(images))
    assert all(value.dtype == tf.float32 for value in outputs.values())
    # bfloat16 has 8 bits of precision: the exported float32 network agrees with the trained one to about 1%.
    np.testing.assert_allclose(outputs["probabilities"], tf.nn.softmax(model(images)[:, 0]), atol=0.05)


@keras.saving.register_keras_serializable(package="test")
class ReluProbe(keras.layers.Layer):
    """A probe whose gradient the ONNX converter does not know."""

    def build(self, pooled_shape):
        self.kernel = self.add_weight(shape=(pooled_shape[-1], CLASSES))

    def call(self, pooled):
        return tf.nn.relu(pooled) @ tf.convert_to_tensor(self.kernel)


def test_a_broken_export_is_deleted_and_reported(tmp_path):
    image = keras.Input(SHAPE)
    x = keras.layers.Conv2D(4, 3, name="conv")(image)
    logits = keras.layers.Dense(CLASSES)(keras.layers.GlobalAveragePooling2D()(x))
    model = Classifier(keras.Model(image, logits), {"conv": CIFS(probe=ReluProbe())})
    with pytest.raises(ExportError, match="ReluGrad"):
        export(model, tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []


def test_unknown_format_is_refused(classifier, tmp_path):
    with pytest.raises(UserError, match="tflite"):
        export(classifier, tmp_path / "model", formats=["tflite"])
    assert not (tmp_path / "model").exists()
