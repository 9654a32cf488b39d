"""Publish a trained network: SavedModel for TF Serving, ONNX, and a card with its accuracy.

    python serving/export.py --run runs/digits
    python serving/export.py --run runs/digits --format onnx --int8          smaller, its robustness measured again
    python serving/export.py --run runs/digits --model_base_path models/digits --warmup_batch_sizes '[1, 8]'

A version is a folder BASE/N; it appears complete, or not at all.
"""

import contextlib
import dataclasses
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from rich.console import Console
from rich.table import Table

from cifs_tf.command_line import names_of, parse_options, run_program
from cifs_tf.errors import UserError
from cifs_tf.extras import require
from cifs_tf.files import check_version
from cifs_tf.runs.trained import find_network

FORMATS = ("savedmodel", "onnx")
# A fall of clean accuracy, in points, that is worth a warning.
WORTH_A_WARNING = 10


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """A network of a run to publish, and the folder of its versions.

    Args:
        run: workdir of a run.
        format: savedmodel, onnx, or both.
        version: number of the version, 1 or more; null takes the one after the highest there.
        defense: which network of the run; null is its own, not the twin.
        checkpoint: the network after its last epoch, or after its best on the validation images.
        model_base_path: folder of the versions, such as a server's models/NAME; null is export/DEFENSE in the run's
            workdir.
        resize: let the signature encoded resize images of another size, which are an error otherwise.
        int8: write model.int8.onnx too, the network in 8 bits, and measure its robust accuracy beside the float one's.
        int8_examples: class-balanced test images to measure it on; null is 200, or all if there are fewer.
        int8_queries: queries of the Square attack on each of them.
        warmup_batch_sizes: sizes of the requests that a server runs before it answers.
        dataset: where the run's images are now; null is where they were.
        data_dir: where TFDS data lies; null is the run's, or TFDS' own default.
    """

    run: str
    format: str = "savedmodel,onnx"
    version: int | None = None
    defense: Literal["cifs", "cas", "ewas", "fsr", "se", "vanilla"] | None = None
    checkpoint: Literal["last", "best"] = "last"
    model_base_path: str | None = None
    resize: bool = False
    int8: bool = False
    int8_examples: int | None = None
    int8_queries: int = 1000
    warmup_batch_sizes: tuple[int, ...] = (1,)
    dataset: str | None = None
    data_dir: str | None = None

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise UserError("--format", self.format, "give savedmodel, onnx, or savedmodel,onnx")
        if self.int8 and "onnx" not in self.formats:
            raise UserError("--int8", True, "it is made of the ONNX file, give --format onnx or savedmodel,onnx")
        if self.int8_examples is not None and self.int8_examples < 1:
            raise UserError("--int8_examples", self.int8_examples, "give a number of 1 or more")
        if self.int8_queries < 0:
            raise UserError("--int8_queries", self.int8_queries, "give a number of 0 or more")
        if not self.warmup_batch_sizes or min(self.warmup_batch_sizes) < 1:
            raise UserError("--warmup_batch_sizes", list(self.warmup_batch_sizes), "give numbers of 1 or more")

    @property
    def formats(self) -> tuple[str, ...]:
        """Files to write, as `--format` names them."""
        return tuple(name.strip(" '\"") for name in self.format.strip().removeprefix("[").removesuffix("]").split(","))


def main(argv: Sequence[str]) -> None:
    """Parse the command line and publish."""
    options = parse_options(ExportOptions, "export.py", argv, __doc__ or "")
    require("export")
    publish(options)


def publish(options: ExportOptions) -> Path:
    """Publish a version of a run's network, and print its accuracy.

    Args:
        options: what, and where.

    Returns:
        the published folder.

    Raises:
        UserError: for input that does not fit, or a network that cannot be exported; nothing was published then.
    """
    run = find_network(options.run, options.defense, options.checkpoint)
    base = Path(options.model_base_path).expanduser() if options.model_base_path else run.run.export_base(run.defense)
    check_version(base, options.version)
    moved = {name: getattr(options, name) for name in ("dataset", "data_dir") if getattr(options, name)}
    data = dataclasses.replace(run.config.data, **moved)
    with _uninterrupted():
        from cifs_tf.serving.publishing.publish import publish_run

    console = Console()
    console.rule(f"{run.path}: {run.defense}, {run.checkpoint} epoch, to {base}")
    published, card = publish_run(
        run,
        base,
        data,
        formats=options.formats,
        version=options.version,
        resize=options.resize,
        warmup_batch_sizes=options.warmup_batch_sizes,
        int8=options.int8,
        int8_examples=options.int8_examples,
        int8_queries=options.int8_queries,
        console=console,
    )
    show(console, published, card)
    return published


def show(console: Console, published: Path, card: dict[str, Any]) -> None:
    """Print what was written and its accuracy; warn of an 8-bit variant that lost much.

    Args:
        console: where to print.
        published: the version's folder.
        card: its model card.
    """
    rows = [("measured by the run", card["measured"])]
    if card["int8"]:
        rows += [(f"{name}, measured now", card["int8"][name]) for name in ("float32", "int8")]
    table = Table(
        title=f"{card['name']}: accuracy in %, 95% interval",
        caption="robust: no attack of those in model_card.json broke the image",
    )
    for column, justify in (("network", "left"), ("images", "right"), ("clean", "right"), ("robust", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for name, found in rows:
        cells = ["not measured", ""] if found is None else [_percent(found["clean"]), _percent(found["robust"])]
        table.add_row(name, "" if found is None else f"{found['clean']['of']:,}", *cells)
    console.print(table)
    if card["not_measured_because"]:
        console.print(f"note: {card['not_measured_because']}", soft_wrap=True)
    if card["int8"]:
        before, after = (card["int8"][name]["clean"] for name in ("float32", "int8"))
        fall = 100 * (before["count"] - after["count"]) / before["of"]
        if fall > WORTH_A_WARNING:
            console.print(f"warning: in 8 bits clean accuracy falls by {fall:.1f} points", soft_wrap=True)
    console.print(f"Written to {published}:", soft_wrap=True)
    for name, file in card["files"].items():
        console.print(f"  {name} ({file['size'] / 1000:,.0f} kB)", soft_wrap=True, highlight=False)
    console.print("  model_card.json", soft_wrap=True, highlight=False)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C: it would crash a process that is loading native libraries, instead of ending it in order."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _percent(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{100 * found['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def start() -> NoReturn:
    """Run the program on the command line of this process, and exit."""
    run_program(main, names_of(ExportOptions))
