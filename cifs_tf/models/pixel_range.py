"""The range of pixels that a network is made for, as what it does to them first shows it."""

import keras
import numpy as np

from cifs_tf.errors import UserError
from cifs_tf.framework_internals import calls, operation_of

_STATISTICS = (keras.layers.Normalization, keras.layers.BatchNormalization)
_DIVIDES_PIXELS = 0.1  # what is made for pixels of 0 to 255 makes less than this of a step from 0 to 1
_ANY_SIZE = 64  # where the network leaves it open
_FAR = 5.0  # so many of these steps away from 0, all images look alike


def check_range(backbone: keras.Model, argument: str, received: str | None, way: str = "give {}") -> None:
    """Refuse a network that begins by bringing other pixels than those of [0, 1] to order.

    What it does to pixels before its first weights is carried out on images of -1, 0 and 1: layers without weights, in
    inference, plain operations and functions, and normalisations by known statistics.

    Args:
        backbone: functional Keras model, behind the preprocessing.
        argument: name of the argument, for the error.
        received: what was given, for the error.
        way: to bring pixels to another range, or to leave them as they are, for the error. Default "give {}".

    Raises:
        UserError: that names the operation and the range that it is made for.
    """
    made, taken = _before_weights(backbone)
    if not taken:
        return
    shape = [size or _ANY_SIZE for size in backbone.inputs[0].shape[1:]]
    images = np.stack([np.full(shape, value, np.float32) for value in (-1, 0, 1)])
    outputs = keras.tree.flatten(keras.Model(backbone.inputs[0], made)(images, training=False))
    wanted = {
        id(tensor): _wanted(*np.asarray(keras.ops.convert_to_numpy(output), np.float64).reshape(3, -1))
        for tensor, output in zip(made, outputs, strict=True)
    }
    for found in filter(None, (wanted[each] for each in taken)):
        pixels, name = found
        first = next(operation_of(tensor).name for tensor in made if wanted[id(tensor)] == found)
        advice = (
            f"the model begins with {first}, which is made for pixels of {pixels}, and images here are in [0, 1]: "
            f"{way.format(repr(name))}, or [] if that is what you want"
        )
        raise UserError(argument, received, advice)


def _wanted(minus: np.ndarray, zero: np.ndarray, one: np.ndarray) -> tuple[str, str] | None:
    """Tell which pixels a function of them is made for, if not those of [0, 1], and the preprocessing for them."""
    step, middle = np.max(np.abs(one - zero)), np.median(np.abs(one + zero)) / 2
    if 0 < step < _DIVIDES_PIXELS or middle > _FAR * step > 0:
        return "0 to 255", "raw"
    if step > 0 and np.max(np.abs(minus)) < 1e-3 * step and np.max(np.abs(zero)) > _DIVIDES_PIXELS * step:
        return "-1 to 1", "tf"
    return None


def _before_weights(backbone: keras.Model) -> tuple[list[keras.KerasTensor], list[int]]:
    """Return what is made of images before any weights, in order, and the ids of what operations with weights take."""
    pixels = {id(backbone.inputs[0]): backbone.inputs[0]}
    found = []
    for node in calls(backbone):
        taken = [id(tensor) for tensor in node.input_tensors if id(tensor) in pixels]
        operation = node.operation
        is_plain = not getattr(operation, "weights", None) or isinstance(operation, _STATISTICS)
        if len(taken) == len(node.input_tensors) and is_plain:
            pixels |= {id(tensor): tensor for tensor in node.outputs}
        else:
            found += taken
    made = [tensor for tensor in pixels.values() if tensor is not backbone.inputs[0]]
    return made, [each for each in found if each != id(backbone.inputs[0])]
