"""The model card: how a published network was made, its measured accuracy, and what it is not for."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
from tensorflow import as_dtype
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from cifs_tf.data import ImageDataset
from cifs_tf.errors import UserError
from cifs_tf.evaluation import as_attacked
from cifs_tf.export import describe_files
from cifs_tf.extras import versions_of
from cifs_tf.files import CARD_FILE, now, write_json
from cifs_tf.models import Classifier
from cifs_tf.runs.trained import TrainedNetwork
from cifs_tf.serving.endpoint.models.servables import onnx_signature
from cifs_tf.statistics import accuracy_of

SCHEMA = 1
# Fields of a recipe that say where a run was, not what it did.
PLACES = ("workdir", "data_dir", "cache", "cache_dir")
PACKAGES = ("tensorflow", "keras", "numpy", "tf2onnx", "onnx", "onnxruntime")
INTENDED_USE = (
    "To classify images like those it was trained on, of the shape and value range given here, where someone may have "
    "changed every pixel by up to epsilon."
)
LIMITS = (
    "Robust accuracy holds for the threat model it was measured in, L-infinity perturbations of that epsilon found by "
    "those attacks, and is an upper bound there; it says nothing of other changes, such as rotations, patches, larger "
    "perturbations or images from elsewhere. High disagreement between the heads is a hint of tampering, not a "
    "detector: an attacker who knows of it can keep it low."
)


def make_card(
    path: Path, run: TrainedNetwork, classifier: Classifier, dataset: ImageDataset, int8: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Describe, in plain types, a version that is about to be published, with all other files in its folder.

    Raises:
        UserError: if results of the run are damaged.
    """
    result = run.result()
    weights = as_attacked(classifier).fingerprint
    with _believing_results(run):
        measured, reason = read_measured(run, weights)
        further = read_further(run, weights)
    cuts = {name: type(cut).__name__ for name, cut in classifier.cuts.items()}
    return {
        "schema": SCHEMA,
        "name": classifier.name,
        "description": (
            f"Image classifier, {run.config.model.arch if run.config.model.arch != 'auto' else classifier.name}, "
            f"{run.defense}, trained with method {run.config.train.method} on {dataset.name}; the network after its "
            f"{run.checkpoint} epoch."
        ),
        "network": {
            "defense": run.defense,
            "checkpoint": run.checkpoint,
            "parameters": classifier.count_params(),
            "selection_layers": cuts,
            "precision": {"trained": run.config.train.precision, "exported": "float32"},
        },
        "data": {
            "dataset": dataset.name,
            "images": dataset.identity.hash,
            "image_shape": list(dataset.image_shape),
            "value_range": [0.0, 1.0],
            "classes": list(dataset.class_names),
            "splits": {
                "train": len(dataset.train),
                "validation": len(dataset.validation),
                "test": len(dataset.test),
                "test_images_there_are": dataset.num_test_images,
            },
        },
        "recipe": {name: value for name, value in run.config.flat().items() if name not in PLACES},
        "training": {name: result.get(name) for name in ("versions", "revision", "machine", "started", "finished")},
        "exported": {
            "at": now(),
            "versions": versions_of(PACKAGES),
        },
        "measured": measured,
        "not_measured_because": reason,
        "further_measurements": further,
        "int8": int8,
        "signatures": read_signatures(path),
        "onnx": {file.name: read_onnx(file) for file in sorted(path.glob("*.onnx"))},
        "files": describe_files(path, CARD_FILE),
        "intended_use": INTENDED_USE,
        "limits": LIMITS,
    }


def write_card(path: Path, card: dict[str, Any]) -> None:
    """Write the card into a version's folder."""
    write_json(path / CARD_FILE, card)


@contextlib.contextmanager
def _believing_results(run: TrainedNetwork) -> Iterator[None]:
    """Say in one sentence that results lack something, or hold what cannot be."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        advice = "its result.json, or a report of its evaluations, is damaged or was edited; make it anew"
        raise UserError(run.option, run.path, advice) from error


def _check_weights(run: TrainedNetwork, file: Path, found: Any, weights: str) -> None:
    """Refuse results of another network; those of a run that was begun before its files had stamps do not say."""
    if run.run.key is not None and found != weights:
        advice = f"{file.relative_to(run.path)} is of another network than {run.model_file.name}, make it anew"
        raise UserError(run.option, run.path, advice)


def read_measured(run: TrainedNetwork, weights: str) -> tuple[dict[str, Any] | None, str | None]:
    """Return what the run itself measured of this network: (natural and robust accuracy, None), or (None, the reason).

    Args:
        run: whose `result.json` is read.
        weights: fingerprint of the network, see `cifs_tf.evaluation.AttackedModel`.

    Raises:
        UserError: if the results are damaged, or of other weights.

    `robust` is the worst case of each image over all attacks; `strongest_attack` the paper's convention, the lowest
    accuracy of a single attack at a single beta_atk.
    """
    network = run.result().get("networks", {}).get(run.defense, {})
    found = network.get("evaluation", {}).get(run.checkpoint)
    if found is None:
        what = f"the run has measured no network of its {run.checkpoint} epoch"
        return None, f"{what} (result.json, {run.defense}); python training/evaluate.py does"
    _check_weights(run, run.run.result_file, found.get("weights"), weights)
    config, number = run.config, found["num_examples"]
    return {
        "checkpoint": run.checkpoint,
        "epoch": found["epoch"],
        "num_examples": number,
        "clean": accuracy_of(found["natural"]["count"], number),
        "robust": accuracy_of(found["worst_case"]["count"], number),
        "threat_model": {
            "norm": "linf",
            "epsilon": float(config.attack.epsilon),
            "attacks": list(config.evaluation.attacks),
            "beta_atk": list(config.evaluation.attack_betas),
            "mask_gradient": config.evaluation.eval_mask_gradient,
        },
        "strongest_attack": {
            "attack": found["paper"]["attack"],
            "beta_atk": found["paper"]["beta"],
            **accuracy_of(round(found["paper"]["robust_accuracy"] * number), number),
        },
    }, None


def read_further(run: TrainedNetwork, weights: str) -> dict[str, Any]:
    """Return what `training/evaluate.py` measured of this network beyond the run itself, by suite of attacks.

    Raises:
        UserError: if a report is damaged, or of other weights.
    """
    reports = {suite: report for suite, report in run.reports().items() if suite != "paper"}
    for suite, report in reports.items():
        file = run.evaluation(suite) / "report.json"
        _check_weights(run, file, report.get("key", {}).get("weights"), weights)
        measured = report["about"].get("suite")
        # rand takes the place of any other where there is chance; the folder's name may go on with a norm, say
        if measured not in (None, "rand", suite) and not suite.startswith(f"{measured}-"):
            raise UserError(
                run.option, run.path, f"{file.relative_to(run.path)} is of the suite {measured}, move it back"
            )
    return {
        suite: {
            "dataset": report["about"]["dataset"],
            "unlike_run": report["about"].get("unlike_run", []),
            "norm": report["about"].get("norm") or "linf",
            "epsilon": report["about"]["epsilon"],
            "num_examples": report["num_examples"],
            "clean": accuracy_of(report["natural"]["count"], report["num_examples"]),
            "robust": accuracy_of(report["worst_case"]["count"], report["num_examples"]),
            "audit_passed": report["believable"],
        }
        for suite, report in reports.items()
    }


def read_signatures(path: Path) -> dict[str, Any]:
    """Return inputs and outputs of every signature of a SavedModel, with dtype and shape; empty if there is none."""
    file = path / "saved_model.pb"
    if not file.exists():
        return {}
    definitions = SavedModel.FromString(file.read_bytes()).meta_graphs[0].signature_def
    return {
        name: describe_signature(definition)
        for name, definition in sorted(definitions.items())
        if not name.startswith("__")
    }


def read_onnx(file: Path) -> dict[str, Any]:
    """Return the inputs and outputs of an ONNX file, with dtype and shape."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return describe_signature(onnx_signature(session))


def describe_signature(signature: SignatureDef) -> dict[str, Any]:
    """Return the inputs and outputs of a signature, with dtype and shape, in plain types."""

    def describe(tensors: Any) -> dict[str, Any]:
        return {
            name: {
                "dtype": as_dtype(info.dtype).name,
                "shape": [None if dim.size == -1 else dim.size for dim in info.tensor_shape.dim],
            }
            for name, info in sorted(tensors.items())
        }

    return {"inputs": describe(signature.inputs), "outputs": describe(signature.outputs)}
