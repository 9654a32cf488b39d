"""Choices by name, as properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifs_tf.data.partition import choose_count, choose_share

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def images(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return [f"{index}.png" for index in range(len(labels))], labels


@given(SIZES, st.integers(0, 300), st.booleans())
def test_a_count_is_exact_and_in_proportion(sizes, count, keep_one):
    names, labels = images(sizes)
    count = min(count, len(names))
    chosen = np.bincount(labels[choose_count(names, labels, count, "test", keep_one)], minlength=len(sizes))
    assert chosen.sum() == count
    assert (chosen <= sizes).all()
    room = np.array(sizes) - 1
    if keep_one and count <= room.sum():
        assert (chosen <= room).all()
    if count >= len(sizes):
        assert (chosen >= (np.minimum(room, 1) if keep_one and count <= room.sum() else 1)).all()


@given(SIZES, st.floats(0.01, 0.99))
def test_a_share_leaves_both_sides_something(sizes, share):
    names, labels = images(sizes)
    chosen = np.bincount(labels[choose_share(names, labels, share, "test")], minlength=len(sizes))
    for size, number in zip(sizes, chosen, strict=True):
        assert number == 0 if size == 1 else 1 <= number < size


def test_a_share_is_about_the_share():
    names, labels = images([5000, 5000])
    chosen = choose_share(names, labels, 0.2, "test")
    assert 0.18 < chosen.mean() < 0.22


def test_purposes_are_independent():
    names, labels = images([10_000])
    both = choose_share(names, labels, 0.2, "test") & choose_share(names, labels, 0.2, "validation")
    assert 0.03 < both.mean() < 0.05


@pytest.mark.parametrize("composed", ["caf\u00e9.png"])
def test_unicode_forms_are_one_name(composed):
    decomposed = "cafe\u0301.png"
    others = [f"{index}.png" for index in range(50)]
    labels = np.zeros(51, int)
    for purpose in map(str, range(20)):
        first, second = (choose_share([name, *others], labels, 0.5, purpose) for name in (composed, decomposed))
        np.testing.assert_array_equal(first, second)
