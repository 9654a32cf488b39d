import json

import numpy as np
import pytest

from cifs_tf.attacks import Square
from cifs_tf.benchmarks import attack, convolutions, tables, timing
from cifs_tf.benchmarks.options import GOLDEN, AttackOptions
from cifs_tf.errors import UserError
from cifs_tf.models import Classifier, resnet
from cifs_tf.programs import benchmark
from tests.photographs import make_photographs

TINY = ["--arch=resnet10", "--width", "4", "--batch-size=4", "--pairs", "2", "--image_size", "8", "--num-steps", "2"]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    file = tmp_path_factory.mktemp("benchmark") / "new" / "step.json"
    benchmark.main(["step", *TINY, "--json", str(file)])
    return json.loads(file.read_text())


@pytest.mark.slow
def test_options_and_machine(result):
    assert result["command"] == "step"
    assert result["options"]["batch_size"] == 4
    assert result["options"]["arch"] == "resnet10"
    assert result["machine"]["cores"] >= 1
    assert set(result["machine"]["versions"]) == {"tensorflow", "keras", "numpy"}
    assert result["peak_memory_bytes"] > 2**20


@pytest.mark.soak
def test_in_another_precision_float32_is_timed_beside_it(tmp_path):
    file = tmp_path / "step.json"
    benchmark.main(["step", *TINY, "--precision=mixed_bfloat16", "--json", str(file)])
    found = json.loads(file.read_text())["tasks"]["training"]
    ratios = np.divide(found["cifs"]["seconds"], found["float32"]["seconds"])
    assert found["float32_ratio"]["pairs"] == pytest.approx(ratios.tolist())
    row = tables.ratios_table(json.loads(file.read_text())).rows[1]
    assert row[0] == "CIFS in mixed_bfloat16 over float32, training"
    assert row[1].startswith(f"{np.median(ratios):.3f} (")


@pytest.mark.slow
def test_one_peak_per_stage(result):
    """Four stages, of 4 to 32 channels, that halve 8 pixels a side down to 1."""
    assert set(result["convolution_peak"]) == {"4@8x8", "8@4x4", "16@2x2", "32@1x1"}
    assert all(peak > 0 for peak in result["convolution_peak"].values())


def test_convolutions_of_a_step_by_hand():
    """PGD-2: two passes forward and to the images, then an update that needs no gradient to the images."""
    seconds = convolutions.PassSeconds(forward=10, input_gradient=20, image_gradient=3, kernel_gradient=40)
    assert seconds.training_step(2) == 2 * (10 + 20) + 10 + (20 - 3) + 40
    assert seconds.evaluation(2) == 2 * (10 + 20) + 10


def test_every_convolution_is_timed_alone(monkeypatch):
    """ResNet-10 has twelve: one in the stem, two in each block, and one beside three of them."""
    classifier = Classifier(resnet("resnet10", (8, 8, 3), 10, width=4))
    monkeypatch.setattr(convolutions, "timed", lambda call: (call() is not None, 0))
    seconds = convolutions.convolution_seconds(classifier, 2, "float32")
    assert seconds == convolutions.PassSeconds(forward=12, input_gradient=12, image_gradient=1, kernel_gradient=12)


@pytest.mark.slow
def test_the_fastest_of_each(result):
    first = convolutions.Limits({"a": 1.0, "b": 4.0}, convolutions.PassSeconds(1, 6, 3, 8))
    second = convolutions.Limits({"a": 2.0, "b": 3.0}, convolutions.PassSeconds(5, 2, 7, 4))
    best = convolutions.Limits({"a": 2.0, "b": 4.0}, convolutions.PassSeconds(1, 2, 3, 4))
    assert convolutions.fastest([first, second]) == best
    assert result["tasks"]["training"]["convolutions_alone_seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("task", ["training", "evaluation"])
def test_every_timing_is_kept(result, task):
    found = result["tasks"][task]
    for defense in ("cifs", "vanilla"):
        assert len(found[defense]["seconds"]) == 2
        assert len(found[defense]["cpu_seconds"]) == 2
        assert found[defense]["first_call_seconds"] > 0
        assert found[defense]["traces"] >= 1
    seconds = zip(found["cifs"]["seconds"], found["vanilla"]["seconds"], strict=True)
    pairs = [cifs / vanilla for cifs, vanilla in seconds]
    assert found["ratio"]["pairs"] == pytest.approx(pairs)
    for ratio in (found["ratio"], found["cpu_ratio"]):
        low, high = ratio["interval"]
        assert low <= ratio["median"] <= high


@pytest.mark.slow
def test_flops_by_hand(result):
    """F of ResNet-10, width 4, on 8x8x3, and the steps made of it, for 4 images.

    Multiply-accumulates: stem 64*27*4 = 6,912; stage 1 2 * 64*9*4*4 = 18,432; stages 2, 3 and 4 each
    16 * (9*4*8 + 9*8*8 + 4*8) = 14,336; logits 32*10 = 320; sum 68,672, so F = 137,344.
    """
    forward, stem = 137_344, 2 * 6_912
    tasks = result["tasks"]
    assert tasks["training"]["vanilla"]["flops"] == 4 * (2 * 2 * forward + 3 * forward - stem)
    assert tasks["evaluation"]["vanilla"]["flops"] == 4 * (2 * 20 * forward + forward)


@pytest.mark.slow
def test_table_has_a_row_for_each_task_and_network(result):
    assert len(tables.step_table(result).rows) == 4


@pytest.mark.soak
def test_memory_does_not_grow_with_the_attack(tmp_path):
    """If the steps kept their activations, 40 of them would need ten times the memory of 4."""
    ballast = np.ones(2**27)  # 1 GiB: the peak of this process is not to be taken for that of its children
    options = ["--arch=resnet10", "--width=8", "--batch_size=64", "--num_steps=[4,40]", "--batches=3"]
    benchmark.main(["resources", *options, f"--json={tmp_path}/resources.json"])
    result = json.loads((tmp_path / "resources.json").read_text())
    short, long = (found["peak_bytes"] - found["before_bytes"] for found in result["attacks"].values())
    assert 0 < long < 3 * short
    assert max(found["peak_bytes"] for found in result["attacks"].values()) < ballast.nbytes
    assert result["input_images_per_second"] > 0


@pytest.mark.soak
def test_images_per_second_of_every_way(tmp_path):
    """Speeds of each, in every turn; nothing is left of the caches, and a table has a line for each way."""
    make_photographs(tmp_path / "photographs", 40)
    options = ["--image_size=16", "--batch_size=4", "--turns=2", f"--cache_dir={tmp_path}"]
    benchmark.main(["images", f"--folder={tmp_path}/photographs", *options, f"--json={tmp_path}/images.json"])
    result = json.loads((tmp_path / "images.json").read_text())
    assert result["images"] == 32
    for clock in ("images_per_second", "images_per_processor_second"):
        assert set(result[clock]) == set(tables.IMAGES)
        assert all(len(found) == 2 and min(found) > 0 for found in result[clock].values())
    assert tables.images_table(result).rows[0][2:] == ["1.00", "1.00"]
    assert len(result["step"]["ratio"]["pairs"]) == 10
    assert tables.image_steps_table(result).rows[0][1].startswith(f"{result['step']['ratio']['median']:.3f} (")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.json", "photographs"]


@pytest.mark.parametrize("option", ["--num_steps=[]", "--num_steps=[0]", "--width=0", "--batches=0"])
def test_resources_that_make_no_sense_are_refused(option):
    with pytest.raises(UserError, match=option.split("=")[0]):
        benchmark.main(["resources", option])


def test_ratio_of_pairs():
    """Ratios 2, 3, 1: their median is 2, and no resampled median leaves [1, 3]."""
    ratio = timing.ratio_of([2.0, 6.0, 4.0], [1.0, 2.0, 4.0])
    assert ratio["median"] == 2
    assert ratio["pairs"] == [2, 3, 1]
    assert ratio["interval"] == [1, 3]


def test_ratio_of_equal_pairs_has_no_spread():
    assert timing.ratio_of([3.0] * 5, [2.0] * 5)["interval"] == [1.5, 1.5]


@pytest.mark.parametrize(("names", "order"), [("ab", "ababbaab"), ("abc", "abcabccbaabc")])
def test_networks_take_turns(names, order):
    """First calls, then three turns."""
    calls = []

    def subject(name):
        return timing.Subject(lambda: lambda: calls.append(name) or 0, flops=1)

    found = timing.time_in_turns({name: subject(name) for name in names}, 3, report=lambda line: None)
    assert calls == list(order)
    assert [len(found[name]["seconds"]) for name in names] == [3] * len(names)


def test_a_new_trace_while_timing_is_refused():
    def compile():
        return stale.traced(lambda: 0)

    stale = timing.Subject(compile, flops=1)
    fine = timing.Subject(lambda: lambda: 0, flops=1)
    with pytest.raises(RuntimeError, match="stale was traced again"):
        timing.time_in_turns({"stale": stale, "fine": fine}, 1, report=lambda line: None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pairs", "0"], ["--pairs", "0", "1 or more"]),
        (["--pairs", "few"], ["--pairs", "few", "an integer"]),
        (["--batch-size", "0"], ["--batch_size", "0"]),
        (["--image-size", "4"], ["--image_size", "4", "8 or more"]),
        (["--arch", "vgg"], ["--arch", "vgg", "resnet18"]),
        (["--pair", "3"], ["--pair", "did you mean --pairs"]),
        (["--json", f"{__file__}/step.json"], ["--json", "cannot be written to"]),
        (["--json", "/proc/nowhere/step.json"], ["--json", "cannot be written to"]),
        (["--json", "/"], ["--json", "a folder"]),
    ],
)
def test_errors_name_the_option_and_the_value(arguments, words):
    with pytest.raises(UserError) as error:
        benchmark.main(["step", *TINY, *arguments])
    assert all(word in str(error.value) for word in words)


def test_an_unknown_command_is_refused():
    with pytest.raises(UserError, match=r"command: received stride; give one of step, .*, resources\."):
        benchmark.main(["stride"])


def test_help_names_the_commands(capsys):
    benchmark.main([])
    assert "Commands: step" in capsys.readouterr().out


@pytest.fixture
def small_recording(tmp_path):
    """Eight images of the official recording."""
    with np.load(GOLDEN / "autoattack_fashion_mnist.npz") as archive:
        arrays = dict(archive)
    per_image = ("images", "labels", "clean_logits", "robust_")
    few = {name: value[:8] if name.startswith(per_image) else value for name, value in arrays.items()}
    np.savez(tmp_path / "autoattack_few.npz", **few)
    return tmp_path / "autoattack_few.npz"


@pytest.mark.soak
def test_attacks_are_timed_beside_the_official_ones(small_recording, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(attack, "Square", lambda **ball: Square(**ball, num_queries=100))
    file = tmp_path / "attack.json"
    benchmark.main(["attack", "--recording", str(small_recording), "--threads=null", "--json", str(file)])
    result = json.loads(file.read_text())
    columns = {"apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square"}
    assert set(result["standing"]) == {*columns, "standard"}
    assert set(result["official_seconds"]) == columns
    for column in columns:
        assert 0 < result["seconds"][f"{column}, compiling"] < result["seconds"][column]
        assert 0 <= result["standing"]["standard"] <= result["standing"][column] <= 8
    out = capsys.readouterr().out
    assert all(f"{column}: {result['standing'][column]} survive" in out for column in columns)


def test_a_recording_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="--recording: received none"):
        benchmark.main(["attack", "--recording", "none"])


def test_seconds_of_the_official_attacks_on_this_machine(small_recording, tmp_path):
    file = tmp_path / "official.json"
    seconds = {"apgd_ce": 10, "apgd_t": 20.0, "fab_t": 40.0, "square": 30.0}
    file.write_text(json.dumps({"seconds": seconds}))
    options = AttackOptions(recording=str(small_recording), official=str(file))
    assert options.official_seconds() == seconds
    ours = {name: taken / 2 for name, taken in seconds.items()} | {f"{name}, compiling": 1.0 for name in seconds}
    result = {"options": options.described(), "seconds": ours, "official_seconds": options.official_seconds()}
    text = tables.attack_table(result).markdown()
    assert "official, this machine | 10.0 | 20.0 | 40.0 | 30.0 | 100.0" in text
    assert "ours, of the official | 50% | 50% | 50% | 50% | 50%" in text
    for broken in ("{}", "[]", '{"seconds": {"apgd_ce": 0}}', "{"):
        file.write_text(broken)
        with pytest.raises(UserError):
            AttackOptions(recording=str(small_recording), official=str(file))
