"""The model under attack: any that maps images to logits, with or without selection layers."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.attacks import HeadsFn
from cifs_tf.errors import UserError
from cifs_tf.evaluation.networks.outputs import (
    HALF_TYPES,
    as_logits,
    check_answers,
    differentiable,
    keras_answers,
    lowest_precision,
    with_backward,
)
from cifs_tf.framework_internals import built_shapes, layers_of
from cifs_tf.layers import MASK_GRADIENTS
from cifs_tf.models import Classifier, with_precision

PAPER_TOP_K = 2
# Parts of a configuration that do not affect what a model computes.
NAMES = ("name", "build_config", "registered_name", "compile_config", "shared_object_id", "keras_history")


@dataclasses.dataclass(frozen=True, eq=False)
class AttackedModel:
    """A model under attack, reduced to what an attacker and a report need of it.

    Args:
        name: what the report calls it.
        heads_fns: by mask gradient (`"detached"`, `"full"`, `"smoothed"`; `"exact"` for a model without masks), the
            functions images -> heads (batch, 1 + P, classes). They agree in value.
        num_probes: P.
        num_classes: K.
        image_shape: (height, width, channels).
        fingerprint: hash of the weights.
        top_k: k of each selection layer, for counting how often an attack changes its choice.
        labelled_heads_fn: (images, labels) -> heads, to test whether labels leak; None where it takes no labels.
        limits: sentences on what could not be attacked or measured, for the report.
        precision: lowest type that a layer computes in. Default float32.
        reload: loads the model from its file again, to see whether it is the same; None where there is no file.
        has_gradient: whether there is a gradient to follow; else the suites hold attacks that need none. Default True.
        answers_fns: by mask gradient, functions of the images in whose graph a linear last layer may be seen, see
            `cifs_tf.evaluation.networks.outputs.last_features`; none (default) where there is no such graph.
        answered_fn: what `heads_fns` return but for rounding and a number that is added to all classes, computed alike
            in and outside a graph; None (default) where they are.
    """

    name: str
    heads_fns: Mapping[str, HeadsFn]
    num_probes: int
    num_classes: int
    image_shape: tuple[int, ...]
    fingerprint: str
    top_k: tuple[int, ...] = ()
    labelled_heads_fn: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None
    limits: tuple[str, ...] = ()
    precision: str = "float32"
    reload: Callable[[], AttackedModel] | None = None
    has_gradient: bool = True
    answers_fns: Mapping[str, HeadsFn] = dataclasses.field(default_factory=dict)
    answered_fn: HeadsFn | None = None

    @property
    def mask_gradients(self) -> tuple[str, ...]:
        """The mask gradients that can be attacked through, the official one first."""
        return tuple(self.heads_fns)


def as_attacked(
    model: keras.Model,
    name: str | None = None,
    *,
    image_shape: tuple[int, ...] | None = None,
    backward: HeadsFn | None = None,
) -> AttackedModel:
    """Wrap a Keras model as an attacked one.

    Args:
        model: a `Classifier`, or any Keras model of one image input, functional or subclassed. Of several outputs the
            one named `logits`, `probabilities` or `predictions` is attacked, or else the first with rows. It may answer
            with logits, probabilities, log-probabilities, one sigmoid per class, or one column for two classes.
        name: what the report calls it; None (default) is the model's own name.
        image_shape: (height, width, channels), for a subclassed model that has not been called. Default None.
        backward: a differentiable stand-in for the whole network, images -> (batch, classes), whose gradient is taken
            in place of the network's own (BPDA, Athalye et al. 2018); decisions stay the network's. Default None.

    Returns:
        the attacked model; layers in half precision are attacked in float32.

    Raises:
        UserError: if the model is no image classifier.

    Example:
        >>> as_attacked(classifier).mask_gradients
        ('detached', 'full', 'smoothed')
    """
    name = name or model.name
    modes = sorted({mode for layer in layers_of(model) if (mode := getattr(layer, "quantization_mode", None))})
    rounded = f"Layers compute in {', '.join(modes)}: attacks see gradients through their rounding only."
    if isinstance(model, Classifier):
        found = _from_classifier(model, name)
        return dataclasses.replace(found, limits=(rounded,), precision=modes[0]) if modes else found
    shape, dtype = _input_of(model, name, image_shape)
    check_input_of(name, shape, dtype)
    answers, told = keras_answers(model, shape[1:])
    limits = (*told, rounded) if modes else tuple(told)
    half = next((layer.compute_dtype for layer in layers_of(model) if layer.compute_dtype in HALF_TYPES), None)
    found = single_head(answers, shape[1:], backward)
    return dataclasses.replace(
        found,
        name=name,
        fingerprint=fingerprint_of(model) + ("" if backward is None else f"-{_hash_function(backward)}"),
        limits=(*limits, *found.limits),
        precision=(modes or [half])[0] or (model.compute_dtype if found.precision == "float32" else found.precision),
    )


def _hash_function(function: Any, seen: tuple[int, ...] = ()) -> str:
    """Hash a function: its code, and the networks, layers and plain values that it was made with."""
    if isinstance(function, keras.Model):
        return fingerprint_of(function)
    digest = hashlib.sha256(type(function).__qualname__.encode())
    for weight in getattr(function, "weights", ()):
        digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
    code = getattr(function, "__code__", None)
    if code:
        plain = [each for each in code.co_consts if isinstance(each, int | float | str)]
        digest.update(code.co_code + repr((code.co_names, plain)).encode())
    for held in inspect.getclosurevars(function).nonlocals.values() if inspect.isfunction(function) else ():
        if callable(held) and id(held) not in seen:  # a function may hold itself
            digest.update(_hash_function(held, (*seen, id(function), id(held))).encode())
        elif isinstance(held, int | float | str | np.ndarray):
            digest.update(np.asarray(held).tobytes())
    return digest.hexdigest()[:16]


def fingerprint_of(model: keras.Model) -> str:
    """Hash a live model: its layers and their options, and the values of its weights."""
    try:
        structure = json.dumps(_structure(model), sort_keys=True, default=str)
    except (NotImplementedError, TypeError):  # a subclass that does not tell its options
        structure = f"{type(model).__module__}.{type(model).__qualname__}"
    digest = hashlib.sha256(structure.encode())
    for weight in model.weights:
        value = np.ascontiguousarray(weight.numpy())
        digest.update(f"{value.shape}{value.dtype}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:16]


def _structure(model: keras.Model) -> Any:
    """Return the configuration of a model without names, which Keras numbers anew in every process."""

    def without_names(node: Any) -> Any:
        if isinstance(node, dict):
            return [[key, without_names(value)] for key, value in node.items() if key not in NAMES]
        if isinstance(node, list | tuple):
            return [without_names(item) for item in node]
        return "" if isinstance(node, str) and node in names else node

    names = {model.name, *(layer.name for layer in layers_of(model))}
    return without_names(keras.saving.serialize_keras_object(model))


def _from_classifier(model: Classifier, name: str) -> AttackedModel:
    if model.compute_dtype != "float32":
        model = with_precision(model, "float32")
    masks = MASK_GRADIENTS if model.num_probes else ()
    heads_fns = {mask: model.heads_fn(mask) for mask in masks} or {"exact": model.heads_fn()}
    return AttackedModel(
        name,
        heads_fns,
        num_probes=model.num_probes,
        num_classes=model.num_classes,
        image_shape=model.image_shape,
        fingerprint=fingerprint_of(model),
        top_k=tuple(getattr(cut, "top_k", PAPER_TOP_K) for cut in model.cuts.values()),
        labelled_heads_fn=lambda images, labels: model(images, labels=labels, training=False),
        answers_fns=heads_fns,
    )


def _input_of(model: keras.Model, name: str, image_shape: tuple[int, ...] | None) -> tuple[tuple[Any, ...], str]:
    """Return the shape of a model's images, with the batch, and their type."""
    shape = getattr(model, "input_shape", None)
    if isinstance(shape, dict | list) and len(shape) == 1:
        (shape,) = shape.values() if isinstance(shape, dict) else shape
    if shape is None:
        shapes = built_shapes(model)
        shape = next(iter(shapes.values())) if len(shapes) == 1 else None
        if image_shape is not None or isinstance(shape, tuple):
            shape = (None, *(image_shape or shape[1:]))  # type: ignore[index]
    if not (isinstance(shape, tuple) and len(shape) == 4):
        advice = (
            f"its input has shape {shape}, give a model of one image; one of a class of your own is called once before"
        )
        raise UserError("model", name, advice)
    return shape, model.inputs[0].dtype if getattr(model, "inputs", None) else "float32"


def check_input_of(name: str, shape: tuple[int | None, ...], dtype: str) -> None:
    """Refuse a foreign model that does not take batches of floating-point images."""
    if shape[0] is not None:
        raise UserError("model", name, f"it takes exactly {shape[0]} images, export it with a free batch size")
    if None in shape[1:]:
        raise UserError("model", name, f"its images have the shape {shape[1:]}, give it a fixed one")
    if not tf.as_dtype(dtype).is_floating:
        advice = f"it takes {dtype}, which no gradient reaches, give one that takes floats in [0, 1] and scales them"
        raise UserError("model", name, advice)


def as_many(outputs: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Give outputs the size of the batch, which a loaded SavedModel forgets and loops hold on to."""
    outputs.set_shape([images.shape[0], *outputs.shape[1:]])
    return outputs


def single_head(answers: HeadsFn, image_shape: tuple[int, ...], backward: HeadsFn | None = None) -> AttackedModel:
    """Wrap images -> (batch, columns) of a network from elsewhere; name and fingerprint are the caller's.

    Raises:
        UserError: for what does not answer each image with a row of numbers, or cannot be compiled.
    """
    check_answers(answers, image_shape)
    half, limits = lowest_precision(answers, image_shape), []
    if half:
        limits.append(f"The network computes in {half} inside: what it rounds to zero there no attack sees.")
    logits, inverse, num_classes, told = as_logits(answers, image_shape, is_half=half is not None)
    logits, missing = differentiable(logits, image_shape)
    if backward is not None:
        logits, missing = with_backward(logits, backward), []
        told.append("The gradient of a stand-in that was given took the place of the network's own (BPDA).")
    return AttackedModel(
        "",
        {"exact": lambda images: logits(images)[:, None]},
        num_probes=0,
        num_classes=num_classes,
        image_shape=image_shape,
        fingerprint="",
        limits=(*missing, *limits, *told),
        precision=half or "float32",
        answered_fn=lambda images: inverse(images)[:, None],
        answers_fns={} if backward is not None or half else {"exact": answers},
    )
