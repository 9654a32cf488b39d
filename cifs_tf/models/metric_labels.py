"""The labels that a compiled metric reads, in its own form; metrics that would misread logits are refused."""

import inspect
from typing import Any

import tensorflow as tf

from cifs_tf.checks import ONE_HOT_NDIM
from cifs_tf.errors import UserError

# Keras' metrics of logits, by the form of the labels that they read.
_NUMBERS = (
    *("SparseCategoricalAccuracy", "SparseTopKCategoricalAccuracy", "SparseCategoricalCrossentropy"),
    *("IoU", "MeanIoU"),
)
_ROWS = (
    *("CategoricalAccuracy", "TopKCategoricalAccuracy", "CategoricalCrossentropy", "CategoricalFocalCrossentropy"),
    *("BinaryCrossentropy", "CategoricalHinge", "F1Score", "FBetaScore", "AUC", "Precision", "Recall"),
    *("OneHotIoU", "OneHotMeanIoU"),
)


def labels_for(metric: Any, labels: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Return labels in the form that a metric reads.

    Args:
        metric: a metric, or the function or loss of which one takes the mean. Of those that are not Keras' own nobody
            knows what they read: they are given the labels as they are.
        labels: (batch,), (batch, 1), or rows (batch, classes).
        num_classes: K.

    Returns:
        int32 (batch,), float32 rows (batch, classes), or the labels as they are.

    Raises:
        UserError: for one of Keras' own that reads probabilities, or a single column.

    Example:
        >>> labels_for(keras.metrics.CategoricalAccuracy(), tf.constant([1]), 3).numpy().tolist()
        [[0.0, 1.0, 0.0]]
    """
    kind = metric if hasattr(metric, "__name__") else type(metric)
    if not kind.__module__.startswith("keras."):
        return labels
    if hasattr(metric, "get_config"):
        settings = metric.get_config()
    else:
        settings = {each.name: each.default for each in inspect.signature(metric).parameters.values()}
    name = "".join(word[:1].upper() + word[1:] for word in kind.__name__.split("_"))
    reads_logits = (
        settings.get("from_logits", True)
        and settings.get("top_k", 1) is not None
        and settings.get("threshold") is None
        and not settings.get("sparse_y_pred", False)
    )
    if reads_logits and name in _NUMBERS:
        return class_numbers(labels, num_classes)
    if reads_logits and name in _ROWS:
        is_rows = len(labels.shape) == ONE_HOT_NDIM and labels.shape[1] != 1
        return tf.cast(labels, tf.float32) if is_rows else tf.one_hot(class_numbers(labels, num_classes), num_classes)
    advice = (
        "it does not read logits, which the network answers with; give SparseCategoricalAccuracy, F1Score, "
        "Precision(top_k=1), AUC(from_logits=True) or the like"
    )
    raise UserError("metrics", name, advice)


def class_numbers(labels: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Bring labels, numbers or rows, to int32 (batch,)."""
    if len(labels.shape) == ONE_HOT_NDIM and labels.shape[1] == num_classes:
        return tf.argmax(labels, axis=-1, output_type=tf.int32)
    return tf.cast(tf.reshape(labels, [-1]), tf.int32)
