"""The paper's tables and figures as data: their networks, what each column reads, and the paper's own numbers."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
EVERYWHERE = ("full", "small", "smoke")


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """A network of the paper, as a recipe with changes.

    Args:
        recipe: name of its recipe.
        changes: what differs from the recipe.
        small_changes: what differs on top of that where the networks are smaller than the paper's.
        small_recipe: name of the recipe there; None for that of the scale. Default None.
    """

    recipe: str
    changes: dict[str, Any]
    small_changes: dict[str, Any]
    small_recipe: str | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: a network, how it is measured, and the paper's numbers.

    Args:
        name: as the paper has it.
        block: of the table's part that it stands in, such as the architecture.
        network: that is measured.
        checkpoint: `"last"` or `"best"` epoch.
        kind: evaluation that its columns are read from: `"paper"` (Section 4.1), `"autoattack"` (Appendix B.1),
            `"strict"`, or `"validation"`: as the paper, on images held out of the training set.
        places: where in the report of that evaluation each column is read, parts joined by colons.
        paper: the paper's number of each column, in percent; None where it has none.
        scales: where the row exists.
    """

    name: str
    block: str
    network: NetworkSpec
    checkpoint: str
    kind: str
    places: tuple[str, ...]
    paper: tuple[float | None, ...]
    scales: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """One table.

    Args:
        number: as the paper counts, such as `"B.1"`.
        title: what it shows.
        columns: their titles.
        rows: in the paper's order.
        about: what its networks are, where that is not what the scale says. Default empty.
    """

    number: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    about: str = ""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure.

    Args:
        number: as the paper counts, such as `"A.1"`.
        title: what it shows.
        networks: by what the figure calls them, in the paper's order.
        classes: whose channels are drawn in the paper's setting, of another dataset than here: `"all"`, their names, or
            None for the most and the least robust.
        files: of what analyse.py writes, the pictures that make the figure; a pattern.
    """

    number: str
    title: str
    networks: dict[str, NetworkSpec]
    classes: tuple[str, ...] | str | None
    files: str


@functools.cache
def tables() -> dict[str, PaperTable]:
    """Read every table, by number, in the paper's order.

    Example:
        >>> tables()["1"].rows[0].paper[0]
        84.56
    """
    return {number: _table(number, entry) for number, entry in _read("tables.yaml").items()}


@functools.cache
def figures() -> dict[str, Figure]:
    """Read every figure, by number, in the paper's order."""
    return {
        number: Figure(
            number=number,
            title=entry["title"],
            networks={
                name: NetworkSpec(entry["recipe"], changes or {}, {}) for name, changes in entry["networks"].items()
            },
            classes=tuple(entry["classes"]) if isinstance(entry["classes"], list) else entry["classes"],
            files=entry["files"],
        )
        for number, entry in _read("figures.yaml").items()
    }


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def _table(number: str, entry: dict[str, Any]) -> PaperTable:
    rows = [
        _row(entry, block, within, name, row or {})
        for block, within in entry["blocks"].items()
        for name, row in within["rows"].items()
    ]
    return PaperTable(number, entry["title"], tuple(entry["columns"]), tuple(rows), entry.get("about", ""))


def _row(table: dict[str, Any], block: str, within: dict[str, Any], name: str, row: dict[str, Any]) -> Row:
    """Read a row; what it leaves out is taken from its block, or else from its table."""

    def find(key: str, default: Any = None) -> Any:
        return row.get(key, within.get(key, table.get(key, default)))

    changes = {**within.get("run", {}), **row.get("run", {})}
    return Row(
        name=name,
        block=block,
        network=NetworkSpec(
            find("recipe"), changes, {**within.get("small", {}), **row.get("small", {})}, find("small_recipe")
        ),
        checkpoint=find("checkpoint", "last"),
        kind=find("evaluation", "paper"),
        places=tuple(place.format(**row.get("at", {})) for place in table["columns"].values()),
        paper=tuple(find("paper")),
        scales=tuple(find("scales", EVERYWHERE)),
    )
