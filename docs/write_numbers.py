"""Write the numbers of the documentation, from the files that benchmark.py and reproduce.py left.

    python docs/write_numbers.py             the pages below, between their <!-- measured: --> comments
    python docs/write_numbers.py --check     change nothing; exit with 1 and name each file that is stale

The numbers lie in docs/results. A part whose file is not there is left empty.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cifs_tf.benchmarks import tables
from cifs_tf.command_line import parse_options
from cifs_tf.errors import UserError
from cifs_tf.programs.benchmark import COMMANDS
from cifs_tf.reproduction.render import markdown_table
from cifs_tf.reproduction.results import attack_title
from cifs_tf.runs.recipes import run_program
from cifs_tf.runs.workdir import read_json

ROOT = Path(__file__).resolve().parents[1]
Render = Callable[[dict[str, Any]], str]


@dataclasses.dataclass(frozen=True)
class PagesOptions:
    """Write the numbers of the documentation from the files of docs/results.

    Args:
        check: change nothing, only say which file is stale.
    """

    check: bool = False


def main(argv: Sequence[str], root: Path = ROOT) -> int:
    """Write the pages under `root`, or check them; return 1 if a check finds a stale one."""
    options = parse_options(PagesOptions, "write_numbers.py", argv, __doc__ or "")
    stale = {page: text for page, text in render(root).items() if text != page.read_text()}
    for page, text in stale.items():
        if not options.check:
            page.write_text(text)
        print(f"{page.relative_to(root)}: {'stale, run python docs/write_numbers.py' if options.check else 'written'}")
    return int(options.check and bool(stale))


def render(root: Path) -> dict[Path, str]:
    """Make the pages from the results.

    Args:
        root: folder of docs/.

    Returns:
        the whole text of each page, by file.

    Raises:
        UserError: if a page lacks the comments of a part, or a result is damaged.
    """
    pages = {}
    for name, parts in PAGES.items():
        page = root / name
        text = page.read_text()
        for part, (result, render_part) in parts.items():
            file = root / "docs" / "results" / f"{result}.json"
            text = fill(text, part, render_part(read_result(file, page)) if file.exists() else "", page)
        pages[page] = text
    return pages


def read_result(file: Path, page: Path) -> dict[str, Any]:
    """Read what was measured, with a link to it from a page under `link`.

    Raises:
        UserError: if it is damaged.
    """
    try:
        result = read_json(file)
    except ValueError as error:
        raise UserError("result", file, f"it is damaged ({error}), measure it again") from error
    return {**result, "link": f"[all numbers]({os.path.relpath(file, page.parent)})"}


def fill(text: str, part: str, content: str, page: Path) -> str:
    """Put the content of a part between its comments.

    Args:
        text: of the page.
        part: its name.
        content: Markdown; may be empty.
        page: for the error.

    Raises:
        UserError: if the page does not have the comments once.

    Example:
        >>> fill("<!-- measured: a -->old<!-- end: a -->", "a", "new", Path("page.md"))
        '<!-- measured: a -->\\nnew\\n<!-- end: a -->'
    """
    begin, end = f"<!-- measured: {part} -->", f"<!-- end: {part} -->"
    inside = f"\n{content}\n" if content else "\n"
    filled, count = re.subn(f"{begin}.*?{end}", lambda _: f"{begin}{inside}{end}", text, flags=re.DOTALL)
    if count != 1:
        raise UserError("page", page, f"{begin} must stand in it once, and {end} after it")
    return filled


def command_line(result: dict[str, Any]) -> str:
    """The command that made a result: its options that are not the default."""
    options_class, _ = COMMANDS[result["command"]]
    words = ["python training/benchmark.py", result["command"]]
    for field in dataclasses.fields(options_class):
        value = result["options"].get(field.name, field.default)
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        # Of a file, a result keeps the name alone.
        if field.name not in ("json", "recording") and value != default:
            words.append(f"--{field.name} {_word(value)}")
    return f"```\n{' '.join(words)}\n```"


def _word(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_word, value))}]"
    return "null" if value is None else str(value)


def step_part(result: dict[str, Any]) -> str:
    """The part of docs/speed.md on training steps and evaluations."""
    options = result["options"]
    text = (
        f"`step` alternates CIFS and vanilla in one process ({tables.network_text(options)}, batches of "
        f"{options['batch_size']}, {options.get('precision', 'float32')}). On {tables.machine_text(result['machine'])} "
        f"({result['link']}):"
    )
    parts = [command_line(result), tables.paragraph(text), tables.step_table(result)]
    return "\n\n".join([*parts, tables.alone_text(result), tables.step_costs(result)])


def attack_part(result: dict[str, Any]) -> str:
    """The part of docs/speed.md on AutoAttack."""
    threads = result["options"]["threads"]
    bound = "" if threads is None else f"with {threads} thread{'s' if threads > 1 else ''} "
    text = (
        f"`attack` runs AutoAttack's attacks, {bound}on {tables.machine_text(result['machine'])}, each alone on the "
        f"images that the official ones were recorded on ({result['link']}). The official seconds were recorded on "
        "another machine."
    )
    return "\n\n".join([command_line(result), tables.paragraph(text), tables.attack_table(result)])


def serve_part(result: dict[str, Any]) -> str:
    """The part of docs/speed.md on the server."""
    options = result["options"]
    milliseconds = tables.median_of(result["rounds"]["direct"], "p50_ms")
    model = f"{tables.network_text(options)}, with CIFS; {milliseconds:.0f} ms an image"
    text = (
        f"`serve` asks the local server with {options['clients']} clients on {tables.machine_text(result['machine'])}, "
        f"and calls the same SavedModel ({model}) in a loop, in turns ({result['link']}):"
    )
    return "\n\n".join([command_line(result), tables.paragraph(text), tables.serve_table(result)])


def replicas_part(result: dict[str, Any]) -> str:
    """What sharing a step costs on the machine that measured."""
    text = f"On {tables.machine_text(result['machine'])}. {tables.replicas_text(result)}"
    parts = [command_line(result), tables.paragraph(text), tables.replicas_table(result)]
    return "\n\n".join([*parts, tables.reduced_text(result["workload"])])


def comparison_part(result: dict[str, Any]) -> str:
    """The projection's check against the paper."""
    projection = result["projection"]
    return f"{tables.comparison_table(projection)}\n\n{tables.comparison_text(projection)}"


def scaling_part(result: dict[str, Any]) -> str:
    """The projection for the paper's GPU."""
    projection, (device, network) = result["projection"], tables.MAIN_CASE
    names = projection["devices"][device]["name"], projection["networks"][network]["name"]
    return "\n\n".join(
        [
            f"{names[0]}, {projection['assumptions']['gpus_per_node']} in a node, {names[1]} between nodes.",
            tables.reduced_text(projection["workload"]),
            "**Strong scaling**: all GPUs share one batch.",
            tables.scaling_table(projection, "strong"),
            "**Weak scaling**: every GPU has as many images as one had.",
            tables.scaling_table(projection, "weak"),
        ]
    )


def precision_part(result: dict[str, Any]) -> str:
    """Whether attacks in bfloat16 are as strong."""
    options = result["options"]
    text = (
        f"`{options['run']}` attacked in both precisions from the same starts and judged in float32, "
        f"{options['examples']:,} test images; p is McNemar's, for broken by one precision alone ({result['link']}):"
    )
    return "\n\n".join([command_line(result), tables.paragraph(text), tables.precision_table(result)])


def resources_part(result: dict[str, Any]) -> str:
    """What the input pipeline delivers, and the memory of attacks."""
    machine = tables.machine_text(result["machine"])
    attacks = tables.paragraph(
        f"Memory of attacks on {tables.network_text(result['options'])} with CIFS, batches of "
        f"{result['options']['batch_size']}, each in a process of its own, on {machine}:"
    )
    return "\n\n".join([command_line(result), tables.resources_text(result), attacks, tables.resources_table(result)])


def beside_paper_part(result: dict[str, Any]) -> str:
    """What was measured of a table of the paper, beside the paper's numbers."""
    text = f"{result['about']} In {result['unit']}; in brackets {result['interval']} ({result['link']}):"
    table = markdown_table(result, ["ours", "paper", "difference"])
    return "\n\n".join([f"```\n{result['command']}\n```", tables.paragraph(text), table])


def figure_part(result: dict[str, Any]) -> str:
    """The numbers beside the pictures of a figure of the paper."""
    attack = attack_title(result["attack"])
    of = f" of {result['subset_of']:,}" if result["subset_of"] else ""
    text = (
        f"{result['num_examples']:,}{of} test images, {attack} of epsilon {result['epsilon']:.4g}, one seed "
        f"({result['link']}):"
    )
    header = [f"natural / {attack}", "beta_atk", "accuracy (%)", "NR share (%)", "alignment"]
    rows = [
        [
            name,
            beta if isinstance(beta := found["attack_beta"], str) else f"{beta:g}",
            _both(found, "accuracy", lambda share: f"{100 * share:.1f}"),
            _both(found, "negative_share", lambda share: f"{100 * share:.1f}"),
            _both(found, "alignment", lambda correlation: f"{correlation:.2f}"),
        ]
        for name, found in result["networks"].items()
    ]
    table = tables.markdown_table(header, rows)
    return "\n\n".join([f"```\n{result['command']}\n```", tables.paragraph(text), table])


def _both(found: dict[str, Any], name: str, written: Callable[[float], str]) -> str:
    return " / ".join(written(found[f"{kind}_{name}"]) for kind in ("natural", "adversarial"))


def _of_projection(render_part: Render) -> Render:
    return lambda result: render_part(result["projection"])


PAGES: dict[str, dict[str, tuple[str, Render]]] = {
    "docs/speed.md": {
        "step": ("benchmark_step", step_part),
        "step_bfloat16": ("benchmark_step_bfloat16", step_part),
        "attack": ("benchmark_attack", attack_part),
        "serve": ("benchmark_serve", serve_part),
    },
    "docs/results.md": {
        "table1": ("reproduce_table1_small", beside_paper_part),
        "tableB.1": ("reproduce_tableB.1_small", beside_paper_part),
        "standing": ("benchmark_attack", tables.standing_table),
    },
    "docs/analysis.md": {
        "figure1": ("reproduce_figure1_small", figure_part),
        "figure3": ("reproduce_figure3_small", figure_part),
    },
    "docs/scaling.md": {
        "scaling": ("benchmark_scale", scaling_part),
        "cases": ("benchmark_scale", _of_projection(tables.cases_table)),
        "comparison": ("benchmark_scale", comparison_part),
        "assumptions": ("benchmark_scale", _of_projection(tables.assumptions_tables)),
        "guesses": ("benchmark_scale", _of_projection(tables.guesses_table)),
        "replicas": ("benchmark_scale", replicas_part),
        "precision": ("benchmark_precision", precision_part),
        "resources": ("benchmark_resources", resources_part),
    },
}


if __name__ == "__main__":
    run_program(main)
