"""Batching by itself: who shares a run, what is filled up, whose fault a bad row is."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cifs_tf.serving.endpoint.models.versions import Version
from cifs_tf.serving.endpoint.prediction.batching import Batcher, BatchingOptions
from cifs_tf.serving.endpoint.status import StatusError, invalid_argument


class Doubling:
    """Doubles rows, refuses negative ones, and remembers how many came at a time."""

    def __init__(self):
        self.sizes, self.gate = [], threading.Event()
        self.gate.set()

    def run(self, signature_name, inputs, outputs, deadline=math.inf):
        self.gate.wait(10)
        self.sizes.append(len(inputs["x"]))
        if (inputs["x"] < 0).any():
            raise invalid_argument("negative")
        return {"y": 2 * inputs["x"]}

    def close(self):
        pass


@pytest.fixture
def version():
    return Version("m", 1, Path("m/1"), servable=Doubling())


def ask(batcher, version, values):
    return batcher(version, "serving_default", {"x": np.array(values, float)}, ("y",), row_wise=True)["y"].tolist()


def held(batcher, version, requests):
    """Send requests while the first of them keeps the only thread busy."""
    version.servable.gate.clear()
    with ThreadPoolExecutor(len(requests)) as pool:
        sent = []
        for values in requests:
            sent.append(pool.submit(ask, batcher, version, values))
            time.sleep(0.05)
        version.servable.gate.set()
        return [future.exception() or future.result() for future in sent]


def test_requests_that_wait_share_a_run(version):
    batcher = Batcher(BatchingOptions(max_batch_size=4, num_batch_threads=1))
    assert held(batcher, version, [[1], [2], [3, 4], [5], [6]]) == [[2], [4], [6, 8], [10], [12]]
    assert version.servable.sizes == [1, 4, 1]


def test_runs_are_filled_up_to_an_allowed_size(version):
    batcher = Batcher(BatchingOptions(max_batch_size=8, num_batch_threads=1, allowed_batch_sizes=(2, 8)))
    assert ask(batcher, version, [1]) == [2]
    assert ask(batcher, version, [1, 2, 3]) == [2, 4, 6]
    assert version.servable.sizes == [2, 8]


def test_a_bad_row_is_nobody_elses_fault(version):
    batcher = Batcher(BatchingOptions(max_batch_size=8, num_batch_threads=1))
    first, good, bad, other = held(batcher, version, [[1], [2], [-1], [3]])
    assert (first, good, other) == ([2], [4], [6])
    assert isinstance(bad, StatusError)
    assert bad.message == "negative"


def test_a_full_queue_refuses(version):
    batcher = Batcher(BatchingOptions(max_batch_size=2, num_batch_threads=1, max_enqueued_batches=1))
    *answered, refused = held(batcher, version, [[1], [2, 3], [4]])
    assert answered == [[2], [4, 6]]
    assert "queue to which this task was submitted is full" in refused.message


def test_a_request_waits_for_company(version):
    batcher = Batcher(BatchingOptions(max_batch_size=2, num_batch_threads=1, batch_timeout_micros=10_000_000))
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda value: ask(batcher, version, [value]), [1, 2])) == [[2], [4]]
    assert version.servable.sizes == [2]


def test_different_shapes_do_not_meet(version):
    batcher = Batcher(BatchingOptions(max_batch_size=8, num_batch_threads=1))
    assert held(batcher, version, [[[1]], [[1, 2]], [[3]], [[4]]]) == [[[2]], [[2, 4]], [[6]], [[8]]]
    assert sorted(version.servable.sizes) == [1, 1, 2]


def test_a_request_that_waited_too_long_is_not_run(version):
    batcher = Batcher(BatchingOptions(max_batch_size=1, num_batch_threads=1))
    version.servable.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, batcher, version, [1])
        time.sleep(0.05)
        late = pool.submit(
            batcher, version, "serving_default", {"x": np.array([2.0])}, ("y",), deadline=time.monotonic()
        )
        time.sleep(0.05)
        version.servable.gate.set()
        assert first.result() == [2]
        with pytest.raises(StatusError, match="DEADLINE_EXCEEDED"):
            late.result()
    assert version.servable.sizes == [1]


class Mixing(Doubling):
    """Answers with what all rows of a run have a part in, or with other rows than it was given."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def run(self, signature_name, inputs, outputs, deadline=math.inf):
        super().run(signature_name, inputs, outputs)
        return {"y": self.function(inputs["x"])}


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (np.cumsum, {}),
        (lambda x: x / x.sum(), {}),
        (lambda x: x[x > 3], {}),
        (np.sum, {}),
        (lambda x: x / x.sum(), {"allowed_batch_sizes": (4, 8)}),
        (lambda x: x / x.sum(), {"max_execution_batch_size": 4}),
    ],
)
def test_rows_of_other_clients_have_no_part_in_an_answer(function, options, caplog):
    version = Version("m", 1, Path("m/1"), servable=Mixing(function))
    batcher = Batcher(BatchingOptions(max_batch_size=8, num_batch_threads=1, **options))
    requests = [[1.0], [2.0], [3.0, 4.0, 5.0], [6.0, 7.0], [8.0]]
    for _ in range(3):
        version.servable.gate.clear()
        with ThreadPoolExecutor(len(requests)) as pool:
            sent = []
            for values in requests:
                arguments = version, "serving_default", {"x": np.array(values)}, ("y",)
                sent.append(pool.submit(batcher, *arguments))
                time.sleep(0.02)
            version.servable.gate.set()
            for values, future in zip(requests, sent, strict=True):
                np.testing.assert_allclose(future.result()["y"], function(np.array(values)))
    assert version.single == {"serving_default"}
    assert set(version.servable.sizes) <= set(map(len, requests))
    assert len([line for line in caplog.messages if "is not batched from now on" in line]) == 1


def test_rows_that_do_not_mix_for_the_first_thousand_requests_are_not_trusted():
    """No number of trials shows that a model never mixes rows: it may for values that none of them had."""
    version = Version("m", 1, Path("m/1"), servable=Mixing(lambda x: x - x.mean() * (x.max() > 100)))
    batcher = Batcher(BatchingOptions(max_batch_size=4, num_batch_threads=1))
    with ThreadPoolExecutor(4) as pool:
        for values in [(1.0, 2.0, 3.0, 4.0)] * 250 + [(1.0, 2.0, 3.0, 101.0)]:
            arguments = (({"x": np.array([value])},) for value in values)
            found = pool.map(lambda given: batcher(version, "serving_default", given[0], ("y",)), arguments)
            assert [each["y"].tolist() for each in found] == [[value * (value < 100)] for value in values]


@pytest.mark.parametrize("rows", [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]])
def test_a_model_that_is_row_wise_by_mistake_answers_for_itself(rows, caplog):
    """Outputs of other rows than the inputs: requests are neither joined nor split from then on."""
    version = Version("m", 1, Path("m/1"), servable=Mixing(lambda x: x[x > 1]))
    batcher = Batcher(BatchingOptions(max_batch_size=8, max_execution_batch_size=4, num_batch_threads=1))
    version.servable.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        sent = []
        for values in ([1.0], rows, [2.0]):
            sent.append(
                pool.submit(batcher, version, "serving_default", {"x": np.array(values)}, ("y",), row_wise=True)
            )
            time.sleep(0.05)
        version.servable.gate.set()
        found = [future.result()["y"].tolist() for future in sent]
    assert found == [[], rows[1:], [2.0]]
    assert [line for line in caplog.messages if "0th dimension" in line and "is not batched" in line]


def test_a_request_beyond_the_size_of_a_run_is_split(version):
    batcher = Batcher(BatchingOptions(max_batch_size=8, max_execution_batch_size=2, num_batch_threads=1))
    assert ask(batcher, version, [1, 2, 3, 4, 5]) == [2, 4, 6, 8, 10]
    assert sorted(version.servable.sizes) == [1, 2, 2]
