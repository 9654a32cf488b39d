"""A backbone, cut at named layers: the classifier with several heads that the whole project speaks of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import keras
import tensorflow as tf

from cifs_tf.checks import ONE_HOT_NDIM, check_images
from cifs_tf.distribute import one_in
from cifs_tf.errors import UserError
from cifs_tf.files import write_atomically, write_json
from cifs_tf.framework_internals import run_graph, update_loss_metric
from cifs_tf.layers import MASK_GRADIENTS
from cifs_tf.losses import head_weights
from cifs_tf.models.checked_model import CheckedModel, check_takes_logits, name_of
from cifs_tf.models.folding import convolve_and_normalise, find_pairs
from cifs_tf.models.graph import check_backbone, check_cut, check_precision, checked_cuts, output_shape
from cifs_tf.models.metric_labels import class_numbers
from cifs_tf.models.saved_model import write_onnx, write_saved_model
from cifs_tf.models.saving import with_precision
from cifs_tf.models.summary import cuts_table

# One training image in so many is classified once more, without labels, for accuracy: 3% of a step on natural images.
MEASURED_ONE_IN = 8


@keras.saving.register_keras_serializable(package="cifs_tf")
class Classifier(CheckedModel):
    """A functional Keras model with a channel-selection layer after some of its layers.

    The output of every cut layer is replaced, wherever it goes, by what the selection layer makes of it; each selection
    layer adds one raw prediction. The backbone's weights are shared, not copied; without cuts this is the backbone
    itself (a vanilla network) with one head.

    Args:
        backbone: functional Keras model, one image input (batch, height, width, channels), one output of logits
            (batch, classes).
        cuts: selection layers (`CIFS`, `CAS`, or a layer with their call) by the name of the layer they follow.
            Default none.

    Call arguments:
        images: float (batch, height, width, channels) in [0, 1].
        labels: int (batch,); read only when `training` is True, where the label replaces the top-1 class in the mask.
        training: bool.
        mask_gradient: `"detached"`, `"full"` or `"smoothed"`, see `CIFS`; None (default) leaves each layer its own.

    Returns:
        heads, float (batch, 1 + P, classes); heads[:, 0] are the final logits, heads[:, 1:] the P raw predictions in
        the order in which the network makes them.

    Raises:
        UserError: if a cut names no layer (similar names are suggested), or a layer that cannot be cut.

    `compile` and `fit` train on natural images with Eq. (3): the compiled loss is that of each head, and the attribute
    `beta`, 2 as in the paper, weighs them; compiled metrics see the final logits, which are never made with the labels:
    where a label enters a mask in training, one image in 8 is classified once more without it. `AdversarialTrainer`
    trains robustness.

    Example:
        >>> backbone = resnet("resnet18", (32, 32, 3), 10, width=16)
        >>> model = Classifier(backbone, {"stage4_block2_out": CIFS()})
        >>> model(tf.zeros((2, 32, 32, 3))).shape
        TensorShape([2, 2, 10])
    """

    beta: float = 2.0
    takes_soft_labels = True

    def __init__(self, backbone: keras.Model, cuts: Mapping[str, keras.layers.Layer] | None = None, **kwargs):
        super().__init__(**kwargs)
        check_backbone(backbone)
        order = [layer.name for layer in backbone.layers]
        cuts = checked_cuts(cuts)
        for name in cuts:
            check_cut(backbone, name)
        self.backbone = backbone
        self.cuts = {name: cuts[name] for name in sorted(cuts, key=order.index)}
        check_precision(self)
        for name, selection in self.cuts.items():
            given = getattr(selection, "num_classes", self.num_classes)
            if given is None:
                selection.num_classes = self.num_classes
            elif given != self.num_classes:
                advice = (
                    f"its selection layer is for {given} classes, the backbone has {self.num_classes}; make another"
                )
                raise UserError("cuts", name, advice)
            if not selection.built:
                selection.build(output_shape(backbone, name))
                selection.built = True
        self._folded = find_pairs(backbone, kept=self.cuts)
        self.built = True

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return self.backbone.output_shape[-1]

    @property
    def num_probes(self) -> int:
        """Number of selection layers, P."""
        return len(self.cuts)

    @property
    def reads_labels(self) -> bool:
        """True if in training the label enters a mask, so that the answer is not the network's alone."""
        return any(getattr(selection, "label_in_mask", True) for selection in self.cuts.values())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images."""
        return tuple(self.backbone.input_shape[1:])

    def call(self, images, labels=None, training=None, mask_gradient=None):
        return self._run(images, labels, training, mask_gradient)[0]

    def explain(self, images, mask_gradient=None) -> dict:
        """Return the heads, and what each selection layer saw and did, in inference mode.

        Args:
            images: float (batch, height, width, channels) in [0, 1].
            mask_gradient: see the call arguments of `CIFS`; changes no value. None (default) leaves each layer its own.

        Returns:
            dict: `heads` (batch, 1 + P, classes), and by cut name `relevance` and `importance` (batch, channels).
        """
        if tf.executing_eagerly():
            check_images(images, shape=self.image_shape)
        heads, selections = self._run(tf.cast(images, self.compute_dtype), None, False, mask_gradient)
        return {
            "heads": heads,
            "relevance": {name: selection["relevance"] for name, selection in selections.items()},
            "importance": {name: selection["importance"] for name, selection in selections.items()},
        }

    def heads_fn(self, mask_gradient: str | None = None):
        """Return the function an attack sees: images -> heads, in inference mode, without labels.

        Args:
            mask_gradient: `"detached"`, `"full"`, `"smoothed"`, see `CIFS`, or None (default) for each layer's own.

        Returns:
            a callable (batch, height, width, channels) -> (batch, 1 + P, classes).

        Raises:
            UserError: for another mask gradient.
        """
        if mask_gradient not in (None, *MASK_GRADIENTS):
            raise UserError("mask_gradient", mask_gradient, f"give one of {', '.join(MASK_GRADIENTS)}")
        return lambda images: self(images, training=False, mask_gradient=mask_gradient)

    def observe(self, images, layer: str) -> tuple[tf.Tensor, tf.Tensor]:
        """Return what a layer of the backbone takes in and what it passes on, in inference mode.

        Args:
            images: float (batch, height, width, channels) in [0, 1].
            layer: name of a layer of the backbone that is used once.

        Returns:
            its first input, as earlier selection layers left it, and its output, after the selection layer that follows
            it if there is one.
        """
        observed: dict = {layer: None}
        self._run(tf.cast(images, self.compute_dtype), None, False, None, observed)
        return observed[layer]

    def _run(self, images, labels, training, mask_gradient, observed=()):
        selections = {}
        # Training needs the statistics of the batch, an observer every layer's own output.
        folded = {} if training or observed else self._folded

        def with_selection(operation):
            def call(*args, **kwargs):
                if operation.name in folded:
                    bn = self.backbone.get_layer(folded[operation.name])
                    return convolve_and_normalise(operation, bn, *args)
                if operation.name in folded.values():
                    (outputs,) = args
                else:
                    if isinstance(operation, keras.layers.Layer):
                        kwargs["training"] = training
                    outputs = operation(*args, **kwargs)
                if operation.name in self.cuts:
                    selections[operation.name] = self.cuts[operation.name](
                        outputs, labels=labels, training=training, mask_gradient=mask_gradient
                    )
                    outputs = selections[operation.name]["features"]
                if operation.name in observed:
                    observed[operation.name] = (args[0], outputs)
                return outputs

            return call

        # One walk through the backbone's graph. Segments between the cuts would need each cut to be the only path
        # from input to output, which a pre-activation network's is not.
        logits = run_graph(self.backbone, images, operation_fn=with_selection)
        predictions = [logits, *(selections[name]["probe_logits"] for name in self.cuts)]
        dtype = keras.backend.result_type(self.compute_dtype, "float32")
        return tf.stack([tf.cast(prediction, dtype) for prediction in predictions], axis=1), selections

    def measure_without_labels(self, images, labels, sample_weight=None):
        """Classify one image in 8 of a batch as in inference: what accuracy in training may be taken from.

        Args:
            images: float (batch, height, width, channels) in [0, 1].
            labels: (batch, ...), any form.
            sample_weight: float (batch,); None (default) for ones.

        Returns:
            (labels, heads, sample weights) of these; the same images of a global batch on any number of replicas.
        """
        chosen, counted = one_in(MEASURED_ONE_IN, images)
        weights = tf.cast(counted, self.variable_dtype)
        if sample_weight is not None:
            weights *= tf.reshape(tf.cast(tf.gather(sample_weight, chosen), weights.dtype), [-1])
        return tf.gather(labels, chosen), self(tf.gather(images, chosen), training=False), weights

    def logits_model(self) -> keras.Model:
        """Make an ordinary Keras model of the final logits, for whatever does not know of heads.

        Returns:
            a functional model, images (batch, height, width, channels) -> logits (batch, classes), a new one at each
            call. It shares the weights of this classifier, and can be saved.

        Example:
            >>> model = classifier.logits_model()
            >>> model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
            >>> model.output_shape == (None, classifier.num_classes)
            True
        """
        image = keras.Input(self.image_shape, name="image")
        return keras.Model(image, self(image)[:, 0], name=f"{self.name}_logits")

    def predict(self, x, **kwargs):
        """Predict the heads of many images, as `keras.Model.predict` does.

        Args:
            x: float (examples, height, width, channels) in [0, 1], or batches of them.
            **kwargs: those of `keras.Model.predict`, such as `batch_size`.

        Returns:
            float (examples, 1 + P, classes). Axis 1 are the heads: 0 the final logits, so that
            `predict(x)[:, 0].argmax(axis=-1)` are the predicted classes, 1 to P the raw predictions. All are logits.
        """
        return super().predict(x, **kwargs)

    def check_labels(self, labels):
        """Refuse labels that are no classes, or not in the form that the compiled loss reads.

        Raises:
            UserError: for these.
        """
        name, shape = name_of(self.loss), tuple(labels.shape)
        rows = len(shape) == ONE_HOT_NDIM and shape[1] > 1
        if not name.endswith("categorical_crossentropy"):
            return None if rows else super().check_labels(labels)
        if rows and "sparse" in name:
            advice = "give integers (examples,), or compile CategoricalCrossentropy(from_logits=True)"
            raise UserError("labels", f"rows of shape {shape}", advice)
        if not rows and "sparse" not in name:
            advice = "give one-hot rows (examples, classes), or compile SparseCategoricalCrossentropy(from_logits=True)"
            raise UserError("labels", f"shape {shape}", advice)
        if rows and shape[1] != self.num_classes:
            raise UserError("labels", f"rows of shape {shape}", f"give {self.num_classes} columns, one for each class")
        return None if rows else super().check_labels(labels)

    def train_step(self, data):
        """Train on a batch of natural images, with the labels in the masks; `fit` calls it.

        Adversarial images are the business of `cifs_tf.AdversarialTrainer`.
        """
        images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            heads = self(images, labels=class_numbers(labels, self.num_classes), training=True)
            loss = self.compute_loss(images, labels, heads, sample_weight)
            scaled_loss = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(scaled_loss, variables), variables, strict=True))
        update_loss_metric(self, loss, tf.shape(images)[0])
        if self.reads_labels and len(self.metrics) > 1:
            labels, heads, sample_weight = self.measure_without_labels(images, labels, sample_weight)
        return self.compute_metrics(images, labels, heads, sample_weight)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Compute Eq. (3): the compiled loss of every head, with the weights `head_weights(beta, P)`.

        Raises:
            UserError: for a compiled loss that expects probabilities.
        """
        check_takes_logits(self.loss)
        if x is not None:
            self.watch((x, y, sample_weight), "train_step")
        weights = tf.constant(head_weights(self.beta, self.num_probes) * (1 + self.num_probes), y_pred.dtype)
        if sample_weight is None:
            sample_weight = tf.ones(tf.shape(y_pred)[:1], y_pred.dtype)
        # Every head of every image is an example; their number divides the sum.
        sample_weight = tf.reshape(tf.cast(sample_weight, y_pred.dtype), [-1, 1]) * weights
        labels = tf.repeat(y, 1 + self.num_probes, axis=0)
        logits = tf.reshape(y_pred, [-1, self.num_classes])
        return super().compute_loss(x, labels, logits, tf.reshape(sample_weight, [-1]), training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Update the compiled metrics with the final logits."""
        return super().compute_metrics(x, y, y_pred[:, 0], sample_weight)

    def export(self, filepath: str | os.PathLike[str], format: str = "tf_saved_model", verbose=None, **kwargs) -> None:
        """Write the classifier for inference, in float32, as `keras.Model.export` does, and check what was written.

        Args:
            filepath: folder of the SavedModel, or file; what was there is overwritten.
            format: `"tf_saved_model"` (default) with the signatures of `cifs_tf.export.export`, and `serve`, Keras'
                name of `serving_default`; `"onnx"` (opset 17) with the outputs of `serving_default`; any other format
                of Keras holds the final logits alone.
            verbose: whether to print what was written; None (default) does not.
            **kwargs: what Keras takes for other formats.

        Raises:
            ExportError: if what was written differs from the live model.

        Example:
            >>> classifier.export("exported")
            >>> exported = tf.saved_model.load("exported")  # keep a reference, or its variables are gone
            >>> exported.serve(images)["probabilities"].shape
        """
        path = Path(filepath)
        if format == "tf_saved_model":
            write_saved_model(with_precision(self, "float32"), path, serve=True, verbose=bool(verbose), **kwargs)
        elif format == "onnx":
            write_onnx(with_precision(self, "float32"), path, **kwargs)
        else:
            self.logits_model().export(path, format=format, verbose=verbose, **kwargs)

    def save_to_preset(self, folder: str | os.PathLike[str], card: Mapping[str, object] | None = None) -> None:
        """Write a preset, a folder with `model.keras` (float32) and `card.json`, that `cifs_tf.from_preset` reads.

        Args:
            folder: made, with its parents; its name is the preset's.
            card: what to say of the network beside its name and sizes, in plain types. Default nothing.

        Raises:
            UserError: if the folder holds a preset already.

        Example:
            >>> classifier.save_to_preset("presets/mine")
            >>> cifs_tf.from_preset("presets/mine")
        """
        path = Path(folder).expanduser()
        if (path / "model.keras").exists():
            raise UserError("folder", path, "it holds a preset already, give another folder")
        network = {
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            "parameters": self.count_params(),
            "selection_layers": {name: type(cut).__name__ for name, cut in self.cuts.items()},
        }
        write_json(path / "card.json", {"name": path.name, "network": network, **(card or {})})
        write_atomically(path / "model.keras", with_precision(self, "float32").save)

    def summary(self, line_length=None, positions=None, print_fn=None, **kwargs):
        """Print Keras' summary, and below it what each cut adds; `summary_rows` has the numbers.

        Args:
            line_length: as for `keras.Model.summary`, and so are all others.
            positions: of the columns.
            print_fn: takes a line; None prints.
            **kwargs: whatever else `keras.Model.summary` takes.
        """
        super().summary(line_length=line_length, positions=positions, print_fn=print_fn, **kwargs)
        (print_fn or print)(cuts_table(self))

    def get_config(self):
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "cuts": {name: keras.saving.serialize_keras_object(cut) for name, cut in self.cuts.items()},
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Rebuild the classifier from `get_config()`."""
        config = dict(config)
        deserialize = keras.saving.deserialize_keras_object
        backbone = deserialize(config.pop("backbone"), custom_objects)
        cuts = {name: deserialize(cut, custom_objects) for name, cut in config.pop("cuts").items()}
        return cls(backbone, cuts, **config)
