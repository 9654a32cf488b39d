"""The numbers of the documentation are those of the committed results, and say when they are not."""

import json
import re
import shlex
import shutil

import pytest

from cifs_tf.command_line import parse_options
from cifs_tf.errors import UserError
from docs import write_numbers as pages

RESULTS = pages.ROOT / "docs" / "results"
MACHINE = {"processor": "AMD EPYC", "cores": 2}


@pytest.fixture
def root(tmp_path):
    """A copy of the pages and of their results."""
    shutil.copytree(RESULTS / "verdict", tmp_path / "docs" / "results" / "verdict")
    for name in pages.PAGES:
        shutil.copy(pages.ROOT / name, tmp_path / name)
    for file in RESULTS.glob("*.json"):
        shutil.copy(file, tmp_path / "docs" / "results")
    return tmp_path


def step_result(**changes):
    """64 images in 32 s (CIFS) and 25 s (vanilla) with 64 GFLOP, on a machine of at most 4 GFLOP/s."""

    def timing(seconds):
        return {
            "flops": 64 * 10**9,
            "quartiles_seconds": [1, seconds, 100],
            "seconds": [seconds, seconds / 2, 100],
        }

    ratio = {"median": 1.28, "interval": [1.25, 1.3]}
    return {
        "command": "step",
        "options": {"arch": "resnet18", "width": None, "batch_size": 64, "num_steps": 7, "pairs": 3},
        "machine": MACHINE,
        "tasks": {
            "training": {
                "cifs": timing(32),
                "vanilla": timing(25),
                "ratio": ratio,
                "cpu_ratio": ratio,
                "convolutions_alone_seconds": 12.25,
            }
        },
        "convolution_peak": {"a": 3e9, "b": 4e9},
        "convolutions_alone": {"forward": 3, "kernel_gradient": 4},
        **changes,
    }


def test_the_committed_pages_show_the_committed_results(capsys):
    assert pages.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_page_is_named_and_written(root, capsys):
    file = root / "docs" / "results" / "benchmark_serve.json"
    result = json.loads(file.read_text())
    result["options"]["clients"] = 77
    file.write_text(json.dumps(result))
    before = {name: (root / name).read_text() for name in pages.PAGES}

    assert pages.main(["--check"], root) == 1
    assert "docs/speed.md: stale" in capsys.readouterr().out
    assert {name: (root / name).read_text() for name in pages.PAGES} == before

    assert pages.main([], root) == 0
    assert "docs/speed.md: written" in capsys.readouterr().out
    after = {name: (root / name).read_text() for name in pages.PAGES}
    assert " 77 clients" in after["docs/speed.md"]
    assert without_parts(after["docs/speed.md"]) == without_parts(before["docs/speed.md"])
    assert {name for name in pages.PAGES if after[name] != before[name]} == {"docs/speed.md"}
    assert pages.main(["--check"], root) == 0


def without_parts(text):
    return re.sub(r"<!-- measured.*?<!-- end", "", text, flags=re.DOTALL)


def test_a_result_that_is_not_there_leaves_its_part_empty(root):
    (root / "docs" / "results" / "benchmark_attack.json").unlink()
    pages.main([], root)
    assert "<!-- measured: attack -->\n<!-- end: attack -->" in (root / "docs" / "speed.md").read_text()


def test_a_page_without_its_comments_is_refused(root):
    (root / "docs" / "speed.md").write_text("nothing\n")
    with pytest.raises(UserError, match=r"page: received .*speed\.md.*measured: "):
        pages.main([], root)


def test_a_damaged_result_is_refused(root):
    (root / "docs" / "results" / "benchmark_step.json").write_text("{")
    with pytest.raises(UserError, match=r"result: received .*benchmark_step\.json.*damaged"):
        pages.main([], root)


def test_commands_on_the_pages_parse(tmp_path, monkeypatch):
    """Every command of the benchmark beside a number is understood."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "small-pgd").mkdir(parents=True)
    (tmp_path / "runs" / "small-pgd" / "config.yaml").touch()
    (tmp_path / "clothing").mkdir()
    seconds = dict.fromkeys(("apgd_ce", "apgd_t", "fab_t", "square"), 1.0)
    (tmp_path / "official.json").write_text(json.dumps({"seconds": seconds}))
    text = "".join((pages.ROOT / name).read_text() for name in pages.PAGES)
    commands = re.findall(r"^python training/benchmark\.py (\w+)(.*)$", text, re.MULTILINE)
    assert {name for name, _ in commands} >= {"step", "attack", "serve", "scale"}
    for name, arguments in commands:
        parse_options(pages.COMMANDS[name], name, shlex.split(arguments), "")


def test_the_command_has_the_options_that_are_not_the_default():
    options = {"width": None, "batch_size": 8, "replicas": [1, 2], "image_size": 32, "json": "x"}
    line = pages.command_line({"command": "scale", "options": options})
    assert line == "python training/benchmark.py scale --width null --batch_size 8 --replicas 1,2"
    options = {"recording": "autoattack_fashion_mnist.npz", "threads": None}
    line = pages.command_line({"command": "attack", "options": options})
    assert line == "python training/benchmark.py attack --threads null"


def test_steps_by_hand():
    """64 images in 32 s are 2 a second; 64 GFLOP in 32 s are 2 GFLOP/s, half of the peak. In 25 s: 2.56, 2.56, 64%."""
    text = pages.render("step", step_result(), "")
    assert "| training step with PGD-7, CIFS | 32 | 2 | 2 | 50% | 16 s, 100% | 12.2 s |" in text
    assert "| training step with PGD-7, vanilla | 25 | 2.56 | 2.56 | 64% | 12.5 s, 128% | 12.2 s |" in text
    assert "to the kernels run at 75% of" in text.replace("\n", " ")
    assert "| CIFS over vanilla, training | 1.280 (1.250 to 1.300) | 1.280 (1.250 to 1.300) |" in text
    assert text.endswith("median of 3 pairs. The paper reports 1.036 in training.")
    assert "(ResNet-18, batches of 64, float32)" in text


def test_precisions_by_hand():
    found = {
        "robust_accuracy": {"float32": 0.5, "mixed_bfloat16": 0.501},
        "broken_by_float32_alone": 2,
        "broken_by_bfloat16_alone": 1,
        "p_value": 1.0,
    }
    options = {"run": "small", "examples": 1000, "batch_size": 250}
    result = {"command": "precision", "options": options, "attacks": {"PGD-20": found}}
    text = pages.render("precision", result, "")
    assert "python training/benchmark.py precision --run small\n" in text
    assert "1,000 test images" in text
    assert text.endswith("| PGD-20 | 50.00 | 50.10 | 2 | 1 | 1 |")


def test_resources_by_hand():
    """50,000 images in the paper's 172 s are 291 a second."""
    attacks = {"1": {"before_bytes": 2**20, "peak_bytes": 3 * 2**20}}
    options = {"arch": "resnet18", "width": 16, "batch_size": 64, "image_size": 32, "num_steps": [1], "batches": 500}
    result = {"command": "resources", "options": options, "machine": MACHINE, "attacks": attacks}
    text = pages.render("resources", {**result, "input_images_per_second": 12345.6}, "")
    assert "delivers 12,346 images a second" in text
    assert "takes 291 on" in " ".join(text.split())
    assert text.endswith("| PGD-1 | 1 | 3 |")


def test_tables_of_the_paper_are_shown_with_their_command():
    cell = {"ours": 61.5, "interval": [58.4, 64.5], "paper": 46.62, "difference": 14.88}
    result = {
        "about": "Small.",
        "unit": "%",
        "interval": "95% by Wilson's score",
        "command": "python training/reproduce.py --table 1 --scale small",
        "columns": ["PGD-20"],
        "rows": [{"block": "fashion_mnist", "name": "Vanilla", "cells": [cell]}],
    }
    beside = pages.render("table", result, "")
    assert beside.startswith(
        "```\npython training/reproduce.py --table 1 --scale small\n```\n\nSmall. In %; in brackets 95%"
    )
    assert beside.endswith("| Vanilla | ours | 61.5 [58.4, 64.5] |\n| | paper | 46.62 |\n| | difference | +14.9 |")


def test_keys_that_are_not_known_yet_do_no_harm():
    options = {**step_result()["options"], "precision": "mixed_bfloat16", "attack_precision": "float32"}
    text = pages.render("step", step_result(options=options, energy_joules=1), "")
    assert "mixed_bfloat16" in text
    assert "--precision mixed_bfloat16\n" in text


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({}, "2 cores of an AMD EPYC without AVX512"),
        ({"flags": ["avx512f", "avx512_bf16"]}, "2 cores of an AMD EPYC with AVX512 and with bfloat16"),
        ({"devices": ["/physical_device:CPU:0"]}, "2 cores of an AMD EPYC without AVX512"),
        ({"devices": ["/physical_device:GPU:0"]}, "2 cores of an AMD EPYC without AVX512 and 1 GPU"),
        ({"devices": ["CPU:0", "GPU:0", "GPU:1"]}, "2 cores of an AMD EPYC without AVX512 and 2 GPUs"),
    ],
)
def test_machines(more, text):
    assert pages.machine_name({**MACHINE, **more}) == text


def test_replicas_of_a_processor_are_no_speed_up():
    """Without a GPU the page says so."""
    options = {"arch": "resnet10", "width": 8, "batch_size": 8, "num_steps": 2, "image_size": 16}
    result = {"command": "scale", "options": options, "replicas": {}, "ratios": {}}
    on_cpu, on_gpus = (
        " ".join(pages.render("scale", {**result, "machine": {**MACHINE, "devices": devices}}, "").split())
        for devices in (["CPU:0"], ["CPU:0", "GPU:0", "GPU:1"])
    )
    assert "no measure of how a step scales" in on_cpu
    assert "no measure" not in on_gpus
    assert "On 2 cores of an AMD EPYC without AVX512 and 2 GPUs." in on_gpus


def test_what_the_pages_say_of_the_tables_is_so():
    """README, docs/results.md and docs/analysis.md say in words who wins."""
    rows = json.loads((RESULTS / "reproduce_table1_small.json").read_text())["rows"]
    pgd100 = {row["name"]: row["cells"][-1]["by_seed"] for row in rows}
    vanilla = pgd100.pop("Vanilla")
    assert [len(seeds) for seeds in (vanilla, *pgd100.values())] == [3, 3, 3, 3]
    assert min(vanilla) > max(max(seeds) for seeds in pgd100.values())
    networks = json.loads((RESULTS / "reproduce_figure3_small.json").read_text())["networks"]
    vanilla = networks.pop("vanilla")
    for network in networks.values():
        for kind in ("natural", "adversarial"):
            assert network[f"{kind}_negative_share"] > vanilla[f"{kind}_negative_share"]
            assert network[f"{kind}_alignment"] < vanilla[f"{kind}_alignment"]
        assert network["adversarial_accuracy"] < vanilla["adversarial_accuracy"]


def test_a_figure_may_be_attacked_at_infinity():
    result = json.loads((RESULTS / "reproduce_figure3_small.json").read_text())
    result["networks"]["CIFS-softmax"]["attack_beta"] = "infinity"
    assert "| CIFS-softmax | infinity |" in pages.render("figure", result, "")
