"""The classifier: heads, labels, cuts in any network, precision, files."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cifs_tf.errors import UserError
from cifs_tf.layers import CAS, CIFS, BatchNormalization, get_importance
from cifs_tf.models import Classifier, resnet, wide_resnet, with_precision

SHAPE, CLASSES = (8, 8, 3), 5
CUTS = ("stage3_block1_out", "stage4_block1_out")
SMALL_CUTS = ("first", "second")


def ones(relevance):
    return tf.ones_like(relevance)


def own_backbone():
    """Not one of the library's: a branch, a raw operation, dropout, a nested model, 12x8 images, two cut places."""
    image = keras.Input((12, 8, 1))
    x = keras.layers.Conv2D(6, 3, activation="relu", name="early")(image * 2.0 - 1.0)
    left = keras.layers.Conv2D(4, 3, padding="same")(x)
    nested = keras.Sequential([keras.layers.Conv2D(4, 1), keras.layers.BatchNormalization()], name="nested")
    x = keras.ops.concatenate([left, nested(x)], axis=-1)
    x = keras.layers.Dropout(0.5, name="late")(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(image, keras.layers.Dense(3)(x))


def small_backbone():
    """A chain of two convolutions, with the statistics of its batch normalisation off their start."""
    image = keras.Input(SHAPE)
    x = keras.layers.Conv2D(6, 3, activation="relu", name="first")(image)
    normalization = BatchNormalization()
    x = normalization(keras.layers.Conv2D(8, 3, strides=2)(x))
    normalization.moving_mean.assign(np.linspace(-0.1, 0.1, 8))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU(name="second")(x))
    return keras.Model(image, keras.layers.Dense(CLASSES, name="logits")(x))


@pytest.fixture(scope="module")
def cifs():
    keras.utils.set_random_seed(0)
    return Classifier(small_backbone(), {"first": CIFS("mlp"), "second": CIFS("linear")})


@pytest.fixture(scope="module")
def images(make_images):
    return make_images((4, *SHAPE))


def test_heads_are_the_final_logits_then_the_probes_in_order(cifs, images):
    """Head 1 is the MLP probe on the mean of the first cut's features, head 2 the linear one on the second's.

    By hand: the backbone up to the first cut; its mask times its features through the rest.
    """
    backbone = cifs.backbone
    first, second = (backbone.get_layer(name).output for name in SMALL_CUTS)
    up_to_first = keras.Model(backbone.inputs, first)
    first_to_second, second_to_end = keras.Model(first, second), keras.Model(second, backbone.output)
    selected = cifs.cuts["first"](up_to_first(images))
    reselected = cifs.cuts["second"](first_to_second(selected["features"]))
    expected = [
        second_to_end(reselected["features"]),
        selected["probe_logits"],
        reselected["probe_logits"],
    ]
    heads = cifs(images)
    assert heads.shape == (4, 3, CLASSES)
    np.testing.assert_allclose(heads, np.stack(expected, axis=1), rtol=1e-4, atol=1e-6)


def test_head_order_does_not_depend_on_the_order_of_the_cuts(images):
    backbone = small_backbone()
    cuts = {name: CIFS(num_classes=CLASSES) for name in reversed(SMALL_CUTS)}
    classifier = Classifier(backbone, cuts)
    assert tuple(classifier.cuts) == SMALL_CUTS
    pooled = tf.reduce_mean(keras.Model(backbone.inputs, backbone.get_layer("first").output)(images), (1, 2))
    np.testing.assert_allclose(classifier(images)[:, 1], cuts["first"].probe(pooled), rtol=1e-4, atol=1e-6)


def test_properties(cifs):
    assert (cifs.num_classes, cifs.num_probes, cifs.image_shape) == (CLASSES, 2, SHAPE)
    assert [cut.num_classes for cut in cifs.cuts.values()] == [CLASSES, CLASSES]


def test_vanilla_has_one_head_the_backbones_output(images):
    vanilla = Classifier(small_backbone())
    assert vanilla.num_probes == 0
    assert vanilla(images).shape == (4, 1, CLASSES)
    np.testing.assert_allclose(vanilla(images), vanilla.backbone(images)[:, None], rtol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_guards_the_private_walk_through_the_graph(training):
    """Without cuts `_run_through_graph` does what `backbone(images)` does: outputs, training flag, statistics."""
    images = np.random.default_rng(0).random((8, 12, 8, 1), np.float32)
    outputs, statistics = [], []
    for make in (lambda backbone: backbone, Classifier):
        keras.utils.set_random_seed(1)
        backbone = own_backbone()
        outputs.append(np.squeeze(make(backbone)(images, training=training)))
        statistics.append([variable.numpy() for variable in backbone.non_trainable_variables])
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-6, atol=1e-7)
    assert len(statistics[0]) == len(statistics[1])
    for found, expected in zip(statistics[1], statistics[0], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("arch", ["resnet10", "wrn28-10", "own"])
def test_importance_of_one_changes_nothing(arch, make_images):
    if arch == "own":
        backbone, cuts = own_backbone(), ("early", "late")
    else:
        make, width = (wide_resnet, 1) if arch.startswith("wrn") else (resnet, 4)
        backbone = make(arch, SHAPE, CLASSES, width=width)
        cuts = ("stage3_block4_relu1", "final_out") if make is wide_resnet else CUTS
    images = make_images((4, *backbone.input_shape[1:]))
    classifier = Classifier(backbone, {name: CIFS(importance=ones) for name in cuts})
    np.testing.assert_allclose(classifier(images)[:, 0], backbone(images), rtol=1e-5, atol=1e-6)


def test_preactivation_cut_that_is_not_the_only_path(make_images):
    """In a pre-activation block the shortcut goes around the cut: zeroing the cut leaves a path, and still matters."""
    keras.utils.set_random_seed(0)
    backbone = wide_resnet("wrn28-10", SHAPE, CLASSES, width=1)
    images = make_images((2, *SHAPE))
    closed = Classifier(backbone, {"stage3_block4_relu1": CIFS(importance=tf.zeros_like)})(images)[:, 0]
    assert np.max(np.abs(closed - backbone(images))) > 1e-3
    assert np.ptp(closed, axis=0).max() > 1e-6, "the images no longer reach the output"


def test_cuts_in_a_users_own_model(make_images):
    """The mask is seen on all paths: both branches behind `early` read the selected features."""
    backbone, images = own_backbone(), make_images((2, 12, 8, 1))
    classifier = Classifier(backbone, {"early": CIFS("mlp"), "late": CAS()})
    heads = classifier(images)
    assert heads.shape == (2, 3, 3)
    early, late = (backbone.get_layer(name).output for name in ("early", "late"))
    first = classifier.cuts["early"](keras.Model(backbone.inputs, early)(images))
    second = classifier.cuts["late"](keras.Model(early, late)(first["features"]))
    expected = keras.Model(late, backbone.output)(second["features"])
    np.testing.assert_allclose(heads[:, 0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(heads[:, 2], second["probe_logits"], rtol=1e-4, atol=1e-6)


def test_own_selection_layer(images):
    """Any layer with the call of CIFS will do; this one doubles the features and predicts their sum."""

    class Doubling(keras.layers.Layer):
        def call(self, features, labels=None, training=None, mask_gradient=None):
            total = tf.reduce_sum(features, axis=[1, 2, 3])
            return {"features": 2 * features, "probe_logits": tf.stack([total] * CLASSES, axis=1)}

    backbone = small_backbone()
    backbone.get_layer("logits").bias.assign(np.ones(CLASSES))
    heads = Classifier(backbone, {"second": Doubling()})(images)
    np.testing.assert_allclose(heads[:, 0] - 1, 2 * (backbone(images) - 1), rtol=1e-4, atol=1e-5)
    features = keras.Model(backbone.inputs, backbone.get_layer("second").output)(images)
    np.testing.assert_allclose(heads[:, 1, 0], np.sum(features, axis=(1, 2, 3)), rtol=1e-4)


@pytest.fixture(scope="module")
def own(make_images):
    """A cut network of the user's own, images for it, and its heads."""
    classifier = Classifier(own_backbone(), {"early": CIFS("mlp"), "late": CIFS(top_k=3)})
    images = make_images((4, 12, 8, 1))
    return classifier, images, classifier(images).numpy()


@settings(max_examples=8)
@given(labels=st.lists(st.integers(0, 2), min_size=4, max_size=4), training=st.sampled_from([None, False]))
def test_labels_are_not_read_in_inference(own, labels, training):
    classifier, images, heads = own
    np.testing.assert_array_equal(classifier(images, labels=tf.constant(labels), training=training), heads)


def test_labels_enter_the_mask_in_training(cifs, images):
    """Another label, another mask, other final logits; the first probe stands before every mask and is the same."""
    copy = with_precision(cifs, "float32")
    first = copy(images, labels=tf.constant([0] * 4), training=True)
    second = copy(images, labels=tf.constant([1] * 4), training=True)
    assert np.max(np.abs(first[:, 0] - second[:, 0])) > 1e-6
    np.testing.assert_allclose(first[:, 1], second[:, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask_gradient", [None, "detached", "full"])
def test_gradient_that_an_attack_sees_does_not_depend_on_labels(cifs, images, mask_gradient):
    """d sum(c heads) / d images, with heads from heads_fn and from calls that are given labels."""
    cotangent = tf.constant(np.random.default_rng(1).normal(size=(4, 3, CLASSES)), tf.float32)

    def gradient(heads_fn):
        with tf.GradientTape() as tape:
            tape.watch(images)
            total = tf.reduce_sum(cotangent * heads_fn(images))
        return tape.gradient(total, images).numpy()

    expected = gradient(cifs.heads_fn(mask_gradient))
    assert np.any(expected)
    for label in (0, CLASSES - 1):
        labels = tf.fill([4], label)
        found = gradient(lambda x, y=labels: cifs(x, labels=y, training=False, mask_gradient=mask_gradient))
        np.testing.assert_array_equal(found, expected)


def test_heads_fn_chooses_the_mask_gradient(cifs, images):
    """Values agree, gradients to the images differ: only `full` sees how the MLP probe's mask moves."""
    gradients = []
    for mask_gradient in ("detached", "full"):
        heads_fn = cifs.heads_fn(mask_gradient)
        np.testing.assert_array_equal(heads_fn(images), cifs(images))
        with tf.GradientTape() as tape:
            tape.watch(images)
            total = tf.reduce_sum(heads_fn(images)[:, 0] ** 2)
        gradients.append(tape.gradient(total, images))
    assert np.max(np.abs(gradients[0] - gradients[1])) > 1e-9


def test_explain_agrees_with_the_call(cifs, images):
    explained = cifs.explain(images)
    np.testing.assert_array_equal(explained["heads"], cifs(images))
    assert list(explained["relevance"]) == list(explained["importance"]) == list(SMALL_CUTS)
    for name, channels in zip(SMALL_CUTS, (6, 8), strict=True):
        assert explained["relevance"][name].shape == (4, channels)
        expected = tf.nn.softmax(explained["relevance"][name])
        np.testing.assert_allclose(explained["importance"][name], expected, rtol=1e-5)


def test_graph_and_batches_equal_eager(cifs, images):
    compiled = tf.function(cifs.heads_fn(), input_signature=[tf.TensorSpec((None, *SHAPE))])
    np.testing.assert_allclose(compiled(images), cifs(images), rtol=1e-4, atol=1e-6)
    for index in range(4):
        np.testing.assert_allclose(compiled(images[index : index + 1])[0], cifs(images)[index], rtol=1e-4, atol=1e-6)


def test_shares_the_backbones_weights(cifs):
    ours = {id(weight) for weight in cifs.trainable_weights}
    assert {id(weight) for weight in cifs.backbone.trainable_weights} < ours
    # MLP probe: 2 kernels and 2 biases; linear probe: 1 and 1.
    assert len(ours) == len(cifs.backbone.trainable_weights) + 6


def test_file_round_trip_in_safe_mode(make_classifier, images, tmp_path):
    classifier = make_classifier()
    classifier.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert type(loaded) is Classifier
    np.testing.assert_allclose(loaded(images), classifier(images), rtol=1e-6, atol=1e-6)
    labels = tf.range(4)
    found, expected = (model(images, labels=labels, training=True) for model in (loaded, classifier))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "cuts",
    [
        {},
        {"late": CIFS("mlp", top_k=3, mask_gradient="full", importance=get_importance("sigmoid", alpha=2.0))},
        {"early": CIFS(importance=get_importance("softmax", temperature=0.5, scale="mean_one")), "late": CAS()},
        {"early": CIFS("mlp", importance="softplus"), "late": CIFS(top_k=1)},
    ],
    ids=["vanilla", "sigmoid", "mean_one and cas", "softplus and top-1"],
)
def test_file_round_trip_of_a_users_own_model(cuts, make_images, tmp_path):
    classifier = Classifier(own_backbone(), cuts)
    classifier.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    images = make_images((2, 12, 8, 1))
    np.testing.assert_allclose(loaded(images), classifier(images), rtol=1e-6, atol=1e-6)
    for name, cut in classifier.cuts.items():
        assert type(loaded.cuts[name]) is type(cut)
        for attribute in ("importance", "top_k", "mask_gradient", "num_classes"):
            assert getattr(loaded.cuts[name], attribute) == getattr(cut, attribute)


def test_weights_file_round_trip(make_images, tmp_path):
    classifier, other = (Classifier(own_backbone(), {"late": CIFS("mlp")}) for _ in range(2))
    images = make_images((2, 12, 8, 1))
    assert np.max(np.abs(classifier(images) - other(images))) > 1e-3
    classifier.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other(images), classifier(images))


def test_with_precision(cifs, images):
    """The same weights and nearly the same heads, and the given model is left alone."""
    before = cifs(images).numpy()
    copy = with_precision(cifs, "float64")
    heads = copy(images)
    assert heads.dtype == "float64"
    np.testing.assert_allclose(heads, before, rtol=1e-4, atol=1e-4)
    assert copy.compute_dtype == "float64"
    assert copy.backbone.get_layer("first").compute_dtype == copy.compute_dtype
    assert [weight.dtype for weight in copy.weights] == ["float64"] * len(cifs.weights)
    for weight in copy.weights:
        weight.assign(tf.zeros_like(weight))
    np.testing.assert_array_equal(cifs(images), before)
    assert cifs.compute_dtype == "float32"


def test_with_precision_refuses_a_mixed_policy(cifs):
    with pytest.raises(UserError, match="precision: received mixed_bfloat16"):
        with_precision(cifs, "mixed_bfloat16")


def test_the_input_cannot_be_cut():
    with pytest.raises(UserError, match="this is the input"):
        Classifier(resnet("resnet10", (8, 8, 3), 5, width=4), {"image": CIFS()})


def test_unknown_mask_gradient_is_refused(cifs, images):
    with pytest.raises(UserError, match="mask_gradient: received half"):
        cifs.heads_fn("half")
    with pytest.raises(UserError, match="mask_gradient: received half"):
        cifs(images, mask_gradient="half")


def test_with_precision_goes_back(images):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        trained = Classifier(small_backbone(), {"first": CIFS("mlp"), "second": CAS()})
    finally:
        keras.config.set_dtype_policy("float32")
    exact = with_precision(trained, "float32")
    assert exact(images).dtype == trained(images).dtype == "float32"
    for found, expected in zip(exact.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(exact(images), trained(images), atol=0.1)


@pytest.fixture(scope="module")
def deep():
    return resnet("resnet10", SHAPE, CLASSES, width=1)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("stage4_block1_outt", "stage4_block1_out"),
        ("stage4_out", "stage4_block1_out"),
        ("zzz", "stage4_block1_out"),
        ("pool", "no feature map"),
        ("logits", "no feature map"),
    ],
)
def test_wrong_cut(deep, name, advice):
    with pytest.raises(UserError, match=rf"^cuts: received {name};.*{advice}"):
        Classifier(deep, {name: CIFS()})


def test_layer_used_twice_cannot_be_cut():
    image = keras.Input(SHAPE)
    shared = keras.layers.Conv2D(3, 3, padding="same", name="shared")
    x = keras.layers.Flatten()(shared(shared(image)))
    backbone = keras.Model(image, keras.layers.Dense(CLASSES)(x))
    with pytest.raises(UserError, match=r"^cuts: received shared;.*used 2 times"):
        Classifier(backbone, {"shared": CIFS()})


def test_top_k_larger_than_the_classes():
    with pytest.raises(UserError, match=r"^top_k: received 6; give at most 5"):
        Classifier(small_backbone(), {"first": CIFS(top_k=6)})


def test_half_precision_is_refused():
    """Attacks would see gradients of 0 where they are small, and robust accuracy would be far too high."""
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="low", dtype="mixed_float16")(image)
    backbone = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    with pytest.raises(UserError, match=r"layers in float16 \(low\); .*float32 or mixed_bfloat16"):
        Classifier(backbone)


def test_a_global_policy_of_float16_is_refused_too():
    """The backbone computes in float32, the selection layer and the images would not."""
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="low")(image)
    backbone = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with pytest.raises(UserError, match="layers in float16"):
            Classifier(backbone, {"low": CIFS()})
    finally:
        keras.config.set_dtype_policy("float32")
