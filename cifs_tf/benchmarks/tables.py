"""The tables of what each command measured; the screen and the documentation show the same."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cifs_tf.benchmarks.options import REFERENCE
from cifs_tf.tables import Table

DEFENSES = {"cifs": "CIFS", "vanilla": "vanilla"}
TASKS = {"training": "training step with PGD-{num_steps}", "evaluation": "PGD-20 evaluation"}
ATTACKS = {"apgd_ce": "APGD-CE", "apgd_t": "APGD-T", "fab_t": "FAB-T", "square": "Square"}
ALL_ATTACKS = {**ATTACKS, "apgd_dlr": "APGD-DLR", "standard": "all four of `standard`"}
REQUESTS = {
    "direct": "direct calls, one after the other",
    "REST, encoded": "REST, `encoded` (PNG)",
    "gRPC, float": "gRPC, floats",
    "REST, encoded, batching": "REST, `encoded`, `--enable_batching`",
    "gRPC, float, batching": "gRPC, floats, `--enable_batching`",
    "REST, encoded, batching, two processes": "REST, `encoded`, `--enable_batching`, half of them a second process",
    "REST, encoded, batching, beside large": "REST, `encoded`, `--enable_batching`, beside two that send 4 MB of JSON",
}
CLOCKS = ("ratio", "cpu_ratio")
IMAGES = {
    "keras": "`keras.utils.image_dataset_from_directory(...).map(...)`",
    "same pixels": "`tf.data`, cropped and antialiased as ours",
    "cold": "ours, decoding into an empty cache, then the batches",
    "cache": "ours, from the cache",
    "memory": "ours, from memory",
}


def step_table(result: dict[str, Any]) -> Table:
    """Lay out the speed of each task and network of `step`."""
    options, peak = result["options"], max(result["convolution_peak"].values())
    rows = []
    for task, found in result["tasks"].items():
        for defense, title in DEFENSES.items():
            timing = found[defense]
            median, least = timing["quartiles_seconds"][1], min(timing["seconds"])
            speed, fastest = timing["flops"] / median, timing["flops"] / least
            numbers = (
                f"{median:.3g}",
                f"{options['batch_size'] / median:.3g}",
                f"{speed / 1e9:.3g}",
                f"{speed / peak:.0%}",
                f"{least:.3g} s, {fastest / peak:.0%}",
                f"{found['convolutions_alone_seconds']:.3g} s",
            )
            rows.append([f"{TASKS[task].format(**options)}, {title}", *numbers])
    header = ["seconds, median", "images/s", "GFLOP/s", "of the convolution peak", "the fastest", "its convolutions"]
    return Table(["", *header], rows)


def ratios_table(result: dict[str, Any]) -> Table:
    """Lay out the time of CIFS over that of vanilla, and over that in float32 if `step` ran in another precision."""
    rows, precision = [], result["options"].get("precision", "float32")
    for task, found in result["tasks"].items():
        rows.append([f"CIFS over vanilla, {task}", _ratio(found["ratio"], 3), _ratio(found["cpu_ratio"], 3)])
        if "float32_ratio" in found:
            rows.append([f"CIFS in {precision} over float32, {task}", _ratio(found["float32_ratio"], 3), ""])
    return Table(["median of the pairs (95% interval)", "time", "processor time"], rows)


def survivors_table(result: dict[str, Any]) -> Table:
    """Lay out how many images survive each attack alone, the official ones and ours of `attack`."""
    official = result["official_standing"]
    rows = [
        [name, *(str(found[attack]) for attack in official)]
        for name, found in (("official", official), ("ours", result["standing"]))
    ]
    return Table(["images that survive", *(ALL_ATTACKS[name] for name in official)], rows)


def attack_table(result: dict[str, Any]) -> Table:
    """Lay out the seconds of the attacks of `attack` beside the official ones."""
    seconds = result["seconds"]
    compiling = sum(seconds[f"{attack}, compiling"] for attack in ATTACKS)
    here = result["options"].get("official") is not None
    runs = {
        f"official, {'this' if here else 'its'} machine": result["official_seconds"],
        f"ours, this machine, compiling included ({compiling:.1f} s)": seconds,
    }
    rows = []
    for name, found in runs.items():
        taken = [found[attack] for attack in ATTACKS]
        rows.append([name, *(f"{part:.1f}" for part in (*taken, sum(taken)))])
    if here:
        ours, theirs = ([found[attack] for attack in ATTACKS] for found in (seconds, result["official_seconds"]))
        shares = [own / other for own, other in zip((*ours, sum(ours)), (*theirs, sum(theirs)), strict=True)]
        rows.append(["ours, of the official", *(f"{share:.0%}" for share in shares)])
    return Table(["seconds", *ATTACKS.values(), "sum"], rows)


def serve_table(result: dict[str, Any]) -> Table:
    """Lay out the speed of each way to ask of `serve`."""
    rows = []
    for way, rounds in result["rounds"].items():
        rate, p50, p99 = (median_of(rounds, key) for key in ("requests_per_second", "p50_ms", "p99_ms"))
        share = result["ratio_to_direct"][way]
        rows.append([REQUESTS.get(way, way), f"{rate:.1f}", f"{share:.0%}", f"{p50:.1f}", f"{p99:.1f}"])
    return Table(["one image a request", "requests/s", "of direct calls", "p50 ms", "p99 ms"], rows)


def replicas_table(result: dict[str, Any]) -> Table:
    """Lay out the time of a step on each number of devices of `scale`."""
    rows = []
    for count, timing in result["replicas"].items():
        ratio = result["ratios"].get(count)
        over_one = [_ratio(ratio[clock], 2) for clock in CLOCKS] if ratio else ["1", "1"]
        each = result["options"]["batch_size"] // int(count)
        rows.append([count, str(each), f"{timing['quartiles_seconds'][1]:.3g}", *over_one])
    header = ["replicas", "images each", "seconds, median", "time over that of 1 (95% interval)", "processor time"]
    return Table(header, rows)


def methods_table(result: dict[str, Any]) -> Table:
    """Lay out the time of a step of each method of `methods`."""
    rows = []
    for name, timing in result["methods"].items():
        ratio = result["ratios"].get(name)
        over_pgd = [_ratio(ratio[clock], 2) for clock in CLOCKS] if ratio else ["1", "1"]
        title = f"{name}, {result['options']['num_steps']} steps" if name == REFERENCE else name
        rows.append([title, f"{timing['quartiles_seconds'][1]:.3g}", *over_pgd])
    return Table(["method", "seconds, median", "time over that of pgd (95% interval)", "processor time"], rows)


def precision_table(result: dict[str, Any]) -> Table:
    """Lay out how strong each attack of `precision` is in both precisions."""
    rows = []
    for name, found in result["attacks"].items():
        robust = [f"{100 * found['robust_accuracy'][precision]:.2f}" for precision in ("float32", "mixed_bfloat16")]
        alone = [str(found[f"broken_by_{precision}_alone"]) for precision in ("float32", "bfloat16")]
        rows.append([name, *robust, *alone, f"{found['p_value']:.2g}"])
    header = ["attack", "float32, %", "bfloat16, %", "broken by float32 alone", "by bfloat16 alone", "p"]
    return Table(header, rows)


def resources_table(result: dict[str, Any]) -> Table:
    """Lay out the memory of each attack of `resources`."""
    rows = [
        [f"PGD-{steps}", *(f"{found[key] / 2**20:,.0f}" for key in ("before_bytes", "peak_bytes"))]
        for steps, found in result["attacks"].items()
    ]
    return Table(["", "MiB before the attack", "MiB at its peak"], rows)


def images_table(result: dict[str, Any]) -> Table:
    """Lay out the images per second of each way of `images`."""
    speeds = result["images_per_second"]
    clocks = speeds, result["images_per_processor_second"]
    rows = []
    for way, title in IMAGES.items():
        ratios = (np.median(np.divide(clock[way], clock["keras"])) for clock in clocks)
        rows.append([title, f"{np.median(speeds[way]):,.0f}", *(f"{ratio:.2f}" for ratio in ratios)])
    return Table(["from files to batches", "images/s", "of Keras", "by processor time"], rows)


def image_steps_table(result: dict[str, Any]) -> Table:
    """Lay out the time of a training step on images from the cache over one on images from memory, of `images`."""
    row = ["images from the cache over images from memory", *(_ratio(result["step"][k], 3) for k in CLOCKS)]
    return Table(["a training step, median of the pairs (95% interval)", "time", "processor time"], [row])


def median_of(rounds: Sequence[dict[str, float]], key: str) -> float:
    """Return the median of one number over rounds."""
    return float(np.median([found[key] for found in rounds]))


def _ratio(ratio: dict[str, Any], digits: int) -> str:
    low, high = ratio["interval"]
    return f"{ratio['median']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


# What a command shows when it is done.
TABLES: dict[str, Sequence[Callable[[dict[str, Any]], Table]]] = {
    "step": (step_table, ratios_table),
    "attack": (survivors_table, attack_table),
    "serve": (serve_table,),
    "scale": (replicas_table,),
    "methods": (methods_table,),
    "precision": (precision_table,),
    "resources": (resources_table,),
    "images": (images_table, image_steps_table),
}
