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
from cifs_tf.export import ExportError, decode_images, disagreement, export
from cifs_tf.layers import CIFS
from cifs_tf.models import Classifier, build_classifier
from cifs_tf.models.side_effects import side_effects

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


@pytest.fixture(scope="module")
def loaded(exported):
    return tf.saved_model.load(str(exported))


def make_tiny(*cuts):
    """Two convolutions: quick to export."""
    image = keras.Input(SHAPE)
    x = keras.layers.Conv2D(4, 3, name="conv.1")(image)
    x = keras.layers.Conv2D(4, 3, name="conv_1")(x)
    logits = keras.layers.Dense(CLASSES)(keras.layers.GlobalAveragePooling2D()(x))
    return Classifier(keras.Model(image, logits), {cut: CIFS() for cut in cuts})


@pytest.fixture(scope="module")
def tiny():
    return make_tiny("conv.1", "conv_1")


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
    assert side_effects(exported) == []
    assert json.loads((exported / "labels.json").read_text())[0] == "ä"
    assert [child.name for child in exported.parent.iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("defense", "config"),
    [
        ("cifs", {"importance": "softplus"}),
        pytest.param("cifs", {"importance": "sigmoid"}, marks=pytest.mark.slow),
        pytest.param("cas", {}, marks=pytest.mark.slow),
        ("vanilla", {}),
    ],
)
def test_every_network_converts_to_onnx(defense, config, images, tmp_path):
    model = make(defense, **config)
    path = export(model, tmp_path / "model", formats=["onnx"]) / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = {output.name for output in session.get_outputs()}
    assert outputs == {"logits", "probabilities"} | ({"probe_logits"} if defense != "vanilla" else set())
    assert_close(session.run(["logits"], {"image": images})[0], model(images, training=False)[:, 0])


def test_saved_model_agrees(classifier, loaded, images):
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


def test_encoded_takes_image_files(classifier, loaded, images):
    pixels = (images * 255).astype(np.uint8)
    files = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append(buffer.getvalue())
    outputs = loaded.signatures["encoded"](image_bytes=tf.constant(files))
    assert_agrees(outputs, classifier(pixels.astype(np.float32) / 255, training=False))


def test_encoded_takes_jpeg(loaded, images):
    jpeg = tf.io.encode_jpeg((images[0] * 255).astype(np.uint8))
    assert loaded.signatures["encoded"](image_bytes=jpeg[None])["logits"].shape == (1, CLASSES)


def encode(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_encoded_refuses_another_size(loaded):
    file = encode(Image.fromarray(np.zeros((9, 12, 3), np.uint8)), "PNG")
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"\[9,12,3\] is not compatible with .* \[8,12,3\]"):
        loaded.signatures["encoded"](image_bytes=tf.constant([file]))


@pytest.mark.slow
def test_encoded_resizes_if_asked(tiny, tmp_path):
    """Files of several sizes in one batch, to 8 bits as in training; that of the model's own size is left alone."""
    path = export(tiny, tmp_path / "model", formats=["savedmodel"], resize=True)
    pixels = [np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8) for size in ((8, 12), (40, 30), (3, 5))]
    files = [encode(Image.fromarray(image), "PNG") for image in pixels]
    loaded = tf.saved_model.load(str(path))
    outputs = loaded.signatures["encoded"](image_bytes=tf.constant(files))
    images = tf.stack([tf.round(tf.image.resize(image, SHAPE[:2], antialias=True)) / 255 for image in pixels])
    np.testing.assert_allclose(images[0], pixels[0] / 255, atol=1e-6)
    assert_agrees(outputs, tiny(images, training=False))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_of_every_kind_is_read(mode, channels):
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 5), 153 * 257, np.uint16))
    else:
        image = Image.fromarray(np.full((4, 5, 3), 153, np.uint8)).convert(mode)
    decoded = decode_images(tf.constant([encode(image, "PNG")]), (4, 5, channels)).numpy()
    assert decoded.shape == (1, 4, 5, channels)
    np.testing.assert_allclose(decoded[..., : min(channels, 3)], 153 / 255, atol=1e-6)


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "L"), ("JPEG", "RGB"), ("GIF", "P"), ("BMP", "RGB")])
@pytest.mark.parametrize("resize", [False, True])
def test_other_kinds_of_files_are_read(kind, mode, resize):
    first, second = (Image.fromarray(np.full((4, 5, 3), grey, np.uint8)).convert(mode) for grey in (153, 255))
    buffer = io.BytesIO()
    first.save(buffer, kind, **({"save_all": True, "append_images": [second]} if kind == "GIF" else {}))
    decoded = decode_images(tf.constant([buffer.getvalue()]), (4, 5, 3), resize)
    np.testing.assert_allclose(decoded, np.full((1, 4, 5, 3), 153 / 255), atol=2 / 255)


def test_explain_agrees_with_the_live_network(classifier, loaded, images):
    outputs = loaded.signatures["explain"](image=tf.constant(images))
    live = classifier.explain(images)
    names = [f"{kind}_{cut}" for kind in ("relevance", "importance") for cut in classifier.cuts]
    assert len(names) == 4
    assert set(outputs) == {"probabilities", "heads", "disagreement", *names}
    assert all(value.dtype == tf.float32 and value.shape[0] == len(images) for value in outputs.values())
    assert_close(outputs["heads"], live["heads"])
    assert_close(outputs["probabilities"], tf.nn.softmax(live["heads"][:, 0]))
    for kind in ("relevance", "importance"):
        for cut, values in live[kind].items():
            assert_close(outputs[f"{kind}_{cut}"], values)
    # By hand: half the l1 distance between the two distributions, the farthest raw prediction counts.
    heads = live["heads"].numpy().astype(np.float64)
    p = np.exp(heads) / np.exp(heads).sum(axis=-1, keepdims=True)
    expected = [max(0.5 * np.abs(p[i, 0] - p[i, j]).sum() for j in (1, 2)) for i in range(len(images))]
    np.testing.assert_allclose(outputs["disagreement"], expected, atol=1e-6)


def test_disagreement_is_0_for_the_same_and_1_for_opposite_predictions():
    sure, opposite = [50.0, 0.0, 0.0], [0.0, 50.0, 0.0]
    found = disagreement(tf.constant([[sure, sure, sure], [sure, sure, opposite]]))
    np.testing.assert_allclose(found, [0, 1], atol=1e-6)


@pytest.mark.slow
def test_explain_without_selection_layers(images, tmp_path):
    model = make_tiny()
    loaded = tf.saved_model.load(str(export(model, tmp_path / "model", formats=["savedmodel"])))
    outputs = loaded.signatures["explain"](image=tf.constant(images))
    assert set(outputs) == {"probabilities", "heads"}
    assert_close(outputs["heads"], model(images, training=False))


@pytest.mark.slow
def test_cut_names_become_identifiers_and_stay_apart(tiny, tmp_path):
    loaded = tf.saved_model.load(str(export(tiny, tmp_path / "model", formats=["savedmodel"])))
    outputs = loaded.signatures["explain"](image=tf.zeros((1, *SHAPE)))
    assert {"relevance_conv_1", "relevance_conv_1_2", "importance_conv_1", "importance_conv_1_2"} <= set(outputs)


@pytest.mark.parametrize("mask_gradient", ["detached", "full"])
def test_heads_can_be_differentiated_after_loading(classifier, loaded, images, mask_gradient):
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


def test_the_two_mask_gradients_differ(loaded, images):
    gradients = []
    for name in ("heads_detached", "heads_full"):
        x = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(loaded.signatures[name](image=x)["heads"][:, 0, 0])
        gradients.append(tape.gradient(loss, x).numpy())
    assert not np.allclose(*gradients, rtol=1e-3)


@pytest.mark.parametrize("shape", [(8, 12), (8, 12, 3), (1, 12, 8, 3), (1, 8, 12, 1), (1, 1, 8, 12, 3)])
@pytest.mark.parametrize("signature", ["serving_default", "explain", "heads_full"])
def test_wrong_shape_is_an_error_not_a_crash(loaded, signature, shape):
    with pytest.raises((ValueError, TypeError, tf.errors.InvalidArgumentError)):
        loaded.signatures[signature](image=tf.zeros(shape))


def test_versions_count_up_and_are_not_overwritten(tiny, exported):
    base = exported.parent
    assert export(tiny, base, formats=["onnx"]).name == "2"
    with pytest.raises(UserError, match="version: received 1"):
        export(tiny, base, version=1)


def test_files_are_added_before_it_is_published(tiny, tmp_path):
    base = tmp_path / "model"
    seen = []

    def add(path):
        seen.append({file.name for file in path.iterdir()})
        assert not any(child.name.isdigit() for child in base.iterdir())
        (path / "more.txt").write_text("more")

    path = export(tiny, base, formats=["onnx"], add_files=[add, add])
    assert seen == [{"model.onnx", "labels.json"}, {"model.onnx", "labels.json", "more.txt"}]
    assert (path / "more.txt").read_text() == "more"

    def fail(path):
        raise RuntimeError("no card")

    with pytest.raises(RuntimeError, match="no card"):
        export(tiny, base, formats=["onnx"], add_files=[fail])
    assert [child.name for child in base.iterdir()] == ["1"]


@pytest.mark.slow
def test_mixed_precision_is_exported_in_float32(images, tmp_path):
    model = make(precision="mixed_bfloat16")
    path = export(model, tmp_path / "model", formats=["onnx"]) / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {value.type for value in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}
    # bfloat16 has 8 bits of precision: the exported float32 network agrees with the trained one to about 1%.
    (probabilities,) = session.run(["probabilities"], {"image": images})
    np.testing.assert_allclose(probabilities, tf.nn.softmax(model(images)[:, 0]), atol=0.05)


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


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"formats": ["tflite"]}, "formats: received tflite"),
        ({"formats": []}, "formats"),
        ({"class_names": ["a", "b"]}, "class_names.*give 5"),
        ({"version": 0}, "version: received 0"),
        ({"version": -1}, "version: received -1"),
    ],
)
def test_bad_input_is_refused(classifier, tmp_path, wrong, named):
    with pytest.raises(UserError, match=named):
        export(classifier, tmp_path / "model", **wrong)
    assert not (tmp_path / "model").exists()


def test_a_photograph_is_turned_upright_as_in_training():
    """Rows become columns where EXIF says that the camera was held upright."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    decoded = decode_images(tf.constant([buffer.getvalue()]), (6, 4, 3)).numpy()
    np.testing.assert_allclose(decoded[0], np.rot90(pixels, -1) / np.float32(255), atol=1e-7)
