"""What counts as the loss of another worker, and what does not."""

import threading

import pytest
import tensorflow as tf

from training import cluster
from training.cluster import ALONE, _losses_told
from training.preemption import WorkerLostError

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
    with pytest.raises(WorkerLostError), _losses_told():
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
    with pytest.raises(type(error)) as caught, _losses_told():
        raise error
    assert caught.value is error


def test_the_loss_is_told_in_the_line_that_speaks_of_it():
    with pytest.raises(WorkerLostError, match=r"^Collective ops is aborted by: worker 1$"), _losses_told():
        raise errors.InternalError(None, None, "Graph execution error:\nCollective ops is aborted by: worker 1\nnode x")


def test_a_file_of_the_chief_is_waited_for(tmp_path, monkeypatch):
    file = tmp_path / "last.keras"
    threading.Timer(0.3, file.touch).start()
    ALONE.wait_for_file(file)
    assert file.exists()
    monkeypatch.setattr(cluster, "SHARING_SECONDS", 0)
    with pytest.raises(WorkerLostError, match=r"other\.keras is not to be seen here; is its folder shared\?"):
        ALONE.wait_for_file(tmp_path / "other.keras")
