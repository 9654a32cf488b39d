"""Where data enter a network that Keras trains: looked at once, before the first step."""

from typing import Any

import keras

from cifs_tf.checks import check_first_batch, check_labels, labels_of_later_batches
from cifs_tf.errors import UserError
from cifs_tf.framework_internals import validates_in_fit


class CheckedModel(keras.Model):
    """A Keras model that looks at images and labels where `fit`, `evaluate`, `predict` and single steps take them.

    Arrays are looked at as a whole, of anything else the first batch, and of single steps the first one: what is looked
    at waits for no device in a step. A subclass has `image_shape` and `num_classes`.
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
            UserError: for other pixels or labels in arrays or the first batch, of the validation data too; for a label
                that is no class in any batch.
        """
        x = self._look(x, y, allow_nan=self.skips_not_finite)
        validation = kwargs.get("validation_data")
        if isinstance(validation, tuple | list):
            self._look(*validation[:2], argument="validation ")
        elif validation is not None:
            kwargs["validation_data"] = self._look(validation, None, argument="validation ")
        with labels_of_later_batches(self.num_classes):
            return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """Measure, as Keras' `evaluate` does, on images in [0, 1].

        Raises:
            UserError: as for `fit`.
        """
        if not validates_in_fit(kwargs):  # which has looked
            x = self._look(x, y)
        with labels_of_later_batches(self.num_classes):
            return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """Predict, as Keras' `predict` does, for images in [0, 1].

        Raises:
            UserError: for other pixels in arrays or the first batch.
        """
        x = check_first_batch(x, None, self.image_shape, None)
        return super().predict(x, *args, **kwargs)

    def train_on_batch(self, x, y=None, *args, **kwargs):
        """Train on a batch, as Keras does; the first one is looked at as in `fit`."""
        self._look_once(x, y, allow_nan=self.skips_not_finite)
        with labels_of_later_batches(self.num_classes):
            return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(self, x, y=None, *args, **kwargs):
        """Measure a batch, as Keras does; the first one is looked at as in `evaluate`."""
        self._look_once(x, y)
        with labels_of_later_batches(self.num_classes):
            return super().test_on_batch(x, y, *args, **kwargs)

    def _look(self, x, y=None, **options):
        return check_first_batch(x, y, self.image_shape, self.check_labels, **options)

    def _look_once(self, x, y, **options):
        if not self._has_looked:
            self._look(x, y, **options)
            self._has_looked = True


def check_takes_logits(loss) -> None:
    """Refuse a loss that expects probabilities: it would clip the logits, and train on next to nothing."""
    name = name_of(loss)
    takes_logits = isinstance(loss, keras.losses.Loss) and loss.get_config().get("from_logits", True)
    if name.endswith("crossentropy") and not takes_logits:
        raise UserError("loss", name, "the heads are logits, give SparseCategoricalCrossentropy(from_logits=True)")


def name_of(loss) -> str:
    """Return the name of a loss, given as text, function or object."""
    return loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
