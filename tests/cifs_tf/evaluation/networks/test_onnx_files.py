"""ONNX files under attack: the verdicts of the live model with the gradient beside them, black-box attacks without."""

import shutil

import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper

from cifs_tf.errors import UserError
from cifs_tf.evaluation import as_attacked, evaluate, load_attacked
from cifs_tf.evaluation.networks.onnx_files import NO_GRADIENT_FILE
from cifs_tf.evaluation.suites import make_suite
from cifs_tf.export import GRADIENT_FILE, export
from cifs_tf.losses import contract, cross_entropy


@pytest.fixture(scope="module")
def version(trained, tmp_path_factory):
    """What export writes of the trained network, without the SavedModel."""
    return export(trained.classifier, tmp_path_factory.mktemp("onnx"), formats=["onnx", "gradient"])


def write_linear(path, shape, *, batch="batch", output=(3,), dtype=TensorProto.FLOAT, factor=10.0):
    """Write a network of the mean pixel m: logits (m, 0.5, 1 - m) times a factor, an ONNX file from elsewhere."""
    weights = np.array([[1.0, 0.0, -1.0]], np.float32) * factor
    weights = weights.astype(helper.tensor_dtype_to_np_dtype(dtype))
    bias = (np.array([0.0, 0.5, 1.0]) * factor).astype(weights.dtype)
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=list(range(1, 1 + len(shape))), keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "axis"], ["column"]),
        helper.make_node("MatMul", ["column", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["scores"]),
    ]
    constants = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")]
    constants.append(numpy_helper.from_array(np.array([1]), "axis"))
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("pixels", dtype, [batch, *shape])],
        [helper.make_tensor_value_info("scores", dtype, [batch, *output])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.mark.slow
def test_the_suite_comes_to_the_verdicts_of_the_live_model(trained, digits, version, small_suite):
    """With a random start, by a targeted loss, at beta 2 and through the mask; one image in 500 may differ."""
    live, loaded = as_attacked(trained.classifier), load_attacked(version / "model.onnx")
    assert loaded.mask_gradients == live.mask_gradients
    assert (loaded.num_probes, loaded.num_classes, loaded.image_shape) == (2, 10, (8, 8, 1))

    def tasks(victim):
        return [task for task in small_suite(victim) if task.family in ("", "pgd", "apgd_t") and task.name != "flips"]

    broken = [evaluate(victim, digits, tasks(victim))["broken_by"] for victim in (live, loaded)]
    assert len(set(broken[0])) > 2
    assert sum((a is None) != (b is None) for a, b in zip(*broken, strict=True)) <= len(digits) / 500


@pytest.mark.parametrize("mask", ["detached", "full", "smoothed"])
def test_the_gradient_is_that_of_the_live_model(mask, trained, version):
    live, loaded = as_attacked(trained.classifier), load_attacked(version / "model.onnx")

    def gradient(victim):
        with tf.GradientTape() as tape:
            tape.watch(trained.images)
            loss = contract(cross_entropy(victim.heads_fns[mask](trained.images), trained.labels), [1.0, 0.5, 0.5])
        return tape.gradient(loss, trained.images).numpy().reshape(len(trained.images), -1)

    apart = np.abs(gradient(live) - gradient(loaded)).max(axis=1)
    assert np.sum(apart > 1e-5) <= 2  # where a ReLU sits at 0 but for rounding


def test_the_gradient_must_belong_to_the_model(version, trained, tmp_path):
    other = shutil.copytree(version, tmp_path / "other")
    model = onnx.load(str(other / GRADIENT_FILE))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.shape == (10,):
            tensor.CopyFrom(numpy_helper.from_array(np.roll(values, 1) + np.float32(0.1), tensor.name))
    onnx.save(model, str(other / GRADIENT_FILE))
    with pytest.raises(UserError, match=r"does not belong to model.onnx \(their predictions differ\)"):
        load_attacked(other / "model.onnx")
    (other / GRADIENT_FILE).write_bytes((other / "model.onnx").read_bytes())
    with pytest.raises(UserError, match="its inputs are image, give the one that export wrote"):
        load_attacked(other / "model.onnx")
    with pytest.raises(UserError, match=r"give the model.onnx that lies beside it"):
        load_attacked(version / GRADIENT_FILE)


@pytest.mark.parametrize(
    ("shape", "batch"),
    [((8, 8, 1), "batch"), *(pytest.param(*form, marks=pytest.mark.slow) for form in (((1, 8, 8), 1), ((8, 8, 1), 5)))],
)
def test_a_file_without_a_gradient_is_attacked_by_its_answers(shape, batch, tmp_path, make_images):
    """Channels first or last, a free batch or a fixed one. Label 2 is right for m < 0.5, and falls at m = 0.5."""
    victim = load_attacked(write_linear(tmp_path / "m.onnx", shape, batch=batch))
    images = make_images((7, 8, 8, 1))
    mean = np.asarray(images).mean(axis=(1, 2, 3))
    expected = 10 * np.stack([mean, 0 * mean + 0.5, 1 - mean], axis=1)
    np.testing.assert_allclose(victim.heads_fns["exact"](images)[:, 0], expected, atol=1e-5)
    assert NO_GRADIENT_FILE in victim.limits
    assert {task.family for task in make_suite("strict", victim, 0.1)} == {"", "square", "rays"}
    levels = np.array([0.2, 0.35, 0.45, 0.48])
    split = np.round(np.ones((4, 8, 8, 1)) * levels[:, None, None, None] * 255).astype(np.uint8), [2, 2, 2, 2]
    report = evaluate(victim, split, "standard", epsilon=0.1)
    assert [by is None for by in report["broken_by"]] == [True, True, False, False]


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_bytes(b"no model"), "onnxruntime cannot load it"),
        (lambda path: write_linear(path, (8, "w", 1)), "give it a fixed one"),
        (lambda path: write_linear(path, (8, 8)), "give a model of one batch of images"),
        (lambda path: write_linear(path, (8, 8, 1), dtype=TensorProto.INT32), "takes int32"),
    ],
)
def test_what_is_no_image_classifier_is_refused(write, words, tmp_path):
    write(tmp_path / "m.onnx")
    with pytest.raises(UserError, match=words):
        load_attacked(tmp_path / "m.onnx")


def test_probabilities_and_half_precision_are_told(tmp_path):
    victim = load_attacked(write_linear(tmp_path / "m.onnx", (8, 8, 1), dtype=TensorProto.FLOAT16))
    assert victim.precision == "float16"
    assert not victim.has_gradient
