"""A SavedModel's operations are read before it is loaded; nothing of it has run when it is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.errors import UserError
from cifs_tf.evaluation import load_attacked
from cifs_tf.models import load_model
from cifs_tf.models.side_effects import check_side_effects, side_effects

SPEC = tf.TensorSpec((None, 8, 8, 3), tf.float32)


def save(folder, act=lambda logits: None, nested=False):
    """A network of one dense layer that also calls `act` in its signature, in the open or two functions below."""
    module = tf.Module()
    module.kernel = tf.Variable(tf.ones((192, 3)))
    inner = tf.function(tf.function(act)) if nested else act

    def serve(image):
        logits = tf.reshape(image, (-1, 192)) @ module.kernel
        if nested:
            tf.cond(tf.reduce_sum(logits) > -1, lambda: inner(logits), lambda: inner(logits))
        else:
            inner(logits)
        return {"logits": logits}

    serve = tf.function(serve, input_signature=[SPEC])
    tf.saved_model.save(module, str(folder), signatures={"serving_default": serve})
    return folder


ACTS = {
    "WriteFile": lambda folder, logits: tf.io.write_file(f"{folder}/stolen", "x"),
    "ReadFile": lambda folder, logits: tf.print(tf.io.read_file(f"{folder}/saved_model.pb")),
    "MatchingFiles": lambda folder, logits: tf.print(tf.io.matching_files("/etc/*")),
    "EagerPyFunc": lambda folder, logits: tf.py_function(lambda: 1.0, [], tf.float32),
    "PyFunc": lambda folder, logits: tf.numpy_function(lambda: np.float32(1), [], tf.float32),
    "PrintV2": lambda folder, logits: tf.print(logits, output_stream=f"file://{folder}/stolen"),
    "SaveV2": lambda folder, logits: tf.raw_ops.SaveV2(
        prefix=f"{folder}/stolen", tensor_names=["x"], shape_and_slices=[""], tensors=[logits]
    ),
    "RestoreV2": lambda folder, logits: tf.print(
        tf.raw_ops.RestoreV2(prefix="/x", tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32])
    ),
    "TextLineDataset": lambda folder, logits: tf.print(next(iter(tf.data.TextLineDataset("/etc/hostname")))),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("operation", ACTS)
def test_what_reaches_out_is_named_and_asks_for_trust(operation, nested, tmp_path):
    folder = save(tmp_path / "model", lambda logits: (ACTS[operation](tmp_path, logits), None)[1], nested)
    assert side_effects(folder) == [operation]
    with pytest.raises(UserError, match=rf"with {operation}; .*give --trust \(trust=True\)"):
        load_attacked(folder)
    assert not list(tmp_path.glob("stolen*"))
    check_side_effects(folder, trust=True)


def test_trust_loads_it(tmp_path):
    folder = save(tmp_path / "model", lambda logits: tf.io.write_file(str(tmp_path / "known"), "x"))
    assert load_attacked(folder, trust=True).num_classes == 3


def test_what_only_computes_is_loaded(tmp_path):
    """Saving and restoring variables, tables, randomness and printing belong to ordinary models."""
    assert load_attacked(save(tmp_path / "plain", lambda logits: tf.print(tf.random.uniform(())))).num_classes == 3
    image = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(keras.layers.RandomFlip()(image)))
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    model.export(str(tmp_path / "keras"), verbose=False)
    assert side_effects(tmp_path / "keras") == []


def test_a_graph_of_version_1_only_computes(tmp_path):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        image = tf.compat.v1.placeholder(tf.float32, (None, 4))
        kernel = tf.compat.v1.get_variable("kernel", (4, 2))
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "old"), {"x": image}, {"y": image @ kernel})
    assert side_effects(tmp_path / "old") == []


def test_a_damaged_file_is_one_sentence(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"no protobuf at all")
    with pytest.raises(UserError, match="TensorFlow cannot load it"):
        load_attacked(tmp_path)


@keras.saving.register_keras_serializable(package="elsewhere")
class Elsewhere(keras.layers.Layer):
    def call(self, inputs):
        return inputs


def file_with(layer, path):
    image = keras.Input((8, 8, 3))
    keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(layer(image)))).save(path)
    return path


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_file_with_a_lambda_is_refused_in_a_sentence(suffix, tmp_path):
    ran = []
    path = file_with(keras.layers.Lambda(lambda x: ran.append(1) or x), tmp_path / f"model.{suffix}")
    ran.clear()
    with pytest.raises(UserError, match="it has a Lambda, Python code that would run here") as raised:
        load_model(path)
    assert "\n" not in str(raised.value)
    assert not ran


def test_a_file_of_unknown_classes_is_refused_in_a_sentence(tmp_path):
    path = file_with(Elsewhere(), tmp_path / "model.keras")
    keras.saving.get_custom_objects().pop("elsewhere>Elsewhere")
    with pytest.raises(UserError, match=r"Keras cannot load it \(.*Elsewhere.*\), give a .keras file"):
        load_model(path)
