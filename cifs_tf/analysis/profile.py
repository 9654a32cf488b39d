"""The data of Figures 1, 3 and A.2: activations of a class over the channels, sorted by the last layer's weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from cifs_tf.analysis.activations import channel_activations, last_layer_weights
from cifs_tf.checks import check_labels
from cifs_tf.errors import UserError
from cifs_tf.models import Classifier

# A channel is activated if its magnitude is above this share of the image's largest (Appendix A.1).
ACTIVATED = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelProfile:
    """Channels of one class in the order of their weights, the most positively-relevant one first.

    Args:
        weights: float (channels,), of the last dense layer for the class, descending.
        order: int (channels,), the channels' indices in the classifier.
        natural_magnitude: float (channels,) in [0, 1], mean activation magnitude of the class' natural images, divided
            by the largest of all channels.
        adversarial_magnitude: the same of the adversarial images, divided by their own largest.
        natural_frequency: float (channels,) in [0, 1], share of the natural images that activate the channel.
        adversarial_frequency: the same of the adversarial images.

    Example:
        >>> pandas.DataFrame(dataclasses.asdict(profile))
    """

    weights: np.ndarray
    order: np.ndarray
    natural_magnitude: np.ndarray
    adversarial_magnitude: np.ndarray
    natural_frequency: np.ndarray
    adversarial_frequency: np.ndarray


def channel_profile(
    classifier: Classifier,
    images: tf.Tensor | np.ndarray,
    x_adv: tf.Tensor | np.ndarray,
    labels: tf.Tensor | np.ndarray,
    target_class: int,
    batch_size: int = 250,
) -> ChannelProfile:
    """Measure how natural and adversarial images of one class activate the channels of the penultimate layer.

    Args:
        classifier: to be measured; its backbone ends in a Dense layer.
        images: float (examples, height, width, channels) in [0, 1].
        x_adv: the same images after an attack.
        labels: int (examples,).
        target_class: the class, 0 to classes - 1; images of other classes are left out.
        batch_size: images at a time. Default 250.

    Returns:
        the profile.

    Raises:
        UserError: if no image has the class, shapes do not fit, or the last layer is not dense.

    Example:
        >>> channel_profile(classifier, images, x_adv, labels, target_class=3).weights.shape
        (512,)
    """
    labels = check_labels(labels, classifier.num_classes)
    weights = last_layer_weights(classifier)
    if len({len(images), len(x_adv), len(labels)}) > 1:
        counts = f"{len(images)} images, {len(x_adv)} x_adv, {len(labels)} labels"
        raise UserError("x_adv", counts, "give one for each image")
    if not 0 <= target_class < weights.shape[1]:
        raise UserError("target_class", target_class, f"give a class from 0 to {weights.shape[1] - 1}")
    of_class = np.flatnonzero(labels == target_class)
    if not len(of_class):
        raise UserError("target_class", target_class, "no image has this label, give images of the class")
    natural, adversarial = (
        channel_activations(classifier, tf.gather(batch, of_class), batch_size=batch_size) for batch in (images, x_adv)
    )
    return make_profile(natural, adversarial, weights[:, target_class])


def make_profile(natural: np.ndarray, adversarial: np.ndarray, weights: np.ndarray) -> ChannelProfile:
    """Make the profile of a class from measured activations.

    Magnitude of channel i: mean_n |a_ni|, divided by the largest of all channels. Frequency: the share of the images n
    with |a_ni| > 0.01 max_j |a_nj|.

    Args:
        natural: float (examples, channels), of the class' natural images, see `channel_activations`.
        adversarial: float (examples, channels), of its adversarial images.
        weights: float (channels,), of the last layer for the class.

    Returns:
        the profile; magnitudes are 0 where nothing is activated.

    Example:
        >>> make_profile(np.array([[0.0, 2.0]]), np.array([[1.0, 2.0]]), np.array([-1.0, 1.0])).natural_magnitude
        array([1., 0.])
    """
    # Stable: channels of equal weight keep their order.
    order = np.argsort(-weights, kind="stable")
    return ChannelProfile(
        weights=weights[order],
        order=order,
        natural_magnitude=_magnitude(natural)[order],
        adversarial_magnitude=_magnitude(adversarial)[order],
        natural_frequency=_frequency(natural)[order],
        adversarial_frequency=_frequency(adversarial)[order],
    )


def _magnitude(activations: np.ndarray) -> np.ndarray:
    mean = np.abs(activations).mean(axis=0)
    return mean / max(mean.max(), np.finfo(mean.dtype).tiny)


def _frequency(activations: np.ndarray) -> np.ndarray:
    magnitudes = np.abs(activations)
    return (magnitudes > ACTIVATED * magnitudes.max(axis=1, keepdims=True)).mean(axis=0)
