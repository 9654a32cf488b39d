"""What counts as the loss of another worker, and what does not."""

import os
import socket
import subprocess
import sys
import threading
from unittest import mock

import pytest
import tensorflow as tf

from cifs_tf.config import DataConfig
from cifs_tf.data import load_dataset
from cifs_tf.errors import UserError
from cifs_tf.launch.worker import tf_config
from cifs_tf.runs import cluster
from cifs_tf.runs.cluster import ALONE, _translate_worker_errors, count_workers
from cifs_tf.runs.measurement import check_test_images
from cifs_tf.runs.preemption import WorkerLostError
from tests.running import ROOT

errors = tf.errors


@pytest.mark.parametrize(
    "error",
    [
        errors.UnavailableError(None, None, "connection refused"),
        errors.FailedPreconditionError(None, None, "the other side was started again"),
        errors.InternalError(None, None, "Collective ops is aborted"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_lost_worker_is_a_reason_to_start_again(error):
    with pytest.raises(WorkerLostError), _translate_worker_errors():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        errors.InternalError(None, None, "CUDA error: an illegal memory access was encountered"),
        errors.InvalidArgumentError(None, None, "a batch must divide evenly"),
        errors.ResourceExhaustedError(None, None, "out of memory"),
        ValueError("collective"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_are_what_they_are(error):
    with pytest.raises(type(error)) as caught, _translate_worker_errors():
        raise error
    assert caught.value is error


def test_the_loss_is_told_in_the_line_that_speaks_of_it():
    with pytest.raises(WorkerLostError, match=r"^Collective ops is aborted by: worker 1$"), _translate_worker_errors():
        raise errors.InternalError(None, None, "Graph execution error:\nCollective ops is aborted by: worker 1\nnode x")


def test_a_file_of_the_chief_is_waited_for(tmp_path, monkeypatch):
    file = tmp_path / "last.keras"
    threading.Timer(0.3, file.touch).start()
    ALONE.wait_for_file(file)
    assert file.exists()
    monkeypatch.setattr(cluster, "SHARING_SECONDS", 0)
    with pytest.raises(WorkerLostError, match=r"other\.keras is not visible here; is its folder shared\?"):
        ALONE.wait_for_file(tmp_path / "other.keras")


def test_a_workdir_that_is_not_shared_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "SHARING_SECONDS", 0)
    with pytest.raises(UserError, match=r"--workdir: received .*; the chief's config\.yaml is not visible here"):
        ALONE.check_shared(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("cluster_text", "advice"),
    [
        ('"worker": "127.0.0.1:2222"', "it is no such JSON as"),
        ('"worker": [2222]', "it is no such JSON as"),
        ('"worker": ["nohost", "b:2222"]', "nohost is no HOST:PORT"),
        ('"ps": ["a:2222"]', "ps have nothing to do here"),
    ],
)
def test_a_damaged_tf_config_is_one_sentence(cluster_text, advice, monkeypatch):
    monkeypatch.setenv(
        "TF_CONFIG", "{" + f'"cluster": {{{cluster_text}}}, "task": {{"type": "worker", "index": 0}}' + "}"
    )
    with pytest.raises(UserError, match=advice):
        count_workers()


@pytest.mark.slow
def test_a_port_in_use_is_one_sentence(tmp_path):
    """As a person sees it: TensorFlow's own server is asked to take the port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        hosts = [f"127.0.0.1:{taken.getsockname()[1]}", "127.0.0.1:1"]
        command = [sys.executable, str(ROOT / "training" / "run.py"), "--strategy=multiworker"]
        environment = {**os.environ, "TF_CONFIG": tf_config(hosts, 0)}
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2, ended.stderr
    assert "TF_CONFIG: received" in ended.stderr
    assert "is the port of this worker in use?" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_error_without_a_message_is_named(monkeypatch):
    def fail():
        raise ValueError

    monkeypatch.setattr(tf.distribute.cluster_resolver.TPUClusterResolver, "connect", fail)
    with pytest.raises(UserError, match=r"no TPU was found \(ValueError\)"):
        cluster._tpu()


def test_more_workers_than_test_images_are_refused_before_the_training():
    dataset = load_dataset(DataConfig(train_examples=16, test_examples=10))
    several = mock.Mock(num_workers=11)
    with pytest.raises(UserError, match="--test_examples: received 10; give 11 or more"):
        check_test_images(dataset, several)
    check_test_images(dataset, mock.Mock(num_workers=10))
