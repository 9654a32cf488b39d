"""Private names of Keras 3.15 and TensorFlow 2.21: all that this package uses, each in one function with one test.

They are why both have upper bounds in `pyproject.toml`. Before a bound rises, the tests of this module say what still
holds.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend import AutocastScope
from keras.src.losses.loss import unscale_loss_for_distribution
from keras.src.models.functional import Functional
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.client import pywrap_tf_session

from cifs_tf.errors import UserError


def graph_of(layer: keras.layers.Layer) -> keras.Model | None:
    """Return the functional model that a layer is, or None if its call is code of its own.

    Args:
        layer: any layer or model; of a `Sequential` that knows its input the functional model inside it is returned.
    """
    if isinstance(layer, keras.Sequential) and type(layer).call is keras.Sequential.call:
        return layer._functional
    return layer if isinstance(layer, Functional) and type(layer).call is Functional.call else None


def calls(model: keras.Model) -> Iterator[Any]:
    """Yield the calls of a functional model, in an order in which they can be made, inputs left out.

    Args:
        model: functional Keras model.

    Returns:
        Keras nodes: `operation` is called on `input_tensors` and answers with `outputs`.
    """
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def run_graph(model: keras.Model, inputs: Any, **functions: Callable) -> Any:
    """Call every operation of a functional model on new inputs.

    Args:
        model: functional Keras model.
        inputs: tensors, or symbolic ones.
        **functions: `operation_fn`, from an operation to what is called in its place; `call_fn`, called with an
            operation and its arguments in place of the operation.

    Returns:
        the outputs of the model.
    """
    return model._run_through_graph(inputs, **functions)


def operation_of(tensor: Any) -> Any:
    """Return the operation that answers with a symbolic tensor."""
    return tensor._keras_history.operation


def layers_of(layer: keras.layers.Layer, *, include_self: bool = True) -> Iterator[keras.layers.Layer]:
    """Yield a layer and all layers in it, at any depth."""
    return layer._flatten_layers(include_self=include_self)


@contextlib.contextmanager
def computing_in(layer: keras.layers.Layer, dtype: str) -> Iterator[None]:
    """Let a layer and all layers in it compute in another type while the context lasts, with the weights they have."""
    policies = [(each, each._dtype_policy) for each in layers_of(layer)]
    try:
        for each, _ in policies:
            each._dtype_policy = keras.DTypePolicy(dtype)
        with AutocastScope(dtype):
            yield
    finally:
        for each, policy in policies:
            each._dtype_policy = policy


def built_shapes(model: keras.Model) -> dict[str, Any]:
    """Return the shapes of the inputs that a model was first called on, by argument; empty if it was not."""
    return dict(getattr(model, "_build_shapes_dict", None) or {})


def update_loss_metric(model: keras.Model, loss: tf.Tensor, num_examples: tf.Tensor) -> None:
    """Add the loss of a batch to what `fit` and `evaluate` log, as Keras' own steps do.

    Args:
        model: compiled Keras model.
        loss: from `compute_loss`, which divides it by the number of replicas.
        num_examples: in the batch of this replica.
    """
    model._loss_tracker.update_state(unscale_loss_for_distribution(loss), sample_weight=num_examples)


def update_compiled_metrics(
    model: keras.Model, labels: tf.Tensor, outputs: tf.Tensor, sample_weight: tf.Tensor | None, as_read: Callable
) -> dict:
    """Update the metrics that were compiled, if any, each with the labels in its own form.

    Args:
        model: compiled Keras model.
        labels: of a batch, in the form in which they were given, which is what "accuracy" stands for.
        outputs: of the model, (batch, classes).
        sample_weight: (batch,); None for ones.
        as_read: from a metric, or the function that it takes the mean of, to the labels that it reads.

    Returns:
        their values by name.
    """
    compiled = model._compile_metrics
    if compiled is None:
        return {}
    if not compiled.built:
        try:
            compiled.build(labels, outputs)
        except ValueError as error:
            raise UserError("metrics", compiled._user_metrics, f"give metrics of Keras ({error})") from error
    for metrics, weights in ((compiled._flat_metrics, None), (compiled._flat_weighted_metrics, sample_weight)):
        for metric in metrics[0].metrics if metrics[0] else ():
            function = metric._fn if type(metric) is keras.metrics.MeanMetricWrapper else metric
            metric.update_state(as_read(function), outputs, weights)
    return compiled.result()


def variable_index(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> int:
    """Return the place of a variable among those that an optimizer was built with."""
    return optimizer._get_variable_index(variable)


def validates_in_fit(options: dict[str, Any]) -> bool:
    """Return whether the options of `evaluate` are those with which `fit` calls it on its validation data."""
    return bool(options.get("_use_cached_eval_dataset"))


class WatchedModel(keras.Model):
    """A Keras model whose batches are looked at outside a step that XLA compiles, which drops all assertions in it."""

    def watch(self, data: Any, step: str) -> None:
        """Refuse a batch, `data`, of `train_step`, `test_step` or `predict_step`."""
        raise NotImplementedError

    def make_train_function(self, force=False):
        self._made_step = "train_step"
        return super().make_train_function(force)

    def make_test_function(self, force=False):
        self._made_step = "test_step"
        return super().make_test_function(force)

    def make_predict_function(self, force=False):
        self._made_step = "predict_step"
        return super().make_predict_function(force)

    def _autoconvert_optionals(self, step_func):
        call, step = super()._autoconvert_optionals(step_func), self._made_step
        if self.run_eagerly or not self.jit_compile:
            return call
        look = super()._autoconvert_optionals(lambda data: self.watch(data, step))

        @tf.autograph.experimental.do_not_convert
        def watched(data):
            if tf.distribute.in_cross_replica_context():
                self.distribute_strategy.run(look, args=(data,))
            else:
                look(data)
            return call(data)

        return watched


class FittedModel(keras.Model):
    """A Keras model with public names for what `fit` does behind its back."""

    @property
    def loss_metric(self) -> keras.metrics.Metric:
        """The mean of the loss, which Keras logs and resets."""
        return self._loss_tracker

    def prepare_first_step(self) -> None:
        """Make what metrics and the optimizer keep; `fit` and `evaluate` call it before their first step."""
        raise NotImplementedError

    def build_metrics(self, batch: tuple) -> None:
        """Build the model and its compiled metrics by a symbolic step on a batch, under a strategy."""
        super()._maybe_symbolic_build(data_batch=batch)

    def epoch_logs(self, logs: dict) -> dict:
        """Return the logs of a finished epoch, from those of its last step."""
        raise NotImplementedError

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        self.prepare_first_step()

    def _get_metrics_result_or_logs(self, logs):
        return self.epoch_logs(logs)


def separate_collectives(distance: int) -> None:
    """Let the next mirrored strategy number its collective operations so far behind those of earlier ones."""
    tf.distribute.MirroredStrategy._collective_key_base += distance


def workers_of(strategy: tf.distribute.Strategy) -> int | None:
    """Return how many processes a strategy joins, or None if it is of one process by itself."""
    is_multi_worker = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return strategy.extended._num_workers if is_multi_worker and strategy.extended._in_multi_worker_mode() else None


def make_session_runner(session: tf.compat.v1.Session, feeds: Sequence[str], fetches: Sequence[str]) -> Callable:
    """Make a function that runs a session without the checks of `Session.run` in Python.

    Args:
        session: with a graph that no longer changes.
        feeds: names of the tensors to feed.
        fetches: names of the tensors to fetch.

    Returns:
        a function of the values fed, in order, and of a limit in milliseconds (0 is none) to those fetched.
    """
    fed = [session.graph.get_tensor_by_name(name)._as_tf_output() for name in feeds]
    fetched = [session.graph.get_tensor_by_name(name)._as_tf_output() for name in fetches]
    session._extend_graph()

    def run(values: Sequence, milliseconds: int) -> list:
        options = config_pb2.RunOptions(timeout_in_ms=milliseconds).SerializeToString()
        buffer = pywrap_tf_session.TF_NewBufferFromString(options)
        try:
            return session._call_tf_sessionrun(buffer, dict(zip(fed, values, strict=True)), fetched, [], None)
        finally:
            pywrap_tf_session.TF_DeleteBuffer(buffer)

    return run
