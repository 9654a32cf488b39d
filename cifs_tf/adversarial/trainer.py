"""Adversarial training with Keras' `fit`: one `train_step` for every method."""

from __future__ import annotations

import math
import warnings

import keras
import tensorflow as tf

from cifs_tf.adversarial.methods import Method
from cifs_tf.adversarial.sgd import SGD
from cifs_tf.adversarial.weight_perturbation import WeightPerturbation
from cifs_tf.attacks import PGD, example_seeds
from cifs_tf.attacks.objective import fooled
from cifs_tf.distribute import check_even, num_replicas, positions, replica_sum, spans_workers
from cifs_tf.errors import UserError
from cifs_tf.framework_internals import FittedModel, layers_of
from cifs_tf.layers import BatchNormalization
from cifs_tf.losses import contract, cross_entropy, head_weights
from cifs_tf.models import Classifier, with_precision
from cifs_tf.models.checked_model import CheckedModel
from cifs_tf.models.metric_labels import class_numbers

VALIDATION_STREAM = 2**31 - 1


class AdversarialTrainer(CheckedModel, FittedModel):
    """A classifier in training: shares its weights, and is compiled and fitted in its place.

    `save` saves the classifier. Images are float in [0, 1], labels int (batch,). `fit` logs the loss and
    `robust_accuracy`, the accuracy on the images trained on (`clean_accuracy` when they are natural), before the step
    that trains on them and never with their labels: where a label enters a mask in training, as with `CIFS`, one image
    in 8 is classified once more, in inference mode, without it. Validation logs `val_clean_accuracy` on natural images
    and, with a validation attack, `val_robust_accuracy`; examples with sample weight 0 are ignored. Compiled metrics
    see the final logits on the same images: those of `robust_accuracy` in `fit`, natural ones in validation. Keras' own
    get labels in the form that they read; others, as they are.

    Under a `tf.distribute` strategy, build and compile it in the strategy's scope. Batches are the global ones then,
    and a step is the same whatever the number of replicas, random starts included; it must divide the batch size.

    A step whose loss or gradients are not finite changes nothing but the count in `skipped_steps`; `not_finite` names
    the quantities, and an epoch of nothing else logs NaN. The classifier's own losses (regularisers, `add_loss`) are
    part of what is minimised, not of the loss that is logged. Labels may be one-hot. Other pixels than [0, 1] and other
    labels are refused, in later batches of a dataset too.

    Args:
        classifier: the network to train.
        method: how, such as `PGDTraining`.
        steps_per_epoch: optimizer steps per epoch, for the schedules of the method. Default 1.
        weight_perturbation: `WeightPerturbation`, on top of the method; None (default) for none.
        ema_decay: decay per step of an exponential moving average of all weights, in [0, 1), which then is what is
            validated and what `inference_classifier` returns; it rises from 0.1 as (1 + step) / (10 + step). None
            (default) for none.
        attack_classifier: the same network in another precision, such as bfloat16, that is given the weights at each
            step and attacked in place of the classifier; None (default) attacks the classifier itself.
        validation_attack: a cheap attack for validation data, on the cross-entropy of the final logits; None (default)
            for none.
        single_step_attack: another one, of one step, logged as `val_single_step_accuracy`: what is right under it and
            wrong under several steps is no robustness, see `catastrophic_overfitting`. None (default) for none.
        seed: run seed of all random starts, 0 to 2^31 - 1. Default 0.
        **kwargs: those of `keras.Model`.

    Call arguments:
        images: float (batch, height, width, channels) in [0, 1].
        training: bool.

    Returns:
        float (batch, classes), the final logits.

    Raises:
        UserError: for a decay out of range; on several replicas, for batch normalisation of Keras' own that is not
            `synchronized`.

    Example:
        >>> weights = head_weights(2, classifier.num_probes)
        >>> attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10, random_start=True)
        >>> trainer = AdversarialTrainer(classifier, PGDTraining(head_weights=weights, attack=attack))
        >>> trainer.compile(optimizer=SGD(0.1, momentum=0.9, weight_decay=2e-4))
        >>> trainer.fit(images, labels, batch_size=128)
    """

    skips_not_finite = True

    def __init__(
        self,
        classifier: Classifier,
        method: Method,
        *,
        steps_per_epoch: int = 1,
        weight_perturbation: WeightPerturbation | None = None,
        ema_decay: float | None = None,
        attack_classifier: Classifier | None = None,
        validation_attack: PGD | None = None,
        single_step_attack: PGD | None = None,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(dtype=classifier.dtype_policy, **kwargs)
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise UserError("ema_decay", ema_decay, "give a number from 0 to 1, or None")
        if self.distribute_strategy.num_replicas_in_sync > 1:
            _check_synchronized(classifier)
        self.classifier = classifier
        self.method = method
        self.steps_per_epoch = steps_per_epoch
        self.weight_perturbation = weight_perturbation
        self.ema_decay = ema_decay
        self.average = None if ema_decay is None else _frozen_copy(classifier)
        self.attack_classifier = attack_classifier
        if attack_classifier is not None:
            attack_classifier.trainable = False  # it is given its weights
        self.validation_attack = validation_attack
        self.single_step_attack = single_step_attack
        self.seed = seed
        self.clean_accuracy = keras.metrics.Mean(name="clean_accuracy")
        self.robust_accuracy = keras.metrics.Mean(name="robust_accuracy")
        self.single_step_accuracy = single_step_attack and keras.metrics.Mean(name="single_step_accuracy")
        self.quantities = ["x_adv", "heads", "loss", *(f"gradient of {w.path}" for w in classifier.trainable_variables)]
        self.not_finite_counts = self.add_weight(
            shape=(len(self.quantities),), dtype="int32", initializer="zeros", trainable=False, name="not_finite_counts"
        )
        self.skipped = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="skipped")
        self.continues_an_epoch = False
        self.built = True

    @property
    def inference_classifier(self) -> Classifier:
        """The classifier that is validated: the average of the weights if there is one."""
        return self.classifier if self.average is None else self.average

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images."""
        return self.classifier.image_shape

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return self.classifier.num_classes

    @property
    def skipped_steps(self) -> int:
        """Steps so far that changed nothing because something was not finite."""
        return int(self.skipped.numpy())  # of a strategy's variable int alone makes nothing

    @property
    def not_finite(self) -> dict[str, int]:
        """Steps in which a quantity was not finite, by its name, of those that ever were not."""
        counts = zip(self.quantities, self.not_finite_counts.numpy().tolist(), strict=True)
        return {name: count for name, count in counts if count}

    def call(self, images, training=None):
        return self.inference_classifier(images, training=training)[:, 0]

    def fit(self, *args, **kwargs):
        """Train, as `CheckedModel.fit` does, and warn of steps that were skipped because something was not finite."""
        before = self.skipped_steps
        history = super().fit(*args, **kwargs)
        if skipped := self.skipped_steps - before:
            names = ", ".join("pixels" if name == "x_adv" else name for name in [*self.not_finite][:3])
            text = f"{skipped:,} of the steps changed nothing, because these were not finite: {names}"
            warnings.warn(text, stacklevel=2)
        return history

    def compile(self, optimizer="rmsprop", loss=None, loss_weights=None, **kwargs):
        """Take an optimizer and metrics, as Keras does; the loss is the method's.

        Raises:
            UserError: for a loss.
        """
        for name, value in {"loss": loss, "loss_weights": loss_weights}.items():
            if value is not None:
                raise UserError(name, value, f"leave it out, {type(self.method).__name__} has the loss; give metrics")
        super().compile(optimizer=optimizer, **kwargs)

    def train_step(self, data):
        """Perturb, then one optimizer step on the method's loss."""
        images, given, labels, sample_weight = self._unpack(data, "train_step")
        check_even(images)
        step = tf.convert_to_tensor(self.optimizer.iterations)
        epoch = tf.cast(step, self.variable_dtype) / self.steps_per_epoch
        method = self.method.at(epoch)
        seeds = example_seeds(self.seed, tf.cast(step, tf.int64), positions(images))
        x_adv = method.perturb(self._attacked(), images, labels, seeds)
        measured = None
        if self.classifier.reads_labels:  # the heads of the loss would know the answer
            measured = self.classifier.measure_without_labels(x_adv, given, sample_weight)

        def differentiate():
            with tf.GradientTape() as tape:
                per_example_loss, heads = method.loss(self.classifier, images, x_adv, labels)
                per_example_loss *= sample_weight
                # Gradients are summed over replicas, so each carries its share of the global mean.
                loss = tf.reduce_mean(per_example_loss) / num_replicas()
                for own in self.classifier.losses:
                    loss += tf.cast(own, loss.dtype) / num_replicas()
                loss = self.optimizer.scale_loss(loss)
            return per_example_loss, heads, tape.gradient(loss, variables)

        variables = self.classifier.trainable_variables
        statistics = [tf.identity(variable) for variable in self.classifier.non_trainable_variables]
        if self.weight_perturbation is None:
            per_example_loss, heads, gradients = differentiate()
        else:
            per_example_loss, heads, gradients = self._at_perturbed_weights(differentiate, statistics, epoch)

        # An infinite pixel may be a finite one after the attack.
        pixels = tf.reduce_sum(images) + tf.reduce_sum(x_adv)
        bad = self._count_not_finite([pixels, heads, per_example_loss, *gradients])
        nan = tf.constant(float("nan"))
        gradients = [None if g is None else tf.where(bad, tf.cast(nan, g.dtype), g) for g in gradients]
        self._apply(gradients, variables, bad)
        for variable, value in zip(self.classifier.non_trainable_variables, statistics, strict=True):
            variable.assign(tf.where(bad, value, variable))
        if self.average is not None:
            self._update_average(self.average, step, bad)

        counts = tf.where(bad, tf.zeros_like(per_example_loss), tf.ones_like(per_example_loss))
        self.loss_metric.update_state(tf.where(bad, tf.zeros_like(per_example_loss), per_example_loss), counts)
        metric = self.clean_accuracy if x_adv is images else self.robust_accuracy
        given, heads, sample_weight = measured or (given, heads, sample_weight)
        weights = tf.where(bad, tf.zeros_like(sample_weight), sample_weight)
        metric.update_state(~fooled(heads, class_numbers(given, self.num_classes)), weights)
        # Compiled metrics would not forget a NaN until the end of the epoch.
        logits = tf.where(bad, tf.zeros_like(heads[:, 0]), heads[:, 0])
        return self._logs([metric], given, logits, sample_weight)

    def test_step(self, data):
        """Measure natural images and those of the attacks for validation."""
        images, given, labels, sample_weight = self._unpack(data, "test_step")
        heads = self.inference_classifier(images, training=False)
        self.clean_accuracy.update_state(~fooled(heads, labels), sample_weight)
        own = [self.clean_accuracy]
        attacks = (self.validation_attack, self.robust_accuracy), (self.single_step_attack, self.single_step_accuracy)
        for attack, metric in attacks:
            if attack is None:
                continue
            own.append(metric)
            x_adv = attack(
                self.inference_classifier.heads_fn(),
                images,
                labels,
                head_weights=head_weights(0, self.classifier.num_probes),
                seed=example_seeds(self.seed, VALIDATION_STREAM, positions(images)),
            )
            robust = ~fooled(self.inference_classifier(x_adv, training=False), labels)
            metric.update_state(robust, sample_weight)
        epoch = tf.cast(self.optimizer.iterations, self.variable_dtype) / self.steps_per_epoch
        per_example_loss = contract(cross_entropy(heads, labels), self.method.at(epoch).head_weights)
        self.loss_metric.update_state(per_example_loss, sample_weight)
        return self._logs(own, given, heads[:, 0], sample_weight)

    def _unpack(self, data, step) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Bring a batch to (images, labels as they are, labels int32 (batch,), sample weights (batch,))."""
        images = self.watch(data, step)
        _, given, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        dtype = self.classifier.variable_dtype
        labels = class_numbers(given, self.num_classes)
        sample_weight = tf.ones_like(labels) if sample_weight is None else tf.reshape(sample_weight, [-1])
        return tf.cast(images, dtype), given, labels, tf.cast(sample_weight, dtype)

    def _attacked(self) -> Classifier:
        """Return the network that the training attack sees, with the weights as they are."""
        if self.attack_classifier is None:
            return self.classifier
        for copy, variable in zip(self.attack_classifier.weights, self.classifier.weights, strict=True):
            copy.assign(tf.cast(variable, copy.dtype))
        return self.attack_classifier

    def _at_perturbed_weights(self, differentiate, statistics, epoch):
        """Differentiate where `weight_perturbation` leads, and come back."""
        _, _, gradients = differentiate()
        summed = iter(replica_sum([gradient for gradient in gradients if gradient is not None]))
        gradients = [None if gradient is None else next(summed) for gradient in gradients]
        # That pass has not been: its batch statistics count once.
        for variable, value in zip(self.classifier.non_trainable_variables, statistics, strict=True):
            variable.assign(value)
        moved = []
        for variable, gradient in zip(self.classifier.trainable_variables, gradients, strict=True):
            value = tf.identity(variable)
            step = self.weight_perturbation.step(value, gradient, epoch)
            if step is not None:
                variable.assign(value + step)
                moved.append((variable, value))
        found = differentiate()
        for variable, value in moved:
            variable.assign(value)
        return found

    def _apply(self, gradients: list[tf.Tensor | None], variables: list[keras.Variable], bad: tf.Tensor) -> None:
        """Let the optimizer make its step, and take it back if the step is bad."""
        optimizer = self.optimizer
        keeps_more = optimizer.use_ema or optimizer.gradient_accumulation_steps
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or (
            isinstance(optimizer, SGD) and not keeps_more
        ):
            # They make none with a gradient that is not finite; the former lowers its scale.
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return
        state = [*variables, *(v for v in self.optimizer.variables if v is not self.optimizer.iterations)]
        before = [tf.identity(variable) for variable in state]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        for variable, value in zip(state, before, strict=True):
            variable.assign(tf.where(bad, value, variable))

    def _count_not_finite(self, quantities: list[tf.Tensor | None]) -> tf.Tensor:
        """Count which quantities are not finite; return whether any is not, bool ()."""
        # A sum is finite if all its terms are (or it overflows, which is as bad), and needs no second array.
        flags = tf.stack([False if q is None else ~tf.math.is_finite(tf.reduce_sum(q)) for q in quantities])
        # A step is made by all replicas or by none.
        flags = replica_sum(tf.cast(flags, tf.int32)) > 0
        bad = tf.reduce_any(flags)
        self.not_finite_counts.assign_add(tf.cast(flags, tf.int32))
        self.skipped.assign_add(tf.cast(bad, tf.int32))
        return bad

    def _update_average(self, average: Classifier, step: tf.Tensor, bad: tf.Tensor) -> None:
        step = tf.cast(step, self.variable_dtype)
        decay = tf.minimum(tf.cast(self.ema_decay, self.variable_dtype), (1 + step) / (10 + step))
        for mean, variable in zip(average.weights, self.classifier.weights, strict=True):
            mean.assign(tf.where(bad, mean, decay * mean + (1 - decay) * variable))

    def reset_metrics(self):
        """Forget the epoch before, which Keras asks for at the start of each, unless that epoch only goes on."""
        if not self.continues_an_epoch:
            super().reset_metrics()
        self.continues_an_epoch = False

    def save(self, filepath, overwrite=True, **kwargs):
        """Save the classifier, which `keras.models.load_model` loads without the trainer.

        With an average of the weights, that is what is saved.
        """
        classifier = self.classifier
        if self.average is not None:
            classifier = with_precision(classifier)
            classifier.set_weights(self.average.get_weights())
        classifier.save(filepath, overwrite=overwrite, **kwargs)

    def _logs(self, own: list[keras.metrics.Metric], labels, logits, sample_weight) -> dict:
        """Collect the loss, those of the trainer's own metrics that this step fed, and the compiled ones."""
        logs = {metric.name: mean_of(metric) for metric in (self.loss_metric, *own)}
        logs |= self.update_metrics(labels, logits, sample_weight)
        if spans_workers(self.distribute_strategy):
            # Keras 3.15 takes their mean over the first axis, which a scalar does not have.
            return {name: tf.reshape(value, [1]) for name, value in logs.items()}
        return logs

    def prepare_first_step(self):
        """Make what metrics and the optimizer keep.

        Keras 3.15 looks at the first batch for it, which fails where that lies on several workers, and wherever it does
        not divide evenly among the replicas; any batch will do.
        """
        if not self.optimizer.built:  # inside the first step it would have to be traced twice
            with self.distribute_strategy.scope():
                self.optimizer.build(self.classifier.trainable_variables)
        batch = tf.zeros((1, *self.classifier.image_shape), self.variable_dtype), tf.zeros((1,), tf.int32)
        self.build_metrics(batch)

    def epoch_logs(self, logs):
        """Return what metrics hold over all replicas, of those that the steps fed.

        Keras 3.15 keeps the mean of the last step's logs over the replicas, unless every metric was fed.
        """
        results = {
            metric.name: mean_of(metric) for metric in (self.loss_metric, self.clean_accuracy, self.robust_accuracy)
        }
        results = self.get_metrics_result() | results
        return {name: results.get(name, value) for name, value in logs.items()}


def mean_of(metric: keras.metrics.Mean) -> tf.Tensor:
    """Return the value of a mean; NaN, where Keras has 0, if nothing was counted."""
    result = tf.convert_to_tensor(metric.result())
    return tf.where(tf.convert_to_tensor(metric.count) > 0, result, tf.cast(math.nan, result.dtype))


def _check_synchronized(classifier: Classifier) -> None:
    """Refuse layers whose statistics would be those of a replica's part of the batch, and drift apart."""
    apart = [
        layer.name
        for layer in layers_of(classifier)
        if isinstance(layer, keras.layers.BatchNormalization)
        and not isinstance(layer, BatchNormalization)
        and layer.trainable
        and not layer.synchronized
    ]
    if apart:
        names = ", ".join(apart[:3]) + (f" and {len(apart) - 3} more" if len(apart) > 3 else "")
        advice = "each replica would keep statistics of its own; set `synchronized = True` on these layers"
        raise UserError("classifier", names, advice)


def _frozen_copy(classifier: Classifier) -> Classifier:
    copy = with_precision(classifier)
    copy.trainable = False
    return copy
