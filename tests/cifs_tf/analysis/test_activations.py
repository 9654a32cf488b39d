"""Channel activations: what the last dense layer really sees."""

import keras
import numpy as np
import pytest

from cifs_tf.analysis import channel_activations, last_layer_weights
from cifs_tf.errors import UserError
from cifs_tf.layers import CIFS
from cifs_tf.models import Classifier


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"defense": "vanilla"}, marks=pytest.mark.slow),
        pytest.param({"defense": "cas"}, marks=pytest.mark.slow),
        {"defense": "cifs", "importance_scale": "mean_one"},
        {"defense": "cifs", "arch": "wrn28-10", "width": 1},
    ],
    ids=["vanilla", "cas", "cifs", "wide"],
)
def test_the_logits_are_linear_in_the_activations(config, make_classifier, make_images):
    """Whatever the masks do, logits = activations W + b, so the activations are those behind the last mask."""
    classifier, images = make_classifier(**config), make_images((5, 8, 8, 3))
    activations = channel_activations(classifier, images, batch_size=2)
    logits = activations @ last_layer_weights(classifier) + classifier.backbone.layers[-1].bias.numpy()
    np.testing.assert_allclose(logits, classifier(images)[:, 0], rtol=1e-4, atol=1e-5)
    whole = channel_activations(classifier, images, batch_size=250)
    np.testing.assert_allclose(activations, whole, rtol=1e-4, atol=1e-5)


def test_positions_are_averaged_by_hand(make_pencil):
    """One channel holds 0, 1, 0, 1 over the four positions, one 0.25 throughout, one is empty: 0.5, 0.25, 0."""
    image = np.zeros((1, 2, 2, 3), np.float32)
    image[0, :, 1, 0], image[..., 1] = 1, 0.25
    for layer in (None, "features", "pool"):
        assert channel_activations(make_pencil(), image, layer).tolist() == [[0.5, 0.25, 0]]


def test_a_cut_gives_the_selected_features_by_hand(make_pencil, constant_images):
    """z = (0.5, 1, 0), probe logits z A = (0, 1) for A = [[2, 0], [-1, 1], [0, 3]], so g = A's second column (0, 1, 3);
    with the identity as importance function the selected features are g z = (0, 1, 0).
    """
    cut = CIFS(top_k=1, importance="identity")
    classifier = make_pencil({"features": cut})
    cut.probe.set_weights([np.array([[2.0, 0.0], [-1.0, 1.0], [0.0, 3.0]]), np.zeros(2)])
    images = constant_images([[0.5, 1.0, 0.0]])
    for layer in (None, "features"):
        np.testing.assert_allclose(channel_activations(classifier, images, layer), [[0, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(classifier.explain(images)["relevance"]["features"], [[0, 1, 3]], atol=1e-6)


def test_a_flattened_layer_counts_every_position(make_images):
    image = keras.Input((2, 2, 3))
    classifier = Classifier(keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(image))))
    assert channel_activations(classifier, make_images((2, 2, 2, 3))).shape == (2, 12)


def test_errors_name_the_way_out(make_pencil, constant_images):
    classifier, images = make_pencil(), constant_images([[0.5, 1.0, 0.0]])
    with pytest.raises(UserError, match="layer: received feature; name a layer of the backbone, such as features"):
        channel_activations(classifier, images, "feature")
    with pytest.raises(UserError, match="images: received uint8"):
        channel_activations(classifier, images.astype(np.uint8))
    with pytest.raises(UserError, match="images: received none"):
        channel_activations(classifier, images[:0])
    with pytest.raises(UserError, match="batch_size: received 0"):
        channel_activations(classifier, images, batch_size=0)
    image = keras.Input((2, 2, 3))
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(image)
    with pytest.raises(UserError, match="its last layer, pooled, is a GlobalAveragePooling2D; give a backbone"):
        last_layer_weights(Classifier(keras.Model(image, pooled)))
