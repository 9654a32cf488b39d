"""Publish a classifier as SavedModel and ONNX: written under a temporary name, checked against the live model, renamed.

A published version is a folder BASE/N with `saved_model.pb` (TF Serving reads BASE), `model.onnx`, and
`heads_and_gradient.onnx`, with which an attacker needs no TensorFlow.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cifs_tf.errors import UserError, first_line
from cifs_tf.files import check_version, publish_version, write_json
from cifs_tf.models import Classifier, with_precision
from cifs_tf.models.onnx_gradient import GRADIENT_FILE, heads_and_gradient_fn, write_gradient_onnx
from cifs_tf.models.saved_model import ExportError, write_onnx, write_saved_model
from cifs_tf.models.signature_functions import decode_images, disagreement, is_decodable, predict_fn
from cifs_tf.sizes import Resize

FORMATS = ("savedmodel", "onnx", "gradient")
# In a version that a run exports: of which run and network it is, and a hash of every other file.
ORIGIN_FILE = "run.json"

__all__ = [
    "FORMATS",
    "GRADIENT_FILE",
    "ORIGIN_FILE",
    "ExportError",
    "changed_files",
    "decode_images",
    "describe_files",
    "disagreement",
    "export",
    "find_fault",
    "heads_and_gradient_fn",
    "is_decodable",
    "predict_fn",
    "write_gradient_onnx",
    "write_onnx",
    "write_origin",
    "write_saved_model",
]


def export(
    classifier: Classifier,
    base: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    formats: Sequence[str] = FORMATS,
    version: int | None = None,
    resize: Resize | bool | None = None,
    add_files: Sequence[Callable[[Path], object]] = (),
) -> Path:
    """Publish a classifier as BASE/VERSION, in float32 whatever the training precision.

    SavedModel signatures: `serving_default` (`image` float32 (batch, height, width, channels) in [0, 1] -> `logits`,
    `probabilities`, `probe_logits`), `encoded` (`image_bytes`, whole image files, see `decode_images` -> the same; only
    for 1, 3 or 4 channels), `explain` (`image` -> what the selection layers saw and did, see `explain_fn`), and
    `heads_detached`, `heads_full`, `heads_smoothed` (`image` -> `heads`), equal in value, which differ in the gradient
    through the mask and can be differentiated after `tf.saved_model.load`. ONNX (opset 17): `image` -> `logits`,
    `probabilities`, `probe_logits`, free dimension `batch`. A network without selection layers has no `probe_logits`.
    The gradient, `heads_and_gradient.onnx` (opset 17, plain operators), is that of `heads_and_gradient_fn`: what an
    attack with onnxruntime asks. Where a layer's gradient has no ONNX form, a warning says so and the file is left out.

    Args:
        classifier: what to export; left alone.
        base: folder of the versions.
        class_names: written to `labels.json`; None (default) numbers the classes.
        formats: which of `"savedmodel"`, `"onnx"` and `"gradient"`. Default all.
        version: number of the version, >= 1; None (default) takes the one after the highest there.
        resize: how `encoded` resizes images of another size: `"crop"`, `"stretch"` (or True) or `"pad"`. Default None,
            or False: they are an error.
        add_files: each is called with the folder, in order and before it is published, to add files of its own; an
            error there publishes nothing. Default none.

    Returns:
        the published folder.

    Raises:
        UserError: if the version exists, a format is unknown, there are too few or too many class names, or the base
            cannot be written to.
        ExportError: if an exported file does not load, or differs from the live model by more than 1e-5 on one of two
            batch sizes; nothing is left behind.

    Example:
        >>> path = export(classifier, "export/cifs")
        >>> loaded = tf.saved_model.load(str(path))  # keep a reference to it
        >>> loaded.signatures["serving_default"](image=images)["probabilities"]
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError("formats", name, f"give some of {', '.join(FORMATS)}")
    if not formats:
        raise UserError("formats", list(formats), f"give some of {', '.join(FORMATS)}")
    names = list(map(str, range(classifier.num_classes)) if class_names is None else class_names)
    if len(names) != classifier.num_classes:
        raise UserError("class_names", names, f"give {classifier.num_classes}, one for each class")
    check_version(Path(base), version)
    classifier = with_precision(classifier, "float32")

    def write(path: Path) -> None:
        # ONNX first: writing a SavedModel into the folder leaves other files alone.
        if "onnx" in formats:
            write_onnx(classifier, path / "model.onnx")
        if "gradient" in formats:
            try:
                write_gradient_onnx(classifier, path / GRADIENT_FILE)
            except ExportError as error:
                warnings.warn(first_line(error), stacklevel=2)
        if "savedmodel" in formats:
            write_saved_model(classifier, path, resize=resize)
        write_json(path / "labels.json", names)
        for add_file in add_files:
            add_file(path)

    return publish_version(base, write, version)


def describe_files(path: Path, without: str) -> dict[str, Any]:
    """Return size and SHA-256 of every file of a version, by its path in the folder, without the one that tells it."""
    return {
        file.relative_to(path).as_posix(): {
            "size": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.relative_to(path).as_posix() != without
    }


def write_origin(path: Path, origin: Mapping[str, Any], recipe: Mapping[str, Any] | None = None) -> None:
    """Write into a version that is otherwise complete where it is from, of its recipe, and the hashes of its files."""
    content = {"origin": dict(origin), "recipe": dict(recipe or {}), "files": describe_files(path, ORIGIN_FILE)}
    write_json(path / ORIGIN_FILE, content)


def find_fault(path: Path, origin: Mapping[str, Any], names: Sequence[str] | None = None) -> str | None:
    """Return why a version is not the one that `write_origin` described; None if it is, to the last byte.

    Args:
        path: the version's folder.
        origin: where it should be from.
        names: look at these of its files alone, which others may lie beside. Default None: at all.
    """
    try:
        content = json.loads((path / ORIGIN_FILE).read_text(encoding="utf-8"))
        found, files = content["origin"], content["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {ORIGIN_FILE} is missing or damaged"
    different = [name for name in origin if found.get(name) != origin[name]]
    if different:
        return f"it is of another run or network: {', '.join(different)}"
    changed = [name for name in changed_files(path, files) if names is None or name in names]
    return f"{', '.join(changed)} changed after it was exported" if changed else None


def changed_files(path: Path, files: Mapping[str, Any]) -> list[str]:
    """Return which files of a version are not as `describe_files` described them, are new, or are gone."""
    there = describe_files(path, ORIGIN_FILE)
    return sorted(name for name in {**files, **there} if files.get(name) != there.get(name))
