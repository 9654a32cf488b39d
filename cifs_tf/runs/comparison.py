"""Networks that were measured on the same images, side by side: numbers, figures, and tables for the screen."""

import csv
import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import RenderableType

from cifs_tf.analysis import Measurement, class_wise_accuracy
from cifs_tf.analysis.plots import plot_class_robustness, plot_profiles
from cifs_tf.files import write_atomically
from cifs_tf.tables import Table

# On the screen; the files have all of them.
SHOWN_CLASSES = 20
KINDS = ("natural", "adversarial")


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Measurements of some networks on the same images.

    Args:
        measurements: by name of the network.
        class_names: by label.
        attack: name of the attack as the paper writes it, such as `"PGD-20"`.
    """

    measurements: Mapping[str, Measurement]
    class_names: Sequence[str]
    attack: str

    @functools.cached_property
    def means(self) -> dict[str, dict[str, float | None]]:
        """Means over all images, for each network; None where nothing is known of any."""
        found: dict[str, dict[str, float | None]] = {}
        for name, measurement in self.measurements.items():
            known = {key: values[~np.isnan(values)] for key, values in measurement.per_example().items()}
            found[name] = {key: float(values.mean()) if len(values) else None for key, values in known.items()}
        return found

    @functools.cached_property
    def class_means(self) -> dict[str, dict[str, np.ndarray]]:
        """Means over the images of each class, float (classes,), for each network; NaN where nothing is known."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, measurement in self.measurements.items():
            found[name] = {}
            for key, values in measurement.per_example().items():
                known = ~np.isnan(values)
                labels = measurement.labels[known]
                found[name][key] = class_wise_accuracy(values[known], labels, len(self.class_names))
        return found

    def most_and_least_robust(self) -> list[int]:
        """Return the labels of the last network's two classes for Figure 1; one if all are equally robust."""
        accuracies = list(self.class_means.values())[-1]["adversarial_accuracy"]
        return list(dict.fromkeys([int(np.nanargmax(accuracies)), int(np.nanargmin(accuracies))]))

    def write_numbers(self, folder: Path) -> list[Path]:
        """Write `channels.csv`, a line for each network, class and channel, and `classes.csv`, one for each class."""
        files = {"channels.csv": self._channel_rows(), "classes.csv": self._class_rows()}
        for name, rows in files.items():
            _write_csv(folder / name, list(rows))
        return [folder / name for name in files]

    def draw(self, classes: Sequence[int]) -> dict[str, Figure]:
        """Draw the channels of some classes, with a column for each network, and the robustness of all classes.

        Returns:
            the figures by file name.
        """
        figures = {}
        for label in classes:
            class_name = self.class_names[label]
            profiles = {f"{name} / {class_name}": found.profile(label) for name, found in self.measurements.items()}
            slug = re.sub(r"\W+", "-", class_name).strip("-").lower()
            figures[f"channels_{label}_{slug}.png"] = plot_profiles(profiles, self.attack)
        accuracies = {name: means["adversarial_accuracy"] for name, means in self.class_means.items()}
        figures["class_robustness.png"] = plot_class_robustness(accuracies, self.class_names, self.attack)
        return figures

    def tables(self, title: str, betas: Mapping[str, float | str]) -> list[RenderableType]:
        """Lay out the means for the screen, and those by class if there are not too many.

        Args:
            title: of the first table.
            betas: beta_atk of the attack on each network.
        """
        columns = (("accuracy", 100), ("negative_share", 100), ("alignment", 1))
        rows = []
        for name, means in self.means.items():
            cells = [_pair([means[f"{kind}_{key}"] for kind in KINDS], scale) for key, scale in columns]
            rows.append([name, str(betas[name]), *cells])
        overview = Table(["network", "beta_atk", "accuracy (%)", "NR share (%)", "alignment"], rows)
        caption = "natural / attacked; NR share, alignment: with the weights of the label"
        if len(self.class_names) > SHOWN_CLASSES:
            return [overview.screen(title, caption)]
        rows = []
        for label, class_name in enumerate(self.class_names):
            values = [[means[f"{kind}_accuracy"][label] for kind in KINDS] for means in self.class_means.values()]
            rows.append([class_name, *(_pair(pair, 100) for pair in values)])
        by_class = Table(["class", *(name.replace(", ", "\n") for name in self.class_means)], rows)
        return [overview.screen(title, caption), by_class.screen(f"accuracy by class (%), natural / {self.attack}")]

    def _channel_rows(self) -> Iterable[dict[str, Any]]:
        for name, measurement in self.measurements.items():
            for label in np.unique(measurement.labels).tolist():
                columns = {key: values.tolist() for key, values in vars(measurement.profile(label)).items()}
                # `order` is the channel's index in the network, the rank its place in the figures.
                for rank, row in enumerate(zip(*columns.values(), strict=True)):
                    channel = dict(zip(columns, row, strict=True))
                    yield {"network": name, "class": self.class_names[label], "rank": rank, **channel}

    def _class_rows(self) -> Iterable[dict[str, Any]]:
        for name, measurement in self.measurements.items():
            counts = np.bincount(measurement.labels, minlength=len(self.class_names)).tolist()
            for label, class_name in enumerate(self.class_names):
                means = {key: _or_none(float(values[label])) for key, values in self.class_means[name].items()}
                yield {"network": name, "class": class_name, "num_examples": counts[label], **means}


def _write_csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(file, write)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _pair(values: Iterable[float | None], scale: int) -> str:
    digits = 1 if scale == 100 else 2
    known = (None if value is None else _or_none(value) for value in values)
    return " / ".join("-" if value is None else f"{scale * value:.{digits}f}" for value in known)
