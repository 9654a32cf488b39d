"""Adversarial training with Keras' `fit`: one `train_step` for every method."""

from __future__ import annotations

import keras
import tensorflow as tf

from cifs_tf.adversarial.methods import Method
from cifs_tf.attacks import PGD, example_seeds
from cifs_tf.losses import contract, cross_entropy, head_weights
from cifs_tf.models import Classifier

VALIDATION_STREAM = 2**31 - 1


class AdversarialTrainer(keras.Model):
    """A classifier in training: shares its weights, and is compiled and fitted in its place.

    `save` saves the classifier. Images are float in [0, 1], labels int (batch,). `fit` logs the loss and
    `robust_accuracy`, the accuracy on the images trained on (`clean_accuracy` when they are natural). Validation logs
    `val_clean_accuracy` on natural images and, with a validation attack, `val_robust_accuracy`. Compiled metrics see
    the final logits on the same images: those trained on in `fit`, natural ones in validation.

    Args:
        classifier: the network to train.
        method: how, such as `PGDTraining`.
        validation_attack: a cheap attack for validation data, on the cross-entropy of the final logits; None (default)
            for none.
        seed: run seed of all random starts, 0 to 2^31 - 1. Default 0.
        **kwargs: those of `keras.Model`.

    Call arguments:
        images: float (batch, height, width, channels) in [0, 1].
        training: bool.

    Returns:
        float (batch, classes), the final logits.

    Example:
        >>> weights = head_weights(2, classifier.num_probes)
        >>> attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10, random_start=True)
        >>> trainer = AdversarialTrainer(classifier, PGDTraining(head_weights=weights, attack=attack))
        >>> trainer.compile(optimizer=SGD(0.1, momentum=0.9, weight_decay=2e-4))
        >>> trainer.fit(images, labels, batch_size=128)
    """

    def __init__(
        self,
        classifier: Classifier,
        method: Method,
        *,
        validation_attack: PGD | None = None,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(dtype=classifier.dtype_policy, **kwargs)
        self.classifier = classifier
        self.method = method
        self.validation_attack = validation_attack
        self.seed = seed
        self.clean_accuracy = keras.metrics.Mean(name="clean_accuracy")
        self.robust_accuracy = keras.metrics.Mean(name="robust_accuracy")
        self.built = True

    def call(self, images, training=None):
        return self.classifier(images, training=training)[:, 0]

    def train_step(self, data):
        """Perturb, then one optimizer step on the method's loss."""
        images, labels, sample_weight = self._unpack(data)
        seeds = example_seeds(self.seed, tf.cast(self.optimizer.iterations, tf.int64), _positions(images))
        x_adv = self.method.perturb(self.classifier, images, labels, seeds)
        with tf.GradientTape() as tape:
            per_example_loss, heads = self.method.loss(self.classifier, images, x_adv, labels)
            per_example_loss *= sample_weight
            # Gradients are summed over replicas, so each carries its share of the global mean.
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            loss = self.optimizer.scale_loss(tf.reduce_mean(per_example_loss) / replicas)
        variables = self.trainable_variables
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))

        self._loss_tracker.update_state(per_example_loss)
        metric = self.clean_accuracy if x_adv is images else self.robust_accuracy
        metric.update_state(correct(heads[:, 0], labels))
        return self._logs([metric], labels, heads[:, 0], sample_weight)

    def test_step(self, data):
        """Measure natural images and, with a validation attack, adversarial ones."""
        images, labels, sample_weight = self._unpack(data)
        heads = self.classifier(images, training=False)
        self.clean_accuracy.update_state(correct(heads[:, 0], labels))
        own = [self.clean_accuracy]
        if self.validation_attack is not None:
            own.append(self.robust_accuracy)
            x_adv = self.validation_attack(
                self.classifier.heads_fn(),
                images,
                labels,
                head_weights=head_weights(0, self.classifier.num_probes),
                seed=example_seeds(self.seed, VALIDATION_STREAM, _positions(images)),
            )
            self.robust_accuracy.update_state(correct(self.classifier(x_adv, training=False)[:, 0], labels))
        per_example_loss = contract(cross_entropy(heads, labels), self.method.head_weights)
        self._loss_tracker.update_state(per_example_loss * sample_weight)
        return self._logs(own, labels, heads[:, 0], sample_weight)

    def _unpack(self, data) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Bring a batch to (images, labels int32 (batch,), sample weights (batch,) or one)."""
        images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        dtype = self.classifier.variable_dtype
        sample_weight = 1.0 if sample_weight is None else tf.reshape(sample_weight, [-1])
        return tf.cast(images, dtype), tf.cast(tf.reshape(labels, [-1]), tf.int32), tf.cast(sample_weight, dtype)

    def save(self, filepath, overwrite=True, **kwargs):
        """Save the classifier, which `keras.models.load_model` loads without the trainer."""
        self.classifier.save(filepath, overwrite=overwrite, **kwargs)

    def _logs(self, own: list[keras.metrics.Metric], labels, logits, sample_weight) -> dict:
        """Collect the loss, those of the trainer's own metrics that this step fed, and the compiled ones."""
        logs = {metric.name: metric.result() for metric in (self._loss_tracker, *own)}
        if self._compile_metrics is not None:
            self._compile_metrics.update_state(labels, logits, sample_weight)
            logs.update(self._compile_metrics.result())
        return logs


def _positions(images: tf.Tensor) -> tf.Tensor:
    """Positions of the images in the global batch, of which each replica has a stretch: int32 (batch,)."""
    size = tf.shape(images)[0]
    return tf.distribute.get_replica_context().replica_id_in_sync_group * size + tf.range(size)


def correct(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Whether the largest logit is the label's: float (batch,) of 0 and 1."""
    return tf.cast(tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels, logits.dtype)
