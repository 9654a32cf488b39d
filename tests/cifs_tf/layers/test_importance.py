"""Importance functions against NumPy, and functions of one's own."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cifs_tf.errors import UserError
from cifs_tf.layers import (
    CIFS,
    ConstantImportance,
    SigmoidImportance,
    SoftmaxImportance,
    SoftplusImportance,
    get_importance,
    register_importance,
)
from cifs_tf.models import Classifier

RELEVANCE = hnp.arrays(np.float64, (2, 6), elements=st.floats(-30, 30, width=32))
POSITIVE = st.floats(0.1, 20)
NON_NEGATIVE = [
    SoftmaxImportance(),
    SoftmaxImportance(temperature=0.1),
    SoftmaxImportance(scale="mean_one"),
    SoftplusImportance(),
    SigmoidImportance(),
    ConstantImportance(),
    ConstantImportance(scale="mean_one"),
]


@register_importance("tests_relu")
def relu_importance(relevance):
    return tf.nn.relu(relevance)


@register_importance("tests_power")
@dataclasses.dataclass(frozen=True)
class PowerImportance:
    exponent: float = 2.0

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __call__(self, relevance):
        return tf.nn.relu(relevance) ** self.exponent


def softmax(x):
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


@given(RELEVANCE, POSITIVE)
def test_softmax(relevance, temperature):
    """m = softmax(g / T), which sums to one; mean_one multiplies by the 6 channels."""
    found = get_importance("softmax", temperature=temperature)(tf.constant(relevance)).numpy()
    np.testing.assert_allclose(found, softmax(relevance / temperature), rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-9)
    mean_one = SoftmaxImportance(temperature, scale="mean_one")(tf.constant(relevance)).numpy()
    np.testing.assert_allclose(mean_one, 6 * found, rtol=1e-12)
    np.testing.assert_allclose(mean_one.mean(axis=1), 1, rtol=1e-9)


@given(RELEVANCE, POSITIVE)
def test_softplus(relevance, alpha):
    """m = log(1 + exp(alpha g)) / alpha."""
    found = get_importance("softplus", alpha=alpha)(tf.constant(relevance))
    np.testing.assert_allclose(found, np.logaddexp(0, alpha * relevance) / alpha, rtol=1e-9, atol=1e-15)


@given(RELEVANCE, POSITIVE)
def test_sigmoid(relevance, alpha):
    """m = 1 / (1 + exp(-alpha g)) = exp(-log(1 + exp(-alpha g)))."""
    found = get_importance("sigmoid", alpha=alpha)(tf.constant(relevance))
    np.testing.assert_allclose(found, np.exp(-np.logaddexp(0, -alpha * relevance)), rtol=1e-9)


def name_of(importance):
    """A test id that is the same in every process."""
    return getattr(importance, "__name__", str(importance))


@pytest.mark.parametrize("function", NON_NEGATIVE, ids=repr)
@given(relevance=RELEVANCE)
def test_non_negative_and_monotone(function, relevance):
    """A more relevant channel is never less important, and no importance is negative (Section 3.2, step 3)."""
    found = function(tf.constant(relevance)).numpy()
    assert np.all(found >= 0)
    for row, importance in zip(relevance, found, strict=True):
        ascending = importance[np.argsort(row)]
        assert np.all(np.diff(ascending) >= -1e-12 * np.abs(ascending[1:]))


@pytest.mark.parametrize("function", NON_NEGATIVE, ids=repr)
def test_finite_for_huge_relevance(function):
    found = function(tf.constant([[-1e6, 0.0, 1e6]]))
    assert np.all(np.isfinite(found))


def test_defaults_are_the_papers():
    assert get_importance("softmax") == SoftmaxImportance(temperature=1.0, scale="sum_to_one")
    assert get_importance("softplus") == SoftplusImportance(alpha=5.0)
    assert get_importance("sigmoid") == SigmoidImportance(alpha=10.0)


def test_negative_relevance_is_suppressed():
    """sigmoid(10 * -1) = 4.54e-5, softplus(5 * -1) / 5 = 1.343e-3: close to zero, as step 3 asks."""
    relevance = tf.constant([[-1.0]])
    np.testing.assert_allclose(get_importance("sigmoid")(relevance), [[4.53979e-5]], rtol=1e-5)
    np.testing.assert_allclose(get_importance("softplus")(relevance), [[1.343070e-3]], rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "argument", "received"),
    [
        (lambda: get_importance("softmaxx"), "importance", "softmaxx"),
        (lambda: get_importance("softmax", temperature=0), "temperature", 0),
        (lambda: get_importance("softmax", temperature=-1.5), "temperature", -1.5),
        (lambda: get_importance("softmax", temperature=float("nan")), "temperature", "nan"),
        (lambda: get_importance("softmax", scale="sum"), "importance_scale", "sum"),
        (lambda: get_importance("softplus", alpha=0.0), "alpha", 0.0),
        (lambda: get_importance("sigmoid", alpha=-3), "alpha", -3),
        (lambda: get_importance("sigmoid", temperature=1.0), "importance", "sigmoid"),
        (lambda: CIFS(importance=SoftmaxImportance(), importance_scale="mean_one"), "importance_scale", "mean_one"),
        (lambda: CIFS(importance="sigmoid", importance_scale="mean_one"), "importance", "sigmoid"),
        (lambda: get_importance("tests_relu", alpha=1.0), "importance", "tests_relu"),
        (lambda: register_importance("softmax")(lambda g: g), "importance", "softmax"),
    ],
)
def test_errors_name_the_argument_and_the_value(make, argument, received):
    with pytest.raises(UserError, match=rf"^{argument}: received {received};"):
        make()


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"sigmoid, softmax, softplus.*register_importance"):
        get_importance("softmaxx")


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        ("tests_relu", [0.0, 0.5, 3.0]),
        (relu_importance, [0.0, 0.5, 3.0]),
        ("tests_power", [0.0, 0.25, 9.0]),
        (PowerImportance(exponent=3.0), [0.0, 0.125, 27.0]),
    ],
)
def test_function_of_ones_own(importance, expected):
    np.testing.assert_allclose(get_importance(importance)(tf.constant([[-2.0, 0.5, 3.0]])), [expected])


def test_registered_class_takes_parameters():
    assert get_importance("tests_power", exponent=0.5) == PowerImportance(exponent=0.5)


@pytest.mark.parametrize("importance", [*NON_NEGATIVE, relu_importance, PowerImportance(exponent=3.0)], ids=name_of)
def test_serialisation_round_trip(importance):
    config = keras.saving.serialize_keras_object(importance)
    assert get_importance(config) == importance


@pytest.mark.parametrize("importance", ["tests_relu", PowerImportance(exponent=0.5)], ids=str)
def test_registered_function_survives_a_file(importance, make_images, tmp_path):
    """A .keras file refers to the function by name: no code is loaded, so safe mode may stay on."""
    image = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(3, 3, name="features")(image)
    backbone = keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(x)))
    classifier = Classifier(backbone, {"features": CIFS("mlp", importance=importance)})
    classifier.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    images = make_images((2, 4, 4, 2))
    np.testing.assert_allclose(loaded(images), classifier(images), atol=1e-6)
    assert loaded.cuts["features"].importance == get_importance(importance)
