"""Tables and pictures of a client: the likeliest classes, and the most important channels."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cifs_tf.errors import UserError

Outputs = Mapping[str, np.ndarray]


def read_labels(path: str | Path | None) -> list[str] | None:
    """Read the names of classes, in their order: a JSON list, or an object from class number to name.

    Raises:
        UserError: if it is no such file.
    """
    if path is None:
        return None
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError("labels", path, f"give a readable JSON file ({error.strerror})") from error
    except ValueError as error:
        raise UserError("labels", path, f"it is not JSON ({error})") from error
    if isinstance(content, dict):
        numbered = {int(key): name for key, name in content.items() if key.isdecimal()}
        content = [numbered.get(index) for index in range(len(content))]
    if not isinstance(content, list) or not content or not all(isinstance(name, str) for name in content):
        raise UserError("labels", path, 'give a list of names, or an object such as {"0": "cat", "1": "dog"}')
    return content


def check_labels(labels: Sequence[str] | None, num_classes: int) -> None:
    """Refuse names that are more or fewer than the model's classes: they are those of another.

    Raises:
        UserError: if so.
    """
    if labels is not None and len(labels) != num_classes:
        advice = f"the model has {num_classes} classes; give its own labels.json, which lies beside each version"
        raise UserError("labels", f"{len(labels)} names", advice)


def class_name(index: int, labels: Sequence[str] | None) -> str:
    """Return the name of a class, or its number if there are no names."""
    return labels[index] if labels else f"class {index}"


def prediction_table(
    files: Sequence[str], probabilities: np.ndarray, top: int = 3, labels: Sequence[str] | None = None
) -> Table:
    """Lay out the likeliest classes of each image, `top` rows an image.

    Raises:
        UserError: if the names are not those of the classes.
    """
    check_labels(labels, probabilities.shape[1])
    table = Table("image", "class", box=box.SIMPLE_HEAD)
    table.add_column("probability", justify="right")
    for file, row in zip(files, probabilities, strict=True):
        for rank, index in enumerate(np.argsort(-row, kind="stable")[:top]):
            name = Text(class_name(int(index), labels), style="" if rank else "bold")
            table.add_row(Text("" if rank else file), name, f"{100 * row[index]:.2f} %")
        table.add_section()
    return table


def explanation(
    files: Sequence[str], outputs: Outputs, channels: int = 8, labels: Sequence[str] | None = None
) -> Iterator[RenderableType]:
    """Lay out, for each image, the predictions of all heads and the most important channels of each layer."""
    check_labels(labels, outputs["heads"].shape[2])
    layers = layers_of(outputs)
    for index, file in enumerate(files):
        verdicts = [class_name(int(head.argmax()), labels) for head in outputs["heads"][index]]
        said = [f"output: {verdicts[0]}", *(f"probe {number}: {v}" for number, v in enumerate(verdicts[1:], start=1))]
        lines = [Text(file, style="bold")]
        if "disagreement" in outputs:  # a model without probes has nothing that could disagree
            value = outputs["disagreement"][index]
            lines.append(Text(f"disagreement {value:.3f} (0: output and probes agree, 1: not at all)"))
        lines += [Text(", ".join(said)), Text()]
        yield Group(*lines, *(_bars(layer, index, outputs, channels) for layer in layers))


def draw(
    file: str | Path,
    files: Sequence[str],
    images: np.ndarray,
    outputs: Outputs,
    channels: int = 8,
    labels: Sequence[str] | None = None,
) -> None:
    """Draw each image beside bars of the most important channels of each layer, into one picture.

    Raises:
        UserError: if the file cannot be written, or the names are not those of the classes.
    """
    check_labels(labels, outputs["probabilities"].shape[1])
    # Only a picture needs matplotlib.
    from cifs_tf.figures import BLUE, make_figure, save_figure

    layers = layers_of(outputs)
    figure = make_figure((2.6 + 3.2 * len(layers), 2.6 * len(files)))
    widths = [1.0] + [1.4] * len(layers)
    rows = figure.subplots(len(files), 1 + len(layers), squeeze=False, width_ratios=widths)
    for index, (name, axes) in enumerate(zip(files, rows, strict=True)):
        image = images[index]
        axes[0].imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
        axes[0].set_axis_off()
        decided = class_name(int(outputs["probabilities"][index].argmax()), labels)
        if "disagreement" in outputs:
            decided += f", disagreement {outputs['disagreement'][index]:.2f}"
        axes[0].set_title(f"{Path(name).name}\n{decided}", fontsize=8)
        for layer, plot in zip(layers, axes[1:], strict=True):
            chosen = most_important(outputs[f"importance_{layer}"][index], channels)
            values = outputs[f"importance_{layer}"][index][chosen]
            plot.bar([str(channel) for channel in chosen], values, color=BLUE)
            plot.set_title(f"importance in {layer}, by channel", fontsize=8)
            plot.tick_params(labelsize=7)
    if not Path(file).parent.is_dir():
        raise UserError("picture", file, f"there is no folder {Path(file).parent}, make it first")
    try:
        save_figure(figure, file)
    except (OSError, ValueError) as error:
        raise UserError("picture", file, f"it cannot be written ({error})") from error


def layers_of(outputs: Outputs) -> list[str]:
    """Return the names of the layers that select channels, in the order of the outputs."""
    return [name.removeprefix("importance_") for name in sorted(outputs) if name.startswith("importance_")]


def most_important(importance: np.ndarray, channels: int) -> np.ndarray:
    """Return the numbers of the most important channels, the most important first."""
    return np.argsort(-importance, kind="stable")[:channels]


def _bars(layer: str, index: int, outputs: Outputs, channels: int) -> Table:
    importance, relevance = outputs[f"importance_{layer}"][index], outputs.get(f"relevance_{layer}")
    title = f"{layer}: {min(channels, len(importance))} of {len(importance)} channels"
    table = Table("channel", "importance", "", title=title, title_justify="left", box=box.SIMPLE)
    table.columns[0].justify = table.columns[1].justify = "right"
    if relevance is not None:
        table.add_column("relevance", justify="right")
    longest = float(max(importance.max(), np.finfo(np.float32).tiny))
    for channel in most_important(importance, channels):
        bar = Bar(longest, 0, float(importance[channel]), width=24, color="cyan")
        row: list[RenderableType] = [str(channel), f"{importance[channel]:.4g}", bar]
        table.add_row(*row, *([] if relevance is None else [f"{relevance[index][channel]:.4g}"]))
    return table
