"""Write the numbers of the documentation, from the files that benchmark.py and reproduce.py left.

    python docs/write_numbers.py             the pages below, between their <!-- measured: --> comments
    python docs/write_numbers.py --check     change nothing; exit with 1 and name each file that is stale

The numbers lie in docs/results, the words around them in docs/templates. A part whose file is not there is left empty.
"""

import dataclasses
import functools
import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from cifs_tf.attack_names import attack_title
from cifs_tf.benchmarks import tables
from cifs_tf.command_line import parse_options
from cifs_tf.errors import UserError
from cifs_tf.files import read_json, write_text
from cifs_tf.presets import preset_card, preset_names
from cifs_tf.programs.benchmark import COMMANDS
from cifs_tf.reproduction import overhead
from cifs_tf.reproduction.render import figure_table, result_table
from cifs_tf.reproduction.verdict.page import summarise
from cifs_tf.reproduction.verdict.study import load_study
from cifs_tf.runs.preemption import run_preemptible
from cifs_tf.tables import Table
from cifs_tf.templates import template_environment

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 120
JOINT = "\0"  # stands for a space at which no line ends
PRESETS_PAGE = "docs/presets.md"
README = "README.md"
# By page and part, the file of docs/results and the template.
PAGES = {
    "docs/speed.md": {
        "step": ("benchmark_step", "step"),
        "step_bfloat16": ("benchmark_step_bfloat16", "step"),
        "methods": ("benchmark_methods", "methods"),
        "attack": ("benchmark_attack", "attack"),
        "serve": ("benchmark_serve", "serve"),
        "images": ("benchmark_images", "images"),
        "images_64": ("benchmark_images_64", "images"),
    },
    "docs/results.md": {
        "table1": ("reproduce_table1_small", "table"),
        "tableB.1": ("reproduce_tableB.1_small", "table"),
        "microscope": ("reproduce_tablemicroscope_small", "table"),
        "recipes_digits": ("reproduce_tablerecipes_digits_small", "table"),
        "recipes_fashion_mnist": ("reproduce_tablerecipes_fashion_mnist_small", "table"),
        "recipes_cifar10": ("reproduce_tablerecipes_cifar10_small", "table"),
        "nfgsm": ("reproduce_tablenfgsm_small", "table"),
        "survivors": ("benchmark_attack", "survivors"),
    },
    "docs/analysis.md": {
        "figure1": ("reproduce_figure1_small", "figure"),
        "figure3": ("reproduce_figure3_small", "figure"),
    },
    "docs/scaling.md": {
        "scale": ("benchmark_scale", "scale"),
        "precision": ("benchmark_precision", "precision"),
        "resources": ("benchmark_resources", "resources"),
    },
    PRESETS_PAGE: {},  # its table is that of the cards
    README: {},  # its sentence is that of the study
}


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
    stale = {page: text for page, text in render_pages(root).items() if text != page.read_text()}
    for page, text in stale.items():
        if not options.check:
            write_text(page, text)
        print(f"{page.relative_to(root)}: {'stale, run python docs/write_numbers.py' if options.check else 'written'}")
    return int(options.check and bool(stale))


def render_pages(root: Path) -> dict[Path, str]:
    """Return the whole text of each page under `root`, made from the results there.

    Raises:
        UserError: if a page lacks the comments of a part, or a result is damaged.
    """
    pages = {}
    for name, parts in PAGES.items():
        page = root / name
        text = page.read_text()
        for part, (result, template) in parts.items():
            file = root / "docs" / "results" / f"{result}.json"
            link = f"[all numbers]({os.path.relpath(file, page.parent)})"
            text = fill(text, part, render(template, read_result(file), link) if file.exists() else "", page)
        if name == PRESETS_PAGE:
            text = fill(text, "presets", presets_table().markdown(), page)
        if name == README:
            text = fill(text, "verdict", study_sentence(root / "docs"), page)
        pages[page] = text
    return pages


def study_sentence(docs: Path) -> str:
    """Return what the study has found so far, from its cells."""
    return paragraph(f"{summarise(load_study(), docs)} The study: [{load_study().title}](docs/verdict.md)")


def presets_table() -> Table:
    """Return the table of all presets, from their cards."""
    rows = []
    for name in preset_names():
        card = preset_card(name)
        shares = [_percent(card["measured"][kind]) for kind in ("natural", "paper", "strict")]
        data = f"{card['data']['dataset']}, ε {card['data']['epsilon']:g}"
        rows.append([f"`{name}`", data, f"`{card['commands']['measure_strict']}`", *shares])
    return Table(["name", "data", "strict, measured again by", "natural", "paper", "strict"], rows, num_names=3)


def _percent(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not measured yet"
    low, high = found["interval"]
    return f"{100 * found['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f}) of {found['of']}"


def read_result(file: Path) -> dict[str, Any]:
    """Read what was measured, or raise `UserError` if it is damaged."""
    try:
        return read_json(file)
    except ValueError as error:
        raise UserError("result", file, f"it is damaged ({error}), measure it again") from error


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


def render(template: str, result: dict[str, Any], link: str) -> str:
    """Return the Markdown of a part, from the result that it shows and a link to it."""
    command = f"```\n{result['command'] if template in ('table', 'figure') else command_line(result)}\n```"
    return _environment().get_template(f"{template}.md.j2").render(result=result, command=command, link=link)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = template_environment(ROOT / "docs" / "templates")
    environment.filters |= {"paragraph": paragraph, "machine": machine_name, "network": network_name}
    environment.filters["attack"] = attack_title
    environment.globals |= {"tables": tables, "result_table": result_table, "figure_table": figure_table}
    environment.globals |= {"paper": overhead.PAPER, "paper_images": overhead.IMAGES}
    return environment


def command_line(result: dict[str, Any]) -> str:
    """Return the command that made a result, with the options that are not the default."""
    words = ["python training/benchmark.py", result["command"]]
    for field in dataclasses.fields(COMMANDS[result["command"]]):
        value = result["options"].get(field.name, field.default)
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        # Of a file, a result keeps the name alone.
        if field.name not in ("json", "recording") and value != default:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words.append(f"--{field.name} {'null' if value is None else text}")
    return " ".join(words)


def paragraph(text: str) -> str:
    """Wrap a paragraph, never inside a word or the text of a link.

    Example:
        >>> paragraph("word " * 23 + "[all numbers](x.json)").splitlines()[1]
        '[all numbers](x.json)'
    """
    joined = re.sub(r"\[[^]]*\]\(", lambda link: link[0].replace(" ", JOINT), " ".join(text.split()))
    return textwrap.fill(joined, WIDTH, break_long_words=False, break_on_hyphens=False).replace(JOINT, " ")


def machine_name(machine: dict[str, Any]) -> str:
    """Name a machine, such as "2 cores of an AMD EPYC without AVX512"."""
    flags = set(machine.get("flags", ()))
    abilities = "with AVX512" if "avx512f" in flags else "without AVX512"
    if {"avx512_bf16", "amx_bf16"} & flags:
        abilities += " and with bfloat16"
    gpus = sum("GPU" in device for device in machine.get("devices", ()))
    joined = f" and {gpus} GPU{'s' if gpus > 1 else ''}" if gpus else ""
    return f"{machine['cores']} cores of an {machine['processor']} {abilities}{joined}"


def network_name(options: dict[str, Any]) -> str:
    """Name a network, such as "ResNet-18, width 32"."""
    name = options["arch"].replace("resnet", "ResNet-").replace("wrn", "WRN-")
    return f"{name}, width {options['width']}" if options.get("width") else name


if __name__ == "__main__":
    run_preemptible(main)
