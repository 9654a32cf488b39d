"""Figures: what is drawn is what was measured, in the paper's order, without pyplot."""

import io
from pathlib import Path

import numpy as np
import pytest

import cifs_tf.analysis.plots
from cifs_tf.analysis import make_profile
from cifs_tf.analysis.plots import plot_class_robustness, plot_curves, plot_profiles
from cifs_tf.errors import UserError


@pytest.fixture(scope="module")
def profiles():
    rng = np.random.default_rng(0)
    return {
        f"AT/{name}": make_profile(rng.random((4, 6)), rng.random((4, 6)), rng.normal(size=6))
        for name in ("car", "cat")
    }


def drawn(axes, label):
    (line,) = [line for line in axes.get_lines() if line.get_label() == label]
    return line.get_ydata()


def legend_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_profiles_have_three_panels_in_the_papers_order(profiles):
    figure = plot_profiles(profiles, attack="PGD-20")
    assert len(figure.axes) == 6
    grid = np.array(figure.axes).reshape(3, 2)
    for column, (title, profile) in zip(grid.T, profiles.items(), strict=True):
        top, middle, bottom = column
        assert top.get_title() == title
        np.testing.assert_array_equal(drawn(top, "Natural"), profile.natural_magnitude)
        np.testing.assert_array_equal(drawn(top, "PGD-20"), profile.adversarial_magnitude)
        np.testing.assert_array_equal(middle.get_lines()[0].get_ydata(), profile.weights)
        assert np.all(np.diff(profile.weights) <= 0)
        np.testing.assert_array_equal(drawn(bottom, "Natural"), profile.natural_frequency)
        np.testing.assert_array_equal(drawn(bottom, "PGD-20"), profile.adversarial_frequency)
        # The shade begins between the last positive weight and the first that is not.
        (shade,) = top.patches
        assert shade.get_x() == np.sum(profile.weights > 0) - 0.5
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["Magnitude", "Weight", "Frequency"]
    assert "hannel" in grid[2, 0].get_xlabel()
    assert legend_of(figure) == ["Natural", "PGD-20", "NR channels"]


def test_curves_show_what_was_logged():
    """An epoch without validation leaves a gap; what no epoch logged is not in the legend."""
    history = [
        {"loss": 2.0, "robust_accuracy": 0.2, "val_robust_accuracy": 0.3, "val_clean_accuracy": 0.5},
        {"loss": 1.5, "robust_accuracy": 0.3},
        {"loss": 1.0, "robust_accuracy": 0.4, "val_robust_accuracy": 0.4, "val_clean_accuracy": None},
    ]
    figure = plot_curves({"vanilla": history, "CIFS": history[:1]}, {"vanilla": 3, "CIFS": None})
    loss, accuracy = figure.axes
    assert [line.get_ydata().tolist() for line in loss.get_lines()] == [[2.0, 1.5, 1.0], [2.0]]
    by_color = {line.get_color() for line in loss.get_lines()}
    assert len(by_color) == 2
    points = [line.get_xydata().round(6).tolist() for line in accuracy.get_lines()]
    assert points[:4] == [[[1, 50]], [[1, 30], [3, 40]], [[1, 20], [2, 30], [3, 40]], [[3, 40]]]
    legend = legend_of(figure)
    assert legend[:2] == ["vanilla", "CIFS"]
    assert legend[-1] == "best epoch"
    assert "training images" not in legend


def test_class_robustness_has_a_bar_for_each_network_and_class():
    figure = plot_class_robustness({"vanilla": [0.5, np.nan], "CIFS": [0.25, 1.0]}, ["cat", "dog"], "PGD-20")
    (axes,) = figure.axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    np.testing.assert_array_equal(heights, [[50, np.nan], [25, 100]])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["cat", "dog"]
    assert axes.get_ylabel() == "PGD-20 accuracy (%)"
    assert legend_of(figure) == ["vanilla", "CIFS"]
    assert {text.get_text() for text in axes.texts} == {"50", "25", "100", ""}


def test_figures_are_reproducible_and_need_no_display(profiles):
    def png():
        file = io.BytesIO()
        plot_profiles(profiles).savefig(file, format="png", metadata={"Software": None})
        return file.getvalue()

    first = png()
    assert first.startswith(b"\x89PNG")
    assert png() == first
    assert "import pyplot" not in Path(cifs_tf.analysis.plots.__file__).read_text()


def test_errors_name_the_argument():
    for function, arguments in ((plot_profiles, ()), (plot_curves, ()), (plot_class_robustness, (["cat"],))):
        with pytest.raises(UserError, match="received nothing; give one at least"):
            function({}, *arguments)
    with pytest.raises(
        UserError, match=r"accuracies: received CIFS of shape \(1,\); give one number for each of the 2"
    ):
        plot_class_robustness({"CIFS": np.ones(1)}, ["cat", "dog"])
