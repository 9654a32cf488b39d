"""SGD against PyTorch's, written in NumPy, and the step decay."""

import keras
import numpy as np
import pytest

from cifs_tf.adversarial import SGD, step_decay
from cifs_tf.errors import UserError


class TorchSGD:
    """torch.optim.SGD: d = g + weight_decay w; v = momentum v + d; w = w - lr v."""

    def __init__(self, momentum, weight_decay):
        self.momentum, self.weight_decay, self.velocity = momentum, weight_decay, 0.0

    def step(self, weight, gradient, learning_rate):
        self.velocity = self.momentum * self.velocity + gradient + self.weight_decay * weight
        return weight - learning_rate * self.velocity


def make_problem(seed=0):
    """A weight, and three gradients for it."""
    values = np.random.default_rng(seed).normal(size=(4, 3, 2))
    return values[0], values[1:]


def apply(optimizer, variable, gradient):
    optimizer.apply_gradients([(keras.ops.convert_to_tensor(gradient, dtype=variable.dtype), variable)])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_equal_pytorchs(momentum, weight_decay):
    """Two steps at rate 0.1 and one after a drop to 0.01, which acts on the whole velocity at once."""
    weight, gradients = make_problem()
    variable = keras.Variable(weight, dtype="float64")
    optimizer, torch = SGD(0.1, momentum, weight_decay), TorchSGD(momentum, weight_decay)
    for gradient, learning_rate in zip(gradients, (0.1, 0.1, 0.01), strict=True):
        optimizer.learning_rate = learning_rate
        apply(optimizer, variable, gradient)
        weight = torch.step(weight, gradient, learning_rate)
        np.testing.assert_allclose(variable, weight, rtol=1e-6)


def test_two_steps_by_hand():
    """w = 1, g = 1 and 0, momentum 0.5, decay 0.1, rate 0.1 then 0.2.

    v = 1 + 0.1 = 1.1, w = 1 - 0.11 = 0.89; v = 0.55 + 0.089 = 0.639, w = 0.89 - 0.1278 = 0.7622.
    """
    variable = keras.Variable([1.0])
    optimizer = SGD(0.1, momentum=0.5, weight_decay=0.1)
    apply(optimizer, variable, [1.0])
    np.testing.assert_allclose(variable, [0.89], rtol=1e-6)
    optimizer.learning_rate = 0.2
    apply(optimizer, variable, [0.0])
    np.testing.assert_allclose(variable, [0.7622], rtol=1e-6)


def test_biases_and_batch_normalisation_decay_too():
    """PyTorch's default: weight decay on every parameter. Zero gradients shrink each by the factor 1 - 0.1 * 0.5."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()])
    optimizer, before = SGD(0.1, weight_decay=0.5), []
    for weight in model.trainable_variables:
        weight.assign(np.full(weight.shape, 2.0))
        before.append(weight.numpy())
    gradients = [keras.ops.zeros_like(weight) for weight in model.trainable_variables]
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    assert len(before) == 4
    for weight in model.trainable_variables:
        np.testing.assert_allclose(weight, np.full(weight.shape, 1.9), rtol=1e-6)


def test_several_variables_keep_their_own_velocity():
    first, second = keras.Variable([1.0, 2.0]), keras.Variable([[3.0]])
    optimizer = SGD(0.1, momentum=0.9)
    for _ in range(2):
        gradients = [keras.ops.ones((2,)), 2 * keras.ops.ones((1, 1))]
        optimizer.apply_gradients(zip(gradients, [first, second], strict=True))
    # v = 1, then 1.9: in all 0.29 times the gradient.
    np.testing.assert_allclose(first, [0.71, 1.71], rtol=1e-6)
    np.testing.assert_allclose(second, [[2.42]], rtol=1e-6)


def test_serialisation():
    optimizer = SGD(0.05, momentum=0.9, weight_decay=2e-4)
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(copy) is SGD
    assert copy.get_config() == optimizer.get_config()
    assert (copy.momentum, copy.coupled_weight_decay) == (0.9, 2e-4)
    assert copy.get_config()["weight_decay"] == 2e-4
    np.testing.assert_allclose(copy.learning_rate, 0.05)


def test_serialised_copy_makes_the_same_steps():
    weight, gradients = make_problem()
    optimizer = SGD(0.1, momentum=0.9, weight_decay=0.1)
    copy = SGD.from_config(optimizer.get_config())
    variables = [keras.Variable(weight), keras.Variable(weight)]
    for gradient in gradients:
        for each, variable in zip((optimizer, copy), variables, strict=True):
            apply(each, variable, gradient)
    np.testing.assert_array_equal(variables[0], variables[1])


@pytest.mark.parametrize(
    ("kwargs", "argument", "received"),
    [
        ({"momentum": -0.1}, "momentum", -0.1),
        ({"momentum": 1.5}, "momentum", 1.5),
        ({"weight_decay": -1e-4}, "weight_decay", -0.0001),
        ({"weight_decay": None}, "weight_decay", None),
    ],
)
def test_errors_name_the_argument_and_the_value(kwargs, argument, received):
    with pytest.raises(UserError, match=rf"^{argument}: received {received};"):
        SGD(0.1, **kwargs)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.1), (748, 0.1), (749, 0.1), (750, 0.01), (899, 0.01), (900, 0.001), (1199, 0.001)],
)
def test_step_decay(step, expected):
    """Milestones 75 and 90 of 10 steps: steps are counted from 0, so step 750 is the first of the 76th epoch."""
    schedule = step_decay(0.1, (75, 90), 0.1, steps_per_epoch=10)
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-6)


def test_step_decay_in_the_optimizer():
    """Gradient 1; a milestone after 1 epoch of 2 steps: rates 1, 1, 0.5, ..., so w = -1, -2, -2.5, -3, -3.5."""
    optimizer, variable = SGD(step_decay(1.0, (1,), 0.5, steps_per_epoch=2)), keras.Variable([0.0])
    trace = []
    for _ in range(5):
        apply(optimizer, variable, [1.0])
        trace.append(float(variable.numpy()[0]))
    assert trace == [-1.0, -2.0, -2.5, -3.0, -3.5]
