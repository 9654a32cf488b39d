"""ONNX files under attack: white-box through the gradient that lies beside them, the others by their answers alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cifs_tf.attacks import HeadsFn
from cifs_tf.errors import UserError, first_line
from cifs_tf.evaluation.networks.attacked import PAPER_TOP_K, AttackedModel, as_many, check_input_of, single_head
from cifs_tf.evaluation.networks.outputs import choose_output, probe_images
from cifs_tf.evaluation.tasks import differs
from cifs_tf.extras import require
from cifs_tf.models.onnx_gradient import GRADIENT_FILE, MASK_GRADIENT_SHARES

NO_GRADIENT_FILE = (
    f"An ONNX file without a gradient: export writes one beside its own ({GRADIENT_FILE}). Only Square and RayS, which "
    "need none, attacked: the robust accuracy is an upper bound, and may be far too high."
)
NO_LABELS = "An ONNX file takes no labels, so it was not tested whether labels leak."
FLOATS = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}
# Sizes of an axis that holds channels.
CHANNELS = (1, 3, 4)
GRADIENT_INPUTS = {"image", "label", "head_weights", "upstream"}


def load_onnx(path: Path, name: str) -> AttackedModel:
    """Load an ONNX file to attack; onnxruntime answers for it.

    Where `heads_and_gradient.onnx` of an export lies beside it, every attack of every suite runs: predictions are those
    of the file itself, and gradients those of its neighbour, which must belong to it. Of any other file one floating
    output is attacked, without gradients.

    Args:
        path: the file; images are (batch, height, width, channels) or (batch, channels, height, width) in [0, 1].
        name: what the report calls it.

    Returns:
        the attacked model.

    Raises:
        UserError: if onnxruntime cannot load it, it is no image classifier, or the gradient is of another network.
        ModuleNotFoundError: without the extra `export`.
    """
    require("export")
    session = _session(path)
    beside = path.with_name(GRADIENT_FILE)
    if beside.exists() and beside != path:
        return _white_box(path, session, beside, name)
    return _black_box(path, session, name)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("TF_NUM_INTRAOP_THREADS") or 0)
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        advice = f"onnxruntime cannot load it ({first_line(error)}), give an ONNX file"
        raise UserError("model", path, advice) from error


def _named(session: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, dict(feeds)), strict=True))


def _white_box(path: Path, session: Any, beside: Path, name: str) -> AttackedModel:
    gradient = _session(beside)
    shapes = {each.name: tuple(each.shape) for each in gradient.get_inputs()}
    own = {each.name: tuple(each.shape) for each in session.get_inputs()}
    outputs = {each.name for each in gradient.get_outputs()}
    if (
        not (GRADIENT_INPUTS <= set(shapes) <= GRADIENT_INPUTS | {"mask_gradient"})
        or not {"heads", "gradient"} <= outputs
    ):
        advice = f"its inputs are {', '.join(shapes)}, give the one that export wrote, or move it away"
        raise UserError("model", beside, advice)
    _, num_heads, num_classes = shapes["upstream"]
    image_shape = shapes["image"][1:]

    def answers(images: np.ndarray) -> np.ndarray:
        found = _named(session, {"image": images})
        heads = np.concatenate([found["logits"][:, None], *([found["probe_logits"]] if num_heads > 1 else [])], axis=1)
        return _checked(heads, (len(images), num_heads, num_classes), path)

    def differentiate(images: np.ndarray, upstream: np.ndarray, shares: np.ndarray) -> dict[str, np.ndarray]:
        """Return the heads, and the gradient to the images of sum(upstream * heads)."""
        feeds = {"image": images, "upstream": upstream, "label": np.zeros(len(images), np.int32)}
        feeds |= {"head_weights": np.zeros(num_heads, np.float32), "mask_gradient": shares}
        return _named(gradient, {each: feeds[each] for each in shapes})

    def pull_back(images: np.ndarray, upstream: np.ndarray, shares: np.ndarray) -> np.ndarray:
        return _checked(differentiate(images, upstream, shares)["gradient"], images.shape, beside)

    try:
        if own.keys() != {"image"} or own["image"][1:] != image_shape:
            raise ValueError(f"it takes {own} and not images {image_shape}")
        images = probe_images(image_shape).numpy()
        mine = answers(images)
        theirs = differentiate(images, np.zeros_like(mine), np.zeros(2, np.float32))["heads"]
        if bool(tf.reduce_any(differs(tf.constant(mine), tf.constant(theirs)))):
            raise ValueError("their predictions differ")
    except Exception as error:
        reason = first_line(error)
        advice = f"it does not belong to {path.name} ({reason}), export the two together again, or move it away"
        raise UserError("model", beside, advice) from error

    def heads_fn(mask_gradient: str) -> HeadsFn:
        shares = tf.constant(MASK_GRADIENT_SHARES[mask_gradient], tf.float32)

        @tf.custom_gradient
        def heads(images: tf.Tensor) -> tuple[tf.Tensor, Callable[..., tf.Tensor]]:
            found = tf.numpy_function(answers, [images], tf.float32)
            found.set_shape([images.shape[0], num_heads, num_classes])

            def gradient_of(upstream: tf.Tensor) -> tf.Tensor:
                found = tf.numpy_function(pull_back, [images, upstream, shares], tf.float32)
                found.set_shape(images.shape)
                return found

            return found, gradient_of

        return heads

    masks = {mask: heads_fn(mask) for mask in MASK_GRADIENT_SHARES} if num_heads > 1 else {"exact": heads_fn("full")}
    limits = [NO_LABELS]
    if num_heads > 1:
        limits.append(f"An ONNX file does not tell its k: changes of the top-{PAPER_TOP_K} classes were counted.")
    return AttackedModel(
        name,
        masks,
        num_probes=num_heads - 1,
        num_classes=num_classes,
        image_shape=image_shape,
        fingerprint=_hash_files(path, beside),
        top_k=(PAPER_TOP_K,) * (num_heads - 1),
        limits=tuple(limits),
    )


def _black_box(path: Path, session: Any, name: str) -> AttackedModel:
    inputs = session.get_inputs()
    outputs = {each.name: tuple(each.shape) for each in session.get_outputs() if each.type in FLOATS}
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        every = ", ".join(f"{each.name} {each.shape}" for each in inputs)
        advice = f"its inputs are {every}, give a model of one batch of images"
        if path.name == GRADIENT_FILE:
            advice = "it is the gradient of a model, give the model.onnx that lies beside it"
        raise UserError("model", path, advice)
    key, (batch, *sizes) = inputs[0].name, [size if isinstance(size, int) else None for size in inputs[0].shape]
    is_first = sizes[0] in CHANNELS and sizes[2] not in CHANNELS
    image_shape: tuple[Any, ...] = tuple((*sizes[1:], sizes[0]) if is_first else sizes)
    dtype = FLOATS.get(inputs[0].type, inputs[0].type.removeprefix("tensor(").removesuffix(")"))
    check_input_of(name, (None, *image_shape), dtype)

    def ask(images: np.ndarray) -> dict[str, np.ndarray]:
        images = images.transpose(0, 3, 1, 2) if is_first else images
        images = np.ascontiguousarray(images, dtype)
        if batch is None:
            return _named(session, {key: images})
        # A file of a fixed batch is asked in parts, the last of which is filled up.
        parts = [
            _named(session, {key: np.resize(images[start : start + batch], (batch, *images.shape[1:]))})
            for start in range(0, len(images), batch)
        ]
        return {each: np.concatenate([part[each] for part in parts])[: len(images)] for each in parts[0]}

    probe = probe_images(image_shape)
    try:
        found = ask(probe.numpy())
    except Exception as error:
        advice = f"it does not answer for images of the shape {image_shape} ({first_line(error)})"
        raise UserError("model", path, f"{advice}, give one that does") from error
    found = {each: value for each, value in found.items() if each in outputs and value.shape[:1] == (len(probe),)}
    chosen = choose_output({each: (None, *value.shape[1:]) for each, value in found.items()})
    if chosen is None:
        every = ", ".join(f"{each.name} {each.type} {each.shape}" for each in session.get_outputs())
        raise UserError("model", path, f"its outputs are {every}, give one with rows of logits or probabilities")
    columns = found[chosen].size // len(probe)

    def rows(images: np.ndarray) -> np.ndarray:
        return _checked(np.reshape(ask(images)[chosen], (len(images), -1)), (len(images), columns), path)

    def answers(images: tf.Tensor) -> tf.Tensor:
        return as_many(tf.ensure_shape(tf.numpy_function(rows, [images], tf.float32), (None, columns)), images)

    attacked = single_head(answers, image_shape)
    told = [NO_GRADIENT_FILE, NO_LABELS]
    told += [f"Of its outputs {', '.join(outputs)} the output {chosen} was attacked."] if len(outputs) > 1 else []
    if is_first:
        told.append("Its images have their channels first: they were turned.")
    return AttackedModel(
        name,
        attacked.heads_fns,
        num_probes=0,
        num_classes=attacked.num_classes,
        image_shape=image_shape,
        fingerprint=_hash_files(path),
        limits=(*told, *attacked.limits),
        precision="float16" if dtype == "float16" else "float32",
        has_gradient=False,
    )


def _checked(values: np.ndarray, shape: tuple[int, ...], path: Path) -> np.ndarray:
    """Refuse answers of another shape than before."""
    if values.shape != shape:
        raise ValueError(f"{path} answered with the shape {values.shape} where {shape} was due")
    return np.asarray(values, np.float32)


def _hash_files(*paths: Path) -> str:
    """Hash files, and those that hold the weights of an ONNX file beside it."""
    import onnx

    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
        tensors = onnx.load(str(path), load_external_data=False).graph.initializer
        outside = {entry.value for each in tensors for entry in each.external_data if entry.key == "location"}
        for file in sorted(outside):
            digest.update((path.parent / file).read_bytes())
    return digest.hexdigest()[:16]
