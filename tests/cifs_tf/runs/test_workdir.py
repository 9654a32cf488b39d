"""The workdir: refuses what does not fit, and never holds half a file."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys

import pytest

from cifs_tf.config import DataConfig, ModelConfig, OutputConfig, RunConfig, TrainConfig
from cifs_tf.errors import UserError
from cifs_tf.files import read_json, write_atomically, write_json
from cifs_tf.runs.cluster import ALONE
from cifs_tf.runs.keys import stamp
from cifs_tf.runs.precision import resolve_auto
from cifs_tf.runs.workdir import Workdir


def test_same_config_continues_and_another_is_refused(tmp_path):
    workdir = Workdir(tmp_path / "deep" / "run")
    for _ in range(2):
        with workdir.open(RunConfig()):
            assert workdir.config_file.exists()
    moved = RunConfig(data=DataConfig(data_dir="elsewhere"), output=OutputConfig(workdir="elsewhere"))
    with workdir.open(moved):
        pass
    with pytest.raises(UserError, match=r"--workdir: received .*epochs 120 there, 3 here"):
        workdir.check(RunConfig(train=TrainConfig(epochs=3)))


def test_a_run_from_before_an_option_continues_with_its_default(tmp_path):
    workdir = Workdir(tmp_path)
    with workdir.open(RunConfig()):
        header, _, text = workdir.config_file.read_text().partition("\n")
    assert header.startswith("# run ")
    # Such a run had no key either.
    workdir.config_file.write_text(text.replace("label_in_mask: true\n", ""))
    assert workdir.key is None
    workdir.check(RunConfig())
    with pytest.raises(UserError, match="label_in_mask True there, False here"):
        workdir.check(RunConfig(model=ModelConfig(label_in_mask=False)))


def test_an_automatic_precision_continues_what_is_there(tmp_path):
    workdir = Workdir(tmp_path)
    with workdir.open(RunConfig(train=TrainConfig(precision="float64"))):
        pass
    workdir.check(RunConfig(train=TrainConfig(precision="auto")))
    with pytest.raises(UserError, match="precision float64 there, float32 here"):
        workdir.check(RunConfig(train=TrainConfig(precision="float32")))
    config = RunConfig(train=TrainConfig(precision="auto"))
    assert resolve_auto(config, workdir, ALONE).train.precision == "float64"
    assert resolve_auto(config, Workdir(tmp_path / "new"), ALONE).train.precision in ("float32", "mixed_bfloat16")


def test_check_writes_nothing(tmp_path):
    Workdir(tmp_path / "run").check(RunConfig())
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot be"), Workdir(path).open(RunConfig()):
            pass


@pytest.mark.parametrize("path", ["x" * 300, "~no-such-person/run"])
def test_impossible_paths_are_refused(path):
    with pytest.raises(UserError, match="--workdir"):
        Workdir(path).check(RunConfig())


def test_the_key_is_that_of_the_config_that_began(tmp_path):
    """Another place, and an option that came later, leave it; whatever else is changed in the file is refused."""
    workdir, other = Workdir(tmp_path / "run"), Workdir(tmp_path / "other")
    with workdir.open(RunConfig()):
        key = workdir.key
    with other.open(RunConfig(train=TrainConfig(seed=1))):
        assert other.key not in (key, None)
    with workdir.open(RunConfig(output=OutputConfig(workdir="elsewhere"))):
        assert workdir.key == key
    text = workdir.config_file.read_text()
    changed = (text[: len(text) // 2], text.replace("epochs: 120", "epochs: 12"), "# Run" + text[5:], "\ufeff" + text)
    for lost in changed:
        workdir.config_file.write_text(lost)
        with pytest.raises(UserError, match=r"config\.yaml is damaged"):
            workdir.check(RunConfig())
        with pytest.raises(UserError, match=r"no whole config\.yaml"):
            workdir.read_config()


@pytest.mark.parametrize("told_by", ["images.json", "result.json", "cifs/last.keras", "cifs/checkpoints/step-1.npz"])
def test_a_config_that_lost_its_first_line_is_refused(tmp_path, told_by):
    """Any file of the run tells that it had a key; without that line, nothing would be compared with it."""
    workdir = Workdir(tmp_path)
    with workdir.open(RunConfig()):
        key = workdir.key
    file = tmp_path / told_by
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".json":
        write_json(file, {"run": key} if told_by == "images.json" else {"key": {"run": key}})
    else:
        stamp(file, {"key": key})
    text = workdir.config_file.read_text()
    for lost in (text.partition("\n")[2], "\n" + text.partition("\n")[2], "# mine\n" + text.partition("\n")[2]):
        workdir.config_file.write_text(lost)
        with pytest.raises(UserError, match=r"config\.yaml has lost its first line"):
            workdir.check(RunConfig())
        with pytest.raises(UserError, match=r"config\.yaml"):
            workdir.read_config()


def test_a_config_of_a_run_that_trained_nothing_gets_its_first_line_again(tmp_path):
    workdir = Workdir(tmp_path)
    with workdir.open(RunConfig()):
        key = workdir.key
    workdir.config_file.write_text(workdir.config_file.read_text().partition("\n")[2])
    with workdir.open(RunConfig()):
        assert workdir.key == key


@pytest.mark.parametrize("name", ["cifs/history.json", "cifs/last.keras", "result.json", "export/cifs/1/model.onnx"])
def test_results_without_a_config_are_nobodys(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=r"but no config\.yaml; put it back, or give another folder"):
        Workdir(tmp_path).check(RunConfig())
    shutil.rmtree(tmp_path)
    Workdir(tmp_path).check(RunConfig())


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_disappears_ends_the_run_and_is_not_made_again(tmp_path, replaced):
    workdir = Workdir(tmp_path / "run")

    def write_where_nothing_is():
        with workdir.open(RunConfig()):
            shutil.rmtree(workdir.path)
            if replaced:
                workdir.path.mkdir()
                (workdir.path / ".lock").touch()
            write_json(workdir.result_file, {})

    with pytest.raises(UserError, match="was removed or replaced"):
        write_where_nothing_is()
    assert not workdir.result_file.exists()


def test_a_folder_that_disappears_explains_other_errors(tmp_path):
    workdir = Workdir(tmp_path / "run")

    def fail():
        with workdir.open(RunConfig()):
            shutil.rmtree(workdir.path)
            raise OSError("whatever a library makes of it")

    with pytest.raises(UserError, match="was removed or replaced"):
        fail()


@pytest.mark.parametrize("content", [b"a: [", b"- 1", b"\xff\xfe"])
def test_a_damaged_config_is_refused(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml"):
        Workdir(tmp_path).check(RunConfig())


def test_a_second_process_is_kept_out(tmp_path):
    first, second = Workdir(tmp_path).open(RunConfig()), Workdir(tmp_path).open(RunConfig())
    with first, pytest.raises(UserError, match="another process"), second:
        pass
    with Workdir(tmp_path).open(RunConfig()):
        pass


def test_what_a_killed_process_began_is_removed(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    half = tmp_path / "cifs" / "checkpoints" / f".writing-{platform.node()}-{killed.pid}-step-00000001.npz"
    exporting = tmp_path / "export" / "cifs" / ".exporting-abc"
    half.parent.mkdir(parents=True)
    exporting.mkdir(parents=True)
    half.write_text("half")
    (exporting / "model.onnx").write_text("half")
    with Workdir(tmp_path).open(RunConfig()):
        assert not half.exists()
        assert not exporting.exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "result.json"
    write_json(file, {"a": 1})

    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, fail)
    assert read_json(file) == {"a": 1}
    assert [child.name for child in tmp_path.iterdir()] == ["result.json"]
