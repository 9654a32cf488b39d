"""Models to attack, from files: Keras, SavedModel and ONNX."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from cifs_tf.attacks import HeadsFn
from cifs_tf.errors import UserError, first_line
from cifs_tf.evaluation.networks.attacked import (
    PAPER_TOP_K,
    AttackedModel,
    as_attacked,
    as_many,
    check_input_of,
    single_head,
)
from cifs_tf.evaluation.networks.onnx_files import load_onnx
from cifs_tf.evaluation.networks.outputs import as_rows, choose_output
from cifs_tf.layers import MASK_GRADIENTS
from cifs_tf.models import load_model
from cifs_tf.models.side_effects import check_side_effects


def load_attacked(path: str | os.PathLike[str], name: str | None = None, *, trust: bool = False) -> AttackedModel:
    """Load a model to attack: a `.keras` or `.onnx` file, or a SavedModel folder (or the folder of its versions).

    A SavedModel of this project brings the signatures `heads_*`, which differ in the gradient through the masks. Of any
    other its `serving_default` is attacked, through whatever gradient it was saved with. An ONNX file is attacked
    through the gradient that export wrote beside it; any other by its answers alone, with attacks that need no
    gradient.

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
        raise UserError("model", path, "there is no such file, give a .keras or .onnx file or a SavedModel folder")
    if path.suffix == ".onnx" and path.is_file():
        return load_onnx(path, name)
    if path.is_file():
        return as_attacked(load_model(path, compile=False), name)
    folder = version_folder(path)
    if not (folder / "saved_model.pb").exists():
        raise UserError("model", path, "it holds no saved_model.pb, give a .keras file or a SavedModel folder")
    check_side_effects(folder, trust)
    try:
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:
        raise UserError("model", path, f"TensorFlow cannot load it ({first_line(error)}), give a SavedModel") from error
    fingerprint = _hash_files(folder)
    ours = {m: loaded.signatures[f"heads_{m}"] for m in MASK_GRADIENTS if f"heads_{m}" in loaded.signatures}
    return _from_heads(loaded, ours, name, fingerprint) if ours else _from_foreign(loaded, name, fingerprint)


def version_folder(path: Path) -> Path:
    """Return the folder of a SavedModel: the one that is given, or of the folder of its versions the highest."""
    versions = [int(child.name) for child in path.iterdir() if child.name.isdigit()]
    return path if (path / "saved_model.pb").exists() or not versions else path / str(max(versions))


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
        return lambda images, loaded=loaded: as_many(signature(image=images)["heads"], images)  # type: ignore[misc]

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
    check_input_of(name, tuple(spec.shape), spec.dtype.name)

    def answers(images: tf.Tensor, loaded: Any = loaded) -> tf.Tensor:
        return as_many(as_rows(signature(**{key: tf.cast(images, spec.dtype)})[chosen]), images)

    attacked = single_head(answers, tuple(spec.shape[1:]))
    limit = (
        f"A foreign SavedModel: the output {chosen!r} of serving_default was attacked, through the gradient it was "
        "saved with; raw predictions, other mask gradients and labels were not available."
    )
    precision = spec.dtype.name if attacked.precision == "float32" else attacked.precision
    return dataclasses.replace(
        attacked, name=name, fingerprint=fingerprint, limits=(limit, *attacked.limits), precision=precision
    )


def _hash_files(folder: Path) -> str:
    digest = hashlib.sha256()
    read = [file for part in ("variables", "assets") for file in sorted((folder / part).rglob("*")) if file.is_file()]
    for file in (folder / "saved_model.pb", *read):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
