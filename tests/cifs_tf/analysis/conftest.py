"""A network small enough for paper and pencil."""

import keras
import numpy as np
import pytest

from cifs_tf.models import Classifier

# Of three channels and two classes; the rows of W are channels, its columns w_0 and w_1.
KERNEL = np.array([[1.0, -1.0], [0.0, 1.0], [-1.0, 1.0]])


@pytest.fixture(scope="module")
def make_pencil():
    """images (2, 2, 3) -> mean over positions z (3,) -> logits z W; with the cuts that are given."""

    def make(cuts=None, kernel=KERNEL):
        image = keras.Input((2, 2, 3), name="image")
        pooled = keras.layers.GlobalAveragePooling2D(name="pool")(keras.layers.ReLU(name="features")(image))
        classifier = Classifier(keras.Model(image, keras.layers.Dense(kernel.shape[1], name="logits")(pooled)), cuts)
        classifier.backbone.get_layer("logits").set_weights([kernel, np.zeros(kernel.shape[1])])
        return classifier

    return make


@pytest.fixture(scope="module")
def constant_images():
    """Images whose channels are constant: float32 (examples, 2, 2, 3)."""
    return lambda channels: np.broadcast_to(np.array(channels, np.float32)[:, None, None], (len(channels), 2, 2, 3))
