"""The gradient in ONNX: attacks with onnxruntime find what attacks with TensorFlow find."""

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf

from cifs_tf.attacks import PGD
from cifs_tf.config import ModelConfig
from cifs_tf.export import export, write_gradient_onnx
from cifs_tf.layers import CIFS
from cifs_tf.losses import head_weights
from cifs_tf.models import Classifier, build_classifier
from cifs_tf.models.onnx_gradient import MASK_GRADIENT_SHARES

SHAPE = (8, 12, 3)
CLASSES = 5


def every_kind():
    """A backbone with each kind of layer whose gradient tf2onnx does not know, sizes that no stride divides."""
    layers = keras.layers
    image = keras.Input((15, 18, 3))
    x = layers.Conv2D(8, 7, strides=2, padding="same", activation="elu")(image)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", activation="relu6")(x)
    x = layers.AveragePooling2D(3, strides=2, padding="same")(x)
    x = layers.Conv2D(8, 2, padding="valid", activation="leaky_relu", name="cut")(x)
    x = layers.Conv2D(8, 1, strides=2, activation="silu")(x)
    gate = layers.Dense(8, activation="tanh")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Multiply()([x, layers.Activation("softplus")(gate)])
    x = layers.LayerNormalization()(x)
    return Classifier(
        keras.Model(image, layers.Dense(CLASSES)(layers.GlobalMaxPooling2D()(x))), {"cut": CIFS(mask_gradient="full")}
    )


def two_probes():
    """Both probes of the paper behind a few convolutions: quick to convert."""
    image = x = keras.Input(SHAPE)
    for index in (1, 2, 3):
        x = keras.layers.Conv2D(8, 3, activation="relu", padding="same", name=f"conv{index}")(x)
    logits = keras.layers.Dense(CLASSES)(keras.layers.Flatten()(x))
    return Classifier(keras.Model(image, logits), {"conv2": CIFS("mlp"), "conv3": CIFS("linear")})


def make(name):
    keras.utils.set_random_seed(1)
    if name == "every kind of layer":
        return every_kind()
    if name == "cifs":
        return two_probes()
    return build_classifier(ModelConfig(arch="resnet10", width=4, defense=name), SHAPE, CLASSES)


def session_of(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def cifs(tmp_path_factory):
    classifier = make("cifs")
    path = tmp_path_factory.mktemp("gradient") / "heads_and_gradient.onnx"
    write_gradient_onnx(classifier, path)
    return classifier, path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ewas", "vanilla", "every kind of layer"])
def test_every_family_converts(name, tmp_path):
    """`write_gradient_onnx` compares all outputs with the live model, for each mask gradient."""
    classifier = make(name)
    write_gradient_onnx(classifier, tmp_path / "gradient.onnx")
    inputs = [each.name for each in session_of(tmp_path / "gradient.onnx").get_inputs()]
    assert sorted(inputs) == sorted(
        ["image", "label", "head_weights", "upstream", *(["mask_gradient"] if classifier.num_probes else [])]
    )


@pytest.mark.slow
def test_plain_operators_of_opset_17(cifs):
    model = onnx.load(cifs[1])
    assert {(opset.domain, opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx")} == {
        ("", 17)
    }
    assert {node.domain for node in model.graph.node} == {""}


@pytest.mark.parametrize("mask_gradient", ["smoothed", pytest.param("detached", marks=pytest.mark.slow)])
def test_pgd_with_onnxruntime_is_pgd_with_tensorflow(cifs, mask_gradient):
    """Twenty steps; the gradient is within 1e-6 of TensorFlow's."""
    classifier, path = cifs
    session, epsilon, step_size = session_of(path), 8 / 255, 2 / 255
    images = np.random.default_rng(3).random((4, *SHAPE), np.float32)
    labels = np.array([0, 1, 2, 3], np.int32)
    weights = head_weights(2, 2).astype(np.float32)
    feeds = {
        "label": labels,
        "head_weights": weights,
        "upstream": np.zeros((4, 3, CLASSES), np.float32),
        "mask_gradient": np.array(MASK_GRADIENT_SHARES[mask_gradient], np.float32),
    }
    x = images
    for _ in range(20):
        (gradient,) = session.run(["gradient"], {"image": x, **feeds})
        x = np.clip(np.clip(x + np.float32(step_size) * np.sign(gradient), images - epsilon, images + epsilon), 0, 1)
    attack = PGD(epsilon=epsilon, step_size=step_size, num_steps=20)
    expected = attack(
        classifier.heads_fn(mask_gradient), tf.constant(images), tf.constant(labels), head_weights=weights
    ).numpy()
    # A gradient of almost 0 may have the other sign.
    assert np.mean(np.abs(x - expected) > 1e-6) < 0.001
    with tf.GradientTape() as tape:
        tape.watch(start := tf.constant(images))
        heads = classifier.heads_fn(mask_gradient)(start)
        losses = tf.keras.losses.sparse_categorical_crossentropy(labels[:, None].repeat(3, 1), heads, from_logits=True)
        loss = tf.reduce_sum(losses * weights)
    (gradient,) = session.run(["gradient"], {"image": images, **feeds})
    np.testing.assert_allclose(gradient, tape.gradient(loss, start), atol=1e-6)


def test_upstream_gives_the_gradient_of_any_function_of_the_heads(cifs):
    """The margin of the raw predictions, say."""
    classifier, path = cifs
    images = np.random.default_rng(4).random((2, *SHAPE), np.float32)
    upstream = np.zeros((2, 3, CLASSES), np.float32)
    upstream[:, 1, 0], upstream[:, 1, 3] = -1, 1
    (gradient,) = session_of(path).run(
        ["gradient"],
        {
            "image": images,
            "label": np.array([0, 0], np.int32),
            "head_weights": np.zeros(3, np.float32),
            "upstream": upstream,
            "mask_gradient": np.zeros(2, np.float32),
        },
    )
    with tf.GradientTape() as tape:
        tape.watch(x := tf.constant(images))
        heads = classifier.heads_fn("detached")(x)
        margin = tf.reduce_sum(heads[:, 1, 3] - heads[:, 1, 0])
    np.testing.assert_allclose(gradient, tape.gradient(margin, x), atol=1e-6)


@keras.saving.register_keras_serializable(package="test")
class Normalised(keras.layers.Layer):
    """A layer whose gradient has no plain ONNX form."""

    def call(self, features):
        return tf.nn.local_response_normalization(features)


def test_what_cannot_be_made_is_left_out_in_one_line(tmp_path):
    image = keras.Input(SHAPE)
    x = Normalised()(keras.layers.Conv2D(4, 3)(image))
    logits = keras.layers.Dense(CLASSES)(keras.layers.GlobalAveragePooling2D()(x))
    with pytest.warns(UserWarning, match=r"heads_and_gradient.onnx failed.*LRNGrad") as found:
        path = export(Classifier(keras.Model(image, logits)), tmp_path / "model", formats=["onnx", "gradient"])
    assert "\n" not in str(found[0].message)
    assert sorted(file.name for file in path.iterdir()) == ["labels.json", "model.onnx"]
