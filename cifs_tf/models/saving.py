"""Classifiers from files, and copies of classifiers."""

import os
from pathlib import Path
from typing import Any, TypeVar

import keras

from cifs_tf.errors import UserError
from cifs_tf.framework_internals import layers_of

Model = TypeVar("Model", bound=keras.Model)


def load_model(path: str | os.PathLike[str], **kwargs: Any) -> keras.Model:
    """Load a classifier, or any other Keras model, from a `.keras` file.

    Args:
        path: the file, such as `last.keras` in the folder of a network of a run.
        **kwargs: those of `keras.models.load_model`.

    Returns:
        the model.

    Raises:
        UserError: if there is no such file, or Keras cannot load it.

    Example:
        >>> classifier.save("classifier.keras")
        >>> load_model("classifier.keras").num_probes == classifier.num_probes
        True
    """
    path = Path(path)
    if os.path.isdir(path):
        files = sorted(str(file.relative_to(path)) for file in path.rglob("*.keras"))
        advice = f"this is a folder, give one of its files: {', '.join(files)}" if files else "it holds no .keras file"
        raise UserError("model", path, advice)
    if not os.path.exists(path):  # nor can a name be that no system takes
        raise UserError("model", path, "there is no such file, give a .keras file")
    try:
        return keras.models.load_model(path, **kwargs)
    except Exception as error:  # whatever a foreign file makes Keras raise
        # Of nested layers Keras has the cause at the end, behind their whole configuration.
        cause = str(error).rpartition("Exception encountered: ")[2]
        if "`Lambda`" in cause:
            advice = (
                "it has a Lambda, Python code that would run here; give a file without, or safe_mode=False for your own"
            )
            raise UserError("model", path, advice) from error
        reason = next(iter(cause.strip().splitlines()), type(error).__name__)
        raise UserError("model", path, f"Keras cannot load it ({reason}), give a .keras file") from error


def with_precision(classifier: Model, precision: str | None = None) -> Model:
    """Copy a classifier: the same weights, under the same dtype policy or another one.

    Args:
        classifier: any `Classifier`.
        precision: `"float32"` or `"float64"`; a mixed policy belongs to `build_classifier`, which knows the layers that
            keep full precision. None (default) copies without a change.

    Returns:
        a new classifier; the given one is left alone.

    Raises:
        UserError: for another precision.

    Example:
        >>> exported = with_precision(classifier, "float32")
    """
    if precision not in ("float32", "float64", None):
        raise UserError("precision", precision, "give float32 or float64")

    def convert(node):
        if isinstance(node, dict):
            if precision and node.get("class_name") == "DTypePolicy":
                return {**node, "config": {"name": precision}}
            return {key: convert(value) for key, value in node.items()}
        return [convert(item) for item in node] if isinstance(node, list | tuple) else node

    copy = keras.saving.deserialize_keras_object(convert(keras.saving.serialize_keras_object(classifier)))
    copy.set_weights(classifier.get_weights())
    for layer in layers_of(copy):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with what it once derived from its weights
    return copy
