"""Throwaway models with the signatures that TF Serving's recorded answers belong to.

python -m tests.cifs_tf.serving.models DIR      writes DIR/{plain,multi}/1 and DIR/models.config, for a real TF Serving

docker run -p 8500:8500 -p 8501:8501 -v DIR:/models tensorflow/serving --model_config_file=/models/models.config
python -m pytest tests/cifs_tf/serving/test_contract.py --external --base-url http://HOST:8501 --grpc-target HOST:8500
"""

import sys
from pathlib import Path

import tensorflow as tf

SIDE = 32


class Plain(tf.Module):
    """One float image in, logits out.

    Args:
        seed: of the weights; two seeds give two answers.
        guarded: whether wrong shapes are refused by the model itself.
    """

    def __init__(self, seed: int = 0, guarded: bool = True):
        super().__init__()
        self.guarded = guarded
        self.kernel = tf.Variable(tf.random.stateless_normal((3, 3, 3, 8), (seed, 0)) * 0.1)
        self.weights = tf.Variable(tf.random.stateless_normal((8, 10), (seed, 1)) * 0.1)

    def logits(self, image):
        if self.guarded:
            image = tf.ensure_shape(image, (None, SIDE, SIDE, 3))
        features = tf.nn.relu(tf.nn.conv2d(image, self.kernel, 1, "SAME"))
        return tf.reduce_mean(features, (1, 2)) @ self.weights

    @tf.function(input_signature=[tf.TensorSpec((None, SIDE, SIDE, 3), tf.float32, name="image")])
    def serve(self, image):
        return {"logits": self.logits(image)}


class Multi(Plain):
    """Outputs of every type, and inputs that are integers, files, half precision."""

    def outputs(self, image):
        probabilities = tf.nn.softmax(self.logits(image))
        class_id = tf.argmax(probabilities, axis=-1)
        return {
            "probabilities": probabilities,
            "class_id": class_id,
            "class_name": tf.strings.join(["c", tf.strings.as_string(class_id)]),
            "top2": tf.math.top_k(probabilities, 2).indices,
            "raw_bytes": tf.strings.as_string(class_id),
        }

    def signatures(self):
        image = tf.TensorSpec((None, SIDE, SIDE, 3), tf.float32, name="image")
        integers = tf.TensorSpec((None, SIDE, SIDE, 3), tf.uint8, name="image")
        halves = tf.TensorSpec((None, SIDE, SIDE, 3), tf.float16, name="image")
        files = tf.TensorSpec((None,), tf.string, name="image_bytes")

        def decode(file):
            picture = tf.io.decode_image(file, channels=3, expand_animations=False)
            return tf.ensure_shape(tf.cast(picture, tf.float32) / 255.0, (SIDE, SIDE, 3))

        def of_files(image_bytes):
            return self.outputs(tf.map_fn(decode, image_bytes, fn_output_signature=tf.float32))

        functions = {
            "serving_default": (self.outputs, image),
            "uint8": (lambda image: self.outputs(tf.cast(image, tf.float32) / 255.0), integers),
            "encoded": (of_files, files),
            "half_in": (lambda image: {"p": self.outputs(tf.cast(image, tf.float32))["probabilities"]}, halves),
            "half": (lambda image: {"p": tf.cast(self.outputs(image)["probabilities"], tf.float16)}, image),
            "scalar_out": (lambda image: {"mean": tf.reduce_mean(self.outputs(image)["probabilities"])}, image),
        }
        return {
            name: tf.function(function, input_signature=[spec], autograph=False).get_concrete_function()
            for name, (function, spec) in functions.items()
        }


class Slow(tf.Module):
    """An image in, a number out, after so many steps; a run can be ended between them."""

    @tf.function(input_signature=[tf.TensorSpec((None, 1), tf.float32, name="image")])
    def serve(self, image):
        steps = tf.while_loop(lambda step: step < 10**9, lambda step: (step + 1,), (0,), parallel_iterations=1)[0]
        return {"y": image + tf.cast(steps, tf.float32)}


def save_slow(path: Path) -> None:
    model = Slow()
    tf.saved_model.save(model, str(path), signatures=model.serve)


def save_plain(path: Path, seed: int = 0, guarded: bool = True) -> None:
    model = Plain(seed, guarded)
    tf.saved_model.save(model, str(path), signatures=model.serve)


def save_multi(path: Path) -> None:
    model = Multi()
    tf.saved_model.save(model, str(path), signatures=model.signatures())


def models_config(folder: Path | str) -> str:
    """The models' config, as seen from where `folder` is mounted."""
    return f"""model_config_list {{
  config {{
    name: "plain" base_path: "{folder}/plain" model_platform: "tensorflow"
    version_labels {{ key: "stable" value: 1 }}
  }}
  config {{ name: "multi" base_path: "{folder}/multi" model_platform: "tensorflow" }}
}}
"""


def save_all(folder: Path) -> None:
    save_plain(folder / "plain" / "1")
    save_multi(folder / "multi" / "1")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    save_all(target)
    (target / "models.config").write_text(models_config("/models"))
