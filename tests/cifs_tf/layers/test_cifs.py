"""The CIFS layer: Eq. 2, where gradients go, shapes, configs, errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.errors import UserError
from cifs_tf.layers import CAS, CIFS, LinearProbe, MLPProbe, channel_permutation, get_importance

CHANNELS, CLASSES = 6, 5
SHAPES = {"3-D": (2, 4, CHANNELS), "4-D": (2, 3, 2, CHANNELS), "5-D": (2, 2, 3, 2, CHANNELS)}


def make_layer(probe="mlp", dtype="float64", seed=0, **kwargs):
    layer = CIFS(probe, num_classes=CLASSES, dtype=dtype, **kwargs)
    layer.build((None, None, CHANNELS))
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(0, 0.5, weight.shape) for weight in layer.get_weights()])
    return layer


def make_features(shape=(2, 3, 2, CHANNELS), seed=1):
    return np.random.default_rng(seed).normal(size=shape)


def softmax(x):
    exponential = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponential / exponential.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_selects_features(shape):
    """Linear probe, k = 2: p = mean(z) W + b, g = W[:, a] + W[:, b], m = softmax(g), output m z (Eq. 1 and 2)."""
    layer, features = make_layer("linear"), make_features(shape)
    kernel, bias = layer.probe.get_weights()
    probe_logits = features.reshape(2, -1, CHANNELS).mean(axis=1) @ kernel + bias
    relevance = np.stack([kernel[:, np.argsort(-row)[:2]].sum(axis=1) for row in probe_logits])
    importance = softmax(relevance)
    outputs = layer(features)
    np.testing.assert_allclose(outputs["probe_logits"], probe_logits, rtol=1e-10)
    np.testing.assert_allclose(outputs["relevance"], relevance, rtol=1e-10)
    np.testing.assert_allclose(outputs["importance"], importance, rtol=1e-10)
    expected = features * importance.reshape(2, *[1] * (len(shape) - 2), CHANNELS)
    np.testing.assert_allclose(outputs["features"], expected, rtol=1e-10)


def test_label_replaces_the_top_class_in_training():
    """Linear probe, k = 2: g = W[:, label] + W[:, second]; in inference the label is not read."""
    layer, features, labels = make_layer("linear"), make_features(), np.array([3, 0])
    kernel = layer.probe.get_weights()[0]
    natural = layer(features)
    second = np.argsort(-natural["probe_logits"].numpy())[:, 1]
    trained = layer(features, labels=labels, training=True)
    np.testing.assert_allclose(trained["relevance"], (kernel[:, labels] + kernel[:, second]).T, rtol=1e-10)
    for training in (None, False):
        outputs = layer(features, labels=labels, training=training)
        np.testing.assert_array_equal(outputs["features"], natural["features"])


@pytest.mark.parametrize("make", [CIFS, CAS])
def test_without_the_label_training_has_the_mask_of_inference(make):
    layer = make(probe="linear", num_classes=CLASSES, label_in_mask=False)
    features, labels = tf.cast(make_features(), tf.float32), np.array([3, 0])
    natural = layer(features)
    for name, value in layer(features, labels=labels, training=True).items():
        np.testing.assert_array_equal(value, natural[name])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_permuted_mask(shape):
    """Channel i of the output is z_i m[p(i)], p the permutation; m, g and the raw prediction are those without it."""
    features, plain, permuted = make_features(shape), make_layer(), make_layer(mask_permutation=4)
    order = channel_permutation(4, CHANNELS)
    outputs, expected = permuted(features), plain(features)
    importance = expected["importance"].numpy()[:, order]
    np.testing.assert_array_equal(outputs["importance"], importance)
    for name in ("probe_logits", "relevance"):
        np.testing.assert_array_equal(outputs[name], expected[name])
    product = features * importance.reshape(2, *[1] * (len(shape) - 2), CHANNELS)
    np.testing.assert_allclose(outputs["features"], product, rtol=1e-12)


def test_channel_permutation_is_a_function_of_its_seed():
    """NumPy promises never to change the stream of RandomState, whose first draws these are."""
    assert channel_permutation(0, 6).tolist() == [5, 2, 1, 3, 0, 4]
    assert sorted(channel_permutation(1, 64)) == list(range(64))
    assert channel_permutation(1, 64).tolist() != channel_permutation(2, 64).tolist()
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match="mask_permutation"):
            CIFS(num_classes=CLASSES, mask_permutation=seed)


@pytest.mark.parametrize("mask_gradient", ["detached", "full", "smoothed"])
@pytest.mark.parametrize(("scale", "value"), [("mean_one", 1.0), ("sum_to_one", 1 / CHANNELS)])
def test_constant_mask(scale, value, mask_gradient):
    """m = 1 or 1/C: the features pass, or shrink, and the mask teaches nobody; the raw prediction stays."""
    layer = make_layer(importance=get_importance("constant", scale=scale), mask_gradient=mask_gradient)
    features = make_features()
    outputs = layer(features)
    np.testing.assert_allclose(outputs["importance"], np.full((2, CHANNELS), value), rtol=1e-12)
    np.testing.assert_allclose(outputs["features"], features * value, rtol=1e-12)
    np.testing.assert_array_equal(outputs["probe_logits"], make_layer()(features)["probe_logits"])
    assert all(gradient is None for gradient in gradients_of_mask(layer, features)[1])


@pytest.mark.parametrize("probe", ["linear", "mlp"])
def test_mask_gradient_does_not_change_values(probe):
    detached, full = make_layer(probe), make_layer(probe, mask_gradient="full")
    features = make_features()
    for name, value in detached(features).items():
        np.testing.assert_array_equal(full(features)[name], value)
        np.testing.assert_array_equal(detached(features, mask_gradient="full")[name], value)


def gradients_of_mask(layer, features, **kwargs):
    """Gradients of sum(c m) to the features and to the probe's weights, for fixed c."""
    features = tf.constant(features)
    cotangent = np.random.default_rng(5).normal(size=CHANNELS)
    with tf.GradientTape() as tape:
        tape.watch(features)
        value = tf.reduce_sum(cotangent * layer(features, **kwargs)["importance"])
    weights = [weight.value for weight in layer.trainable_weights]
    return float(value), tape.gradient(value, [features, *weights])


def test_detached_mask_teaches_the_probe_only():
    value, (to_features, *to_weights) = gradients_of_mask(make_layer(), make_features())
    assert np.isfinite(value)
    assert to_features is None
    # W1, b1 and W2 shape the gradient of the probe; b2 does not.
    assert [gradient is not None and bool(np.any(gradient)) for gradient in to_weights] == [True, True, True, False]


def test_full_mask_gradient_equals_finite_differences():
    """The mask's own dependence on the features, second order through the probe."""
    layer, features = make_layer(mask_gradient="full"), make_features((1, 2, CHANNELS))
    _, (found, *to_weights) = gradients_of_mask(layer, features)
    step, expected = 1e-5, np.zeros_like(features)
    for index in np.ndindex(features.shape):
        shift = np.zeros_like(features)
        shift[index] = step
        upper, lower = (gradients_of_mask(layer, features + sign * shift)[0] for sign in (1, -1))
        expected[index] = (upper - lower) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-8)
    assert any(np.any(gradient) for gradient in to_weights if gradient is not None)


@pytest.mark.parametrize("mask_gradient", ["detached", "full"])
def test_gradient_to_the_probe_equals_finite_differences(mask_gradient):
    """d sum(c m) / d W1[0, j] in both modes, five hidden units."""
    layer, features = make_layer(mask_gradient=mask_gradient), make_features()
    found = gradients_of_mask(layer, features)[1][1][0, :5]
    kernel, step = layer.probe.hidden.kernel, 1e-5
    original, expected = kernel.numpy(), []
    for unit in range(5):
        values = []
        for sign in (1, -1):
            shifted = original.copy()
            shifted[0, unit] += sign * step
            kernel.assign(shifted)
            values.append(gradients_of_mask(layer, features)[0])
        expected.append((values[0] - values[1]) / (2 * step))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)


def test_call_overrides_the_mask_gradient():
    features = make_features()
    detached, full = make_layer(), make_layer(mask_gradient="full")
    assert gradients_of_mask(full, features, mask_gradient="detached")[1][0] is None
    np.testing.assert_array_equal(
        gradients_of_mask(detached, features, mask_gradient="full")[1][0],
        gradients_of_mask(full, features)[1][0],
    )


def test_detached_features_pass_the_mask_as_a_constant():
    """d sum(m z) / dz = m where m is a constant."""
    layer, features = make_layer(), tf.constant(make_features())
    with tf.GradientTape() as tape:
        tape.watch(features)
        outputs = layer(features)
        total = tf.reduce_sum(outputs["features"])
    expected = np.broadcast_to(outputs["importance"][:, None, None], features.shape)
    np.testing.assert_allclose(tape.gradient(total, features), expected, rtol=1e-12)


def test_raw_prediction_teaches_the_features():
    """d sum(p) / dz = sum_k W[:, k] / positions: the loss on the raw prediction is never detached."""
    layer, features = make_layer("linear"), tf.constant(make_features())
    with tf.GradientTape() as tape:
        tape.watch(features)
        total = tf.reduce_sum(layer(features)["probe_logits"])
    expected = np.broadcast_to(layer.probe.get_weights()[0].sum(axis=1) / 6, features.shape)
    np.testing.assert_allclose(tape.gradient(total, features), expected, rtol=1e-10)


def test_graph_equals_eager():
    layer, features, labels = make_layer(mask_gradient="full"), make_features(), np.array([3, 0])

    @tf.function
    def compiled(features):
        return layer(features, labels=labels, training=True)

    for name, value in layer(features, labels=labels, training=True).items():
        np.testing.assert_allclose(compiled(features)[name], value, rtol=1e-10)


def test_mixed_precision_keeps_the_probe_in_full():
    layer = make_layer(dtype="mixed_bfloat16")
    outputs = layer(make_features())
    dtypes = {name: value.dtype.name for name, value in outputs.items()}
    assert dtypes == {
        "features": "bfloat16",
        "probe_logits": "float32",
        "relevance": "float32",
        "importance": "float32",
    }
    exact = make_layer(dtype="float32")(tf.cast(tf.cast(make_features(), tf.bfloat16), tf.float32))
    np.testing.assert_allclose(outputs["importance"], exact["importance"], rtol=1e-5)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"probe": "mlp", "top_k": 3, "mask_gradient": "full"},
        {"probe": MLPProbe(CLASSES, hidden_units=7)},
        {"importance": "sigmoid"},
        {"importance": get_importance("softmax", temperature=0.5, scale="mean_one")},
        {"importance": get_importance("constant", scale="mean_one")},
        {"importance_scale": "mean_one", "temperature": 0.5},
        {"importance": "sigmoid", "alpha": 3.0},
        {"label_in_mask": False, "mask_permutation": 3},
    ],
    ids=["defaults", "mlp", "custom probe", "sigmoid", "mean_one", "constant", "scale", "alpha", "options of the mask"],
)
def test_config_round_trip(kwargs):
    layer = make_layer(**{"probe": "linear", **kwargs}, dtype="float32")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    copy.set_weights(layer.get_weights())
    for name, value in layer(make_features()).items():
        np.testing.assert_allclose(copy(make_features())[name], value, rtol=1e-6)
    assert copy.get_config() == layer.get_config()


def test_unbuilt_config_round_trip():
    config = CIFS("mlp", top_k=3, num_classes=CLASSES).get_config()
    assert CIFS.from_config(config).get_config() == config
    assert (config["probe"], config["top_k"], config["num_classes"]) == ("mlp", 3, CLASSES)


def test_layers_saved_before_there_were_options_of_the_mask_load():
    config = CIFS("mlp", num_classes=CLASSES).get_config()
    old = {name: value for name, value in config.items() if name not in ("label_in_mask", "mask_permutation")}
    assert CIFS.from_config(old).get_config() == config


def test_weights_are_the_probes():
    layer = make_layer("linear")
    assert [weight.shape for weight in layer.trainable_weights] == [(CHANNELS, CLASSES), (CLASSES,)]
    assert layer.non_trainable_weights == []


def test_top_k_may_be_every_class():
    """k = K, linear probe: g = the sum of all columns of W, whatever the features."""
    layer = make_layer("linear", top_k=CLASSES)
    expected = np.tile(layer.probe.get_weights()[0].sum(axis=1), (2, 1))
    np.testing.assert_allclose(layer(make_features())["relevance"], expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("make", "argument", "received"),
    [
        (lambda: CIFS("conv"), "probe", "conv"),
        (lambda: CIFS(top_k=0), "top_k", 0),
        (lambda: make_layer(top_k=CLASSES + 1), "top_k", CLASSES + 1),
        (lambda: CIFS(importance="nothing"), "importance", "nothing"),
        (lambda: CIFS(mask_gradient="half"), "mask_gradient", "half"),
        (lambda: CIFS().build((None, CHANNELS)), "num_classes", None),
    ],
)
def test_errors_name_the_argument_and_the_value(make, argument, received):
    with pytest.raises(UserError, match=rf"{argument}: received {received};"):
        make()


def test_probe_may_be_any_keras_layer():
    probe = keras.Sequential([LinearProbe(3, dtype="float64"), keras.layers.Dense(CLASSES, dtype="float64")])
    outputs = make_layer(probe)(make_features())
    assert outputs["probe_logits"].shape == (2, CLASSES)
    first, _, second, _ = probe.get_weights()
    expected = [(first @ second)[:, np.argsort(-row)[:2]].sum(axis=1) for row in outputs["probe_logits"].numpy()]
    np.testing.assert_allclose(outputs["relevance"], expected, rtol=1e-10)
