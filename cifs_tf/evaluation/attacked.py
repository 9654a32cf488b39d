"""The model under attack: any that maps images to logits, with or without selection layers."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.attacks import HeadsFn
from cifs_tf.errors import UserError
from cifs_tf.evaluation.outputs import (
    HALF_TYPES,
    as_logits,
    as_rows,
    choose_output,
    differentiable,
    keras_answers,
    lowest_precision,
    with_backward,
)
from cifs_tf.framework_internals import built_shapes, layers_of
from cifs_tf.layers import MASK_GRADIENTS
from cifs_tf.models import Classifier, load_model, with_precision
from cifs_tf.models.side_effects import check_side_effects

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
    if isinstance(model, Classifier):
        return _from_classifier(model, name)
    shape, dtype = _input_of(model, name, image_shape)
    _check_input(name, shape, dtype)
    answers, limits = keras_answers(model, shape[1:])
    half = next((layer.compute_dtype for layer in layers_of(model) if layer.compute_dtype in HALF_TYPES), None)
    found = _single_head(answers, shape[1:], backward)
    return dataclasses.replace(
        found,
        name=name,
        fingerprint=fingerprint_of(model),
        limits=(*limits, *found.limits),
        precision=half or (model.compute_dtype if found.precision == "float32" else found.precision),
    )


def load_attacked(path: str | os.PathLike[str], name: str | None = None, *, trust: bool = False) -> AttackedModel:
    """Load a model to attack from a file: a `.keras` model, or a SavedModel folder (or the folder of its versions).

    A SavedModel of this project brings the signatures `heads_*`, which differ in the gradient through the masks. Of any
    other its `serving_default` is attacked, through whatever gradient it was saved with.

    Args:
        path: the file or folder.
        name: what the report calls it; None (default) is the path.
        trust: load a SavedModel whose operations reach files, the network or Python too. Default False.

    Returns:
        the attacked model.

    Raises:
        UserError: if there is no such model, it cannot be loaded or does more than compute, or it is no image
            classifier.
    """
    return dataclasses.replace(_load(path, name, trust), reload=functools.partial(_load, path, name, trust))


def _load(path: str | os.PathLike[str], name: str | None, trust: bool) -> AttackedModel:
    path, name = Path(path), name or str(path)
    if not path.exists():
        raise UserError("model", path, "there is no such file, give a .keras file or a SavedModel folder")
    if path.is_file():
        return as_attacked(load_model(path, compile=False), name)
    folder = version_folder(path)
    if not (folder / "saved_model.pb").exists():
        raise UserError("model", path, "it holds no saved_model.pb, give a .keras file or a SavedModel folder")
    check_side_effects(folder, trust)
    try:
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError("model", path, f"TensorFlow cannot load it ({reason}), give a SavedModel") from error
    fingerprint = _hash_files(folder)
    ours = {m: loaded.signatures[f"heads_{m}"] for m in MASK_GRADIENTS if f"heads_{m}" in loaded.signatures}
    return _from_heads(loaded, ours, name, fingerprint) if ours else _from_foreign(loaded, name, fingerprint)


def version_folder(path: Path) -> Path:
    """Return the folder of a SavedModel: the one that is given, or of the folder of its versions the highest."""
    versions = [int(child.name) for child in path.iterdir() if child.name.isdigit()]
    return path if (path / "saved_model.pb").exists() or not versions else path / str(max(versions))


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
    return AttackedModel(
        name,
        {mask: model.heads_fn(mask) for mask in masks} or {"exact": model.heads_fn()},
        num_probes=model.num_probes,
        num_classes=model.num_classes,
        image_shape=model.image_shape,
        fingerprint=fingerprint_of(model),
        top_k=tuple(getattr(cut, "top_k", PAPER_TOP_K) for cut in model.cuts.values()),
        labelled_heads_fn=lambda images, labels: model(images, labels=labels, training=False),
    )


def _from_heads(loaded: Any, signatures: Mapping[str, Any], name: str, fingerprint: str) -> AttackedModel:
    """Wrap a SavedModel of this project."""
    first = next(iter(signatures.values()))
    _, num_heads, num_classes = first.structured_outputs["heads"].shape
    limits = [
        f"The SavedModel has no signature heads_{mask}: that gradient was not attacked."
        for mask in MASK_GRADIENTS
        if mask not in signatures and num_heads > 1
    ]
    limits.append("A SavedModel takes no labels, so it was not tested whether labels leak.")
    if num_heads > 1:
        limits.append(f"A SavedModel does not tell its k: changes of the top-{PAPER_TOP_K} classes were counted.")
    else:
        signatures = {"exact": first}

    def heads_fn(signature: Any) -> HeadsFn:
        # A signature alone does not keep its variables alive.
        return lambda images, loaded=loaded: _as_many(signature(image=images)["heads"], images)  # type: ignore[misc]

    return AttackedModel(
        name,
        {mask: heads_fn(signature) for mask, signature in signatures.items()},
        num_probes=num_heads - 1,
        num_classes=num_classes,
        image_shape=tuple(first.structured_input_signature[1]["image"].shape[1:]),
        fingerprint=fingerprint,
        top_k=(PAPER_TOP_K,) * (num_heads - 1),
        limits=tuple(limits),
    )


def _from_foreign(loaded: Any, name: str, fingerprint: str) -> AttackedModel:
    """Wrap a SavedModel from elsewhere: the logits of `serving_default`."""
    if "serving_default" not in loaded.signatures:
        known = ", ".join(loaded.signatures) or "none"
        raise UserError("model", name, f"it has no signature serving_default (it has: {known}), export it with one")
    signature = loaded.signatures["serving_default"]
    inputs, outputs = signature.structured_input_signature[1], signature.structured_outputs
    shapes = {key: tuple(spec.shape) for key, spec in outputs.items() if spec.dtype.is_floating}
    chosen = choose_output(shapes)
    is_image = len(inputs) == 1 and next(iter(inputs.values())).shape.rank == 4
    if not is_image or chosen is None:
        found = f"inputs {sorted(inputs)}, outputs {sorted(outputs)}"
        raise UserError("model", name, f"serving_default has {found}; give one with one image input and one output")
    ((key, spec),) = inputs.items()
    _check_input(name, tuple(spec.shape), spec.dtype.name)

    def answers(images: tf.Tensor, loaded: Any = loaded) -> tf.Tensor:
        return _as_many(as_rows(signature(**{key: tf.cast(images, spec.dtype)})[chosen]), images)

    victim = _single_head(answers, tuple(spec.shape[1:]))
    limit = (
        f"A foreign SavedModel: the output {chosen!r} of serving_default was attacked, through the gradient it was "
        "saved with; raw predictions, other mask gradients and labels were not available."
    )
    precision = spec.dtype.name if victim.precision == "float32" else victim.precision
    return dataclasses.replace(
        victim, name=name, fingerprint=fingerprint, limits=(limit, *victim.limits), precision=precision
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


def _check_input(name: str, shape: tuple[int | None, ...], dtype: str) -> None:
    """Refuse a foreign model that does not take batches of floating-point images."""
    if shape[0] is not None:
        raise UserError("model", name, f"it takes exactly {shape[0]} images, export it with a free batch size")
    if None in shape[1:]:
        raise UserError("model", name, f"its images have the shape {shape[1:]}, give it a fixed one")
    if not tf.as_dtype(dtype).is_floating:
        advice = f"it takes {dtype}, which no gradient reaches, give one that takes floats in [0, 1] and scales them"
        raise UserError("model", name, advice)


def _as_many(outputs: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Give outputs the size of the batch, which a loaded SavedModel forgets and loops hold on to."""
    outputs.set_shape([images.shape[0], *outputs.shape[1:]])
    return outputs


def _single_head(answers: HeadsFn, image_shape: tuple[int, ...], backward: HeadsFn | None = None) -> AttackedModel:
    """Wrap images -> (batch, columns) of a network from elsewhere; name and fingerprint are the caller's."""
    half, limits = lowest_precision(answers, image_shape), []
    if half:
        limits.append(f"The network computes in {half} inside: what it rounds to zero there no attack sees.")
    logits, num_classes, told = as_logits(answers, image_shape, is_half=half is not None)
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
    )


def _hash_files(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in (folder / "saved_model.pb", *sorted((folder / "variables").glob("*"))):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
