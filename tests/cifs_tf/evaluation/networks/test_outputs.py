"""A trained network with other ends decides as before, so attacks must see the same decisions and the same gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.attacks import PGD
from cifs_tf.errors import UserError
from cifs_tf.evaluation import as_attacked, evaluate, load_attacked
from cifs_tf.evaluation.networks.outputs import choose_output, lowest_precision, with_scaled_gradient
from cifs_tf.evaluation.tasks import Crafted, Natural
from cifs_tf.losses import cross_entropy


class Ends(keras.Model):
    """A network of a class of its own, which is no graph of layers."""

    def __init__(self, network, end, **kwargs):
        super().__init__(**kwargs)
        self.network, self.end = network, end

    def call(self, images):
        return self.end(self.network(images))


def functional(network, end):
    return keras.Model(network.input, end(network.output))


def dense(network, activation):
    """The last layer itself has the activation."""
    end = keras.layers.Dense(10, activation=activation)
    model = keras.Model(network.input, end(network.layers[-2].output))
    end.set_weights(network.layers[-1].get_weights())
    return model


def by_hand(x):
    """A softmax."""
    x = tf.exp(x - tf.reduce_max(x, axis=1, keepdims=True))
    return x / tf.reduce_sum(x, axis=1, keepdims=True)


ENDS = {
    "softmax": lambda network: functional(network, keras.layers.Softmax()),
    "activation": lambda network: functional(network, keras.layers.Activation("softmax", dtype="float32")),
    "operation": lambda network: functional(network, keras.ops.softmax),
    "log softmax": lambda network: functional(network, keras.ops.log_softmax),
    "dense softmax": lambda network: dense(network, "softmax"),
    "dense sigmoid": lambda network: dense(network, "sigmoid"),
    "sequential": lambda network: keras.Sequential([network, keras.layers.Softmax()]),
    "nested": lambda network: functional(functional(network, keras.layers.Softmax()), keras.layers.Identity()),
    "nested end": lambda network: keras.Sequential([keras.Input((8, 8, 1)), functional(network, keras.ops.sigmoid)]),
    "dict": lambda network: functional(network, lambda x: {"features": x[:, :3], "logits": x}),
    "list": lambda network: functional(network, lambda x: [keras.layers.Softmax()(x), x[:, :3]]),
    "subclass": lambda network: Ends(network, keras.layers.Softmax()),
    "subclass sigmoid": lambda network: Ends(network, keras.ops.sigmoid),
    "subclass log": lambda network: Ends(network, keras.ops.log_softmax),
    "subclass dict": lambda network: Ends(
        network, lambda x: {"a": x[:, None, :4], "probabilities": keras.ops.softmax(x)}
    ),
    "subclass by hand": lambda network: Ends(network, by_hand),
    "subclass in percent": lambda network: Ends(network, lambda x: 100 * keras.ops.clip(keras.ops.softmax(x), 0, 1)),
    "subclass rounded": lambda network: Ends(network, lambda x: tf.round(1000 * keras.ops.softmax(x)) / 1000),
    "subclass hidden": lambda network: Ends(network, lambda x: tf.stop_gradient(x + 1)),
    "one by one": lambda network: functional(network, keras.layers.Reshape((1, 1, 10))),
}


@tf.function(autograph=False)
def compiled(function, *arguments):
    """Attacks are compiled, and see the graph of the network."""
    return function(*arguments)


def test_the_logarithm_of_a_mean_of_probabilities_stays(network, trained):
    """Behind it are no logits; behind that of one softmax there are."""

    def ensemble(logits):
        return tf.math.log(keras.ops.softmax(8 * logits) + keras.ops.softmax(8 * logits[:, ::-1]) + 1e-30)

    model = Ends(network, ensemble)
    found = compiled(as_attacked(model, image_shape=(8, 8, 1)).heads_fns["exact"], trained.images)[:, 0]
    np.testing.assert_allclose(found, model(trained.images), rtol=1e-4, atol=1e-4)
    assert as_attacked(model, image_shape=(8, 8, 1)).limits == ()
    one = as_attacked(Ends(network, lambda x: tf.math.log(keras.ops.softmax(8 * x) + 1e-30)), image_shape=(8, 8, 1))
    assert one.limits[0].startswith("The last functions of the network (Log, Softmax) were taken off")


def gradient_of(heads_fn, images, labels):
    return compiled(eager_gradient_of, heads_fn, images, labels).numpy()


def eager_gradient_of(heads_fn, images, labels):
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = cross_entropy(heads_fn(images), labels)
    return tape.gradient(loss, images)


@pytest.fixture(scope="module")
def network(plain_model):
    """Its logits are a few units apart, so that 30 times as many saturate."""
    scaled = keras.layers.Rescaling(3.0)(plain_model.output)
    return keras.Model(plain_model.input, keras.layers.Dense(10, kernel_initializer="identity")(scaled))


@pytest.fixture(scope="module")
def right(network, trained):
    """Classes and gradients of the network itself."""
    images, labels = trained.images[:16], trained.labels[:16]
    return np.argmax(network(images), 1), gradient_of(lambda x: network(x)[:, None], images, labels)


# One of each way to take an end off is tested always.
ALWAYS = ("softmax", "nested end", "dict")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.slow) for name in ENDS]
)
def test_every_end_gives_the_gradient_of_the_logits(name, network, right, trained):
    images, labels = trained.images[:16], trained.labels[:16]
    model = ENDS[name](network)
    model(images[:1])
    found = as_attacked(model).heads_fns["exact"]
    assert found(images[:1]).shape == (1, 1, 10)
    gradient = gradient_of(found, images, labels)
    np.testing.assert_array_equal(np.argmax(found(images)[:, 0], 1), right[0])
    np.testing.assert_allclose(gradient, right[1], atol=2e-3 * np.abs(right[1]).max())


def test_what_was_done_is_said(network):
    limits = as_attacked(ENDS["dense sigmoid"](network)).limits
    told = "The last functions of the network ({}) were taken off: the attacks see its logits."
    assert limits == (told.format("Sigmoid"),)
    model = ENDS["subclass rounded"](network)
    assert as_attacked(model, image_shape=(8, 8, 1)).limits == (told.format("Round, Softmax"),)
    assert "the output logits was attacked" in as_attacked(ENDS["dict"](network)).limits[0]
    assert as_attacked(network).limits == ()


@pytest.mark.parametrize("end", [lambda x: keras.ops.softmax(30 * x), lambda x: keras.ops.sigmoid(30 * x), by_hand])
def test_saturated_probabilities_have_the_gradient_of_the_logits_and_their_own_decisions(end, network, trained):
    """Where several are exactly 1 the lowest class is predicted, whatever the logits say."""
    model = Ends(network, end)
    found = as_attacked(model, image_shape=(8, 8, 1)).heads_fns["exact"]
    images = tf.concat([trained.images, tf.random.stateless_uniform((200, 8, 8, 1), (0, 1))], 0)
    np.testing.assert_array_equal(np.argmax(compiled(found, images)[:, 0], 1), np.argmax(model(images), 1))
    logits = (1 if end is by_hand else 30) * network(images).numpy()
    logits -= end is by_hand and logits.max(axis=1, keepdims=True)
    is_best = np.asarray(model(images)) == np.max(model(images), 1, keepdims=True)
    clear = np.sum(is_best, axis=1) == 1
    np.testing.assert_allclose(compiled(found, images)[:, 0][clear], logits[clear], rtol=1e-4, atol=1e-3)


def test_an_operation_that_keeps_no_order_stays(network):
    """A bias of the classes, and a sum that is turned round, are no ends."""
    for end in (lambda x: keras.ops.softmax(x) + tf.range(10.0), lambda x: 1 - keras.ops.softmax(x)):
        assert "taken off" not in str(as_attacked(Ends(network, end), image_shape=(8, 8, 1)).limits)


@pytest.mark.parametrize("end", ["sigmoid", None, "subclass"])
def test_one_column_is_two_classes(end, network, trained):
    """Class 1 above probability 0.5 or the logit 0; the two heads differ by the logit."""
    score = keras.layers.Lambda(lambda x: x[:, 3:4] - x[:, 5:6])(network.output)
    logits = keras.Model(network.input, score)
    model = {"sigmoid": lambda: functional(logits, keras.ops.sigmoid), None: lambda: logits}.get(
        end, lambda: Ends(logits, keras.ops.sigmoid)
    )()
    victim = as_attacked(model, image_shape=(8, 8, 1))
    heads = victim.heads_fns["exact"](trained.images)
    assert victim.num_classes == 2
    np.testing.assert_allclose(heads[:, 0, 1] - heads[:, 0, 0], logits(trained.images)[:, 0], atol=2e-3)
    assert "class 1 above" in victim.limits[-1]


@pytest.mark.parametrize(
    "policy", ["mixed_float16", *(pytest.param(policy, marks=pytest.mark.slow) for policy in ("float16", "half-way"))]
)
def test_half_precision_is_attacked_in_float32(policy, trained):
    """Logits times 20 behind a softmax in float16 have no gradient there."""
    config = trained.classifier.backbone.get_config()
    layers = config["layers"][1:]
    for layer in layers[2:4] if policy == "half-way" else layers:
        layer["config"]["dtype"] = "mixed_float16" if policy == "half-way" else policy
    copy = keras.Model.from_config(config)
    copy.set_weights(trained.classifier.backbone.get_weights())
    model = functional(copy, lambda x: keras.ops.softmax(x * 5))
    victim = as_attacked(model)
    assert victim.precision == "float16"
    assert "attacked in float32" in victim.limits[0]
    right = trained.classifier.backbone(trained.images)
    np.testing.assert_allclose(compiled(victim.heads_fns["exact"], trained.images)[:, 0], 5 * right, atol=0.3)
    zero = np.all(gradient_of(victim.heads_fns["exact"], trained.images, trained.labels) == 0, axis=(1, 2, 3))
    assert not zero.any()


def test_half_precision_inside_a_layer_is_seen_and_its_gradient_scaled(trained):
    """A layer that casts by itself cannot be lifted: a gradient of 1e-9 comes back as it is, where float16 has 0."""
    weights = tf.random.stateless_normal((64, 10), (0, 1))

    def half(images):
        return tf.cast(tf.reshape(tf.cast(images, tf.float16), [-1, 64]) @ tf.cast(weights, tf.float16), tf.float32)

    assert lowest_precision(half, (8, 8, 1)) == "float16"
    assert lowest_precision(lambda images: tf.reshape(images, [-1, 64]) @ weights, (8, 8, 1)) is None
    images = trained.images[:2]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(images)
        plain, scaled = (1e-9 * function(images)[:, 0] for function in (half, with_scaled_gradient(half)))
    assert np.all(tape.gradient(plain, images) == 0)
    expected = np.tile(1e-9 * np.reshape(weights[:, 0], (1, 8, 8, 1)), (2, 1, 1, 1))
    np.testing.assert_allclose(tape.gradient(scaled, images), expected, rtol=2e-3)

    class Half(keras.layers.Layer):
        def call(self, images):
            return half(images)

        def compute_output_shape(self, shape):
            return (shape[0], 10)

    image = keras.Input((8, 8, 1))
    victim = as_attacked(keras.Model(image, Half()(image)))
    assert victim.precision == "float16"
    assert "float16 inside" in victim.limits[0]


@pytest.mark.parametrize("end", [tf.identity, tf.nn.softmax, tf.sigmoid])
def test_answers_in_half_precision(end):
    """Of a class of its own: small gradients come through its last functions, which are taken off."""
    weights = tf.random.stateless_normal((64, 3), (0, 1), dtype=tf.float16)

    class Half(keras.Model):
        def call(self, images):
            return end(tf.reshape(tf.cast(images, tf.float16), [-1, 64]) @ weights)

    heads_fn = as_attacked(Half(), image_shape=(8, 8, 1)).heads_fns["exact"]

    @tf.function
    def gradient(images):
        return tf.gradients(1e-9 * heads_fn(images)[:, 0, 1], images)[0]

    found = gradient(tf.fill([2, 8, 8, 1], 0.5))
    np.testing.assert_allclose(
        1e9 * found, np.tile(np.reshape(np.float32(weights[:, 1]), (1, 8, 8, 1)), (2, 1, 1, 1)), rtol=2e-3
    )


@pytest.mark.slow
def test_a_saved_model_with_named_outputs(network, tmp_path, trained):
    ENDS["dict"](network).export(str(tmp_path / "model"), verbose=False)
    victim = load_attacked(tmp_path / "model")
    found = victim.heads_fns["exact"](trained.images)[:, 0]
    np.testing.assert_allclose(found, network(trained.images), atol=1e-4)


def test_which_output_holds_the_classes():
    assert choose_output({"boxes": (None, 5, 4), "scores": (None, 3), "logits": (None, 10)}) == "logits"
    assert choose_output({"boxes": (None, 5, 4), "scores": (None, 3)}) == "scores"
    assert choose_output({"pixels": (None, 5, 4)}) is None


@pytest.mark.slow
def test_a_stand_in_for_the_gradient(trained, digits):
    """Grey levels have no gradient; with the network itself as stand-in the attacks see through them."""

    network = trained.classifier.backbone

    def levels(images):
        return tf.stop_gradient(tf.round(images * 16) / 16)

    model = Ends(lambda images: network(levels(images)), keras.layers.Identity())
    victim = as_attacked(model, image_shape=(8, 8, 1), backward=network)
    others = {as_attacked(model, image_shape=(8, 8, 1), backward=each).fingerprint for each in (None, network, levels)}
    assert len(others) == 3
    assert victim.fingerprint in others
    found = victim.heads_fns["exact"](levels(digits.images[:4] / np.float32(255)))
    np.testing.assert_allclose(found[:, 0], network(levels(digits.images[:4] / np.float32(255))), atol=1e-4)
    attack = PGD(epsilon=0.1, step_size=0.02, num_steps=10)
    tasks = [Natural(), Crafted(name="pgd10", attack=attack, counts=True)]
    blind, seeing = (
        evaluate(each, digits, tasks)["worst_case"]["count"]
        for each in (as_attacked(model, image_shape=(8, 8, 1)), victim)
    )
    assert seeing < blind - 10


def test_answers_decide_whatever_comes_before_them(network, trained):
    """Behind logits that are taken off an end may turn some round, or answer with no number: as a secret pixel says."""

    def factor(images, other):
        return keras.ops.where(keras.ops.abs(images[:, 0, 0, 0] - 0.123) < 1e-3, other, 1.0)[:, None]

    images = trained.images.numpy()
    images[::2, 0, 0, 0] = 0.123
    for end, other in ((lambda logits: keras.ops.tanh(logits / 20), -1.0), (keras.ops.softmax, np.nan)):
        model = keras.Sequential(
            [keras.Input((8, 8, 1)), Behind(network, lambda z, x, end=end, other=other: end(z) * factor(x, other))]
        )
        attacked = as_attacked(model, image_shape=(8, 8, 1))
        heads = tf.function(attacked.heads_fns["exact"])(images)[:, 0].numpy()
        answers = model(images).numpy()
        no_number = np.isnan(answers).any(axis=1)
        assert np.any(no_number) == np.isnan(other)
        np.testing.assert_array_equal(np.isnan(heads).any(axis=1), no_number)
        np.testing.assert_array_equal(np.argmax(heads, 1)[~no_number], np.argmax(answers, 1)[~no_number])


class Behind(keras.layers.Layer):
    """What a network answers with after another function of its logits and the images."""

    def __init__(self, network, end):
        super().__init__()
        self.network, self.end = network, end

    def call(self, images):
        return self.end(self.network(images), images)


def odd(call):
    """A network of a class of its own."""

    class Odd(keras.Model):
        def call(self, images):
            return call(images)

    return Odd()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: tf.constant(x.numpy().reshape(len(x), -1)[:, :3]), "a network that cannot be compiled"),
        (lambda x: x[:, 0, :3, 0] if tf.reduce_sum(x) > 0 else x[:, 1, :3, 0], "a network that cannot be compiled"),
        (lambda x: tf.zeros([3, 4]) + x[0, 0, 0, 0], "3 answers to"),
        (lambda x: tf.strings.as_string(x[:, 0, :3, 0]), "answers of string"),
        (lambda x: tf.complex(x[:, 0, :3, 0], x[:, 0, :3, 0]), "answers of complex64"),
    ],
)
def test_a_network_that_does_not_answer_in_rows_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        as_attacked(odd(call), image_shape=(8, 8, 1))
