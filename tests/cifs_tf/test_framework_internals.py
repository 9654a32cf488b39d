"""What each private name of Keras and TensorFlow must do."""

import ast
import contextlib
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf import framework_internals as internals


@pytest.fixture
def model():
    """Two paths, a layer that is used twice, and dropout."""
    image = keras.Input((4,))
    shared = keras.layers.Dense(4, name="shared")
    x = keras.layers.Dropout(0.5, name="dropout")(shared(shared(image)))
    return keras.Model(image, keras.layers.Add(name="sum")([x, image]))


def test_graph_of(model):
    class Subclass(keras.Model):
        pass

    class OwnCall(type(model)):
        def call(self, inputs):
            return super().call(inputs) + 1

    sequential = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    assert internals.graph_of(model) is model
    assert internals.graph_of(sequential).outputs[0].shape == (None, 2)
    others = (Subclass(), OwnCall(model.inputs, model.outputs), keras.Sequential([keras.layers.Dense(2)]))
    assert [internals.graph_of(layer) for layer in (*others, keras.layers.Dense(2))] == [None] * 4


def test_calls_come_in_an_order_in_which_they_can_be_made(model):
    known = {id(tensor) for tensor in model.inputs}
    names = []
    for node in internals.calls(model):
        assert {id(tensor) for tensor in node.input_tensors} <= known
        known |= {id(tensor) for tensor in node.outputs}
        names.append(node.operation.name)
    assert names == ["shared", "shared", "dropout", "sum"]


def test_run_graph_replaces_operations(model):
    inputs = np.random.default_rng(0).random((2, 4), np.float32)
    np.testing.assert_allclose(internals.run_graph(model, inputs), model(inputs, training=False), rtol=1e-6)
    without = {"dropout": lambda x, **_: x, "shared": lambda x, **_: 2 * x}
    found = internals.run_graph(model, inputs, operation_fn=lambda each: without.get(each.name, each))
    np.testing.assert_allclose(found, 5 * inputs, rtol=1e-6)

    def call(operation, *args, **kwargs):
        return without.get(operation.name, operation)(*args, **kwargs)

    np.testing.assert_allclose(internals.run_graph(model, inputs, call_fn=call), 5 * inputs, rtol=1e-6)


def test_operation_of(model):
    assert internals.operation_of(model.outputs[0]) is model.get_layer("sum")


def test_layers_of(model):
    outer = keras.Sequential([keras.Input((4,)), model])
    layers = list(internals.layers_of(outer))
    assert layers[0] is outer
    assert {model, model.get_layer("shared")} < set(layers)
    assert outer not in internals.layers_of(outer, include_self=False)


def test_loss_metric_is_a_mean_over_examples(model):
    model.compile(loss="mse")
    internals.update_loss_metric(model, tf.constant(1.0), tf.constant(3))
    internals.update_loss_metric(model, tf.constant(5.0), tf.constant(1))
    assert float(model.get_metrics_result()["loss"]) == 2.0


def test_hooks_of_fit():
    """`fit` prepares before its first step, logs what `epoch_logs` makes, and both see the compiled metrics."""
    seen = []

    class Fitted(internals.FittedModel):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)
            self.dense.build((None, 3))
            self.built = True

        def call(self, inputs, training=None):
            return self.dense(inputs)

        def train_step(self, data):
            inputs, labels = data
            seen.append("step")
            logs = internals.update_compiled_metrics(
                self, labels, self(inputs), tf.ones_like(labels), lambda metric: seen.append(metric.name) or labels
            )
            self.loss_metric.update_state(2.0)
            return {"loss": self.loss_metric.result(), **logs}

        def prepare_first_step(self):
            seen.append("prepared")
            self.build_metrics((tf.zeros((1, 3)), tf.zeros((1,))))

        def epoch_logs(self, logs):
            return {**logs, "epoch": 1.0}

    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():  # without one Keras builds metrics in the first step
        model = Fitted()
        model.compile(loss="mse", metrics=["accuracy"])
        model.prepare_first_step()
        assert model._compile_metrics.built
    seen.clear()
    model = Fitted()
    model.compile(loss="mse", metrics=["accuracy"])
    history = model.fit(np.zeros((4, 3)), np.zeros(4), batch_size=2, verbose=0).history
    assert seen[:3] == ["prepared", "step", "accuracy"]
    assert history.keys() == {"loss", "accuracy", "epoch"}
    assert history["loss"] == [2.0]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_what_looks_at_a_batch_is_outside_of_xla(jit_compile):
    seen = []

    class Watched(internals.WatchedModel):
        def watch(self, data, step):
            seen.append((step, len(data), tf.executing_eagerly()))

    model = Watched()
    model.compile(loss="mse", jit_compile=jit_compile)
    model.make_train_function()
    model.make_predict_function()
    for function in (model.train_function, model.predict_function):
        with contextlib.suppress(NotImplementedError, ValueError):  # its own steps cannot run
            function([(tf.zeros((1, 2)), tf.zeros(1))])
    assert [step for step, *_ in seen] == (["train_step", "predict_step"] if jit_compile else [])


def test_collectives_of_strategies_are_apart():
    """Each strategy takes its numbers from the class when it is made."""
    before = tf.distribute.MirroredStrategy._collective_key_base
    internals.separate_collectives(10)
    assert before + 10 == tf.distribute.MirroredStrategy._collective_key_base
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    assert strategy.extended._collective_key_base == before + 10


def test_workers_of():
    assert internals.workers_of(tf.distribute.get_strategy()) is None
    assert internals.workers_of(tf.distribute.MultiWorkerMirroredStrategy()) is None  # a process by itself


def test_make_session_runner():
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, name="x")
        y = tf.identity(2 * x, name="y")
        endless = tf.while_loop(lambda step: step >= 0, lambda step: (step + 1) % 10, (0,), name="endless")[0]
        run = internals.make_session_runner(session, [x.name], [y.name])
        assert run([np.float32(3)], 0) == [6.0]
        with pytest.raises(tf.errors.DeadlineExceededError):
            internals.make_session_runner(session, [], [endless.name])([], 100)


def test_computing_in_another_type_and_back(model):
    """A Dense layer of a half-precision policy answers in float32, with its own weights, while the context lasts."""
    half = keras.layers.Dense(2, dtype="mixed_float16")
    network = keras.Sequential([keras.Input((4,)), half])
    x = tf.constant([[1.0, 2.0, 3.0, 4.0]]) / 3
    with internals.computing_in(network, "float32"):
        answer = network(x)
    np.testing.assert_allclose(answer, x @ half.kernel.value + half.bias.value, rtol=1e-6)
    assert (half.compute_dtype, network(x).dtype) == ("float16", tf.float16)


def test_built_shapes():
    class Subclass(keras.Model):
        def call(self, inputs):
            return inputs

    model = Subclass()
    assert internals.built_shapes(model) == {}
    model(tf.zeros((2, 4, 4, 1)))
    (shape,) = internals.built_shapes(model).values()
    assert tuple(shape)[1:] == (4, 4, 1)


def test_variable_index():
    optimizer = keras.optimizers.SGD()
    variables = [keras.Variable(0.0), keras.Variable(1.0)]
    optimizer.build(variables)
    assert [internals.variable_index(optimizer, each) for each in variables] == [0, 1]


def test_validates_in_fit():
    """`fit` calls `evaluate` on its validation data; a person calls it without that option."""
    seen = []

    class Model(keras.Sequential):
        def evaluate(self, *args, **kwargs):
            seen.append(internals.validates_in_fit(kwargs))
            return super().evaluate(*args, **kwargs)

    model = Model([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(loss="mse")
    data = np.zeros((2, 3)), np.zeros((2, 1))
    model.fit(*data, validation_data=data, verbose=0)
    model.evaluate(*data, verbose=0)
    assert seen == [True, False]


PRIVATE, PRIVATE_PATH = re.compile(r"_[a-z]\w*"), re.compile(r"\.src\.|tensorflow\.python\.|\w\._[a-z]")
READERS = {"getattr", "get"}


def private_names(trees):
    """Private names that a package uses and does not define, with their places: attributes, imports, `getattr`."""
    nodes = [(file, node) for file, tree in trees.items() for node in ast.walk(tree)]
    own = {node.name for _, node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)}
    own |= {node.attr for _, node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.id for _, node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for file, node in nodes:
        names = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in READERS:
            names = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            paths = [f"{getattr(node, 'module', '')}.{alias.name}" for alias in node.names]
            yield from (f"{file}:{node.lineno} {path}" for path in paths if PRIVATE_PATH.search(path))
        yield from (f"{file}:{node.lineno} {name}" for name in names if PRIVATE.fullmatch(name) and name not in own)


def test_private_names_are_used_nowhere_else():
    """Keras Tuner's are in `tuning/`, its version is bounded too; `_replace` is a named tuple's, `_exit` is `os`'."""
    package = Path(__file__).parents[2] / "cifs_tf"
    trees = {str(file.relative_to(package)): ast.parse(file.read_text()) for file in package.rglob("*.py")}
    found = list(private_names(trees))
    assert any("framework_internals.py" in each for each in found)
    ours = [each for each in found if not each.startswith(("framework_internals.py", "tuning/"))]
    assert [each for each in ours if not each.endswith((" _replace", " _exit"))] == []


def test_private_names_are_found():
    lines = ("from keras.src.backend import X", "import keras.src.layers", "self._index(x)", "options.get('_cached')")
    source = "\n".join((*lines, "self._own = 1", "self._own"))
    assert sorted(private_names({"a.py": ast.parse(source)})) == [
        "a.py:1 keras.src.backend.X",
        "a.py:2 .keras.src.layers",
        "a.py:3 _index",
        "a.py:4 _cached",
    ]
