"""The paper's numbers: against each other, where the paper says a thing twice, and against its text."""

from __future__ import annotations

import re

import pytest

from cifs_tf.reproduction.catalogue import figures, tables
from tests.running import SHARED

PAPER = SHARED / "paper" / "cifs.md"


def numbers(table, block, row):
    found = {row.name: row for row in tables()[table].rows if row.block == block}[row]
    return dict(zip(tables()[table].columns, found.paper, strict=True))


def test_every_table_and_figure_is_there():
    appendix = ["B.1", "B.2", "B.3", "B.4", "C.1", "C.2", "D.1", "E.1", "E.2", "E.3"]
    ours = ["microscope", "recipes_digits", "recipes_fashion_mnist", "recipes_cifar10", "nfgsm"]
    assert list(tables()) == ["1", "2", "3", "4", "5", *appendix, *ours]
    assert {row.scales for number in ours for row in tables()[number].rows} == {("small",)}
    assert list(figures()) == ["1", "3", "4", "A.1", "A.2"]


def test_every_row_has_a_number_or_none_for_each_column():
    for table in tables().values():
        for row in table.rows:
            assert len(row.paper) == len(row.places) == len(table.columns), (table.number, row.name)


@pytest.mark.parametrize(
    ("table", "row", "same_as"),
    [
        *((table, "Vanilla", "Vanilla") for table in ("E.1", "E.2", "E.3")),
        ("B.4", "Vanilla-AT", "Vanilla"),
        *((table, row, "CIFS") for table, row in [("E.1", "beta = 2"), ("E.2", "P1-P2"), ("E.3", "MLP-Linear")]),
        ("B.4", "CIFS-AT", "CIFS"),
    ],
)
def test_rows_that_the_paper_repeats_agree_with_table_1(table, row, same_as):
    """But for CIFS under PGD-100, which is 48.70 in Table 1 and 48.74 in the ablations: so it is printed."""
    first, again = numbers("1", "ResNet-18", same_as), numbers(table, "ResNet-18", row)
    printed_twice = 48.74 if same_as == "CIFS" else first["PGD-100"]
    assert again == {**{column: first[column] for column in again}, "PGD-100": printed_twice}


@pytest.mark.parametrize("block", ["CAS", "CIFS"])
def test_table_1_has_the_lowest_values_of_table_b3(block):
    rows = [row.paper for row in tables()["B.3"].rows if row.block == block]
    lowest = [min(value for value in column if value is not None) for column in zip(*rows, strict=True)]
    assert lowest == list(numbers("1", "ResNet-18", block).values())


def test_tables_4_and_5_agree_with_table_1():
    vanilla = numbers("1", "ResNet-18", "Vanilla")
    assert [row.paper[0] for row in tables()["4"].rows] == [vanilla["FGSM"], vanilla["PGD-20"]]
    assert numbers("5", "ResNet-18", "Vanilla")["Adap/Final"] == vanilla["PGD-20"]
    assert numbers("5", "ResNet-18", "top-2")["Adap/Final"] == numbers("1", "ResNet-18", "CIFS")["PGD-20"]


@pytest.mark.parametrize("number", [number for number, table in tables().items() if table.rows[0].paper[0]])
def test_every_number_stands_in_the_paper(number):
    """In the text's table, read by itself: all numbers with two decimals, in order."""
    if not PAPER.is_file():
        pytest.skip(f"needs the paper's text, and {PAPER} is not there")
    text = re.sub(r"</?[bui]>", "", PAPER.read_text())
    after = text[re.search(rf"^Table {re.escape(number)}\. ", text, re.MULTILINE).start() :]
    printed = [value for line in after.split("\n") if "\t" in line for value in re.findall(r"\b\d\d\.\d\d\b", line)]
    ours = [value for row in tables()[number].rows if "full" in row.scales for value in row.paper if value is not None]
    assert [float(value) for value in printed[: len(ours)]] == ours
