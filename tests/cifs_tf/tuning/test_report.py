"""The figure of a search: its ticks, and which trials a line joins."""

import types

import matplotlib.figure
import pytest

from cifs_tf.tuning import report


def row(accuracy, **values):
    return {"values": values, "epoch": 1, **dict.fromkeys(report.METRICS, accuracy)}


def drawn(rows, tmp_path, monkeypatch, searched):
    """The axes that are written."""
    figures = []
    monkeypatch.setattr(report, "save_figure", lambda figure, file: figures.append(figure))
    some = types.SimpleNamespace
    config = some(search=some(search=searched), data=some(dataset="digits"), model=some(defense="cifs"))
    report.write_picture(rows, config, tmp_path / "accuracy.png")
    (figure,) = figures
    assert isinstance(figure, matplotlib.figure.Figure)
    figure.canvas.draw()
    return figure.axes[0]


def test_a_line_joins_trials_that_differ_in_beta_alone(tmp_path, monkeypatch):
    rows = [
        *(row(0.5 - 0.1 * index, beta=beta, top_k=2) for index, beta in enumerate((0.5, 2.0, 10.0))),
        row(0.1, beta=2.0, top_k=2),  # the same once more, and worse
        row(0.05, beta=1.0, top_k=5),
    ]
    axes = drawn(rows, tmp_path, monkeypatch, ["beta", "top_k"])
    found = [([float(x) for x in line.get_xdata()], line.get_ydata().tolist()) for line in axes.lines]
    assert found == 2 * [([1.0], [5.0])] + 2 * [([0.5, 2.0, 10.0], pytest.approx([50.0, 40.0, 30.0]))]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.5", "1", "2", "10"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["robust", "natural"]


def test_of_many_values_some_are_named(tmp_path, monkeypatch):
    axes = drawn([row(0.5, beta=float(x)) for x in range(20)], tmp_path, monkeypatch, ["beta"])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "3", "6", "9", "12", "15", "18"]


def test_cuts_stand_beside_each_other(tmp_path, monkeypatch):
    rows = [row(0.5, cuts=("a",), beta=1.0), row(0.4, cuts=("a", "b"), beta=1.0)]
    axes = drawn(rows, tmp_path, monkeypatch, ["cuts"])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", report.as_text(("a", "b"))]
