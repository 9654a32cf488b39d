"""Publish a trained network: SavedModel for TF Serving, ONNX, and a card with its accuracy.

    python serving/export.py --run runs/digits
    python serving/export.py --run runs/digits --format onnx --int8          smaller, its robustness measured again
    python serving/export.py --run runs/digits --model_base_path models/digits --warmup_batch_sizes 1,8

A version is a folder BASE/N; it appears complete, or not at all.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cifs_tf.command_line import parse_options
from cifs_tf.extras import require
from cifs_tf.files import check_version
from cifs_tf.runs.trained import find_network
from cifs_tf.serving.publishing.options import ExportOptions
from cifs_tf.tables import Table

# A fall of natural accuracy, in points, that is worth a warning.
WORTH_A_WARNING = 10


def main(argv: Sequence[str]) -> None:
    """Parse the command line and publish."""
    options = parse_options(ExportOptions, "export.py", argv, __doc__ or "")
    require("export")
    publish(options)


def publish(options: ExportOptions) -> Path:
    """Publish a version of a run's network, print its accuracy, and return its folder.

    Raises:
        UserError: for input that does not fit, or a network that cannot be exported; nothing was published then.
    """
    run = find_network(options.run, options.defense, options.checkpoint)
    base = Path(options.model_base_path).expanduser() if options.model_base_path else run.run.export_base(run.defense)
    check_version(base, options.version)
    from cifs_tf.serving.publishing.publish import publish_run

    console = Console()
    console.rule(f"{run.path}: {run.defense}, {run.checkpoint} epoch, to {base}")
    published, card = publish_run(run, base, options, console)
    show(console, published, card)
    return published


def show(console: Console, published: Path, card: dict[str, Any]) -> None:
    """Print what was written and its accuracy; warn of an 8-bit variant that lost much."""
    rows = [("measured by the run", card["measured"])]
    if card["int8"]:
        rows += [(f"{name}, measured now", card["int8"][name]) for name in ("float32", "int8")]
    table = Table(
        ["network", "images", "natural", "robust"],
        [
            [name, f"{found['clean']['of']:,}", _percent(found["clean"]), _percent(found["robust"])]
            if found
            else [name, "", "not measured", ""]
            for name, found in rows
        ],
    )
    title = f"{card['name']}: accuracy in %, 95% interval"
    console.print(table.screen(title, "robust: no attack of those in model_card.json broke the image"))
    if card["not_measured_because"]:
        console.print(f"note: {card['not_measured_because']}", soft_wrap=True)
    if card["int8"]:
        before, after = (card["int8"][name]["clean"] for name in ("float32", "int8"))
        fall = 100 * (before["count"] - after["count"]) / before["of"]
        if fall > WORTH_A_WARNING:
            console.print(f"warning: in 8 bits natural accuracy falls by {fall:.1f} points", soft_wrap=True)
    console.print(f"Written to {published}:", soft_wrap=True)
    for name, file in card["files"].items():
        console.print(f"  {name} ({file['size'] / 1000:,.0f} kB)", soft_wrap=True, highlight=False)
    console.print("  model_card.json", soft_wrap=True, highlight=False)


def _percent(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{100 * found['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
