"""The workdir: refuses what does not fit, and never holds half a file."""

from __future__ import annotations

import pytest

from cifs_tf.config import DataConfig, OutputConfig, RunConfig, TrainConfig
from cifs_tf.errors import UserError
from training.workdir import Workdir, read_json, write_atomically, write_json


def test_same_config_continues_and_another_is_refused(tmp_path):
    workdir = Workdir(tmp_path / "deep" / "run")
    workdir.open(RunConfig())
    workdir.open(RunConfig())
    moved = RunConfig(data=DataConfig(data_dir="elsewhere"), output=OutputConfig(workdir="elsewhere"))
    workdir.open(moved)
    with pytest.raises(UserError, match=r"--workdir: received .*epochs 120 there, 3 here"):
        workdir.open(RunConfig(train=TrainConfig(epochs=3)))


def test_check_writes_nothing(tmp_path):
    Workdir(tmp_path / "run").check(RunConfig())
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot be written to"):
            Workdir(path).open(RunConfig())


def test_an_unreadable_config_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml"):
        Workdir(tmp_path).check(RunConfig())


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
