"""Tables: one description, two looks."""

import io

from rich.console import Console

from cifs_tf.tables import Table

TABLE = Table(["", "kind", "s"], [["a [b]", "x", "1"], ["", "y", "12.5"]], num_names=2)


def test_markdown():
    lines = TABLE.markdown().splitlines()
    assert lines == ["| | kind | s |", "|---|---|---:|", "| a [b] | x | 1 |", "| | y | 12.5 |"]


def test_screen_shows_every_cell_as_it_is():
    """Brackets are no markup."""
    out = io.StringIO()
    Console(file=out, width=80).print(TABLE.screen("title"))
    assert "title" in out.getvalue()
    assert "a [b]" in out.getvalue()
    assert ["y", "12.5"] in [line.split() for line in out.getvalue().splitlines()]
