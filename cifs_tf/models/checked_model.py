"""Where data enter a network that Keras trains: looked at before the first step, and in the graph of each."""

from typing import Any

import keras
import tensorflow as tf

from cifs_tf.checks import LATER, ONE_HOT_NDIM, check_first_batch, check_labels, explain_later_batches
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
        x = self._look(x, y, allow_nan=self.skips_not_finite)
        validation = kwargs.get("validation_data")
        if isinstance(validation, tuple | list):
            self._look(*validation[:2], argument="validation ")
        elif validation is not None:
            kwargs["validation_data"] = self._look(validation, None, argument="validation ")
        with explain_later_batches(self.num_classes):
            return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """Measure, as Keras' `evaluate` does, on images in [0, 1].

        Raises:
            UserError: as for `fit`.
        """
        if not validates_in_fit(kwargs):  # which has looked
            x = self._look(x, y)
        with explain_later_batches(self.num_classes):
            return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """Predict, as Keras' `predict` does, for images in [0, 1].

        Raises:
            UserError: for other pixels.
        """
        x = check_first_batch(x, None, self.image_shape, None)
        with explain_later_batches(self.num_classes):
            return super().predict(x, *args, **kwargs)

    def predict_step(self, data):
        """Predict a batch; `predict` calls it."""
        watch_batch(keras.utils.unpack_x_y_sample_weight(data)[0])
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


def watch_batch(images: tf.Tensor, labels: tf.Tensor | None = None, num_classes: int = 0) -> None:
    """Let a step fail for pixels of another range than [0, 1], and for labels that are none.

    In the graph of the step: nothing waits for what is found, which ends the `fit` or `evaluate` that reads the step's
    results. What is not finite is left to whoever names it.

    Args:
        images: floats (batch, height, width, channels).
        labels: numbers (batch,) or (batch, 1), or one-hot rows (batch, classes). Default None: there are none.
        num_classes: labels are below it.
    """
    low, high = (tf.cast(reduce(images), tf.float32) for reduce in (tf.reduce_min, tf.reduce_max))
    is_other = tf.math.is_finite(high - low) & ((low < -OVERSHOOT) | (high > 1 + OVERSHOOT))
    tf.debugging.Assert(~is_other, [f"{LATER} images", low, high])
    if labels is None:
        return
    if len(labels.shape) == ONE_HOT_NDIM and labels.shape[1] != 1:
        is_one_hot = (tf.reduce_max(labels, axis=1) == 1) & (tf.reduce_sum(tf.abs(labels), axis=1) == 1)
        tf.debugging.Assert(tf.reduce_all(is_one_hot), [f"{LATER} labels", 0])
        return
    values = tf.cast(tf.reshape(labels, [-1]), tf.float32)  # exact up to 16 million classes
    is_wrong = (values != tf.round(values)) | (values < 0) | (values >= num_classes)
    worst = values[tf.argmax(tf.cast(is_wrong, tf.int32))]
    tf.debugging.Assert(~tf.reduce_any(is_wrong), [f"{LATER} labels", worst])


def check_takes_logits(loss) -> None:
    """Refuse a loss that expects probabilities: it would clip the logits, and train on next to nothing."""
    name = name_of(loss)
    takes_logits = isinstance(loss, keras.losses.Loss) and loss.get_config().get("from_logits", True)
    if name.endswith("crossentropy") and not takes_logits:
        raise UserError("loss", name, "the heads are logits, give SparseCategoricalCrossentropy(from_logits=True)")


def name_of(loss) -> str:
    """Return the name of a loss, given as text, function or object."""
    return loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
