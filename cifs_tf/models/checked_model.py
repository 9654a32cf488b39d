"""Where data enter a network that Keras trains: looked at before the first step, and in the graph of each."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.checks import (
    LATER,
    ONE_HOT_NDIM,
    TWICE,
    check_class_weight,
    check_ends,
    check_first_batch,
    check_images,
    check_labels,
    check_weights,
    explain_later_batches,
    refuse_batch,
)
from cifs_tf.errors import UserError
from cifs_tf.framework_internals import WatchedModel, update_compiled_metrics, validates_in_fit
from cifs_tf.models.metric_labels import labels_for
from cifs_tf.models.pixel_range import check_range

# Pixels so far outside [0, 1] are of another range; a little is the work of an augmentation.
OVERSHOOT = 0.5


class CheckedModel(WatchedModel):
    """A Keras model that looks at images and labels where `fit`, `evaluate`, `predict` and single steps take them.

    Arrays are looked at as a whole, of anything else the first batch, and of single steps the first one. Later batches
    are looked at by `watch`, which the steps of a subclass call and which waits for no device. A subclass has
    `image_shape`, `num_classes`, and the `backbone` or the `classifier` that has it.
    """

    image_shape: Any
    num_classes: Any
    train_function: Any
    test_function: Any
    skips_not_finite = False  # True if a step whose images are not finite changes nothing
    takes_soft_labels = False  # True if rows need not be one-hot
    takes_any_pixels = False  # True if the network may be made for other pixels than [0, 1]
    _has_looked = _has_checked_range = False
    _label_axes: int | None = None

    def check_labels(self, labels: Any) -> None:
        """Refuse labels that are no classes.

        Raises:
            UserError: for these.
        """
        check_labels(labels, self.num_classes)

    def watch(self, data, step):
        """Let a step fail for a batch that is not what the first one was, see `watch_batch`."""
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        if step == "predict_step":
            return watch_batch(images, self.image_shape)
        allow_nan = self.skips_not_finite and step == "train_step"
        options = {"allow_nan": allow_nan, "allow_soft": self.takes_soft_labels}
        return watch_batch(images, self.image_shape, labels, self.num_classes, weights, **options)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Update the compiled metrics, see `update_metrics`."""
        self.update_metrics(y, y_pred, sample_weight)
        return self.get_metrics_result()

    def update_metrics(self, labels: tf.Tensor, logits: tf.Tensor, sample_weight: tf.Tensor | None) -> dict:
        """Update the compiled metrics, each with labels in the form that it reads; return their values by name.

        Raises:
            UserError: for a metric that does not read logits, or one that Keras does not know.
        """
        labels = tf.convert_to_tensor(labels)
        return update_compiled_metrics(
            self, labels, logits, sample_weight, lambda metric: labels_for(metric, labels, self.num_classes)
        )

    def fit(self, x=None, y=None, *args, **kwargs):
        """Train, as Keras' `fit` does, on images in [0, 1].

        Raises:
            UserError: for other pixels or labels, of the validation data too.
        """
        check_ends(x, kwargs.get("steps_per_epoch"))
        share = kwargs.get("validation_split") or 0.0
        if not 0 <= share < 1:
            raise UserError("validation_split", share, "give a share of the images, from 0 to less than 1")
        check_class_weight(kwargs.get("class_weight"), self.num_classes)
        x = self._look(x, y, kwargs.get("sample_weight"), allow_nan=self.skips_not_finite)
        validation = kwargs.get("validation_data")
        if isinstance(validation, tuple | list):
            self._look(*validation[:3], argument="validation ")
        elif validation is not None:
            check_ends(validation, kwargs.get("validation_steps"), "validation_steps")
            kwargs["validation_data"] = self._look(validation, argument="validation ")
        with explain_later_batches(self.num_classes):
            return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """Measure, as Keras' `evaluate` does, on images in [0, 1].

        Raises:
            UserError: as for `fit`.
        """
        if not validates_in_fit(kwargs):  # which has looked
            check_ends(x, kwargs.get("steps"), "steps")
            x = self._look(x, y, kwargs.get("sample_weight"))
        with explain_later_batches(self.num_classes):
            return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """Predict, as Keras' `predict` does, for images in [0, 1].

        Raises:
            UserError: for other pixels.
        """
        check_ends(x, kwargs.get("steps"), "steps")
        x = check_first_batch(x, None, self.image_shape, None)
        self._check_range()
        with explain_later_batches(self.num_classes):
            return super().predict(x, *args, **kwargs)

    def predict_step(self, data):
        """Predict a batch; `predict` calls it."""
        self.watch(data, "predict_step")
        return super().predict_step(data)

    def train_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        """Train on a batch, as Keras does; the first one is looked at as in `fit`."""
        self._look_once(x, y, sample_weight, allow_nan=self.skips_not_finite)
        self._retrace_for(y)
        check_class_weight(kwargs.get("class_weight"), self.num_classes)
        with explain_later_batches(self.num_classes):
            return super().train_on_batch(x, y, sample_weight, **kwargs)

    def test_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        """Measure a batch, as Keras does; the first one is looked at as in `evaluate`."""
        self._look_once(x, y, sample_weight)
        self._retrace_for(y)
        with explain_later_batches(self.num_classes):
            return super().test_on_batch(x, y, sample_weight, **kwargs)

    def predict_on_batch(self, x):
        """Predict a batch, as Keras does."""
        with explain_later_batches(self.num_classes):
            return super().predict_on_batch(x)

    def _look(self, x, y=None, weights=None, **options):
        def check(labels):
            self.check_labels(labels)
            self._retrace_for(labels)

        found = check_first_batch(x, y, self.image_shape, check, **options)
        self._check_range()
        if weights is not None:
            argument = f"{options.get('argument', '')}sample_weight"
            check_weights(weights, len(x) if hasattr(x, "shape") else None, argument)
        return found

    def _look_once(self, *data, **options):
        if not self._has_looked:
            self._look(*data, **options)
            self._has_looked = True

    def _retrace_for(self, labels: Any) -> None:
        """Let Keras make its steps anew where labels come in another form: it would trace them for any, of no shape."""
        axes = len(getattr(labels, "shape", ()))
        if axes != self._label_axes:
            self._label_axes, self.train_function, self.test_function = axes, None, None

    def _check_range(self) -> None:
        network: Any = getattr(self, "classifier", self)
        if not (network.takes_any_pixels or self._has_checked_range):
            way = "make the classifier with cifs_tf.defend(model, preprocessing={})"
            check_range(network.backbone, "classifier", network.name, way)
            self._has_checked_range = True


def watch_batch(
    images: tf.Tensor,
    shape: tuple[int | None, ...],
    labels: tf.Tensor | None = None,
    num_classes: int = 0,
    weights: tf.Tensor | None = None,
    allow_nan: bool = False,
    allow_soft: bool = False,
) -> tf.Tensor:
    """Make a step fail on images of another size or range than [0, 1], and on invalid labels and sample weights.

    In the graph of the step nothing waits for what is found, which ends the `fit` or `evaluate` that reads the step's
    results.

    Args:
        images: floats (batch, height, width, channels).
        shape: (height, width, channels) that they must have, None where that is open.
        labels: numbers (batch,) or (batch, 1), or one-hot rows (batch, classes). Default None: there are none.
        num_classes: labels are below it.
        weights: of the images (batch,) or (batch, 1). Default None: there are none.
        allow_nan: leave pixels that are not finite to whoever names them. Default False.
        allow_soft: take rows that are not one-hot. Default False.

    Returns:
        the images, once their size is known to be right.

    Raises:
        UserError: while the step is traced, for images, labels or weights of a wrong shape; eagerly, for whatever is
            wrong.
    """
    # Steps may be called by hand, with arrays.
    images = tf.convert_to_tensor(images)
    weights, labels = (None if each is None else tf.convert_to_tensor(each) for each in (weights, labels))
    if not images.shape.is_compatible_with((None, *shape)):
        check_images(np.zeros([size or 0 for size in images.shape], np.float32), shape=shape)
    if weights is not None and not any(weights.shape.is_compatible_with(each) for each in ((None,), (None, 1))):
        raise UserError("sample_weight", f"shape {tuple(weights.shape)}", "give one number for each image")
    columns = labels.shape[1] if labels is not None and len(labels.shape) == ONE_HOT_NDIM else 1
    has_rows = columns != 1
    if has_rows and columns not in (None, num_classes):
        check_labels(np.eye(1, columns), num_classes)

    def ensure(condition, what, *values):
        if not tf.executing_eagerly():
            return tf.debugging.Assert(condition, [f"{LATER} {what}", *values], 4)
        if not condition:
            refuse_batch(what, np.ravel(values), num_classes)
        return tf.no_op()

    if not images.shape[1:].is_fully_defined():
        wanted = tf.constant([size or 0 for size in shape])
        is_size = tf.reduce_all((wanted == 0) | (tf.shape(images)[1:] == wanted))
        with tf.control_dependencies([ensure(is_size, "size", tf.shape(images))]):
            images = tf.ensure_shape(tf.identity(images), (None, *shape))
    low, high = (tf.cast(reduce(images), tf.float32) for reduce in (tf.reduce_min, tf.reduce_max))
    is_finite = tf.math.is_finite(tf.reduce_sum(tf.cast(images, tf.float32)))
    is_dark = (high > 0) & (high <= TWICE) & (low >= 0)
    is_twice = tf.cond(is_dark, lambda: _are_no_bytes(images), lambda: False)
    is_other = is_finite & ((low < -OVERSHOOT) | (high > 1 + OVERSHOOT) | is_twice)
    ensure(~is_other, "images", low, high)
    if not allow_nan:
        ensure(is_finite, "pixels", 0)
    if weights is not None:
        least = tf.reduce_min(tf.where(tf.math.is_finite(weights), weights, -tf.ones_like(weights)))
        ensure(least >= 0, "weights", tf.cast(least, tf.float32))
    if labels is None or (has_rows and allow_soft):
        return images
    if has_rows:
        is_one_hot = (tf.reduce_max(labels, axis=1) == 1) & (tf.reduce_sum(tf.abs(labels), axis=1) == 1)
        ensure(tf.reduce_all(is_one_hot), "labels", 0)
        return images
    values = tf.cast(tf.reshape(labels, [-1]), tf.float32)  # exact up to 16 million classes
    is_wrong = (values != tf.round(values)) | (values < 0) | (values >= num_classes)
    worst = values[tf.argmax(tf.cast(is_wrong, tf.int32))]
    ensure(~tf.reduce_any(is_wrong), "labels", worst)
    return images


def _are_no_bytes(images: tf.Tensor) -> tf.Tensor:
    """Tell whether pixels are no multiples of 1/255: nearly black ones are, others were divided twice."""
    scaled = 255 * tf.cast(images, tf.float32)
    return tf.reduce_any(tf.abs(scaled - tf.round(scaled)) > 1e-2)


def check_takes_logits(loss) -> None:
    """Refuse a loss that expects probabilities: it would clip the logits, and train on next to nothing."""
    name = name_of(loss)
    takes_logits = isinstance(loss, keras.losses.Loss) and loss.get_config().get("from_logits", True)
    if name.endswith("crossentropy") and not takes_logits:
        raise UserError("loss", name, "the heads are logits, give SparseCategoricalCrossentropy(from_logits=True)")


def name_of(loss) -> str:
    """Return the name of a loss, given as text, function or object."""
    return loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
