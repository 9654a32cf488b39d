"""The graph of a functional Keras model: shapes of its layers, paths through it, and where it can be cut."""

import difflib
import inspect
from collections.abc import Mapping

import keras

from cifs_tf.errors import UserError
from cifs_tf.framework_internals import calls, graph_of, layers_of


def output_shape(model: keras.Model, name: str) -> tuple[int | None, ...]:
    """Return the shape of what a layer answers in this model: it may be part of others, of another image size.

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


def check_precision(model: keras.Model) -> None:
    """Refuse a model that computes in float16 anywhere, also where a global policy says so.

    Args:
        model: any Keras model.

    Raises:
        UserError: that names some of its layers.
    """
    half = [layer.name for layer in layers_of(model) if layer.compute_dtype == "float16"]
    if half:
        advice = "small gradients vanish in float16, and attacks with them; build it in float32 or mixed_bfloat16"
        raise UserError("backbone", f"layers in float16 ({', '.join(half[:3])})", advice)


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
        if name in (inner.name for inner in layers_of(layer, include_self=False)):
            return (
                f"it lies inside {layer.name}, which is one layer here: cut after that, or let cifs_tf.defend take the "
                "model apart, which it does with functional models whose layers all have names of their own"
            )
    return f"name a layer of the backbone, such as {_similar(backbone, name)}"


def _similar(backbone: keras.Model, name: str) -> str:
    """Return names of feature maps like this one, or the last ones."""
    feature_maps = [
        node.operation.name
        for node in calls(backbone)
        if isinstance(node.operation, keras.layers.Layer) and len(node.outputs[0].shape) > 2
    ]
    close = difflib.get_close_matches(name, feature_maps, n=3) or feature_maps[-3:]
    return ", ".join(close) or "one that the backbone does not have: it computes no feature maps"


def _selects(selection) -> bool:
    """Tell whether it is a layer that can be called as `CIFS` is."""
    if not isinstance(selection, keras.layers.Layer):
        return False
    try:
        inspect.signature(selection.call).bind(None, labels=None, training=None, mask_gradient=None)
    except TypeError:
        return False
    return True


def checked_cuts(cuts: Mapping[str, keras.layers.Layer] | None) -> dict[str, keras.layers.Layer]:
    """Refuse what are no selection layers by name, each of them once; return them as a dict."""
    if not isinstance(cuts or {}, Mapping):
        advice = "give selection layers by the name of the layer that they follow, such as {'conv5_block3_out': CIFS()}"
        raise UserError("cuts", cuts, advice)
    for name, selection in (cuts or {}).items():
        if not isinstance(name, str):
            raise UserError("cuts", name, "give the name of a layer of the backbone")
        if not _selects(selection):
            raise UserError("cuts", selection, f"give a selection layer for {name}, such as CIFS()")
    checked = dict(cuts or {})
    if len({id(selection) for selection in checked.values()}) < len(checked):
        raise UserError("cuts", list(checked), "one selection layer stands at several cuts; make one for each")
    return checked
