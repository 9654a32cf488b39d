"""Every file of a finished run in turn is deleted, emptied, cut in half, or replaced by that of another run.

Then the same command, `evaluate.py` and `export.py`: the right numbers, or one sentence and code 2; never another
number, never a traceback. The soak test tries all files, the other a few of each kind.
"""

from __future__ import annotations

import json
import re
import shutil

import keras
import pytest

from cifs_tf.models import Classifier
from tests.running import run_here

RUN = [
    *("--defense=vanilla", "--twin=null", "--epochs=2", "--batch_size=16"),
    *(
        "--train_examples=32",
        "--val_examples=10",
        "--test_examples=10",
        "--num_steps=1",
        "--attacks=fgsm",
        "--eval_audit=false",
    ),
    *("--attack_betas=0", "--workdir=run"),
]
EVALUATE = ["--model=run", "--suite=paper", "--audit=false"]
EXPORT = ["--run=run", "--format=onnx", "--model_base_path=published"]
pytestmark = pytest.mark.slow
FAULTS = ("deleted", "emptied", "cut", "replaced")
NETWORK = "run/vanilla"
# Of each kind of file and fault one; the program that believes the file most.
SAMPLE = [
    ("run", "config.yaml", "cut"),
    ("evaluate", "config.yaml", "cut"),
    ("evaluate", "vanilla/last.keras", "replaced"),
    ("export", "result.json", "replaced"),
    ("run", "vanilla/history.json", "replaced"),
    ("run", "vanilla/evaluation/last/paper/ledger.jsonl", "cut"),
    ("run", "export/vanilla/1/variables/variables.data-00000-of-00001", "replaced"),
]


@pytest.fixture(scope="module", autouse=True)
def _tiny_networks():
    """One convolution: what files are believed does not depend on the network, and seconds are many here."""

    def build(model, image_shape, num_classes, precision="float32"):
        image = keras.Input(image_shape, name="image")
        x = keras.layers.Conv2D(4, 3, strides=2, activation="relu", name="features")(image)
        return Classifier(
            keras.Model(image, keras.layers.Dense(num_classes)(keras.layers.Flatten()(x)), name="tiny"), {}
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cifs_tf.runs.networks.build_classifier", build)
        patch.setattr("cifs_tf.evaluation.reports.pages.is_installed", lambda extra: False)  # no figures in the pages
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs that differ in their seed, and were evaluated."""
    folders = [tmp_path_factory.mktemp(name) for name in ("ours", "theirs")]
    for seed, folder in enumerate(folders):
        for program, argv in (("run.py", [*RUN, f"--seed={seed}"]), ("evaluate.py", EVALUATE)):
            code, out, err = run_here(*argv, cwd=folder, program=program)
            assert code == 0, err + out
    return folders


def numbers_of(program, folder):
    """What a program measured and tells of the run; None where it says that nothing was measured."""
    if program == "run":
        result = json.loads((folder / "run" / "result.json").read_text())
        network = result["networks"]["vanilla"]
        evaluations = {name: numbers(found) for name, found in network["evaluation"].items()}
        assert (folder / NETWORK / "history.json").exists()
        return {"evaluation": evaluations, "history": network["history"], "exported": result["exported_example"]}
    if program == "evaluate":
        report = json.loads((folder / NETWORK / "evaluation" / "last" / "paper" / "report.json").read_text())
        return numbers(report) | {"broken_by": report["broken_by"], "tasks": report["tasks"]}
    (version,) = (folder / "published").iterdir()
    card = json.loads((version / "model_card.json").read_text())
    assert card["recipe"]["seed"] == 0
    return card["measured"]


def numbers(found):
    return {name: found[name] for name in ("num_examples", "natural", "paper", "worst_case")}


def start(program, folder):
    argv, script = {
        "run": ([*RUN, "--seed=0"], "run.py"),
        "evaluate": (EVALUATE, "evaluate.py"),
        "export": (EXPORT, "../serving/export.py"),
    }[program]
    return run_here(*argv, cwd=folder, program=script)


@pytest.fixture(scope="module")
def right(runs, tmp_path_factory):
    """What the programs tell of the run that nobody touched; each is asked once."""
    known = {}

    def of(program):
        if program not in known:
            folder = tmp_path_factory.mktemp(f"right-{program}")
            shutil.copytree(runs[0] / "run", folder / "run")
            code, out, err = start(program, folder)
            assert code == 0, err + out
            known[program] = numbers_of(program, folder)
        return known[program]

    return of


def inflict(fault, file, other):
    """Do to a file what may happen to one; return whether it is another file now."""
    before = file.read_bytes()
    if fault == "deleted":
        file.unlink()
    else:
        after = {"emptied": b"", "cut": before[: len(before) // 2], "replaced": other and other.read_bytes()}[fault]
        if after is None or after == before:
            return False
        file.write_bytes(after)
    return True


def counterpart(file, theirs):
    """The file of the other run: of the same path, or, where the clock names files, of the same folder and kind."""
    if file.name.startswith("events."):
        return next(iter(sorted((theirs / file.parent).glob("events.*"))), None)
    return theirs / file if (theirs / file).is_file() else None


def check_fault(program, file, fault, runs, right, folder):
    """Inflict a fault on a copy of the run, start a program, and return what is wrong with what it does."""
    shutil.copytree(runs[0] / "run", folder / "run")
    if not inflict(fault, folder / "run" / file, counterpart(file, runs[1] / "run")):
        return None
    code, out, err = start(program, folder)
    said = [line for line in err.splitlines() if ": error: " in line]
    if "Traceback" in out + err:
        return f"a traceback: {err[-2000:]}"
    if code == 2:
        return None if len(said) == 1 else f"no sentence but {err!r}"
    if code != 0:
        return f"code {code}: {err[-500:]}"
    found = numbers_of(program, folder)
    if program == "export" and found is None:
        return None if file.name == "result.json" else "it says that nothing was measured"
    if program == "run" and file.name in ("best.keras", "best.npz") and "best" not in found["evaluation"]:
        # The weights of the best epoch cannot be made again, which is said.
        return (
            None if "best.keras cannot be written" in re.sub(r"\s+", " ", out) else "nothing is said of the best epoch"
        )
    return None if found == right(program) else f"other numbers: {found} instead of {right(program)}; {out[-1500:]}"


@pytest.mark.parametrize(("program", "name", "fault"), SAMPLE)
def test_a_sample_of_files(program, name, fault, runs, right, tmp_path):
    file = (runs[0] / "run" / name).relative_to(runs[0] / "run")
    assert check_fault(program, file, fault, runs, right, tmp_path) is None


def test_an_evaluation_of_other_parameters_is_not_taken(runs, right, tmp_path):
    """Left by evaluate.py where the run leaves its own: named by what differs; moved away, the run goes on."""
    shutil.copytree(runs[0] / "run", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    folder = tmp_path / NETWORK / "evaluation" / "last" / "paper"
    shutil.rmtree(folder)
    code, _, err = run_here(*EVALUATE, "--examples=5", "--epsilon=0.01", cwd=tmp_path, program="evaluate.py")
    assert code == 0, err
    assert json.loads((folder / "report.json").read_text())["num_examples"] == 5
    code, _, err = start("run", tmp_path)
    assert code == 2
    assert "epsilon 0.01 there, 0.1 in this evaluation" in err
    assert "num_examples 5 there, 10 in this evaluation" in err
    shutil.move(folder, tmp_path / "elsewhere")
    code, _, err = start("run", tmp_path)
    assert code == 0, err
    assert numbers_of("run", tmp_path) == right("run")


def test_lost_weights_of_the_best_epoch_do_not_shut_in_the_last(runs, right, tmp_path):
    """As if the run had been killed before it wrote its networks, and the file had been lost then."""
    shutil.copytree(runs[0] / "run", tmp_path / "run")
    for name in ("last.keras", "best.keras", "checkpoints/best.npz"):
        (tmp_path / NETWORK / name).unlink()
    code, out, err = start("run", tmp_path)
    assert code == 0, err
    evaluation = numbers_of("run", tmp_path)["evaluation"]
    assert evaluation["last"] == right("run")["evaluation"]["last"]
    is_last = right("run")["evaluation"]["best"] == evaluation["last"]
    assert is_last or "best.npz is missing, damaged or of another run" in re.sub(r"\s+", " ", out)
    assert is_last or "best" not in evaluation


def files_of(run):
    return [file.relative_to(run) for file in sorted(run.rglob("*")) if file.is_file() and file.name != ".lock"]


@pytest.mark.soak
@pytest.mark.parametrize("program", ["run", "evaluate", "export"])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_file(program, fault, runs, right, tmp_path):
    """Of an evaluation and an export, the files that they could read: no exports, no curves and no event files."""
    left_alone = () if program == "run" else ("export", "tensorboard", "checkpoints", "curves.png", "report.html")
    wrong = {}
    for place, file in enumerate(files_of(runs[0] / "run")):
        if not set(file.parts) & set(left_alone):
            folder = tmp_path / str(place)
            folder.mkdir()
            if found := check_fault(program, file, fault, runs, right, folder):
                wrong[str(file)] = found
            shutil.rmtree(folder)
    assert wrong == {}
