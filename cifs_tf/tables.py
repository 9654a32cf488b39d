"""Tables of texts: described once, shown on the screen or in Markdown."""

import dataclasses
from collections.abc import Sequence

import rich.table
from rich import box
from rich.console import Group
from rich.markup import escape
from rich.text import Text


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts.

    Args:
        header: titles of the columns.
        rows: their cells, as many in each row as there are titles.
        num_names: columns from the left that hold words; the others hold numbers, aligned to the right. Default 1.

    Example:
        >>> print(Table(["", "s"], [["a", "1"]]).markdown())
        | | s |
        |---|---:|
        | a | 1 |
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_names: int = 1

    def markdown(self) -> str:
        """Return the table in Markdown, without a newline at the end."""
        rules = ["---" if index < self.num_names else "---:" for index in range(len(self.header))]
        lines = ["|".join(f" {cell} " if cell else " " for cell in row) for row in (self.header, *self.rows)]
        return "\n".join(f"|{line}|" for line in (lines[0], "|".join(rules), *lines[1:]))

    def screen(self, title: str = "", caption: str = "") -> Group:
        """Return the table for a terminal, between its title and its caption, which may be wider than the table."""
        screen = rich.table.Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
        for index, name in enumerate(self.header):
            screen.add_column(escape(name), justify="left" if index < self.num_names else "right", overflow="fold")
        for row in self.rows:
            screen.add_row(*map(escape, row))
        above, below = (Text(text, style) for text, style in ((title, "table.title"), (caption, "table.caption")))
        return Group(*([above] if title else []), screen, *([below] if caption else []))
