"""Write the numbers of the documentation, from the files that the benchmark left.

    python training/pages.py             README.md and docs/scaling.md, between their <!-- benchmark: --> comments
    python training/pages.py --check     change nothing; exit with 1 and name each file that is stale

The numbers lie in docs/results/benchmark_*.json. A part whose file is not there is left empty.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cifs_tf.command_line import parse_options
from cifs_tf.errors import UserError
from training import benchmark_tables as tables
from training.benchmark import COMMANDS
from training.cli import run_program
from training.workdir import read_json

ROOT = Path(__file__).resolve().parents[1]
Render = Callable[[dict[str, Any]], str]


@dataclasses.dataclass(frozen=True)
class PagesOptions:
    """Write the numbers of the documentation from docs/results/benchmark_*.json.

    Args:
        check: change nothing, only say which file is stale.
    """

    check: bool = False


def main(argv: Sequence[str], root: Path = ROOT) -> int:
    """Write the pages under `root`, or check them; return 1 if a check finds a stale one."""
    options = parse_options(PagesOptions, "pages.py", argv, __doc__ or "")
    stale = {page: text for page, text in render(root).items() if text != page.read_text()}
    for page, text in stale.items():
        if not options.check:
            page.write_text(text)
        print(f"{page.relative_to(root)}: {'stale, run python training/pages.py' if options.check else 'written'}")
    return int(options.check and bool(stale))


def render(root: Path) -> dict[Path, str]:
    """Make the pages from the results.

    Args:
        root: folder of README.md and docs/.

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
            file = root / "docs" / "results" / f"benchmark_{result}.json"
            text = fill(text, part, render_part(read_result(file)) if file.exists() else "", page)
        pages[page] = text
    return pages


def read_result(file: Path) -> dict[str, Any]:
    """Read what a benchmark left, with a link to it under `link`.

    Raises:
        UserError: if it is damaged.
    """
    try:
        result = read_json(file)
    except ValueError as error:
        raise UserError("result", file, f"it is damaged ({error}), measure it again") from error
    return {**result, "link": f"[all numbers](docs/results/{file.name})"}


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
        >>> fill("<!-- benchmark: a -->old<!-- end: a -->", "a", "new", Path("README.md"))
        '<!-- benchmark: a -->\\nnew\\n<!-- end: a -->'
    """
    begin, end = f"<!-- benchmark: {part} -->", f"<!-- end: {part} -->"
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
    """README's part on training steps and evaluations."""
    options = result["options"]
    text = (
        f"`step` alternates CIFS and vanilla in one process ({tables.network_text(options)}, batches of "
        f"{options['batch_size']}, {options.get('precision', 'float32')}). On {tables.machine_text(result['machine'])} "
        f"({result['link']}):"
    )
    parts = [command_line(result), tables.paragraph(text), tables.step_table(result), tables.step_costs(result)]
    return "\n\n".join(parts)


def attack_part(result: dict[str, Any]) -> str:
    """README's part on AutoAttack."""
    threads = result["options"]["threads"]
    bound = "" if threads is None else f"with {threads} thread{'s' if threads > 1 else ''} "
    text = (
        f"`attack` runs AutoAttack's attacks, {bound}on {tables.machine_text(result['machine'])}, each alone on the "
        f"images that the official ones were recorded on ({result['link']}). The official seconds were recorded on "
        "another machine."
    )
    return "\n\n".join([command_line(result), tables.paragraph(text), tables.attack_table(result)])


def serve_part(result: dict[str, Any]) -> str:
    """README's part on the server."""
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


def _of_projection(render_part: Render) -> Render:
    return lambda result: render_part(result["projection"])


PAGES: dict[str, dict[str, tuple[str, Render]]] = {
    "README.md": {
        "step": ("step", step_part),
        "step_bfloat16": ("step_bfloat16", step_part),
        "attack": ("attack", attack_part),
        "serve": ("serve", serve_part),
    },
    "docs/scaling.md": {
        "scaling": ("scale", scaling_part),
        "cases": ("scale", _of_projection(tables.cases_table)),
        "comparison": ("scale", comparison_part),
        "assumptions": ("scale", _of_projection(tables.assumptions_tables)),
        "guesses": ("scale", _of_projection(tables.guesses_table)),
        "replicas": ("scale", replicas_part),
    },
}


if __name__ == "__main__":
    run_program(main)
