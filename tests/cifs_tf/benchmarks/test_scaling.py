"""The model of a step on many GPUs, by hand; what it takes from the code, counted; and what the benchmark measures."""

import dataclasses
import json
import subprocess
import sys

import keras
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.python.distribute.cross_device_ops import CrossDeviceOps

from cifs_tf.benchmarks import projection as scaling
from cifs_tf.benchmarks import timing as measuring
from cifs_tf.benchmarks.projection import Assumptions, Device, Link, Workload
from cifs_tf.config import AttackConfig, DataConfig, RunConfig, TrainConfig
from cifs_tf.distribute import mirrored_strategy
from cifs_tf.errors import UserError
from cifs_tf.layers import CIFS, BatchNormalization
from cifs_tf.models import Classifier
from cifs_tf.programs import benchmark

INSIDE = Link("inside", bandwidth=1e9, latency=1e-3, share=1.0)
BETWEEN = Link("between", bandwidth=1e8, latency=1e-2, share=0.5)
DEVICE = Device("device", peak=1e12, link=INSIDE)
ASSUMED = Assumptions(efficiency=0.4, reference=DEVICE, reference_batch=128, half_batch=32)
WORKLOAD = Workload(flops=10**9, parameter_bytes=8 * 10**6, batch_norm_bytes=(100, 300))
COUNTS = st.sampled_from(scaling.NUM_DEVICES)
# F of ResNet-18 at 32x32x3, twice the multiply-accumulates: stem 1024*27*64; stage 1 4 * 1024*9*64*64; each later stage
# 256 * (9*64*128 + 3*9*128*128 + 64*128), as half the pixels a side and twice the channels cancel; logits 512*10.
STEM = 2 * 1024 * 27 * 64
FORWARD = STEM + 2 * (4 * 1024 * 9 * 64 * 64 + 3 * 256 * (9 * 64 * 128 + 27 * 128 * 128 + 64 * 128) + 5120)
VANILLA = 23 * FORWARD - STEM, 41 * FORWARD


def step(num_devices, batch_size=128, workload=WORKLOAD, device=DEVICE, between=BETWEEN, assumed=ASSUMED):
    return scaling.step_time(workload, device, between, num_devices, batch_size, assumed)


def test_a_ring_by_hand():
    """4 members send 2 * 3/4 * 8 MB = 12 MB at 1 GB/s, and two doublings take 2 ms; at half of 0.1 GB/s 240 ms."""
    assert scaling.ring_time(8_000_000, 4, INSIDE) == pytest.approx(12e-3 + 2e-3)
    assert scaling.ring_time(8_000_000, 4, BETWEEN) == pytest.approx(240e-3 + 20e-3)
    assert scaling.ring_time(8_000_000, 1, INSIDE) == 0


def test_an_all_reduce_by_hand():
    """16 GPUs: 8 in a node send 2 * 7/8 * 8 MB = 14 MB at 1 GB/s; 2 nodes 8 MB at 0.05 GB/s; 3 and 1 doublings."""
    found = scaling.all_reduce_time(8_000_000, 16, INSIDE, BETWEEN, gpus_per_node=8)
    assert found == pytest.approx(14e-3 + 3e-3 + 160e-3 + 10e-3)


def test_computing_by_hand():
    """With 128 images 40% of 1 TFLOP/s, so 50% with very many: 2 ms an image, and 32 of them before it starts."""
    assert scaling.compute_time(10**9, DEVICE, 128, ASSUMED) == pytest.approx(128 * 10**9 / 0.4e12)
    assert scaling.compute_time(10**9, DEVICE, 16, ASSUMED) == pytest.approx(2e-3 * (16 + 32))


def test_a_faster_device_has_the_same_fixed_time():
    fast = Device("fast", peak=8e12, link=INSIDE, relative_efficiency=0.5)
    assert scaling.compute_time(10**9, fast, 16, ASSUMED) == pytest.approx(2e-3 * (16 / 4 + 32))


def test_a_step_by_hand():
    """Two GPUs: gradients 8 MB at 1 GB/s; each of 8 reductions of batch norm and 8 others a doubling of 1 ms."""
    found = step(2)
    assert found.compute == pytest.approx(2e-3 * (64 + 32))
    assert found.gradients == pytest.approx(8e-3 + 1e-3)
    assert found.batch_norm == pytest.approx(4 * (100 + 300) / 1e9 + 8 * 1e-3)
    assert found.bookkeeping == pytest.approx(8 * 4 / 1e9 + 8 * 1e-3)
    assert found.seconds == pytest.approx(found.compute + found.gradients + found.batch_norm + found.bookkeeping)
    assert found.images_per_second == pytest.approx(128 / found.seconds)


def test_one_device_has_nothing_to_exchange():
    assert step(1).communication == 0
    assert step(1).seconds == pytest.approx(128 * 10**9 / 0.4e12)


def test_reduced_bytes():
    assert WORKLOAD.reduced_bytes == 8_000_000 + 4 * (100 + 300) + 8 * 4


@given(first=COUNTS, second=COUNTS)
def test_more_devices_compute_less_and_exchange_longer(first, second):
    fewer, more = step(min(first, second)), step(max(first, second))
    assert more.compute <= fewer.compute
    assert more.communication >= fewer.communication


@given(count=COUNTS, half_batch=st.floats(0, 1000))
def test_no_speed_up_is_above_the_number_of_devices(count, half_batch):
    assumed = dataclasses.replace(ASSUMED, half_batch=half_batch)
    one = step(1, assumed=assumed).images_per_second
    for batch_size in (128, 128 * count):
        assert step(count, batch_size, assumed=assumed).images_per_second <= count * one * (1 + 1e-9)


@given(count=COUNTS, factor=st.floats(1, 100), num_bytes=st.integers(0, 10**9))
def test_faster_links_and_fewer_bytes_take_no_longer(count, factor, num_bytes):
    faster = dataclasses.replace(BETWEEN, bandwidth=factor * BETWEEN.bandwidth)
    larger = dataclasses.replace(WORKLOAD, parameter_bytes=WORKLOAD.parameter_bytes + num_bytes)
    assert step(count, between=faster).seconds <= step(count).seconds <= step(count, workload=larger).seconds


def test_scaling_keeps_the_batch_or_the_share_of_it():
    strong = scaling.strong_scaling(WORKLOAD, DEVICE, BETWEEN, ASSUMED)
    weak = scaling.weak_scaling(WORKLOAD, DEVICE, BETWEEN, ASSUMED)
    assert [step.num_devices for step in strong] == [step.num_devices for step in weak] == [1, 2, 4, 8, 16, 32, 64]
    assert {step.batch_size for step in strong} == {128}
    assert [step.batch_size for step in weak] == [128 * step.num_devices for step in weak]
    assert len({step.compute for step in weak}) == 1


@pytest.mark.parametrize(
    ("num_devices", "batch_size", "words"),
    [(12, 120, ["num_devices", "12", "multiple of 8"]), (4, 130, ["batch_size", "130", "multiple of 4"])],
)
def test_errors_name_the_argument_and_the_value(num_devices, batch_size, words):
    with pytest.raises(UserError) as error:
        step(num_devices, batch_size)
    assert all(word in str(error.value) for word in words)


def test_the_paper_implies_an_efficiency():
    """50,000 * 25.5 GFLOP in 166 s: 7.69 TFLOP/s, 49% of a V100; 10,000 * 45.5 GFLOP then take 59 s, not 53."""
    assert VANILLA == (25_545_906_176, 45_544_663_040)
    found = scaling.compare_with_paper({"vanilla": VANILLA})["vanilla"]
    assert found.efficiency == pytest.approx(50_000 * VANILLA[0] / 166 / 15.7e12)
    assert found.efficiency == pytest.approx(0.490, abs=5e-4)
    assert found.predicted_evaluation == pytest.approx(59.2, abs=0.05)
    assert found.predicted_evaluation == pytest.approx(found.published.evaluation, rel=0.15)


def test_the_projection_starts_at_what_the_paper_measured():
    """One V100 takes the paper's 172 s for 50,000 images with CIFS, whatever the guesses."""
    workload = Workload(VANILLA[0], parameter_bytes=45 * 10**6, batch_norm_bytes=(256,) * 20)
    projection = scaling.project(workload, {"cifs": VANILLA, "vanilla": VANILLA})
    v100 = [case for case in projection["cases"] if case["device"] == "v100"]
    assert len(v100) == len(scaling.NETWORKS)
    for scaled in [case[kind] for case in v100 for kind in ("strong", "weak")] + [
        guess["strong"] for guess in projection["guesses"]
    ]:
        assert 50_000 * scaling.StepTime(**scaled[0]).seconds / 128 == pytest.approx(172)


def test_no_tensorflow_is_needed():
    code = "import sys, cifs_tf.benchmarks.projection; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def config():
    return RunConfig(data=DataConfig(image_size=8), train=TrainConfig(batch_size=4), attack=AttackConfig(num_steps=1))


def two_cuts():
    """Two convolutions, each with batch normalisation and a CIFS layer."""
    image = x = keras.Input((8, 8, 3))
    for name in ("low", "high"):
        x = keras.layers.Conv2D(4, 3, strides=2, name=name)(x)
        x = keras.layers.ReLU(name=f"{name}_out")(BatchNormalization()(x))
    backbone = keras.Model(image, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))
    return Classifier(backbone, {"low_out": CIFS("linear"), "high_out": CIFS("linear")})


def test_all_reduces_of_a_step_are_counted(config, monkeypatch):
    """In a trace: 4 for each of two batch-norm layers, all gradients in one, 2 of bookkeeping in one process."""
    counted = []
    batch_reduce = CrossDeviceOps.batch_reduce

    def counting(self, operation, values, **arguments):
        counted.append([value.values[0].shape.num_elements() for value, _ in values])
        return batch_reduce(self, operation, values, **arguments)

    monkeypatch.setattr(CrossDeviceOps, "batch_reduce", counting)
    with mirrored_strategy(["CPU:0", "CPU:1"]).scope():
        classifier = two_cuts()
        trainer = measuring.make_trainer(config, config.model, classifier, steps_per_epoch=1)
    batch = measuring.random_images(config)
    trainer._maybe_symbolic_build()
    counted.clear()
    trainer.fit(tf.cast(batch.images, tf.float32) / 255, batch.labels, batch_size=4, verbose=0)

    workload = measuring.workload(config, classifier)
    # Traced twice when variables are made in it, else once.
    traces = sum(len(sizes) == len(classifier.trainable_variables) for sizes in counted)
    assert workload.collectives["gradients"] == [4 * sum(max(counted, key=len))]
    assert workload.collectives["batch_norm"] == [16] * 8
    assert counted.count([4]) == traces * 8
    assert len(counted) == traces * (8 + 1 + 2)


def test_the_workload_of_a_network_by_hand(config):
    """3x3 convolutions of 3*4 and 4*4, their biases, gammas and betas; two probes and the logits of 4*10 + 10."""
    workload = measuring.workload(config, two_cuts())
    assert workload.parameter_bytes == 4 * (9 * 12 + 4 + 9 * 16 + 4 + 4 * 4 + 3 * 50)
    assert workload.batch_norm_bytes == (16, 16)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pairs=0"], ["--pairs", "0", "1 or more"]),
        (["--replicas=[1,3]"], ["--replicas", "[1, 3]", "divide the batch of 64"]),
        (["--replicas=[0]"], ["--replicas", "[0]", "1 or more"]),
        (["--width=0"], ["--width", "0"]),
        (["--replica=[2]"], ["--replica", "did you mean --replicas"]),
    ],
)
def test_errors_name_the_option_and_the_value(arguments, words):
    with pytest.raises(UserError) as error:
        benchmark.main(["scale", *arguments])
    assert all(word in str(error.value) for word in words)


def test_three_subjects_take_turns():
    calls = []

    def subject(name):
        return measuring.Subject(lambda: lambda: calls.append(name) or 0, flops=1)

    found = measuring.measure_turns({name: subject(name) for name in "abc"}, 3, report=lambda line: None)
    assert calls == list("abcabccbaabc")  # first calls, then three turns
    assert [len(found[name]["seconds"]) for name in "abc"] == [3, 3, 3]


@pytest.mark.slow
def test_replicas_are_measured_beside_one_device(tmp_path, capsys):
    file = tmp_path / "scale.json"
    tiny = ["--arch=resnet10", "--width=4", "--image_size=8", "--batch_size=4", "--num_steps=1", "--pairs=2"]
    benchmark.main(["scale", *tiny, "--replicas=[2]", "--json", str(file)])
    result = json.loads(file.read_text())
    assert set(result["replicas"]) == {"1", "2"}
    pairs = zip(*(result["replicas"][count]["seconds"] for count in ("2", "1")), strict=True)
    assert result["ratios"]["2"]["ratio"]["pairs"] == pytest.approx([two / one for two, one in pairs])
    assert result["options"]["replicas"] == [2]
    assert tuple(result["projection"]["flops"]["vanilla"]) == VANILLA
    printed = capsys.readouterr().out
    assert "projection, not measured" in printed
    assert "what sharing itself costs" in " ".join(printed.split())
    for kind in ("strong", "weak"):
        assert result["projection"]["cases"][0][kind][0]["num_devices"] == 1
