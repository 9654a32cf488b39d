"""What the benchmark measured, in Markdown: printed by it, and written into the documentation by `pages.py`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from cifs_tf.benchmarks.projection import EVALUATION_IMAGES, PAPER, TRAINING_IMAGES, StepTime, Workload

WIDTH = 120
JOINT = "\0"  # stands for a space at which no line ends
PAPER_EPOCHS = 120
MAIN_CASE = ("v100", "infiniband")
DEFENSES: dict[Literal["cifs", "vanilla"], str] = {"cifs": "CIFS", "vanilla": "vanilla"}
TASKS = {"training": "training step with PGD-{num_steps}", "evaluation": "PGD-20 evaluation"}
ATTACKS = {"apgd_ce": "APGD-CE", "apgd_t": "APGD-T", "fab_t": "FAB-T", "square": "Square"}
SERVED = {
    "direct": "direct calls, one after the other",
    "REST, encoded": "REST, `encoded` (PNG)",
    "gRPC, float": "gRPC, floats",
    "REST, encoded, batching": "REST, `encoded`, `--enable_batching`",
    "gRPC, float, batching": "gRPC, floats, `--enable_batching`",
}


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table.

    Example:
        >>> print(markdown_table(["", "s"], [["a", "1"]]))
        | | s |
        |---|---|
        | a | 1 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("|" + "|".join(_cell(cell) for cell in line) + "|" for line in lines)


def _cell(text: str) -> str:
    return text if text == "---" else f" {text} " if text else " "


def paragraph(text: str) -> str:
    """Wrap a paragraph, never inside a word or the text of a link.

    Example:
        >>> paragraph("word " * 23 + "[all numbers](x.json)").splitlines()[1]
        '[all numbers](x.json)'
    """
    joined = re.sub(r"\[[^]]*\]\(", lambda link: link[0].replace(" ", JOINT), text)
    return textwrap.fill(joined, WIDTH, break_long_words=False, break_on_hyphens=False).replace(JOINT, " ")


def machine_text(machine: dict[str, Any]) -> str:
    """Name a machine, such as "2 cores of an AMD EPYC without AVX512"."""
    flags = set(machine.get("flags", ()))
    abilities = "with AVX512" if "avx512f" in flags else "without AVX512"
    if {"avx512_bf16", "amx_bf16"} & flags:
        abilities += " and with bfloat16"
    gpus = _num_gpus(machine)
    joined = f" and {gpus} GPU{'s' if gpus > 1 else ''}" if gpus else ""
    return f"{machine['cores']} cores of an {machine['processor']} {abilities}{joined}"


def _num_gpus(machine: dict[str, Any]) -> int:
    return sum("GPU" in device for device in machine.get("devices", ()))


def network_text(options: dict[str, Any]) -> str:
    """Name a network, such as "ResNet-18, width 32"."""
    name = options["arch"].replace("resnet", "ResNet-").replace("wrn", "WRN-")
    return f"{name}, width {options['width']}" if options.get("width") else name


def step_table(result: dict[str, Any]) -> str:
    """A row for each task and network of `benchmark.py step`."""
    options, peak = result["options"], max(result["convolution_peak"].values())
    rows = []
    for task, found in result["tasks"].items():
        for defense in DEFENSES:
            timing = found[defense]
            median, least = timing["quartiles_seconds"][1], min(timing["seconds"])
            speed, fastest = timing["flops"] / median, timing["flops"] / least
            name = f"{TASKS[task].format(**options)}, {DEFENSES[defense]}"
            numbers = (
                f"{median:.3g}",
                f"{options['batch_size'] / median:.3g}",
                f"{speed / 1e9:.3g}",
                f"{speed / peak:.0%}",
                f"{least:.3g} s, {fastest / peak:.0%}",
                f"{found['convolutions_alone_seconds']:.3g} s",
            )
            rows.append([name, *numbers])
    header = [
        "",
        "seconds, median",
        "images/s",
        "GFLOP/s",
        "of the convolution peak",
        "the fastest",
        "its convolutions",
    ]
    return markdown_table(header, rows)


def alone_text(result: dict[str, Any]) -> str:
    """What the last column of `step_table` is."""
    alone = result["convolutions_alone"]
    share = alone["forward"] / alone["kernel_gradient"]
    return paragraph(
        "`its convolutions` adds up the network's own convolutions and their gradients, each timed by itself, at its "
        "fastest, before and after the steps. What a step takes beyond it is the rest of the network and the noise of "
        "the machine, which can also make a step faster. The gradients to the kernels run at "
        f"{share:.0%} of the convolutions' own speed."
    )


def step_costs(result: dict[str, Any]) -> str:
    """The time of CIFS over that of vanilla, beside what the paper says."""
    tasks = {task: found["ratio"] for task, found in result["tasks"].items()}
    pairs = len(next(iter(tasks.values()))["pairs"])
    float32 = {task: found["float32_ratio"] for task, found in result["tasks"].items() if "float32_ratio" in found}
    more = " " + float32_text(result["options"]["precision"], float32) if float32 else ""
    published = [f"{getattr(PAPER['cifs'], task) / getattr(PAPER['vanilla'], task):.3f}" for task in tasks]
    return paragraph(
        f"CIFS over vanilla, time in the median of {pairs} pairs: {_by_task(tasks)}; the paper reports "
        f"{' and '.join(published)}.{more}"
    )


def float32_text(precision: str, ratios: dict[str, dict[str, Any]]) -> str:
    """The time of CIFS in a precision over that in float32, by task."""
    return f"CIFS in {precision} over float32: {_by_task(ratios)}."


def _by_task(ratios: dict[str, dict[str, Any]]) -> str:
    return " and ".join(
        f"{ratio['median']:.3f} in {task} (95% interval {' to '.join(f'{end:.3f}' for end in ratio['interval'])})"
        for task, ratio in ratios.items()
    )


def standing_table(result: dict[str, Any]) -> str:
    """What the official attacks and ours left standing, each alone, by `benchmark.py attack`."""
    official, ours = result["official_standing"], result["standing"]
    titles = {**ATTACKS, "apgd_dlr": "APGD-DLR", "standard": "all four of `standard`"}
    header = ["images standing", *(titles[name] for name in official)]
    rows = [[who, *(str(found[name]) for name in official)] for who, found in (("official", official), ("ours", ours))]
    return markdown_table(header, rows)


def attack_table(result: dict[str, Any]) -> str:
    """Seconds of the attacks of `benchmark.py attack`, beside the official ones."""
    seconds, official = result["seconds"], result["official_seconds"]
    compiling = sum(seconds[f"{attack}, compiling"] for attack in ATTACKS)
    rows = [
        [name, *(f"{found[attack]:.1f}" for attack in ATTACKS), f"{sum(found[attack] for attack in ATTACKS):.1f}"]
        for name, found in {
            "official, its machine": official,
            f"ours, this machine, compiling included ({compiling:.1f} s)": seconds,
        }.items()
    ]
    return markdown_table(["seconds", *ATTACKS.values(), "sum"], rows)


def serve_table(result: dict[str, Any]) -> str:
    """A row for each way to ask of `benchmark.py serve`."""
    rows = []
    for way, rounds in result["rounds"].items():
        rate, p50, p99 = (median_of(rounds, key) for key in ("requests_per_second", "p50_ms", "p99_ms"))
        share = result["ratio_to_direct"][way]
        rows.append([SERVED.get(way, way), f"{rate:.1f}", f"{share:.0%}", f"{p50:.1f}", f"{p99:.1f}"])
    return markdown_table(["one image a request", "requests/s", "of direct calls", "p50 ms", "p99 ms"], rows)


def median_of(rounds: Sequence[dict[str, float]], key: str) -> float:
    """Median of one number over rounds."""
    return float(np.median([found[key] for found in rounds]))


def replicas_text(result: dict[str, Any]) -> str:
    """What the replicas of `benchmark.py scale` are, and so what their times mean."""
    options = result["options"]
    step = (
        f"One PGD-{options['num_steps']} training step of {network_text(options)} with CIFS, "
        f"{options['batch_size']} images of {options['image_size']} pixels a side"
    )
    if _num_gpus(result["machine"]):
        return paragraph(f"{step}, on one GPU and shared among several, in turns.")
    return paragraph(
        f"{step}, on one device and shared among several, in turns. The devices are parts of the same processor: a "
        "step does the same work on the same cores, so its time over that of one device is what sharing itself costs. "
        "Each device starts every operation for itself, which weighs most in small steps. It is no measure of how a "
        "step scales on several GPUs."
    )


def replicas_table(result: dict[str, Any]) -> str:
    """A row for each number of replicas of `benchmark.py scale`."""
    rows = []
    for count, timing in result["replicas"].items():
        ratio = result["ratios"].get(count)
        over_one = [_interval(ratio[clock]) for clock in ("ratio", "cpu_ratio")] if ratio else ["1", "1"]
        each = result["options"]["batch_size"] // int(count)
        rows.append([count, str(each), f"{timing['quartiles_seconds'][1]:.3g}", *over_one])
    header = [
        "replicas",
        "images each",
        "seconds, median",
        "time over that of 1 (95% interval)",
        "processor time",
    ]
    return markdown_table(header, rows)


def _interval(ratio: dict[str, Any]) -> str:
    low, high = ratio["interval"]
    return f"{ratio['median']:.2f} ({low:.2f} to {high:.2f})"


def precision_table(result: dict[str, Any]) -> str:
    """A row for each attack of `benchmark.py precision`."""
    rows = []
    for name, found in result["attacks"].items():
        robust = [f"{100 * found['robust_accuracy'][precision]:.2f}" for precision in ("float32", "mixed_bfloat16")]
        alone = [str(found[f"broken_by_{precision}_alone"]) for precision in ("float32", "bfloat16")]
        rows.append([name, *robust, *alone, f"{found['p_value']:.2g}"])
    header = ["attack", "float32, %", "bfloat16, %", "broken by float32 alone", "by bfloat16 alone", "p"]
    return markdown_table(header, rows)


def resources_table(result: dict[str, Any]) -> str:
    """A row for each attack of `benchmark.py resources`."""
    rows = [
        [f"PGD-{steps}", *(f"{found[key] / 2**20:,.0f}" for key in ("before_bytes", "peak_bytes"))]
        for steps, found in result["attacks"].items()
    ]
    return markdown_table(["", "MiB before the attack", "MiB at its peak"], rows)


def resources_text(result: dict[str, Any]) -> str:
    """What the input pipeline delivers, beside what the paper's GPU takes."""
    taken = TRAINING_IMAGES / PAPER["cifs"].training
    return paragraph(
        f"The input pipeline delivers {result['input_images_per_second']:,.0f} images a second of "
        f"{result['options']['image_size']} pixels a side, cropped and flipped, in batches of "
        f"{result['options']['batch_size']}; PGD-10 training of ResNet-18 takes {taken:.0f} on the paper's GPU."
    )


def reduced_text(fields: dict[str, Any]) -> str:
    """What the devices exchange in a step, in a sentence."""
    workload = Workload(**fields)
    gradients, batch_norm, bookkeeping = workload.collectives.values()
    return paragraph(
        f"Each device brings {_bytes(workload.reduced_bytes)} to the all-reduces of a step: {_bytes(sum(gradients))} "
        f"of gradients in one, {_bytes(sum(batch_norm))} in {len(batch_norm)} for {len(workload.batch_norm_bytes)} "
        f"layers of batch normalisation, and {len(bookkeeping)} of a few bytes."
    )


def _bytes(number: int) -> str:
    return f"{number / 1e6:.3g} MB" if number >= 1e6 else f"{number / 1e3:.3g} kB"


def comparison_table(projection: dict[str, Any]) -> str:
    """Our FLOPs and the paper's seconds, a row for each network."""
    rows = []
    for defense, found in projection["comparison"].items():
        training, published = projection["flops"][defense][0], found["published"]
        speed = TRAINING_IMAGES * training / published["training"]
        numbers = (
            f"{training / 1e9:.2f}",
            f"{published['training']:g}",
            f"{speed / 1e12:.2f}",
            f"{found['efficiency']:.1%}",
        )
        evaluation = f"{found['predicted_evaluation']:.1f}", f"{published['evaluation']:g}"
        rows.append([DEFENSES[defense], *numbers, *evaluation])
    header = [
        "",
        "GFLOP an image",
        "s an epoch, paper",
        "TFLOP/s",
        "of the peak",
        "s of evaluation, predicted",
        "paper",
    ]
    return markdown_table(header, rows)


def comparison_text(projection: dict[str, Any]) -> str:
    """What the FLOPs say about CIFS over vanilla, and about the evaluation; beside what the paper measured."""
    (cifs, _), (vanilla, _) = (projection["flops"][defense] for defense in DEFENSES)
    published = {defense: found["published"] for defense, found in projection["comparison"].items()}
    slower = published["cifs"]["training"] / published["vanilla"]["training"]
    errors = [
        f"{found['predicted_evaluation'] / published[defense]['evaluation'] - 1:+.0%} for {DEFENSES[defense]}"
        for defense, found in projection["comparison"].items()
    ]
    return paragraph(
        f"By FLOPs alone a training step of CIFS costs {cifs / vanilla - 1:.2%} more than one of vanilla; the paper's "
        f"seconds say {slower - 1:.1%}. The rest must be operations that the count leaves out, such as the gradient of "
        f"the probe. Nothing was fitted to the evaluation of {EVALUATION_IMAGES:,} images; there the prediction is off "
        f"by {' and '.join(errors)}."
    )


def scaling_table(projection: dict[str, Any], kind: str, case: tuple[str, str] = MAIN_CASE) -> str:
    """A row for each number of GPUs: `exchange` is the share of all-reduces, `hours` are those of the paper's epochs.

    Args:
        projection: see `cifs_tf.benchmarks.projection.project`.
        kind: `"strong"` or `"weak"`.
        case: names of the device and of the network.
    """
    steps = _steps(projection, kind, case)
    rows = []
    for step in steps:
        speed_up = step.images_per_second / steps[0].images_per_second
        hours = PAPER_EPOCHS * TRAINING_IMAGES / step.images_per_second / 3600
        rows.append(
            [
                str(step.num_devices),
                str(step.batch_size // step.num_devices),
                str(step.batch_size),
                f"{1e3 * step.seconds:.3g}",
                f"{step.communication / step.seconds:.1%}",
                f"{step.images_per_second:,.0f}",
                f"{speed_up:.1f}",
                f"{speed_up / step.num_devices:.0%}",
                f"{hours:.2f}",
            ]
        )
    header = ["GPUs", "images each", "batch", "ms a step", "exchange", "images/s", "speed-up", "of ideal", "hours"]
    return markdown_table(header, rows)


def cases_table(projection: dict[str, Any]) -> str:
    """A row for each device with each network: speed of one, and how far it scales."""
    rows = []
    for case in projection["cases"]:
        names = case["device"], case["network"]
        cells = [projection["devices"][names[0]]["name"], projection["networks"][names[1]]["name"]]
        cells.append(f"{_steps(projection, 'strong', names)[0].images_per_second:,.0f}")
        for kind in ("strong", "weak"):
            speeds = {step.num_devices: step.images_per_second for step in _steps(projection, kind, names)}
            cells += [f"{speeds[count] / speeds[1]:.1f}" for count in (8, 64)]
        rows.append(cells)
    header = ["GPU", "between nodes of 8", "images/s of 1", "strong, 8", "strong, 64", "weak, 8", "weak, 64"]
    return markdown_table(header, rows)


def guesses_table(projection: dict[str, Any]) -> str:
    """Speed-up on one batch, for several guesses of how fast efficiency falls with the batch."""
    rows = []
    for guess in projection["guesses"]:
        speeds = {fields["num_devices"]: StepTime(**fields).images_per_second for fields in guess["strong"]}
        rows.append([f"{guess['half_batch']:g}", *(f"{speeds[count] / speeds[1]:.1f}" for count in (2, 8, 64))])
    return markdown_table(["`half_batch`", "strong, 2", "strong, 8", "strong, 64"], rows)


def assumptions_tables(projection: dict[str, Any]) -> str:
    """Every number that the projection rests on."""
    assumed, devices = projection["assumptions"], projection["devices"].values()
    reference = assumed["reference"]["name"]
    known = f"share of its peak that a {reference} reaches with {assumed['reference_batch']} images"
    rows = [
        [known, f"{assumed['efficiency']:.1%}", "the paper's seconds, above"],
        [
            "`half_batch`: images with which it reaches half of its highest speed",
            f"{assumed['half_batch']:g}",
            "a guess",
        ],
        ["GPUs of a node", f"{assumed['gpus_per_node']}", "a choice"],
    ]
    device_rows = [
        [device["name"], f"{device['peak'] / 1e12:g}", f"{device['relative_efficiency']:g}", device["link"]["name"]]
        for device in devices
    ]
    links = [device["link"] for device in devices] + list(projection["networks"].values())
    link_rows = [
        [link["name"], f"{link['bandwidth'] / 1e9:.4g}", f"{link['share']:.0%}", f"{1e6 * link['latency']:g}"]
        for link in {link["name"]: link for link in links}.values()
    ]
    share = f"share of the peak over that of a {reference} (a guess)"
    return "\n\n".join(
        [
            markdown_table(["", "value", "from"], rows),
            markdown_table(["GPU", "peak TFLOP/s (data sheet)", share, "inside a node"], device_rows),
            markdown_table(
                [
                    "link",
                    "GB/s, one direction (data sheet)",
                    "share of it that is reached (a guess)",
                    "µs per all-reduce and doubling of the members (a guess)",
                ],
                link_rows,
            ),
        ]
    )


def _steps(projection: dict[str, Any], kind: str, case: tuple[str, str]) -> list[StepTime]:
    (found,) = (each for each in projection["cases"] if (each["device"], each["network"]) == case)
    return [StepTime(**fields) for fields in found[kind]]
