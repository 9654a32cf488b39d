"""Whatever answers images with logits can be attacked, live or from a file."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.attacks import APGD, FABT, PGD, example_seeds
from cifs_tf.errors import UserError
from cifs_tf.evaluation import as_attacked, evaluate, load_attacked
from cifs_tf.export import export
from cifs_tf.models import Classifier


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    return export(trained.classifier, tmp_path_factory.mktemp("export"), formats=["savedmodel"])


def heads_agree(first, second, images):
    for mask in first.mask_gradients:
        np.testing.assert_allclose(second.heads_fns[mask](images), first.heads_fns[mask](images), atol=1e-4)


def test_a_classifier(trained):
    victim = as_attacked(trained.classifier)
    assert victim.mask_gradients == ("detached", "full", "smoothed")
    assert (victim.num_probes, victim.num_classes, victim.image_shape) == (2, 10, (8, 8, 1))
    assert victim.top_k == (2, 2)
    assert victim.limits == ()
    heads_agree(victim, victim, trained.images)


def test_a_keras_file_has_the_fingerprint_of_the_live_model(trained, tmp_path):
    trained.classifier.save(tmp_path / "model.keras")
    loaded = load_attacked(tmp_path / "model.keras")
    assert loaded.fingerprint == as_attacked(trained.classifier).fingerprint
    heads_agree(as_attacked(trained.classifier), loaded, trained.images)


def test_other_weights_have_another_fingerprint(make_classifier):
    first, second = make_classifier(seed=0), make_classifier(seed=1)
    assert as_attacked(first).fingerprint != as_attacked(second).fingerprint


def test_what_weights_do_not_tell_has_another_fingerprint(trained, plain_model):
    """The same weights with another k, or behind a layer without weights, are another network."""
    copies = [type(trained.classifier).from_config(trained.classifier.get_config()) for _ in range(2)]
    for copy in copies:
        copy.set_weights(trained.classifier.get_weights())
    assert as_attacked(copies[0]).fingerprint == as_attacked(trained.classifier).fingerprint
    for cut in copies[1].cuts.values():
        cut.top_k = 1
    assert as_attacked(copies[1]).fingerprint != as_attacked(trained.classifier).fingerprint
    scaled = keras.Model(plain_model.input, keras.layers.Rescaling(1e4)(plain_model.output))
    assert as_attacked(scaled).fingerprint != as_attacked(plain_model).fingerprint


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: Classifier(model)])
def test_layers_of_8_bits_are_said(wrap):
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(image)))
    victim = as_attacked(wrap(model))
    assert (victim.precision, victim.limits) == ("float32", ())
    model.quantize("int8")
    victim = as_attacked(wrap(model))
    assert victim.precision == "int8"
    assert victim.limits == ("Layers compute in int8: attacks see gradients through their rounding only.",)
    assert victim.heads_fns["exact"](tf.zeros((2, 4, 4, 3))).shape == (2, 1, 4)


def test_networks_that_cannot_be_fed_are_refused():
    def model(shape, batch_size=None, dtype="float32"):
        image = keras.Input(shape, batch_size=batch_size, dtype=dtype)
        pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1.0)(image))
        return keras.Model(image, keras.layers.Dense(3)(pooled))

    with pytest.raises(UserError, match="takes exactly 4 images"):
        as_attacked(model((8, 8, 1), batch_size=4))
    with pytest.raises(UserError, match="give it a fixed one"):
        as_attacked(model((None, None, 1)))
    with pytest.raises(UserError, match="takes uint8"):
        as_attacked(model((8, 8, 1), dtype="uint8"))


@pytest.mark.soak
def test_an_exported_model_gives_the_same_verdicts(trained, digits, exported, small_suite):
    """Through every mask gradient, by gradients taken through the loaded SavedModel."""
    live, loaded = as_attacked(trained.classifier), load_attacked(exported)
    assert loaded.mask_gradients == live.mask_gradients
    assert load_attacked(exported.parent).fingerprint == loaded.fingerprint, "the folder of versions means the newest"
    heads_agree(live, loaded, trained.images)
    broken = [evaluate(victim, digits, small_suite(victim))["broken_by"] for victim in (live, loaded)]
    different = sum((a is None) != (b is None) for a, b in zip(*broken, strict=True))
    assert different <= len(digits) / 500


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [APGD(epsilon=0.1, num_steps=2), FABT(epsilon=0.1, num_steps=2), PGD(epsilon=0.1, step_size=0.1, num_steps=2)],
)
def test_an_exported_model_can_be_attacked_in_a_batch_of_known_size(attack, exported, trained):
    heads_fn, images, labels = load_attacked(exported).heads_fns["full"], trained.images[:2], trained.labels[:2]
    seed = example_seeds(0, 0, tf.range(2))
    compiled = tf.function(lambda x: attack(heads_fn, x, labels, head_weights=[1.0, 1.0, 1.0], seed=seed))
    assert compiled(images).shape == images.shape


@pytest.mark.slow
def test_a_vanilla_network_is_exported_with_one_gradient(make_classifier, tmp_path):
    classifier = make_classifier(defense="vanilla")
    victim = load_attacked(export(classifier, tmp_path, formats=["savedmodel"]))
    assert victim.mask_gradients == as_attacked(classifier).mask_gradients == ("exact",)
    assert victim.num_probes == 0


def test_any_keras_model(plain_model, make_images):
    victim, images = as_attacked(plain_model), make_images((3, 8, 8, 1))
    assert (victim.num_probes, victim.num_classes, victim.image_shape) == (0, 10, (8, 8, 1))
    np.testing.assert_array_equal(victim.heads_fns["exact"](images)[:, 0], plain_model(images))


@pytest.mark.slow
def test_a_foreign_saved_model(plain_model, tmp_path, digits):
    """No signature of ours: what it has is attacked, and the report says what was not available."""
    plain_model.export(str(tmp_path / "foreign"), verbose=False)
    victim = load_attacked(tmp_path / "foreign")
    assert victim.mask_gradients == ("exact",)
    report = evaluate(victim, digits, "paper_aa", epsilon=0.1)
    assert "foreign SavedModel" in report["about"]["limits"][0]
    images = tf.constant(digits.images[:4] / np.float32(255))
    np.testing.assert_allclose(victim.heads_fns["exact"](images)[:, 0], plain_model(images), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path / "none", "there is no such file"),
        (lambda path: path, "it holds no saved_model.pb"),
        (lambda path: (path / "broken.keras").write_bytes(b"zip?") and path / "broken.keras", "Keras cannot load it"),
    ],
)
def test_what_is_no_model_is_refused(make, words, tmp_path):
    with pytest.raises(UserError, match=rf"model: received .*{words}"):
        load_attacked(make(tmp_path))


def test_a_broken_saved_model_is_refused(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="TensorFlow cannot load it"):
        load_attacked(tmp_path)


def test_a_model_of_something_else_is_refused():
    words = keras.Input((5,))
    with pytest.raises(UserError, match=r"its input has shape \(None, 5\)"):
        as_attacked(keras.Model(words, keras.layers.Dense(2)(words)))
