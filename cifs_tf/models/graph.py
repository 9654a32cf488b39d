"""What the graph of a functional Keras model says: its calls, their shapes, and where it can be cut.

Keras keeps the graph in private attributes (`_nodes_by_depth`, `_functional`); it is pinned, and tests guard them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

import keras
from keras.src.models.functional import Functional

from cifs_tf.errors import UserError


def graph_of(layer: keras.layers.Layer) -> keras.Model | None:
    """Return the functional model that a layer is, or None if its call is code of its own.

    Args:
        layer: any layer or model; of a `Sequential` that knows its input the functional model inside it is returned.
    """
    if isinstance(layer, keras.Sequential) and type(layer).call is keras.Sequential.call:
        return layer._functional
    return layer if isinstance(layer, Functional) and type(layer).call is Functional.call else None


def calls(model: keras.Model) -> Iterator:
    """Yield the calls of a functional model, in an order in which they can be made, inputs left out.

    Args:
        model: functional Keras model.

    Returns:
        Keras nodes: `operation` is called on `input_tensors` and answers with `outputs`.
    """
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def output_shape(model: keras.Model, name: str) -> tuple[int | None, ...]:
    """Shape of what a layer answers in this model (a layer may also be part of others, of another image size).

    Args:
        model: functional Keras model.
        name: of a layer that the model calls once.

    Returns:
        (None, ..., channels).
    """
    return next(node.outputs[0].shape for node in calls(model) if node.operation.name == name)


def is_only_path(model: keras.Model, name: str) -> bool:
    """Tell whether everything that reaches the output passes through one layer.

    Args:
        model: functional Keras model.
        name: of one of its layers.

    Returns:
        False if there is a way around the layer, such as the shortcut of its residual block.

    Example:
        >>> is_only_path(resnet("resnet10", (8, 8, 3), 10), "stage4_block1_relu1")
        False
    """
    reached = {id(tensor) for tensor in model.inputs}
    for node in calls(model):
        if node.operation.name != name and any(id(tensor) in reached for tensor in node.input_tensors):
            reached |= {id(tensor) for tensor in node.outputs}
    return not any(id(tensor) in reached for tensor in model.outputs)


def check_backbone(backbone: keras.Model) -> None:
    """Refuse what is no functional model of one input and one output (batch, classes).

    Args:
        backbone: anything.

    Raises:
        UserError: that says what is wrong with it.
    """
    name = getattr(backbone, "name", backbone)
    graph = graph_of(backbone)
    if graph is None or graph is not backbone:
        raise UserError("backbone", name, "give a functional Keras model, or let cifs_tf.defend make one")
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        advice = f"it has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, give a model with one each"
        raise UserError("backbone", name, advice)


def check_cut(backbone: keras.Model, name: str) -> None:
    """Refuse a cut that cannot be made, and say why.

    Args:
        backbone: functional Keras model.
        name: of the layer that a selection layer shall follow.

    Raises:
        UserError: if it names no layer that is called once and answers with one feature map (batch, ..., channels).
    """
    nodes = [node for node in calls(backbone) if node.operation.name == name]
    if not nodes:
        raise UserError("cuts", name, _no_such_layer(backbone, name))
    if not isinstance(nodes[0].operation, keras.layers.Layer):
        raise UserError("cuts", name, f"this is an operation without a layer, such as {_similar(backbone, name)}")
    if len(nodes) > 1:
        advice = f"this layer is used {len(nodes)} times and would need as many probes, name one that is used once"
        raise UserError("cuts", name, advice)
    outputs = nodes[0].outputs
    if len(outputs) > 1:
        raise UserError("cuts", name, f"it answers with {len(outputs)} tensors, name a layer that answers with one")
    shape = outputs[0].shape
    if len(shape) < 3:
        close = _similar(backbone, name)
        raise UserError("cuts", name, f"its output {shape} is no feature map (batch, ..., channels), such as {close}")
    if shape[-1] is None:
        raise UserError("cuts", name, f"the channels of its output {shape} are unknown, and a probe needs their number")
    if "float" not in outputs[0].dtype:
        raise UserError("cuts", name, f"its output is {outputs[0].dtype}, name a layer that computes floats")


def _no_such_layer(backbone: keras.Model, name: str) -> str:
    layers = [layer for layer in backbone.layers if layer.name == name]
    if layers:
        return "this is the input, name a layer that computes features"
    for layer in backbone.layers:
        if name in (inner.name for inner in layer._flatten_layers(include_self=False)):
            return (
                f"it lies inside {layer.name}, which is one layer here: cut after that, or let cifs_tf.defend take the "
                "model apart, which it does with functional models whose layers all have names of their own"
            )
    return f"name a layer of the backbone, such as {_similar(backbone, name)}"


def _similar(backbone: keras.Model, name: str) -> str:
    """Names of feature maps like this one, or the last ones."""
    feature_maps = [
        node.operation.name
        for node in calls(backbone)
        if isinstance(node.operation, keras.layers.Layer) and len(node.outputs[0].shape) > 2
    ]
    close = difflib.get_close_matches(name, feature_maps, n=3) or feature_maps[-3:]
    return ", ".join(close) or "one that the backbone does not have: it computes no feature maps"
