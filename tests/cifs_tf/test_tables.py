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


def test_a_title_wider_than_the_table_stays_on_its_line():
    """A short table's title was broken: "16 test" at the end of one line, "images" in the next."""
    out = io.StringIO()
    title = "cifar10: accuracy in % on 16 test images, epsilon 8/255 [x]"
    Console(file=out, width=80).print(TABLE.screen(title, "worst over beta_atk (in brackets), of a network"))
    lines = out.getvalue().splitlines()
    assert lines[0].rstrip() == title
    assert lines[-1].rstrip() == "worst over beta_atk (in brackets), of a network"
