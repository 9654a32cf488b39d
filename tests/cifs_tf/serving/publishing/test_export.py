"""From a run's folder to a published version: its files, its card, its 8-bit variant, and refusals."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
import yaml
from rich.console import Console
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from cifs_tf.config import AttackConfig, DataConfig, EvaluationConfig, ModelConfig, Ratio, RunConfig
from cifs_tf.data import load_dataset, to_float
from cifs_tf.errors import UserError
from cifs_tf.evaluation import as_attacked, evaluate, make_attacks, make_suite
from cifs_tf.export import ExportError, write_onnx
from cifs_tf.files import WARMUP_FILE, read_results, write_results
from cifs_tf.presets.from_run import save_run_to_preset
from cifs_tf.programs.export import publish, show
from cifs_tf.runs.pipeline import summarise
from cifs_tf.runs.trained import find_network
from cifs_tf.serving.publishing import quantization
from cifs_tf.serving.publishing.options import ExportOptions

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[4]
EPSILON = "16/255"
INT8_EXAMPLES = 20


def start(*argv, cwd):
    command = [sys.executable, str(ROOT / "serving" / "export.py"), *map(str, argv)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*argv, cwd):
    process = start(*argv, cwd=cwd)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, trained):
    """A run's workdir with a trained network and what was measured of it, as run.py leaves it, made in seconds."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    config = RunConfig(
        data=DataConfig(dataset="digits", train_examples=400, test_examples=40),
        model=ModelConfig(importance_scale="mean_one"),
        attack=AttackConfig(epsilon=Ratio(EPSILON)),
        evaluation=EvaluationConfig(attacks=("fgsm",), attack_betas=(0, "infinity")),
    )
    (path / "cifs").mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config.flat()))
    trained.classifier.save(path / "cifs" / "last.keras")
    attacked = as_attacked(trained.classifier)
    tasks = make_suite("paper", attacked, 16 / 255, attacks=make_attacks(["fgsm"], 16 / 255), betas=(0,))
    report = evaluate(attacked, load_dataset(config.data).test, tasks)
    networks = {"cifs": {"evaluation": {"last": {"epoch": 4, **summarise(report)}}}}
    result = {"versions": {"python": "3"}, "revision": "abc", "started": "then", "networks": networks}
    write_results(path / "result.json", result)
    return path


@pytest.fixture(scope="module")
def published(workdir, tmp_path_factory):
    options = ExportOptions(
        str(workdir),
        model_base_path=str(tmp_path_factory.mktemp("models") / "digits"),
        int8=True,
        int8_examples=INT8_EXAMPLES,
        int8_queries=20,
        warmup_batch_sizes=(1, 3),
    )
    return publish(options)


@pytest.fixture(scope="module")
def card(published):
    return json.loads((published / "model_card.json").read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def balanced():
    return load_dataset(DataConfig(dataset="digits")).test.class_balanced(INT8_EXAMPLES, "examples")


def session_of(file):
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def test_live_savedmodel_and_onnx_agree(published, trained):
    live = trained.classifier(trained.images, training=False).numpy()
    loaded = tf.saved_model.load(str(published))
    served = {
        "SavedModel": loaded.signatures["serving_default"](image=trained.images),
        "ONNX": dict(
            zip(
                ["logits", "probe_logits"],
                session_of(published / "model.onnx").run(["logits", "probe_logits"], {"image": trained.images.numpy()}),
                strict=True,
            )
        ),
    }
    limit = 1e-5 * max(1.0, np.abs(live).max())
    for outputs in served.values():
        np.testing.assert_allclose(outputs["logits"], live[:, 0], atol=limit)
        np.testing.assert_allclose(outputs["probe_logits"], live[:, 1:], atol=limit)


def test_layout(published, card):
    files = {file.relative_to(published).as_posix() for file in published.rglob("*") if file.is_file()}
    assert {
        "saved_model.pb",
        "variables/variables.index",
        "assets.extra/tf_serving_warmup_requests",
        "model.onnx",
        "model.int8.onnx",
        "labels.json",
        "model_card.json",
    } <= files
    assert [child.name for child in published.parent.iterdir()] == ["1"]
    assert set(card["files"]) == files - {"model_card.json"}
    for name, described in card["files"].items():
        content = (published / name).read_bytes()
        assert described == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert json.loads((published / "labels.json").read_text()) == card["data"]["classes"] == list("0123456789")


def test_the_card_repeats_what_the_run_measured(card, workdir):
    result = read_results(workdir / "result.json")
    found = result["networks"]["cifs"]["evaluation"]["last"]
    measured = card["measured"]
    assert measured["clean"]["accuracy"] == found["natural"]["accuracy"]
    assert measured["robust"]["accuracy"] == found["worst_case"]["accuracy"]
    assert measured["strongest_attack"]["accuracy"] == found["paper"]["robust_accuracy"]
    assert measured["strongest_attack"]["attack"] == "fgsm"
    assert measured["threat_model"]["epsilon"] == pytest.approx(16 / 255)
    low, high = measured["robust"]["interval"]
    assert low < measured["robust"]["accuracy"] < high
    assert (measured["checkpoint"], measured["epoch"], measured["num_examples"]) == ("last", 4, 40)
    assert card["training"]["revision"] == "abc"
    assert card["data"]["splits"] == {"train": 400, "validation": 40, "test": 40, "test_images_there_are": 360}
    assert card["recipe"]["epsilon"] == EPSILON
    # Where it was is nobody's business.
    assert not {"workdir", "data_dir"} & set(card["recipe"])


def test_the_card_tells_signatures_as_they_are(card, published):
    loaded = tf.saved_model.load(str(published))
    assert set(card["signatures"]) == set(loaded.signatures) >= {"serving_default", "encoded", "explain"}
    for name, described in card["signatures"].items():
        signature = loaded.signatures[name]
        for specs, told in (
            (signature.structured_input_signature[1], described["inputs"]),
            (signature.structured_outputs, described["outputs"]),
        ):
            assert {key: (spec.dtype.name, list(spec.shape)) for key, spec in specs.items()} == {
                key: (spec["dtype"], spec["shape"]) for key, spec in told.items()
            }
    assert card["onnx"]["model.int8.onnx"] == card["onnx"]["model.onnx"]
    assert card["onnx"]["model.onnx"]["inputs"] == {"image": {"dtype": "float32", "shape": [None, 8, 8, 1]}}


def test_warmup_records_are_answered(published):
    """Read as a server reads them: each names a signature and brings the inputs that it takes."""
    loaded = tf.saved_model.load(str(published))
    asked = []
    for record in tf.data.TFRecordDataset(str(published / WARMUP_FILE)):
        log = PredictionLog.FromString(record.numpy())
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.name == "digits"
        inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
        outputs = loaded.signatures[request.model_spec.signature_name](**inputs)
        assert np.isfinite(outputs["probabilities"]).all()
        asked.append((request.model_spec.signature_name, len(outputs["probabilities"])))
    assert asked == [("serving_default", 1), ("encoded", 1), ("serving_default", 3), ("encoded", 3)]


def test_int8_is_measured_on_the_variant_itself(published, card, balanced):
    """Clean accuracy counted by hand from the published file; nothing that is wrong without an attack is robust."""
    for file, name in (("model.onnx", "float32"), ("model.int8.onnx", "int8")):
        (logits,) = session_of(published / file).run(["logits"], {"image": to_float(balanced.images).numpy()})
        measured = card["int8"][name]
        assert measured["clean"]["count"] == np.sum(logits.argmax(axis=1) == balanced.labels)
        assert measured["clean"]["of"] == measured["robust"]["of"] == INT8_EXAMPLES
        assert sum(measured["broken_by"].values()) == INT8_EXAMPLES - measured["robust"]["count"]
        assert measured["broken_by"]["natural"] == INT8_EXAMPLES - measured["clean"]["count"]
    assert card["int8"]["calibration"]["split"] == "train"


@pytest.mark.parametrize(("lost", "warns"), [(2, False), (3, True)])
def test_a_fall_of_more_than_ten_points_is_said(published, card, lost, warns):
    """Of 20 images 2 are ten points."""
    worse = copy.deepcopy(card)
    worse["int8"]["int8"]["clean"]["count"] = card["int8"]["float32"]["clean"]["count"] - lost
    console = Console(record=True, width=120)
    show(console, published, worse)
    assert ("warning: in 8 bits natural accuracy falls by 15.0 points" in console.export_text()) == warns


def test_int8_computes_in_8_bits_but_for_probes_and_masks(published):
    model = onnx.load(published / "model.int8.onnx")
    made_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        inputs = [made_by.get(name) for name in node.input[:2]]
        quantized = [each is not None and each.op_type == "DequantizeLinear" for each in inputs]
        if node.op_type == "Conv":
            assert all(quantized)
        elif node.op_type in ("MatMul", "Gemm", "Softmax", "TopK"):
            assert not any(quantized)
    assert (published / "model.int8.onnx").stat().st_size < (published / "model.onnx").stat().st_size


def test_int8_is_the_same_every_time(published, tmp_path):
    images = np.random.default_rng(0).random((60, 8, 8, 1)).astype(np.float32)
    for name in ("a", "b"):
        quantization.quantize(published / "model.onnx", tmp_path / name, images)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def measure(attacked, float_model, split, epsilon=16 / 255, num_queries=20):
    tasks = quantization.make_tasks(float_model, epsilon, mask_gradient="detached", num_queries=num_queries)
    return quantization.measure(attacked, split, tasks)


@pytest.mark.soak
def test_the_same_network_is_worth_the_same(published, card, trained, balanced):
    """model.onnx is the float network: asked through onnxruntime it must be found as robust as it is."""
    float_model = as_attacked(trained.classifier)
    asked = measure(quantization.attacked_onnx(published / "model.onnx", float_model), float_model, balanced)
    live = card["int8"]["float32"]
    assert asked["clean"] == live["clean"]
    # Rounding may decide a step of an attack.
    assert abs(asked["robust"]["count"] - live["robust"]["count"]) <= 1
    assert 0 < live["robust"]["count"] < live["clean"]["count"]


@pytest.mark.slow
def test_a_variant_that_is_wrong_without_an_attack_is_not_robust(published, trained, balanced, tmp_path):
    """A variant that takes everything for class 0, made by adding to its logits: only zeros can stand."""
    model = onnx.load(published / "model.onnx")
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "logits":
                node.output[index] = "right"
    bias = onnx.numpy_helper.from_array(np.eye(1, 10, dtype=np.float32) * 1e4, "bias")
    model.graph.initializer.append(bias)
    model.graph.node.append(onnx.helper.make_node("Add", ["right", "bias"], ["logits"]))
    onnx.save(model, tmp_path / "zeros.onnx")
    float_model = as_attacked(trained.classifier)
    found = measure(quantization.attacked_onnx(tmp_path / "zeros.onnx", float_model), float_model, balanced)
    assert found["clean"]["count"] == found["robust"]["count"] == np.sum(balanced.labels == 0) == 2


def test_attacks_see_answers_of_the_variant_and_gradients_of_the_float_network(published, trained):
    float_model = as_attacked(trained.classifier)
    variant = quantization.attacked_onnx(published / "model.int8.onnx", float_model)
    x, upstream = trained.images[:4], tf.random.stateless_normal((4, 3, 10), (0, 1))

    def gradient(attacked):
        with tf.GradientTape() as tape:
            tape.watch(x)
            heads = attacked.heads_fns["full"](x)
        return heads, tape.gradient(heads, x, output_gradients=upstream)

    heads, through_variant = gradient(variant)
    _, through_float = gradient(float_model)
    np.testing.assert_allclose(through_variant, through_float, atol=1e-5)
    (logits,) = session_of(published / "model.int8.onnx").run(["logits"], {"image": x.numpy()})
    np.testing.assert_array_equal(heads[:, 0], logits)


@pytest.mark.slow
def test_square_asks_the_variant(published, trained, balanced):
    """Where all gradients are hidden, only Square can find anything: it does."""
    undefended = as_attacked(trained.classifier)
    blind = dataclasses.replace(
        undefended,
        heads_fns={m: lambda x, f=f: f(tf.stop_gradient(x)) for m, f in undefended.heads_fns.items()},
    )
    variant = quantization.attacked_onnx(published / "model.int8.onnx", blind)
    found = measure(variant, blind, balanced, epsilon=0.4, num_queries=300)
    assert found["broken_by"]["square on the network itself, 300 queries"] > 0


def test_a_network_without_convolutions_is_not_quantised(tmp_path):
    import keras

    from cifs_tf.models import Classifier

    image = keras.Input((4, 4, 1))
    model = Classifier(keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(image))))
    write_onnx(model, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="no convolution"):
        quantization.quantize(tmp_path / "model.onnx", tmp_path / "int8.onnx", np.zeros((2, 4, 4, 1), np.float32))


def copy_run(workdir, path, **changes):
    """A run's folder with the same network and other values in its config."""
    (path / "cifs").mkdir(parents=True)
    config = {**yaml.safe_load((workdir / "config.yaml").read_text()), **changes}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "cifs" / "last.keras").write_bytes((workdir / "cifs" / "last.keras").read_bytes())
    return path


def test_a_run_that_measured_nothing_says_so(workdir, tmp_path, capsys):
    """And without --model_base_path a version lies in the run's folder; a stricter evaluation is told too."""
    path = copy_run(workdir, tmp_path / "run")
    about = {"dataset": "digits", "epsilon": 0.1}
    shares = {"natural": {"count": 9}, "worst_case": {"count": 2}}
    report = {"about": about, "num_examples": 10, "believable": False, **shares}
    folder = path / "cifs" / "evaluation" / "last" / "strict"
    folder.mkdir(parents=True)
    write_results(folder / "report.json", report)
    published = publish(ExportOptions(str(path), format=("onnx",), version=7))
    assert published == path / "export" / "cifs" / "7"
    assert {file.name for file in published.iterdir()} == {"model.onnx", "labels.json", "model_card.json"}
    card = json.loads((published / "model_card.json").read_text())
    assert card["measured"] is None
    assert card["int8"] is None
    assert card["signatures"] == {}
    assert "last epoch" in card["not_measured_because"]
    assert card["further_measurements"]["strict"]["robust"]["accuracy"] == 0.2
    assert card["further_measurements"]["strict"]["audit_passed"] is False
    assert "not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"networks": []}, "damaged or was edited"),
        ({"networks": {"cifs": {"evaluation": {"last": {"num_examples": 1}}}}}, "damaged or was edited"),
    ],
)
def test_results_that_lack_something_are_a_sentence(result, words, workdir, tmp_path):
    path = copy_run(workdir, tmp_path / "run")
    write_results(path / "result.json", result)
    with pytest.raises(UserError, match=words):
        publish(ExportOptions(str(path), format=("onnx",)))


def test_numbers_that_were_edited_are_not_told(workdir, tmp_path):
    """Not in the card, nor those of a file without a checksum, which was written before there were any."""
    path = copy_run(workdir, tmp_path / "run")
    text = (workdir / "result.json").read_text()
    result = json.loads(text)
    count = result["networks"]["cifs"]["evaluation"]["last"]["worst_case"]["count"]
    edited = text.replace(f'"count": {count}', f'"count": {count + 1}')
    unchecked = json.dumps({name: value for name, value in result.items() if name != "check"})
    for content, words in ((edited, "was edited"), (unchecked, "no checksum"), ("[1]", "damaged")):
        (path / "result.json").write_text(content)
        with pytest.raises(UserError, match=words):
            publish(ExportOptions(str(path), format=("onnx",)))
    (path / "result.json").unlink()
    report = path / "cifs" / "evaluation" / "last" / "paper" / "report.json"
    write_results(report, {"num_examples": 10, "natural": {"count": 9}, "worst_case": {"count": 2}})
    report.write_text(report.read_text().replace('"count": 2', '"count": 8'))
    with pytest.raises(UserError, match=r"evaluation/last/paper/report\.json: it is damaged, or was edited"):
        save_run_to_preset(find_network(path), tmp_path / "preset")
    assert not (tmp_path / "preset").exists()


def test_a_report_of_another_suite_is_named(workdir, tmp_path):
    path = copy_run(workdir, tmp_path / "run")
    folder = path / "cifs" / "evaluation" / "last" / "strict"
    folder.mkdir(parents=True)
    report = {"about": {"suite": "quick", "dataset": "digits", "epsilon": 0.1}, "num_examples": 10}
    write_results(folder / "report.json", report)
    with pytest.raises(UserError, match="is of the suite quick"):
        publish(ExportOptions(str(path), format=("onnx",)))


def test_plugins_of_the_run_are_imported(workdir, tmp_path, monkeypatch):
    (tmp_path / "a_plugin.py").write_text("IMPORTED = True")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    find_network(copy_run(workdir, tmp_path / "run", plugins=["a_plugin"])).load()
    assert sys.modules.pop("a_plugin").IMPORTED
    with pytest.raises(UserError, match="no_such_plugin"):
        find_network(copy_run(workdir, tmp_path / "other", plugins=["no_such_plugin"])).load()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dataset": "fashion_mnist", "data_dir": "nowhere"}, "--dataset|--data_dir"),
        ({"epsilon": "much"}, "--run"),
        ({"epsilon": 7}, "--run"),
        ({"num_classes": 7}, "--num_classes"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(workdir, tmp_path, change, named):
    with pytest.raises(UserError, match=named):
        publish(ExportOptions(str(copy_run(workdir, tmp_path / "run", **change))))
    assert not (tmp_path / "run" / "export" / "cifs").exists()


def test_a_damaged_network_is_refused(workdir, tmp_path):
    path = copy_run(workdir, tmp_path / "run")
    (path / "cifs" / "last.keras").write_bytes(b"PK half a file")
    with pytest.raises(UserError, match=r"--run: .* cifs/last\.keras cannot be used \(it is damaged\)"):
        publish(ExportOptions(str(path)))


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--run", "nowhere"], "--run: received nowhere; there is no such folder"),
        (["--run", "empty"], "holds no whole config.yaml"),
        (["--run", "{run}", "--checkpoint", "best"], "has no cifs/best.keras, finish its training"),
        (["--run", "{run}", "--defense", "vanilla"], "has no vanilla/last.keras"),
        (["--run", "{run}", "--format", "savedmodel,tflite"], "--format: received savedmodel,tflite"),
        (["--run", "{run}", "--version", "3"], "--version: received 3; "),
        (["--run", "{run}", "--version", "0"], "--version: received 0"),
        (["--run", "{run}", "--format", "savedmodel", "--int8"], "--int8"),
        (["--run", "{run}", "--warmup_batch_sizes", "[1, 0]"], "--warmup_batch_sizes"),
        (["--run", "{run}", "--int8_examples", "many"], "--int8_examples: received many"),
        ([], "--run"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(workdir, tmp_path, argv, named):
    (tmp_path / "empty").mkdir()
    copy_run(workdir, tmp_path / "run")
    (tmp_path / "run" / "export" / "cifs" / "3").mkdir(parents=True)
    code, out, err = run(*[each.format(run=tmp_path / "run") for each in argv], cwd=tmp_path)
    assert code == 2
    assert out == ""
    assert named in err
    assert err.startswith("export.py: error: ")
    assert err.count("\n") == 1
    assert [child.name for child in (tmp_path / "run" / "export" / "cifs").iterdir()] == ["3"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_an_export_that_is_stopped_publishes_nothing(workdir, tmp_path, how):
    """Killed in the midst of it; the next export works and removes what was left."""
    base = tmp_path / "models"
    process = start("--run", workdir, "--format", "onnx", "--model_base_path", base, cwd=tmp_path)
    while not any(path.is_dir() for path in base.glob(".exporting-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(how)
    process.communicate(timeout=60)
    left = [child.name for child in base.iterdir()]
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert left == []
        return
    assert left
    assert all(name.startswith(".exporting-") for name in left)
    publish(ExportOptions(str(workdir), format=("onnx",), model_base_path=str(base)))
    assert [child.name for child in base.iterdir()] == ["1"]


def test_int8_examples_are_at_most_the_test_images(workdir, tmp_path):
    options = ExportOptions(str(workdir), format=("onnx",), model_base_path=str(tmp_path), int8=True, int8_examples=361)
    with pytest.raises(UserError, match="--int8_examples: received 361; give at most 360"):
        publish(options)
    assert list(tmp_path.iterdir()) == []
