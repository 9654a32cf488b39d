"""Where data enter a network that Keras trains: looked at before the first step, and in the graph of each."""

from typing import Any

import keras
import tensorflow as tf

from cifs_tf.checks import (
    LATER,
    ONE_HOT_NDIM,
    check_ends,
    check_first_batch,
    check_images,
    check_labels,
    check_weights,
    explain_later_batches,
)
from cifs_tf.errors import UserError
from cifs_tf.framework_internals import validates_in_fit

# Pixels so far outside [0, 1] are of another range; a little is the work of an augmentation.
OVERSHOOT = 0.5


class CheckedModel(keras.Model):
    """A Keras model that looks at images and labels where `fit`, `evaluate`, `predict` and single steps take them.

    Arrays are looked at as a whole, of anything else the first batch, and of single steps the first one. Later batches
    are looked at by `watch_batch`, which waits for no device. A subclass has `image_shape` and `num_classes`.
    """

    image_shape: Any
    num_classes: Any
    skips_not_finite = False  # True if a step whose images are not finite changes nothing
    _has_looked = False

    def check_labels(self, labels: Any) -> None:
        """Refuse labels that are no classes.

        Raises:
            UserError: for these.
        """
        check_labels(labels, self.num_classes)

    def fit(self, x=None, y=None, *args, **kwargs):
        """Train, as Keras' `fit` does, on images in [0, 1].

        Raises:
            UserError: for other pixels or labels, of the validation data too.
        """
        check_ends(x, kwargs.get("steps_per_epoch"))
        x = self._look(x, y, allow_nan=self.skips_not_finite)
        if (weights := kwargs.get("sample_weight")) is not None:
            check_weights(weights, len(x) if hasattr(x, "shape") else None)
        validation = kwargs.get("validation_data")
        if isinstance(validation, tuple | list):
            self._look(*validation[:2], argument="validation ")
            if len(validation) > 2 and validation[2] is not None:
                check_weights(validation[2], len(validation[0]), "validation sample_weight")
        elif validation is not None:
            check_ends(validation, kwargs.get("validation_steps"), "validation_steps")
            kwargs["validation_data"] = self._look(validation, None, argument="validation ")
        with explain_later_batches(self.num_classes):
            return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """Measure, as Keras' `evaluate` does, on images in [0, 1].

        Raises:
            UserError: as for `fit`.
        """
        if not validates_in_fit(kwargs):  # which has looked
            check_ends(x, kwargs.get("steps"), "steps")
            x = self._look(x, y)
        with explain_later_batches(self.num_classes):
            return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """Predict, as Keras' `predict` does, for images in [0, 1].

        Raises:
            UserError: for other pixels.
        """
        check_ends(x, kwargs.get("steps"), "steps")
        x = check_first_batch(x, None, self.image_shape, None)
        with explain_later_batches(self.num_classes):
            return super().predict(x, *args, **kwargs)

    def predict_step(self, data):
        """Predict a batch; `predict` calls it."""
        watch_batch(keras.utils.unpack_x_y_sample_weight(data)[0], self.image_shape)
        return super().predict_step(data)

    def train_on_batch(self, x, y=None, *args, **kwargs):
        """Train on a batch, as Keras does; the first one is looked at as in `fit`."""
        self._look_once(x, y, allow_nan=self.skips_not_finite)
        with explain_later_batches(self.num_classes):
            return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(self, x, y=None, *args, **kwargs):
        """Measure a batch, as Keras does; the first one is looked at as in `evaluate`."""
        self._look_once(x, y)
        with explain_later_batches(self.num_classes):
            return super().test_on_batch(x, y, *args, **kwargs)

    def _look(self, x, y=None, **options):
        return check_first_batch(x, y, self.image_shape, self.check_labels, **options)

    def _look_once(self, x, y, **options):
        if not self._has_looked:
            self._look(x, y, **options)
            self._has_looked = True


def watch_batch(
    images: tf.Tensor,
    shape: tuple[int | None, ...],
    labels: tf.Tensor | None = None,
    num_classes: int = 0,
    weights: tf.Tensor | None = None,
    allow_nan: bool = False,
) -> tf.Tensor:
    """Let a step fail for images of another size or range than [0, 1], and for labels and sample weights that are none.

    In the graph of the step: nothing waits for what is found, which ends the `fit` or `evaluate` that reads the step's
    results.

    Args:
        images: floats (batch, height, width, channels).
        shape: (height, width, channels) that they must have, None where that is open.
        labels: numbers (batch,) or (batch, 1), or one-hot rows (batch, classes). Default None: there are none.
        num_classes: labels are below it.
        weights: of the images (batch,) or (batch, 1). Default None: there are none.
        allow_nan: leave pixels that are not finite to whoever names them. Default False.

    Returns:
        the images, once their size is known to be right.

    Raises:
        UserError: while the step is traced, for images, labels or weights of a wrong shape.
    """
    # Steps may be called by hand, with arrays.
    images = tf.convert_to_tensor(images)
    weights, labels = (None if each is None else tf.convert_to_tensor(each) for each in (weights, labels))
    if not images.shape.is_compatible_with((None, *shape)):
        check_images(tf.zeros([size or 0 for size in images.shape]), shape=shape)
    if weights is not None and not any(weights.shape.is_compatible_with(each) for each in ((None,), (None, 1))):
        raise UserError("sample_weight", f"shape {tuple(weights.shape)}", "give one number for each image")
    if not images.shape[1:].is_fully_defined():
        wanted = tf.constant([size or 0 for size in shape])
        is_size = tf.reduce_all((wanted == 0) | (tf.shape(images)[1:] == wanted))
        with tf.control_dependencies([tf.debugging.Assert(is_size, [f"{LATER} size", tf.shape(images)], 4)]):
            images = tf.ensure_shape(tf.identity(images), (None, *shape))
    low, high = (tf.cast(reduce(images), tf.float32) for reduce in (tf.reduce_min, tf.reduce_max))
    is_finite = tf.math.is_finite(tf.reduce_sum(tf.cast(images, tf.float32)))
    is_other = is_finite & ((low < -OVERSHOOT) | (high > 1 + OVERSHOOT))
    tf.debugging.Assert(~is_other, [f"{LATER} images", low, high])
    if not allow_nan:
        tf.debugging.Assert(is_finite, [f"{LATER} pixels", 0])
    if weights is not None:
        least = tf.reduce_min(tf.where(tf.math.is_finite(weights), weights, -tf.ones_like(weights)))
        tf.debugging.Assert(least >= 0, [f"{LATER} weights", tf.cast(least, tf.float32)])
    if labels is None:
        return images
    if len(labels.shape) == ONE_HOT_NDIM and labels.shape[1] != 1:
        is_one_hot = (tf.reduce_max(labels, axis=1) == 1) & (tf.reduce_sum(tf.abs(labels), axis=1) == 1)
        tf.debugging.Assert(tf.reduce_all(is_one_hot), [f"{LATER} labels", 0])
        return images
    values = tf.cast(tf.reshape(labels, [-1]), tf.float32)  # exact up to 16 million classes
    is_wrong = (values != tf.round(values)) | (values < 0) | (values >= num_classes)
    worst = values[tf.argmax(tf.cast(is_wrong, tf.int32))]
    tf.debugging.Assert(~tf.reduce_any(is_wrong), [f"{LATER} labels", worst])
    return images


def check_takes_logits(loss) -> None:
    """Refuse a loss that expects probabilities: it would clip the logits, and train on next to nothing."""
    name = name_of(loss)
    takes_logits = isinstance(loss, keras.losses.Loss) and loss.get_config().get("from_logits", True)
    if name.endswith("crossentropy") and not takes_logits:
        raise UserError("loss", name, "the heads are logits, give SparseCategoricalCrossentropy(from_logits=True)")


def name_of(loss) -> str:
    """Return the name of a loss, given as text, function or object."""
    return loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
