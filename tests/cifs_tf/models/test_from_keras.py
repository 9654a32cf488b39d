"""Any Keras model: what it computes stays, its weights are shared, and what cannot be done says why."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import cifs_tf
from cifs_tf.adversarial import AdversarialTrainer, PGDTraining
from cifs_tf.analysis import channel_activations, last_layer_weights
from cifs_tf.attacks import PGD
from cifs_tf.data import Split
from cifs_tf.errors import UserError
from cifs_tf.evaluation.named_attacks import make_attacks
from cifs_tf.evaluation.suites import paper_tasks
from cifs_tf.evaluation.tasks import Natural
from cifs_tf.export import export
from cifs_tf.layers import CIFS, register_importance
from cifs_tf.losses import head_weights
from cifs_tf.models import Classifier, defend, resnet
from cifs_tf.models.from_keras import PREPROCESSING


@register_importance("test_from_keras_ones")
def ones(relevance):
    return tf.ones_like(relevance)


def small(**kwargs):
    """Two convolutions, a shortcut around the second, dropout, and a top of 3 classes; kwargs of the last layer."""
    image = keras.Input((8, 8, 3), name="pixels")
    low = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="low")(image)
    high = keras.layers.BatchNormalization(name="bn")(keras.layers.Conv2D(4, 3, padding="same", name="high")(low))
    x = keras.layers.Dropout(0.5, name="dropout")(keras.layers.Add(name="sum")([low, high]))
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, keras.layers.Dense(3, name="top", **kwargs)(x), name="small")


def features(shape, layer, **kwargs):
    """A network without a top: two convolutions."""
    image = keras.Input(shape)
    x = layer(4, 3, padding="same", name="low", **kwargs)(image)
    return keras.Model(image, layer(6, 3, strides=2, activation="relu", name="high", **kwargs)(x))


@pytest.mark.slow
def test_fit_and_evaluate(make_images):
    """Two steps of adversarial training move the user's own model; then it is attacked."""
    model = small(activation="softmax")
    before = [weight.numpy() for weight in model.trainable_weights]
    classifier = cifs_tf.defend(model, {"low": CIFS("mlp"), "sum": CIFS()}, preprocessing="tf")
    attack = PGD(epsilon=0.1, step_size=0.05, num_steps=2, random_start=True)
    trainer = AdversarialTrainer(classifier, PGDTraining(head_weights=head_weights(2, 2), attack=attack), ema_decay=0.9)
    trainer.compile(optimizer=keras.optimizers.SGD(0.1))
    trainer.fit(make_images((16, 8, 8, 3)), tf.range(16) % 3, batch_size=8, verbose=0)
    assert trainer.skipped_steps == 0
    for weight, value in zip(model.trainable_weights, before, strict=True):
        assert np.any(weight.numpy() != value), weight.path
    split = Split(np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8), np.arange(6, dtype=np.int32) % 3)
    report = cifs_tf.evaluate(classifier, split, [Natural(), *paper_tasks(make_attacks(["fgsm"], 0.1), (0,), "full")])
    assert 0 <= report["worst_case"]["accuracy"] <= report["natural"]["accuracy"] <= 1


def test_the_model_itself_stays_as_it_is(make_images):
    model, images = small(activation="softmax"), make_images((2, 8, 8, 3))
    config, answers = model.get_config(), model(images).numpy()
    defend(model, {"low": CIFS()}, preprocessing="tf")
    np.testing.assert_array_equal(model(images), answers)
    assert model.get_config() == config
    assert model.get_layer("top").activation is keras.activations.softmax


@pytest.mark.parametrize("end", ["dense", "layer", "activation", "operation", "no bias", "none"])
def test_a_softmax_at_the_end_is_left_out(end, make_images):
    """By hand: logits are the means of the channels times the kernel, plus the bias if there is one."""
    kwargs = {"dense": {"activation": "softmax"}, "no bias": {"activation": "softmax", "use_bias": False}}.get(end, {})
    model = small(bias_initializer="random_normal", **kwargs)
    after = {
        "layer": keras.layers.Softmax(),
        "activation": keras.layers.Activation("softmax"),
        "operation": keras.ops.softmax,
    }
    if end in after:
        model = keras.Model(model.input, after[end](model.output))
    images, top = make_images((4, 8, 8, 3)), model.get_layer("top")
    means = keras.Model(model.input, model.get_layer("mean").output)(images)
    expected = means @ top.kernel + (0 if top.bias is None else top.bias)
    np.testing.assert_allclose(defend(model)(images)[:, 0], expected, rtol=1e-5, atol=1e-6)
    answers = expected if end == "none" else tf.nn.softmax(expected)
    np.testing.assert_allclose(model(images), answers, rtol=1e-5, atol=1e-6)


def test_logits_without_softmax_in_files_and_other_precisions(tmp_path, make_images):
    classifier = defend(small(activation="softmax"), {"sum": CIFS()})
    images = make_images((2, 8, 8, 3))
    classifier.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(images), classifier(images))
    exact = cifs_tf.models.with_precision(classifier, "float64")(images)
    np.testing.assert_allclose(exact, classifier(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", PREPROCESSING)
def test_preprocessing_by_name_is_that_of_keras_applications(mode, make_images):
    """`raw` is the multiplication by 255; the others are compared with Keras' own."""
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(keras.layers.Conv2D(4, 3)(image))))
    images = make_images((2, 8, 8, 3))
    pixels = images.numpy() * 255
    expected = pixels if mode == "raw" else keras.applications.imagenet_utils.preprocess_input(pixels, mode=mode)
    found = defend(model, preprocessing=mode)(images)[:, 0]
    np.testing.assert_allclose(found, model(expected), rtol=1e-4, atol=1e-4)


def test_preprocessing_by_layers(make_images):
    """2 (4 x) - 1, in order; the layers can be found by their names."""
    layers = [keras.layers.Rescaling(4.0, name="four"), keras.layers.Rescaling(2.0, -1.0, name="two")]
    model, images = small(), make_images((2, 8, 8, 3))
    classifier = defend(model, preprocessing=layers)
    np.testing.assert_allclose(classifier(images)[:, 0], model(8 * images - 1), rtol=1e-5, atol=1e-6)
    assert [layer.name for layer in classifier.backbone.layers[1:3]] == ["four", "two"]


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("axis", [-1, 1, None])
def test_normalizations_by_known_statistics(axis, invert, make_images):
    """In front and inside: what they do is kept, in copies too."""
    front, inside = (keras.layers.Normalization(axis=axis, invert=invert) for _ in range(2))
    front.adapt(np.random.default_rng(1).normal(0.5, 0.3, (16, 8, 8, 3)))
    inside.adapt(np.random.default_rng(2).normal(0.2, 2.0, (16, 8, 8, 3)))
    layers = [keras.Input((8, 8, 3)), inside, keras.layers.Flatten(), keras.layers.Dense(3)]
    model, images = keras.Sequential(layers), make_images((2, 8, 8, 3))
    classifier, expected = defend(model, preprocessing=front), model(front(images))
    for each in (classifier, cifs_tf.models.with_precision(classifier, "float32")):
        np.testing.assert_allclose(each(images)[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_nested_models_are_taken_apart(make_images):
    """The usual transfer learning: a network in a `Sequential`, with a top; its inner layers can be cut."""
    inner = features((8, 8, 3), keras.layers.Conv2D)
    layers = [keras.Input((8, 8, 3)), inner, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    outer, images = keras.Sequential(layers), make_images((2, 8, 8, 3))
    classifier = defend(outer, {"low": CIFS(importance=ones), "high": CIFS(importance=ones)})
    assert list(classifier.cuts) == ["low", "high"]
    np.testing.assert_allclose(classifier(images)[:, 0], outer(images), rtol=1e-5, atol=1e-6)
    assert {id(weight) for weight in classifier.backbone.weights} == {id(weight) for weight in outer.weights}


def test_a_nested_model_whose_names_occur_elsewhere_stays_one_layer(make_images):
    image = keras.Input((8, 8, 3))
    twins = [features((8, 8, 3), keras.layers.Conv2D) for _ in range(2)]
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([twin(image) for twin in twins]))
    model, images = keras.Model(image, keras.layers.Dense(3)(x)), make_images((2, 8, 8, 3))
    classifier = defend(model, {twins[0].name: CIFS(importance=ones)})
    np.testing.assert_allclose(classifier(images)[:, 0], model(images), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=f"^cuts: received low; it lies inside {twins[0].name}"):
        defend(model, {"low": CIFS()})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "layer"),
    [((16, 2), keras.layers.Conv1D), ((4, 6, 6, 1), keras.layers.Conv3D)],
    ids=["signals", "volumes"],
)
def test_signals_and_volumes(shape, layer, make_images, tmp_path):
    """A network of open size without a top; the head is the mean over positions and a dense layer."""
    model = features((*[None] * (len(shape) - 1), shape[-1]), layer)
    cuts = {"low": CIFS("mlp", importance=ones), "high": CIFS(importance=ones)}
    classifier = defend(model, cuts, image_shape=shape, num_classes=4)
    assert (classifier.image_shape, classifier.num_classes) == (shape, 4)
    images, head = make_images((4, *shape)), classifier.backbone.get_layer("logits")
    expected = tf.reduce_mean(model(images), axis=list(range(1, len(shape)))) @ head.kernel + head.bias
    np.testing.assert_allclose(classifier(images)[:, 0], expected, rtol=1e-4, atol=1e-6)
    attack = PGD(epsilon=0.1, step_size=0.05, num_steps=1, random_start=True)
    trainer = AdversarialTrainer(classifier, PGDTraining(head_weights=head_weights(2, 2), attack=attack))
    trainer.compile(optimizer=keras.optimizers.SGD(0.1))
    trainer.fit(images, tf.range(4), batch_size=4, verbose=0)
    assert trainer.skipped_steps == 0
    if len(shape) == 2:
        assert (export(classifier, tmp_path / "export", formats=["savedmodel"]) / "saved_model.pb").exists()


def test_pooled_features_get_a_dense_layer():
    model = keras.applications.VGG16(weights=None, include_top=False, pooling="avg", input_shape=(32, 32, 3))
    classifier = defend(model, {"block5_conv3": CIFS()}, preprocessing="caffe", num_classes=7)
    assert classifier.backbone.layers[-1].kernel.shape == (512, 7)


def test_names_of_what_is_added_do_not_clash():
    image = keras.Input((8, 8, 3), name="image")
    model = keras.Model(image, keras.layers.Conv2D(4, 3, name="logits")(image))
    classifier = defend(model, {"logits": CIFS()}, num_classes=3)
    assert [layer.name for layer in classifier.backbone.layers] == ["image_", "logits", "pool", "logits_"]


def test_a_pixel_range_that_does_not_fit_is_refused():
    """These begin with a division by 127.5, and by 58 less a mean of 124: they take 0 to 255; `[]` insists."""
    for layer in (
        keras.layers.Rescaling(1 / 127.5, -1, name="scale"),
        keras.layers.Normalization(mean=124, variance=3364),
    ):
        model = keras.Sequential([keras.Input((8, 8, 3)), layer, keras.layers.Flatten(), keras.layers.Dense(3)])
        with pytest.raises(UserError, match=rf"^preprocessing: received None; .*{layer.name}.*0 to 255.*'raw'"):
            defend(model)
        defend(model, preprocessing=[])
        defend(model, preprocessing="raw")


def test_warns_of_convolutions_that_onednn_gets_wrong():
    def make(channels):
        image = keras.Input((8, 8, channels))
        return keras.Model(image, keras.layers.Conv2D(4, 1, strides=2, name="shortcut")(image))

    with pytest.warns(UserWarning, match=r"shortcut: strided 1x1 convolutions with fewer than 16 .*AveragePooling2D"):
        defend(make(15), num_classes=3)
    defend(make(16), num_classes=3)


class OwnCall(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, images):
        return self.dense(images)


def two_inputs():
    left, right = keras.Input((4,)), keras.Input((4,))
    return keras.Model([left, right], keras.layers.Dense(3)(keras.layers.Add()([left, right])))


def two_outputs():
    image = keras.Input((8, 8, 3))
    return keras.Model(image, [keras.layers.Flatten()(image), keras.layers.GlobalAveragePooling2D()(image)])


def ending_in(*layers, shape=(8, 8, 3)):
    return keras.Sequential([keras.Input(shape), keras.layers.Conv2D(4, 3), *layers])


@pytest.mark.parametrize(
    ("make", "kwargs", "message"),
    [
        (OwnCall, {}, r"^model: received own_call.*; its call is code of its own, which cannot be cut"),
        (lambda: keras.Sequential([keras.layers.Dense(3)]), {}, r"begin it with keras.Input"),
        (lambda: Classifier(resnet("resnet10", (8, 8, 3), 3, width=1)), {}, r"a Classifier already, give its backbone"),
        (two_inputs, {}, r"it has 2 inputs and 1 outputs"),
        (two_outputs, {}, r"it has 1 inputs and 2 outputs"),
        (
            lambda: ending_in(keras.layers.Conv2D(4, 3, data_format="channels_first", name="first")),
            {},
            r"first has chan",
        ),
        (small, {"preprocessing": "imagenet"}, r"^preprocessing: received imagenet; give one of raw, tf, torch, caffe"),
        (small, {"preprocessing": [np.abs]}, r"^preprocessing: received .*give layers"),
        (small, {"preprocessing": keras.layers.Rescaling(2.0, name="low")}, r"^preprocessing: received low; the model"),
        (
            small,
            {"image_shape": (9, 8, 3)},
            r"^image_shape: received \(9, 8, 3\); the model takes images of \(8, 8, 3\)",
        ),
        (
            lambda: ending_in(shape=(None, None, 3)),
            {"num_classes": 3},
            r"^image_shape: received None; .*\(None, None, 3\)",
        ),
        (lambda: ending_in(shape=(8, 8, 1)), {"num_classes": 3, "preprocessing": "caffe"}, r"3 channels, these have 1"),
        (ending_in, {}, r"^num_classes: received None; the model ends in features \(None, 6, 6, 4\)"),
        (lambda: ending_in(keras.layers.GlobalMaxPooling2D()), {}, r"^num_classes: received None"),
        (ending_in, {"num_classes": 1}, r"^num_classes: received 1"),
        (small, {"num_classes": 4}, r"^num_classes: received 4; the model already answers with \(3,\)"),
        (lambda: small(activation="sigmoid"), {}, r"^model: received sigmoid at the end of top"),
        (
            lambda: keras.Sequential([keras.Input((4, 1)), keras.layers.Flatten(), keras.layers.Dense(1)]),
            {},
            r"1 classes",
        ),
        (
            lambda: small(activation=lambda x: keras.ops.softmax(x)),
            {},
            r"it answers with probabilities, end it in logits",
        ),
    ],
)
def test_refusals_say_why(make, kwargs, message):
    with pytest.raises(UserError, match=message):
        defend(make(), **kwargs)


class Pair(keras.layers.Layer):
    def call(self, x):
        return x, x + 1.0


def hard_to_cut():
    image = keras.Input((8, 8, 3))
    shared = keras.layers.Conv2D(3, 3, padding="same", name="shared")
    first, second = Pair(name="pair")(shared(shared(image)))
    x = keras.layers.Permute((3, 1, 2), name="permuted")(first + second)
    x = keras.layers.Conv2D(4, 3, name="conv")(x)
    return keras.Model(image, keras.layers.Dense(3, name="top")(keras.layers.GlobalAveragePooling2D(name="mean")(x)))


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ("image", "this is the input"),
        ("shared", "used 2 times and would need as many probes"),
        ("pair", "answers with 2 tensors"),
        ("add", "an operation without a layer"),
        ("mean", r"its output \(None, 4\) is no feature map \(batch, ..., channels\), such as"),
        ("cnov", "name a layer of the backbone, such as conv"),
    ],
)
def test_cuts_that_cannot_be_made_say_why(cut, message):
    model = hard_to_cut()
    if cut == "add":
        cut = next(each.name for each in model.operations if not isinstance(each, keras.layers.Layer))
    with pytest.raises(UserError, match=rf"^cuts: received {cut}; .*{message}"):
        defend(model, {cut: CIFS()})


def test_channels_must_be_known():
    image = keras.Input((None, None, 3))
    x = keras.layers.Permute((3, 1, 2), name="permuted")(image)
    model = keras.Model(
        image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D(data_format="channels_first")(x))
    )
    with pytest.raises(UserError, match=r"^cuts: received permuted; the channels of its output .* are unknown"):
        Classifier(model, {"permuted": CIFS()})


def test_a_classifier_needs_a_functional_backbone():
    with pytest.raises(UserError, match=r"^backbone: received .*cifs_tf.defend"):
        Classifier(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]))


def gated(softmax):
    """The softmax layer at the end also makes a gate inside."""
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="low")(image)
    x = keras.layers.Multiply()([x, softmax(x)])
    return keras.Model(image, softmax(keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))))


def siamese():
    """A nested model that ends in softmax is called twice."""
    vector = keras.Input((3,))
    inner = keras.Model(vector, keras.layers.Softmax()(keras.layers.Dense(3)(vector)))
    image = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(3, 3, name="low")(image))
    return keras.Model(image, inner(inner(x)))


class Sharpened(keras.layers.Dense):
    """A dense layer whose logits are not inputs times kernel plus bias."""

    def call(self, inputs):
        return keras.ops.softmax(10 * keras.ops.matmul(inputs, self.kernel))


def answering_with(layer):
    image = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, name="low")(image))
    return keras.Model(image, layer(x))


def quantised():
    model = answering_with(keras.layers.Dense(3, activation="softmax"))
    model.quantize("int8")
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: gated(keras.layers.Softmax()),
        lambda: gated(keras.layers.Activation("softmax")),
        siamese,
        lambda: answering_with(Sharpened(3, activation="softmax")),
        quantised,
    ],
    ids=["softmax twice", "activation twice", "nested model twice", "subclass", "quantised"],
)
def test_a_softmax_that_cannot_be_left_out_is_refused(make):
    """Without it the model would answer differently, and nobody would be told."""
    with pytest.raises(UserError, match="it answers with probabilities"):
        defend(make(), {"low": CIFS()})


def test_a_nested_model_called_by_keyword_is_taken_apart():
    inner_image = keras.Input((8, 8, 3))
    inner = keras.Model(inner_image, keras.layers.Conv2D(4, 3, name="inside")(inner_image))
    image = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(inner(inputs=image))
    model = keras.Model(image, keras.layers.Dense(3)(x))
    classifier = defend(model, {"inside": CIFS(importance=ones)})
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    np.testing.assert_allclose(classifier(images)[:, 0], model(images), atol=1e-6)


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ({"low": "mlp"}, "cuts: received mlp; give a selection layer for low, such as CIFS"),
        ({"low": CIFS}, "give a selection layer for low"),
        (["low"], "give selection layers by the name of the layer"),
        ({1: CIFS()}, "cuts: received 1; give the name of a layer"),
        ({"low": keras.layers.Dense(4)}, "give a selection layer for low"),
        (dict.fromkeys(["low", "sum"], CIFS()), "one selection layer stands at several cuts"),
        ({"low": CIFS(num_classes=10)}, "its selection layer is for 10 classes, the backbone has 3"),
    ],
    ids=["text", "class", "list", "number", "dense", "twice", "classes"],
)
def test_cuts_that_are_none_are_refused(cuts, message):
    with pytest.raises(UserError, match=message):
        defend(small(), cuts)


@pytest.mark.parametrize("shape", [8, (None, None, 3), "8x8"])
def test_image_shapes_that_are_none_are_refused(shape):
    with pytest.raises(UserError, match=r"image_shape: received .*; give numbers: \(height, width, channels\)"):
        defend(small(), image_shape=shape)


def test_a_defended_model_that_ended_in_softmax_can_be_looked_into():
    model = small(activation="softmax")
    classifier = defend(model, {"low": CIFS()})
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    assert channel_activations(classifier, images).shape == (2, 4)
    np.testing.assert_array_equal(last_layer_weights(classifier), model.get_layer("top").kernel)


def test_activations_in_bfloat16_are_float32_numbers():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        classifier = defend(small(dtype="float32"), {"low": CIFS()})
    finally:
        keras.config.set_dtype_policy("float32")
    assert channel_activations(classifier, np.zeros((2, 8, 8, 3), np.float32)).dtype == np.float32
