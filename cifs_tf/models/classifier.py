"""A backbone, cut at named layers: the classifier with several heads that the whole project speaks of."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import keras
import tensorflow as tf

from cifs_tf.errors import UserError
from cifs_tf.layers import MASK_GRADIENTS
from cifs_tf.models.folding import convolve_and_normalise, find_pairs
from cifs_tf.models.graph import check_backbone, check_cut, output_shape
from cifs_tf.models.summary import cuts_table


@keras.saving.register_keras_serializable(package="cifs_tf")
class Classifier(keras.Model):
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

    Example:
        >>> backbone = resnet("resnet18", (32, 32, 3), 10, width=16)
        >>> model = Classifier(backbone, {"stage4_block2_out": CIFS()})
        >>> model(tf.zeros((2, 32, 32, 3))).shape
        TensorShape([2, 2, 10])
    """

    def __init__(self, backbone: keras.Model, cuts: Mapping[str, keras.layers.Layer] | None = None, **kwargs):
        super().__init__(**kwargs)
        check_backbone(backbone)
        order = [layer.name for layer in backbone.layers]
        cuts = _checked_cuts(cuts)
        for name in cuts:
            check_cut(backbone, name)
        self.backbone = backbone
        self.cuts = {name: cuts[name] for name in sorted(cuts, key=order.index)}
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
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images."""
        return tuple(self.backbone.input_shape[1:])

    def call(self, images, labels=None, training=None, mask_gradient=None):
        return self._run(images, labels, training, mask_gradient)[0]

    def explain(self, images) -> dict:
        """Heads, and what each selection layer saw and did, in inference mode.

        Args:
            images: float (batch, height, width, channels) in [0, 1].

        Returns:
            dict: `heads` (batch, 1 + P, classes), and by cut name `relevance` and `importance` (batch, channels).
        """
        heads, selections = self._run(tf.cast(images, self.compute_dtype), None, False, None)
        return {
            "heads": heads,
            "relevance": {name: selection["relevance"] for name, selection in selections.items()},
            "importance": {name: selection["importance"] for name, selection in selections.items()},
        }

    def heads_fn(self, mask_gradient: str | None = None):
        """The function an attack sees: images -> heads, in inference mode, without labels.

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
        """What a layer of the backbone takes in and what it passes on, in inference mode.

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
                    if "training" in getattr(operation, "_call_context_args", {}):
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
        # from input to output, which a pre-activation network's is not; tests/cifs_tf/models guards the private call.
        logits = self.backbone._run_through_graph(images, operation_fn=with_selection)
        predictions = [logits, *(selections[name]["probe_logits"] for name in self.cuts)]
        dtype = keras.backend.result_type(self.compute_dtype, "float32")
        return tf.stack([tf.cast(prediction, dtype) for prediction in predictions], axis=1), selections

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


def _selects(selection) -> bool:
    """Whether it is a layer that can be called as `CIFS` is."""
    if not isinstance(selection, keras.layers.Layer):
        return False
    try:
        inspect.signature(selection.call).bind(None, labels=None, training=None, mask_gradient=None)
    except TypeError:
        return False
    return True


def _checked_cuts(cuts: Mapping[str, keras.layers.Layer] | None) -> dict[str, keras.layers.Layer]:
    if not isinstance(cuts or {}, Mapping):
        advice = "give selection layers by the name of the layer that they follow, such as {'conv5_block3_out': CIFS()}"
        raise UserError("cuts", cuts, advice)
    for name, selection in (cuts or {}).items():
        if not isinstance(name, str):
            raise UserError("cuts", name, "give the name of a layer of the backbone")
        if not _selects(selection):
            raise UserError("cuts", selection, f"give a selection layer for {name}, such as CIFS()")
    checked = dict(cuts or {})
    if len({id(selection) for selection in checked.values()}) < len(checked):
        raise UserError("cuts", list(checked), "one selection layer stands at several cuts; make one for each")
    return checked


def with_precision(classifier: Classifier, precision: str | None) -> Classifier:
    """Copy a classifier to another precision: the same weights under another dtype policy.

    Args:
        classifier: any classifier.
        precision: `"float32"` or `"float64"`; a mixed policy belongs to `build_classifier`, which knows the layers that
            keep full precision. None copies without a change.

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
    for layer in copy._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with what it once derived from its weights
    return copy
