"""The program from the outside: real runs on real digits, and refusals."""

from __future__ import annotations

import json
import re

import pytest
from tensorflow.compat.v1.train import summary_iterator

from tests.running import ROOT, SMALL, run, run_here


def tensorboard_tags(folder):
    """Return the names of all that lies in a folder's event files, each value being of epoch 2 or the session's own."""
    (file,) = folder.glob("events.out.tfevents.*")
    events = list(summary_iterator(str(file)))
    tags = {value.tag: event.step for event in events for value in event.summary.value}
    assert {step for tag, step in tags.items() if not tag.startswith("_hparams_")} == {2}
    return set(tags)


def test_run_trains_attacks_and_exports_in_its_workdir_only(tmp_path):
    argv = [*SMALL, "--twin=null", "--epochs=2", "--val_examples=30", "--checkpoints=[last, best]", "--workdir=out"]
    code, out, err = run(*argv, cwd=tmp_path)
    assert code == 0, err
    assert [child.name for child in tmp_path.iterdir()] == ["out"]
    workdir = tmp_path / "out"
    visible = {child.name for child in workdir.iterdir() if not child.name.startswith(".")}
    assert visible == {"config.yaml", "images.json", "result.json", "cifs", "export"}
    assert (workdir / "export" / "cifs" / "1" / "saved_model.pb").exists()
    logged = tensorboard_tags(workdir / "cifs" / "tensorboard" / "evaluation" / "last")
    assert {"accuracy/natural", "accuracy/pgd3", "_hparams_/session_start_info"} <= logged
    importance = "importance/stage4_block1_out"
    assert {"adversarial/0", importance, f"{importance}/natural", f"{importance}/attacked"} <= logged
    page = (workdir / "cifs" / "evaluation" / "last" / "paper" / "report.html").read_text()
    assert "difference magnified" in page
    result = json.loads((workdir / "result.json").read_text())
    assert result["config"]["epochs"] == 2
    assert result["versions"]["tensorflow"]
    assert sum(split["train"] for split in result["images"]["classes"].values()) == 64
    assert result["images"]["hash"] == json.loads((workdir / "images.json").read_text())["hash"]
    (network,) = result["networks"].values()
    assert set(network["evaluation"]) == {"last", "best"}
    assert network["evaluation"]["last"]["epoch"] == 2
    for evaluation in network["evaluation"].values():
        assert evaluation["num_examples"] == 20
        assert set(evaluation["paper"]["attacks"]["pgd3"]["by_beta"]) == {"0", "2"}
    assert (workdir / "cifs" / "evaluation" / "last" / "paper" / "report.html").exists()
    for name in ("last.keras", "best.keras", "curves.png"):
        assert (workdir / "cifs" / name).exists()
    assert len(network["history"]) == 2
    assert {"loss", "robust_accuracy", "val_clean_accuracy", "val_robust_accuracy"} <= set(network["history"][0])
    for words in ("cifs", "natural", "fgsm", "pgd3", "exported SavedModel", "export/cifs/1"):
        assert words in out

    # The same command again finds everything done; another config is refused and changes nothing.
    before = (workdir / "result.json").read_text()
    code, again, _ = run_here(*argv, cwd=tmp_path)
    assert code == 0
    assert "Epoch" not in again
    assert json.loads((workdir / "result.json").read_text())["networks"] == json.loads(before)["networks"]
    code, _, err = run_here(*argv, "--beta=3", cwd=tmp_path)
    assert code == 2
    assert "--workdir: received out" in err


@pytest.mark.slow
def test_a_twin_is_trained_and_attacked_beside_the_defense(tmp_path):
    argv = [*SMALL, "--epochs=1", "--val_examples=0", "--export=false", "--attacks=[pgd3]", "--workdir=run"]
    code, out, err = run_here(*argv, cwd=tmp_path)
    assert code == 0, err
    networks = json.loads((tmp_path / "run" / "result.json").read_text())["networks"]
    assert set(networks) == {"vanilla", "cifs"}
    for name, betas in (("vanilla", {"0"}), ("cifs", {"0", "2"})):
        assert set(networks[name]["evaluation"]["last"]["paper"]["attacks"]["pgd3"]["by_beta"]) == betas
        assert (tmp_path / "run" / name / "last.keras").exists()
    assert "robust than vanilla" in out.replace("\n", " ") or "as robust as vanilla" in out.replace("\n", " ")


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(
            [
                "--method=fat",
                "--fat_tau_milestones=[1]",
                "--ema_decay=0.9",
                "--label_smoothing=0.1",
                "--attack_precision=mixed_bfloat16",
            ],
            id="fat",
            marks=pytest.mark.soak,
        ),
        pytest.param(
            ["--method=trades", "--defense=cas", "--awp_gamma=0.005", "--beta_warmup=1", "--epsilon_warmup=1.5"],
            id="trades",
            marks=pytest.mark.soak,
        ),
        pytest.param(
            ["--method=mart", "--defense=vanilla", "--deterministic=true", "--val_examples=0"],
            id="mart",
            marks=pytest.mark.soak,
        ),
        pytest.param(["--method=nfgsm", "--epsilon_warmup=1", "--activation=silu"], id="nfgsm", marks=pytest.mark.slow),
    ],
)
def test_every_method_trains_what_goes_on_top_too(argv, tmp_path):
    small = [*SMALL, "--twin=null", "--epochs=2", "--export=false", "--attacks=[fgsm]", "--attack_betas=[0]"]
    code, out, err = run_here(*small, *argv, "--workdir=run", cwd=tmp_path)
    assert code == 0, err
    assert "last epoch (2)" in out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    (network,) = result["networks"].values()
    assert network["history"][-1]["loss"] > 0
    assert ("val_single_step_accuracy" in network["history"][-1]) == ("--method=nfgsm" in argv)


@pytest.mark.slow
def test_plugins_of_this_folder_make_the_mask_and_the_guides_method(tmp_path):
    (tmp_path / "my_plugin.py").write_text(
        "import tensorflow as tf\nfrom cifs_tf import register_importance\n\n\n"
        "@register_importance('my_relu')\ndef my_relu(relevance):\n    return tf.nn.relu(relevance)\n"
    )
    guide = (ROOT / "docs" / "guides" / "own_method.md").read_text()
    block = next(b for b in re.findall(r"^```python\n(.*?)^```$", guide, re.DOTALL | re.MULTILINE) if "my_method" in b)
    (tmp_path / "my_method.py").write_text(block)
    argv = [*SMALL, "--twin=null", "--epochs=1", "--export=false", "--attacks=[fgsm]", "--attack_betas=[0]"]
    argv += ["--plugins=[my_plugin, my_method]", "--importance=my_relu", "--method=hinge"]
    for _ in range(2):  # the second time, the saved network is loaded
        code, _, err = run(*argv, "--workdir=run", cwd=tmp_path)
        assert code == 0, err


@pytest.mark.slow
def test_warm_start_from_a_naturally_trained_network(tmp_path):
    argv = [*SMALL, "--twin=null", "--epochs=1", "--export=false", "--attacks=[fgsm]"]
    code, _, err = run_here(*argv, "--method=standard", "--workdir=natural", cwd=tmp_path)
    assert code == 0, err
    other = ["--loss_scale=official", "--importance=sigmoid", "--workdir=robust"]
    code, out, err = run_here(*argv, "--warm_start=natural", *other, cwd=tmp_path)
    assert code == 0, err
    assert "the weights of natural are of a network with importance softmax, which is otherwise here" in out
    (tmp_path / "natural").rename(tmp_path / "moved")
    code, _, err = run_here(*argv, "--warm_start=robust", "--workdir=again", cwd=tmp_path)
    assert (code, "it began from the weights of natural, of which it is not known" in err) == (2, True), err
    (tmp_path / "moved").rename(tmp_path / "natural")
    code, _, err = run_here(*argv, "--warm_start=natural", "--width=8", "--workdir=wider", cwd=tmp_path)
    assert code == 2
    assert "--warm_start: received natural" in err
    code, _, err = run_here(*argv, "--warm_start=natural", "--activation=silu", "--workdir=wider", cwd=tmp_path)
    assert (code, "its network has --activation relu, this one silu" in err) == (2, True)  # weights of the same shapes
    assert not (tmp_path / "wider").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--dataset=nope"], ["--dataset", "nope", "folder:PATH"]),
        (["--top_k=11"], ["--top_k", "11", "10"]),
        (["--num_classes=3"], ["--num_classes", "3", "10 classes"]),
        (["--workdir=/dev/null/run"], ["--workdir", "/dev/null/run", "another folder"]),
        (["--dataset=cifar100", "--data-dir=a/b"], ["--dataset", "cifar100", "--data_dir", "downloaded"]),
        (["--dataset=tfds:imdb_reviews", "--data-dir=a"], ["--dataset", "imdb_reviews", "no image classification"]),
        (["--attack_betas=[foo]"], ["--attack_betas", "foo", "infinity"]),
        (["--lr_milestones=[90, 75]"], ["--lr_milestones", "[90, 75]", "ascending"]),
        (["--plugins=[no_such_module]"], ["--plugins", "no_such_module", "PYTHONPATH"]),
        (["--method=nope"], ["--method", "nope", "standard, pgd", "--plugins"]),
        (["--method=mart", "--label_smoothing=0.1"], ["label_smoothing", "0.1", "another method"]),
        (["--val_examples=0", "--checkpoints=[best]"], ["--checkpoints", "best", "--val_examples"]),
        (["--train_examples=9999"], ["--train_examples", "9999", "1437"]),
        (["--cuts=[stage4_blok1_out, pool]"], ["--cuts", "stage4_blok1_out", "stage4_block1_out"]),
    ],
)
def test_refusals_are_one_sentence_and_leave_nothing(argv, words, tmp_path):
    code, out, err = run_here(*argv, cwd=tmp_path)
    said = [line for line in err.splitlines() if line.startswith("run.py: error:")]
    assert code == 2
    assert len(said) == 1
    assert "Traceback" not in err + out
    for word in words:
        assert word in said[0]
    assert list(tmp_path.iterdir()) == []
