"""Every figure of the project: one palette, whole files, the same bytes for the same figure."""

import pytest

from cifs_tf.figures import DEFENSES, OTHERS, color_networks, make_figure, save_figure, styled, svg_of


@styled
def drawn():
    figure = make_figure((2, 1.5))
    axes = figure.subplots()
    axes.plot([1, 4], [0, 1], label="a")
    axes.legend()
    return figure


def test_style_holds_while_drawing_and_not_afterwards():
    (axes,) = drawn().axes
    assert axes.get_xlim() == (1, 4)  # axes end where the data end
    assert not axes.spines["top"].get_visible()
    assert not axes.get_legend().get_frame_on()
    assert make_figure((2, 2)).subplots().spines["top"].get_visible()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_figure_gives_the_same_bytes(tmp_path, suffix):
    files = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for file in files:
        save_figure(drawn(), file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_figure_that_cannot_be_written_leaves_the_old_one(tmp_path):
    file = tmp_path / "a.unknown"
    file.write_text("old")
    with pytest.raises(ValueError, match="unknown"):
        save_figure(drawn(), file)
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.unknown"]


def test_svg_stands_in_a_page():
    text = svg_of(drawn())
    assert text.startswith("<svg")
    assert text == svg_of(drawn())


def test_defenses_keep_their_colours():
    colors = color_networks(["mine", "CIFS", "vanilla", "theirs"])
    assert (colors["CIFS"], colors["vanilla"]) == (DEFENSES["cifs"], DEFENSES["vanilla"])
    assert len(set(colors.values())) == 4
    many = color_networks(f"network {i}" for i in range(len(OTHERS) + 9))
    assert len(many) == len(OTHERS) + 9


def test_colours_differ_in_lightness_or_hue():
    """Okabe and Ito's eight, no red beside green of the same lightness (luminance by Rec. 709)."""
    every = [*DEFENSES.values(), *OTHERS]
    assert len(set(every)) == len(every)
