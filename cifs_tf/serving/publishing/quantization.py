"""The ONNX network in 8 bits, and its robust accuracy, which is measured, never assumed."""

import contextlib
import dataclasses
import hashlib
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from rich.progress import Progress

from cifs_tf.attacks import APGD, HeadsFn, Square
from cifs_tf.config import RunConfig
from cifs_tf.data import ImageDataset, Split, to_float
from cifs_tf.evaluation import AttackedModel, as_attacked, evaluate
from cifs_tf.evaluation.engine import ProgressFn
from cifs_tf.evaluation.tasks import Crafted, Natural, Task
from cifs_tf.export import ExportError
from cifs_tf.models import Classifier
from cifs_tf.statistics import accuracy_of

QUANTIZED = "Conv"
CALIBRATION_BATCH = 50
CALIBRATION_EXAMPLES = 200
METHOD = (
    "static, QDQ: convolutions only, weights int8 per channel, activations uint8 by their range on training images; "
    "probes, masks and heads in float32"
)


def add_int8(
    path: Path,
    config: RunConfig,
    classifier: Classifier,
    dataset: ImageDataset,
    test: Split,
    num_queries: int,
    progress: Progress,
) -> dict[str, Any]:
    """Write model.int8.onnx beside model.onnx, measure both on the same images, and return what the model card says.

    Raises:
        ExportError: if the network cannot be quantised.
        UserError: if there are too few training images.
    """
    calibration = dataset.train.class_balanced(min(CALIBRATION_EXAMPLES, len(dataset.train)), "--int8")
    file = path / "model.int8.onnx"
    quantize(path / "model.onnx", file, to_float(np.asarray(calibration.images)).numpy())

    float_model = as_attacked(classifier)
    wanted = config.evaluation.eval_mask_gradient
    mask_gradient = wanted if wanted in float_model.mask_gradients else float_model.mask_gradients[0]
    epsilon = float(config.attack.epsilon)
    tasks = make_tasks(float_model, epsilon, mask_gradient=mask_gradient, num_queries=num_queries)

    def attack(name: str, model: AttackedModel) -> dict[str, Any]:
        bar = progress.add_task(f"attacking {name}, {len(test)} images", total=1.0)
        return measure(
            model,
            test,
            tasks,
            seed=config.train.seed,
            batch_size=config.evaluation.eval_batch_size,
            on_progress=lambda task, share, survivors: progress.update(bar, completed=share),
        )

    return {
        "file": file.name,
        "method": METHOD,
        "calibration": {"split": "train", "num_examples": len(calibration)},
        "threat_model": {
            "norm": "linf",
            "epsilon": epsilon,
            "attacks": [task.name for task in tasks[1:]],
            "beta_atk": [0],
            "mask_gradient": mask_gradient,
        },
        "num_examples": len(test),
        "test_images_there_are": dataset.num_test_images,
        "float32": attack("float32", float_model),
        "int8": attack("int8", attacked_onnx(file, float_model)),
    }


def quantize(source: Path, target: Path, images: np.ndarray) -> None:
    """Write a variant of an ONNX file whose convolutions compute in 8 bits; the same images give the same file.

    Probes, masks and heads stay in float32: an error there would choose other classes, not just scale a channel a
    little otherwise. Weights keep to 7 bits, so that processors without 8-bit dot products, whose sums would saturate,
    give the same answers.

    Args:
        source: ONNX file, input `image`.
        target: file to write.
        images: float32 (examples, height, width, channels) in [0, 1], to find the ranges of the activations: training
            images, never test images.

    Raises:
        ExportError: if there is nothing to quantise, or the result does not load.
    """

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            starts = range(0, len(images), CALIBRATION_BATCH)
            self.batches: Iterator[dict] = ({"image": images[start : start + CALIBRATION_BATCH]} for start in starts)

        def get_next(self) -> dict | None:
            return next(self.batches, None)

    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(target),
                Images(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=[QUANTIZED],
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        model = onnx.load(str(target))
        onnx.checker.check_model(model, full_check=True)
        onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever the quantiser makes of a foreign network
        raise ExportError(f"the network cannot be quantised: {error}") from error
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise ExportError("the network cannot be quantised: it has no convolution")


def attacked_onnx(file: Path, float_model: AttackedModel) -> AttackedModel:
    """Make an ONNX file a model that can be attacked: its answers, on the CPU, with the gradients of the float network.

    Reference:
        Athalye et al., "Obfuscated gradients give a false sense of security", ICML 2018 (BPDA).
    """
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    outputs = ["logits", "probe_logits"] if float_model.num_probes else ["logits"]

    def run(images: np.ndarray) -> np.ndarray:
        logits, *probes = session.run(outputs, {"image": images})
        return np.concatenate([logits[:, None], *probes], axis=1)

    def with_gradient_of(float_heads_fn: HeadsFn) -> HeadsFn:
        @tf.custom_gradient
        def heads_fn(images: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            heads = tf.numpy_function(run, [images], tf.float32, stateful=False)
            heads = tf.ensure_shape(heads, (images.shape[0], 1 + float_model.num_probes, float_model.num_classes))

            def backward(upstream: tf.Tensor) -> tf.Tensor:
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(images)
                    exact = float_heads_fn(images)
                return tape.gradient(exact, images, output_gradients=upstream)

            return heads, backward

        return heads_fn

    return dataclasses.replace(
        float_model,
        name=f"{float_model.name}, {file.name}",
        heads_fns={mask: with_gradient_of(heads_fn) for mask, heads_fn in float_model.heads_fns.items()},
        fingerprint=hashlib.sha256(file.read_bytes()).hexdigest()[:16],
        labelled_heads_fn=None,
        limits=("It has no gradients: those of the float network took their place.",),
    )


def make_tasks(float_model: AttackedModel, epsilon: float, *, mask_gradient: str, num_queries: int) -> list[Task]:
    """List what measures a network beside the float one: APGD on the float network, APGD and Square on itself."""
    apgd, square = APGD(epsilon=epsilon), Square(epsilon=epsilon, num_queries=num_queries)
    common: dict[str, Any] = {"counts": True, "section": "quantization", "mask_gradient": mask_gradient}
    return [
        Natural(),
        Crafted(name="apgd_ce on the float network", attack=apgd, surrogate=float_model, **common),
        Crafted(name="apgd_ce on the network itself", attack=apgd, **common),
        Crafted(name=f"square on the network itself, {num_queries} queries", attack=square, **common),
    ]


def measure(
    model: AttackedModel,
    split: Split,
    tasks: list[Task],
    *,
    seed: int = 0,
    batch_size: int = 250,
    on_progress: ProgressFn = lambda task, share, survivors: None,
) -> dict[str, Any]:
    """Measure the natural and the robust accuracy of a network, the worst case of each image over all tasks.

    Returns:
        `clean`, the natural one, and `robust`, see `accuracy_of`; `broken_by`: images that each task was the first to
        break.
    """
    report = evaluate(model, split, tasks, seed=seed, batch_size=batch_size, on_progress=on_progress)
    broken_by = {task.name: report["broken_by"].count(task.name) for task in tasks}
    natural, robust = report["natural"]["count"], report["worst_case"]["count"]
    return {
        "clean": accuracy_of(natural, len(split)),
        "robust": accuracy_of(robust, len(split)),
        "broken_by": broken_by,
    }
