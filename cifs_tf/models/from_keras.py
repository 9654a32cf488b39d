"""Any functional Keras model as a classifier with channel-selection layers, on the same weights."""

import collections
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence

import keras
import numpy as np

from cifs_tf.errors import UserError
from cifs_tf.framework_internals import calls, graph_of, layers_of, operation_of, run_graph
from cifs_tf.models.classifier import Classifier
from cifs_tf.models.pixel_range import check_range

# What the families of keras.applications do to pixels of 0 to 255, for images in [0, 1].
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CAFFE_MEAN = (103.939, 116.779, 123.68)
PREPROCESSING = ("raw", "tf", "torch", "caffe")

# A model that ends in one of these ends in features, not in classes.
_FEATURES = (
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
)
_POOLING = {3: _FEATURES[0], 4: _FEATURES[1], 5: _FEATURES[2]}
_STRIDED = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
# github.com/uxlfoundation/oneDNN/issues/6035
_ONEDNN_FEW_CHANNELS = 16


def defend(
    model: keras.Model,
    cuts: Mapping[str, keras.layers.Layer] | None = None,
    *,
    preprocessing: str | keras.layers.Layer | Sequence[keras.layers.Layer] | None = None,
    image_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    name: str | None = None,
) -> Classifier:
    """Turn any functional Keras model into a classifier with selection layers that shares its weights.

    The layers of the model, and those of functional models nested in it, are called once more on a new input, behind
    the preprocessing. So all of them can be cut by their names, whatever trains the classifier trains the model, and
    the model itself stays as it is. A softmax at the end is left out: losses and attacks need logits. A `Normalization`
    becomes a `Rescaling` by its statistics as they are now.

    Train new cuts in a trained model with `CIFS(label_in_mask=False, importance_scale="mean_one")`: the label in the
    mask and a mask that sums to one, the paper's for training from scratch, cost it much of its accuracy.

    Args:
        model: functional or `Sequential` Keras model of one image input (batch, ..., channels), channels last, and one
            output: classes (batch, classes), or features without a top. A nested model stays one layer if a name in it
            occurs elsewhere too.
        cuts: selection layers by the name of the layer they follow, see `Classifier`. Default none.
        preprocessing: what turns images in [0, 1] into the model's own range: a layer, layers in order, or what the
            family of keras.applications needs: `"raw"` (0 to 255), `"tf"` (-1 to 1), `"torch"` (ImageNet mean 0 and
            variance 1), `"caffe"` (BGR, 0 to 255 less the mean). Default None: the model takes [0, 1].
        image_shape: (height, width, channels); needed where the model leaves it open. Default None: the model's.
        num_classes: for a model without a top, adds the mean over positions and a dense layer, >= 2. Default None: the
            model answers with classes.
        name: name of the classifier. Default None: the model's with `_defended`.

    Returns:
        the classifier; only selection layers and an added head bring weights of their own.

    Raises:
        UserError: for a model that cannot be taken, one that is made for other pixels than the preprocessing makes, or
            a cut that cannot be made, and why.

    Warns:
        UserWarning: if it has strided 1x1 convolutions whose gradients oneDNN gets wrong.

    Example:
        >>> model = keras.applications.MobileNet(weights=None, input_shape=(32, 32, 3), alpha=0.25, classes=10)
        >>> cuts = {"conv_pw_12_relu": CIFS("mlp"), "conv_pw_13_relu": CIFS()}
        >>> defend(model, cuts, preprocessing="tf")(tf.zeros((2, 32, 32, 3))).shape
        TensorShape([2, 3, 10])
    """
    graph = _checked_graph(model)
    opened = _opened(graph)
    taken = {operation.name for each in (graph, *opened) for operation in each.operations}

    image = keras.Input(_image_shape(graph, image_shape), name=_free("image", taken))
    x = _preprocess(image, preprocessing, taken)
    output = _without_softmax(graph, x, opened)
    if _ends_in_features(output):
        output = _add_head(output, num_classes, taken)
    elif len(output.shape) != 2 or num_classes not in (None, output.shape[-1]):
        advice = (
            f"the model already answers with {output.shape[1:]}, leave num_classes out, or give a model without its "
            "top (include_top=False)"
        )
        raise UserError("num_classes", num_classes, advice)
    backbone = keras.Model(image, output, name=model.name)
    _check_answers(backbone)
    if is_checked := preprocessing is None or isinstance(preprocessing, str):
        check_range(backbone, "preprocessing", preprocessing)
    _warn_of_onednn(backbone)
    classifier = Classifier(backbone, cuts, name=name or f"{model.name}_defended")
    classifier.takes_any_pixels = not is_checked
    return classifier


@keras.saving.register_keras_serializable(package="cifs_tf")
class WithoutActivation(keras.layers.Wrapper):
    """A dense layer without its activation: logits from the weights of a layer that ends in softmax.

    Args:
        layer: `keras.layers.Dense`, which it shares and leaves as it is.

    Call arguments:
        inputs: float (batch, ..., features).

    Returns:
        float (batch, ..., units): inputs times kernel plus bias.

    Example:
        >>> dense = keras.layers.Dense(10, activation="softmax")
        >>> WithoutActivation(dense)(tf.zeros((2, 64))).shape  # dense answers with the softmax of these
        TensorShape([2, 10])
    """

    def __init__(self, layer: keras.layers.Dense, **kwargs):
        super().__init__(layer, **{"dtype": layer.dtype_policy, "name": layer.name, **kwargs})

    def call(self, inputs):
        outputs = keras.ops.matmul(inputs, self.layer.kernel)
        return outputs if self.layer.bias is None else keras.ops.add(outputs, self.layer.bias)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)


def _checked_graph(model: keras.Model) -> keras.Model:
    """Return the functional model that was given, of one input and one output, channels last."""
    name = getattr(model, "name", model)
    if isinstance(model, Classifier):
        raise UserError("model", name, "it is a Classifier already, give its backbone")
    graph = graph_of(model)
    if graph is None:
        if isinstance(model, keras.Sequential):
            raise UserError("model", name, "its input is unknown, begin it with keras.Input(shape)")
        advice = (
            "its call is code of its own, which cannot be cut, give a functional model: keras.Model(inputs, outputs)"
        )
        raise UserError("model", name, advice)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        advice = (
            f"it has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, give a model of one image and one "
            "answer: keras.Model(model.inputs[0], model.outputs[0])"
        )
        raise UserError("model", name, advice)
    for layer in layers_of(graph):
        if getattr(layer, "data_format", None) == "channels_first":
            advice = (
                f"its layer {layer.name} has channels first, build the model with data_format='channels_last': "
                "selection layers read (batch, ..., channels), and on a CPU TensorFlow has no other convolutions"
            )
            raise UserError("model", name, advice)
    return graph


def _image_shape(graph: keras.Model, given: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the shape of the images: the model's, with what it leaves open filled in."""
    known = tuple(graph.inputs[0].shape[1:])
    if given is None and None in known:
        raise UserError("image_shape", None, f"the model leaves it open {known}, give (height, width, channels)")
    is_shape = isinstance(given, (tuple, list)) and all(isinstance(size, (int, np.integer)) for size in given)
    if given is not None and not is_shape:
        raise UserError("image_shape", given, "give numbers: (height, width, channels)")
    shape = known if given is None else tuple(given)
    if len(shape) != len(known) or any(size not in (None, mine) for size, mine in zip(known, shape, strict=True)):
        advice = f"the model takes images of {known}, leave it out, or build the model for another size"
        raise UserError("image_shape", shape, advice)
    if len(shape) < 2:
        raise UserError("model", graph.name, f"its input {known} is no image (..., channels)")
    return shape


def _preprocess(image, preprocessing, taken: set[str]):
    """Put layers between the images in [0, 1] and the model."""
    if isinstance(preprocessing, str):
        if preprocessing not in PREPROCESSING:
            advice = f"give one of {', '.join(PREPROCESSING)}, or layers that take images in [0, 1]"
            raise UserError("preprocessing", preprocessing, advice)
        if preprocessing in ("torch", "caffe") and image.shape[-1] != 3:
            raise UserError("preprocessing", preprocessing, f"it is made for 3 channels, these have {image.shape[-1]}")
        scale, offset = {
            "raw": (255.0, 0.0),
            "tf": (2.0, -1.0),
            "torch": (
                [1 / std for std in _IMAGENET_STD],
                [-mean / std for mean, std in zip(_IMAGENET_MEAN, _IMAGENET_STD, strict=True)],
            ),
            "caffe": (255.0, [-mean for mean in _CAFFE_MEAN]),
        }[preprocessing]
        x = keras.ops.flip(image, axis=-1) if preprocessing == "caffe" else image
        return keras.layers.Rescaling(scale, offset, name=_free(f"preprocessing_{preprocessing}", taken))(x)
    x = image
    layers = [preprocessing] if isinstance(preprocessing, keras.layers.Layer) else preprocessing or []
    for layer in layers:
        if not isinstance(layer, keras.layers.Layer):
            advice = f"give layers, or one of {', '.join(PREPROCESSING)}; keras.applications' functions take 0 to 255"
            raise UserError("preprocessing", layer, advice)
        if layer.name in taken:
            raise UserError("preprocessing", layer.name, "the model has a layer of this name, give it another name=")
        taken.add(layer.name)
        x = _as_rescaling(layer, x)(x)
    return x


def _as_rescaling(operation, x):
    """Replace a normalisation of channels by known statistics by a rescaling, which is the same function.

    Keras' layer keeps tensors derived from its weights: copies of the weights do not reach them, and ONNX cannot.
    """
    if not isinstance(operation, keras.layers.Normalization):
        return operation
    if not operation.built:
        operation.build(x.shape)
    if math.prod(operation.mean.shape[:-1]) != 1:
        return operation
    mean = np.ravel(keras.ops.convert_to_numpy(operation.mean)).astype(float)
    deviation = np.ravel(keras.ops.convert_to_numpy(keras.ops.sqrt(operation.variance))).astype(float)
    deviation = np.maximum(deviation, keras.config.epsilon())
    scale, offset = (deviation, mean) if operation.invert else (1 / deviation, -mean / deviation)
    return keras.layers.Rescaling(scale.tolist(), offset.tolist(), name=operation.name)


def _nested(graph: keras.Model) -> Iterator[keras.Model]:
    for layer in graph.layers:
        inner = graph_of(layer)
        if inner is not None:
            yield inner
            yield from _nested(inner)


def _opened(graph: keras.Model) -> list[keras.Model]:
    """Return nested models that can be taken apart: those whose layers all have names of their own."""
    nested = list(_nested(graph))
    names = collections.Counter(
        operation.name
        for each in (graph, *nested)
        for operation in each.operations
        if not isinstance(operation, keras.layers.InputLayer) and graph_of(operation) is None
    )
    return [each for each in nested if all(names[operation.name] < 2 for operation in each.operations)]


def _without_softmax(graph: keras.Model, x, opened: Sequence[keras.Model]):
    """Call every layer of a model on symbolic images, nested ones one by one, but not the softmax at its end."""

    def inside(operation) -> keras.Model | None:
        inner = graph_of(operation)
        return inner if any(inner is each for each in opened) else None

    def last_of(model: keras.Model):
        operation = operation_of(model.outputs[0])
        inner = inside(operation)
        return operation if inner is None else last_of(inner)

    def uses_of_last(model: keras.Model) -> int:
        inner = ((node, inside(node.operation)) for node in calls(model))
        return sum(int(node.operation is last) if each is None else uses_of_last(each) for node, each in inner)

    def run(model: keras.Model, inputs):
        return keras.tree.flatten(run_graph(model, inputs, call_fn=call))

    def call(operation, *args, **kwargs):
        inner = inside(operation)
        if inner is not None:
            outputs = run(inner, args or kwargs["inputs"])
            return outputs[0] if len(outputs) == 1 else outputs
        if operation is last:
            return _call_for_logits(operation, *args)
        return _as_rescaling(operation, args[0])(*args, **kwargs)

    last = last_of(graph)
    if uses_of_last(graph) > 1:
        last = None  # a softmax that also stands elsewhere stays, and is refused by what it answers
    return run(graph, [x])[0]


def _call_for_logits(operation, x, *args):
    """Call the last operation of a model without its softmax, if that is what it is or has."""
    kind, activation = type(operation).__name__, getattr(operation, "activation", None)
    if activation is keras.activations.sigmoid or kind == "Sigmoid":
        advice = "it judges each class alone, end the model in one logit per class: Dense(num_classes)"
        raise UserError("model", f"sigmoid at the end of {operation.name}", advice)
    if activation is keras.activations.softmax and _is_plain_dense(operation):
        return WithoutActivation(operation)(x)
    if activation is keras.activations.softmax and isinstance(operation, keras.layers.Activation):
        return x
    return x if kind == "Softmax" else operation(x, *args)


def _is_plain_dense(operation) -> bool:
    """Tell whether logits are inputs times kernel plus bias, which those of subclasses and quantised layers are not."""
    return type(operation) is keras.layers.Dense and operation.quantization_mode is None


def _ends_in_features(output) -> bool:
    return len(output.shape) > 2 or isinstance(operation_of(output), _FEATURES)


def _add_head(features, num_classes: int | None, taken: set[str]):
    """Add the mean over positions, if any, and a dense layer; logits keep full precision under a mixed policy."""
    if num_classes is None or num_classes < 2:
        advice = f"the model ends in features {features.shape}, give 2 or more classes to add pooling and a dense layer"
        raise UserError("num_classes", num_classes, advice)
    if len(features.shape) > 2:
        if len(features.shape) not in _POOLING:
            raise UserError("model", features.shape, "its features have more than 5 dimensions, add a head of your own")
        features = _POOLING[len(features.shape)](name=_free("pool", taken))(features)
    dtype = keras.config.dtype_policy().variable_dtype
    return keras.layers.Dense(num_classes, dtype=dtype, name=_free("logits", taken))(features)


def _free(name: str, taken: set[str]) -> str:
    """Return this name, or one like it that no layer has."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _check_answers(backbone: keras.Model) -> None:
    """Refuse one class, and probabilities, whatever made them: their gradients vanish where the network is sure."""
    classes = backbone.output_shape[-1]
    if classes is None or classes < 2:
        raise UserError("model", backbone.name, f"it answers with {classes} classes, give it an output for each of two")
    images = np.random.default_rng(0).random((2, *backbone.input_shape[1:]), np.float32)
    answers = np.asarray(keras.ops.convert_to_numpy(backbone(images, training=False)), np.float64)
    if np.all(answers >= 0) and np.allclose(answers.sum(axis=1), 1, atol=1e-2):
        advice = "it answers with probabilities, end it in logits (classifier_activation=None)"
        raise UserError("model", backbone.name, advice)


def _warn_of_onednn(backbone: keras.Model) -> None:
    convolutions = [layer for layer in layers_of(backbone) if isinstance(layer, _STRIDED)]
    found = [
        layer.name
        for layer in convolutions
        if math.prod(layer.kernel_size) == 1
        and max(layer.strides) > 1
        and layer.kernel.shape[-2] < _ONEDNN_FEW_CHANNELS
    ]
    if found:
        warnings.warn(
            f"{', '.join(found)}: strided 1x1 convolutions with fewer than {_ONEDNN_FEW_CHANNELS} input channels; on a "
            "CPU oneDNN gets their weight gradients wrong (github.com/uxlfoundation/oneDNN/issues/6035). Put "
            "AveragePooling2D(1, strides) before a convolution of stride 1 instead, which is the same function.",
            stacklevel=3,
        )
