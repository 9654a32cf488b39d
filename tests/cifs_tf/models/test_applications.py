"""Networks of keras.applications, random weights: the same answers with importance one, gradients, files."""

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from cifs_tf.export import ExportError, export
from cifs_tf.layers import CIFS
from cifs_tf.losses import cross_entropy
from cifs_tf.models import defend

SIZE, CLASSES = (32, 32, 3), 10
applications = keras.applications


def give_statistics(model, images):
    """Batch normalisation with scales from these images, so that signals keep the size one; means stay at 0."""

    def normalizing(operation):
        def call(x, *args, **kwargs):
            if isinstance(operation, keras.layers.BatchNormalization):
                axes = list(range(len(x.shape) - 1))
                operation.moving_variance.assign(tf.reduce_mean(x**2, axes))
            return operation(x, *args, **kwargs)

        return call

    model._run_through_graph(images, operation_fn=normalizing)


# What makes it, its own preprocessing of pixels of 0 to 255, the name of that, and two cuts.
MODELS = {
    "mobilenet_v2": (
        lambda: applications.MobileNetV2(weights=None, alpha=0.35, input_shape=SIZE, classes=CLASSES),
        applications.mobilenet_v2.preprocess_input,
        "tf",
        ("block_15_add", "out_relu"),
    ),
    "mobilenet_v3": (
        lambda: applications.MobileNetV3Small(weights=None, input_shape=SIZE, classes=CLASSES),
        applications.mobilenet_v3.preprocess_input,
        "raw",
        ("expanded_conv_9_add", "conv_1_bn"),
    ),
    "resnet50": (
        lambda: applications.ResNet50(weights=None, input_shape=SIZE, classes=CLASSES, classifier_activation=None),
        applications.resnet50.preprocess_input,
        "caffe",
        ("conv5_block2_out", "conv5_block3_out"),
    ),
    "efficientnet": (
        lambda: applications.EfficientNetB0(weights=None, input_shape=SIZE, classes=CLASSES),
        applications.efficientnet.preprocess_input,
        "raw",
        ("block6d_add", "top_activation"),
    ),
    "convnext": (
        lambda: applications.ConvNeXtTiny(weights=None, input_shape=SIZE, classes=CLASSES),
        applications.convnext.preprocess_input,
        "raw",
        ("convnext_tiny_downsampling_conv_2", "convnext_tiny_stage_3_block_2_depthwise_conv"),
    ),
}
MANY = [pytest.param(name, marks=pytest.mark.soak) for name in ("efficientnet", "convnext")]


@pytest.fixture(scope="module", params=["mobilenet_v2", "mobilenet_v3", "resnet50", *MANY])
def defended(request):
    """(the model, its own preprocessing, the classifier with all importances 1, images)."""
    make, preprocess, name, (first, second) = MODELS[request.param]
    keras.utils.set_random_seed(0)
    model = make()
    cuts = {first: CIFS("mlp", importance=tf.ones_like), second: CIFS(importance=tf.ones_like)}
    classifier = defend(model, cuts, preprocessing=name)
    images = tf.constant(np.random.default_rng(0).random((4, *SIZE)), tf.float32)
    give_statistics(classifier.backbone, images)
    return model, preprocess, classifier, images


@pytest.mark.slow
def test_outputs_are_the_models_own_if_importance_is_one(defended):
    """Keras' own model, behind Keras' own preprocessing; a softmax at its end is applied to our logits."""
    model, preprocess, classifier, images = defended
    expected = model(preprocess(images.numpy() * 255.0), training=False).numpy()
    logits = classifier(images)[:, 0].numpy()
    if np.allclose(expected.sum(axis=1), 1):
        assert not np.allclose(logits.sum(axis=1), 1), "these are no logits"
        logits = tf.nn.softmax(logits).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-3, "the images must matter"


@pytest.mark.slow
def test_shares_every_weight(defended):
    model, _, classifier, _ = defended
    constants = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Normalization)]
    left_out = {id(weight) for layer in constants for weight in layer.weights}
    shared = {id(weight) for weight in classifier.backbone.weights}
    assert shared == {id(weight) for weight in model.weights} - left_out


@pytest.mark.slow
def test_gradients_reach_images_and_probes(defended):
    _, _, classifier, images = defended
    probes = [weight for cut in classifier.cuts.values() for weight in cut.trainable_weights]
    assert len(probes) == 6
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(cross_entropy(classifier(images), tf.range(4)))
    for gradient in tape.gradient(loss, [images, *probes]):
        assert np.all(np.isfinite(gradient))
        assert np.any(np.abs(gradient) > 1e-6)


@pytest.mark.soak
@pytest.mark.parametrize("name", MODELS)
def test_files_of_whole_models(name, tmp_path, make_images):
    """`.keras`, SavedModel (every signature is checked by `export`) and ONNX, of networks as Keras initialises them."""
    make, _, preprocessing, (first, second) = MODELS[name]
    classifier = defend(make(), {first: CIFS("mlp"), second: CIFS()}, preprocessing=preprocessing)
    if name == "convnext":
        with pytest.raises(ExportError, match="Erfc"):  # the exact GELU: the converter does not know it
            export(classifier, tmp_path / "export", formats=["onnx"])
        assert (export(classifier, tmp_path / "export", formats=["savedmodel"]) / "saved_model.pb").exists()
    else:
        check_files(classifier, make_images((3, *SIZE)), tmp_path)


def check_files(classifier, images, folder):
    heads = classifier(images).numpy()
    classifier.save(folder / "model.keras")
    loaded = keras.models.load_model(folder / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(images), heads, rtol=1e-4, atol=1e-5)
    path = export(classifier, folder / "export")
    session = onnxruntime.InferenceSession(str(path / "model.onnx"), providers=["CPUExecutionProvider"])
    logits, probe_logits = session.run(["logits", "probe_logits"], {"image": images.numpy()})
    np.testing.assert_allclose(logits, heads[:, 0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(probe_logits, heads[:, 1:], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_files_of_the_beginning_of_a_model(tmp_path, make_images):
    """MobileNetV2 up to its second block, behind BGR and with a head of ours, in all three formats."""
    whole = applications.MobileNetV2(weights=None, alpha=0.35, input_shape=SIZE, include_top=False)
    beginning = keras.Model(whole.input, whole.get_layer("block_1_project_BN").output)
    cuts = {"expanded_conv_project_BN": CIFS("mlp"), "block_1_project_BN": CIFS()}
    classifier = defend(beginning, cuts, preprocessing="caffe", num_classes=CLASSES)
    images = make_images((3, *SIZE))
    give_statistics(classifier.backbone, images)
    assert classifier.backbone.get_layer("logits").units == CLASSES
    check_files(classifier, images, tmp_path)
