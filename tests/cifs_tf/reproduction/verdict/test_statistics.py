"""Bits, contrasts, bootstrap, gate and judgements, by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifs_tf.reproduction.verdict.cells import pack_bits, unpack_bits
from cifs_tf.reproduction.verdict.statistics import (
    Difference,
    accuracies,
    bootstrap,
    contrast,
    gate,
    judge_hypotheses,
    judge_one,
    verdicts,
)
from cifs_tf.reproduction.verdict.study import Term, load_study
from tests.cifs_tf.reproduction.verdict.synthetic import IMAGES, make_cell

STUDY = load_study()


@given(st.lists(st.booleans(), max_size=40))
def test_bits_come_back(values):
    text = pack_bits(np.array(values, bool))
    assert len(text) == -(-len(values) // 4)
    assert unpack_bits(text, len(values)).tolist() == values


def test_the_papers_verdicts_are_those_of_its_lowest_accuracy():
    """pgd20 keeps 30% at beta 0 and 15% at beta 2, fgsm 45%: the minimum of the means is 15%."""
    assert verdicts(make_cell("vanilla", 0), "last", "paper").mean() == pytest.approx(0.15)
    assert verdicts(make_cell("vanilla", 0), "last", "worst_case").sum() == 0.1 * IMAGES


def test_contrast_pairs_seeds_and_images():
    """The first tenth of the images stands in both, the next in one: +1 there; seed 2 lacks a partner."""
    cells = [make_cell("cifs", seed, last=0.2) for seed in (0, 1, 2)] + [make_cell("vanilla", seed) for seed in (1, 0)]
    terms = (Term(1, "cifs", "last", "worst_case"), Term(-1, "vanilla", "last", "worst_case"))
    expected = np.zeros((2, IMAGES))
    expected[:, IMAGES // 10 : IMAGES // 5] = 1
    np.testing.assert_array_equal(contrast(cells, terms), expected)
    assert len(contrast(cells[:3], terms)) == 0


def test_bootstrap_over_images_has_the_width_of_a_mean():
    """One seed, n images of which a share p stands: the standard error is sqrt(p (1 - p) / n)."""
    values = (np.arange(400) < 100).astype(float)[None]
    found, error = bootstrap(values), np.sqrt(0.25 * 0.75 / 400)
    assert found.mean == 0.25
    assert found.low == pytest.approx(0.25 - 1.96 * error, abs=0.004)
    assert found.high == pytest.approx(0.25 + 1.96 * error, abs=0.004)
    assert bootstrap(values) == found


def test_bootstrap_over_seeds():
    """Two seeds of constant values 0 and 1: resampled means are 0, 1/2 and 1 with probability 1/4, 1/2 and 1/4."""
    found = bootstrap(np.stack([np.zeros(50), np.ones(50)]))
    assert (found.low, found.mean, found.high) == pytest.approx((0.0, 0.5, 1.0))
    assert found.seeds == 2


def test_seeds_share_the_images_that_are_drawn():
    """Three seeds that agree on every image carry no more than one of them: the interval is as wide."""
    values = (np.arange(400) < 100).astype(float)
    one, three = bootstrap(values[None]), bootstrap(np.stack([values] * 3))
    assert three.high - three.low == pytest.approx(one.high - one.low, abs=0.005)


@pytest.mark.parametrize(
    ("training", "curve", "reached"),
    [(0.8, (0.1, 0.3, 0.27), True), (0.79, (0.1, 0.3, 0.2), False), (0.9, (0.1, 0.3, 0.28), False)],
)
def test_gate(training, curve, reached):
    found = gate([make_cell("vanilla", seed, training=training, curve=curve) for seed in (0, 1)], STUDY)
    assert (found.reached, found.seeds, found.peaks) == (reached, 2, (2, 2))
    assert found.decline == pytest.approx(0.3 - curve[-1])
    assert gate([make_cell("cifs", 0)], STUDY)[:2] == (0, None)


@pytest.mark.parametrize(
    ("kind", "low", "high", "verdict"),
    [
        ("greater", 0.01, 0.1, "supported"),
        ("greater", -0.1, -0.01, "contradicted"),
        ("greater", -0.1, 0.1, "undecided"),
        ("as_well", -0.02, 0.1, "supported"),
        ("as_well", -0.1, -0.04, "contradicted"),
        ("as_well", -0.1, 0.1, "undecided"),
        ("gone", -0.1, 0.02, "supported"),
        ("gone", 0.01, 0.1, "contradicted"),
        ("gone", -0.01, 0.1, "undecided"),
    ],
)
def test_judge_one(kind, low, high, verdict):
    assert judge_one(kind, 0.03, Difference((low + high) / 2, low, high, 3)) == verdict


def study_cells(seeds=3, **last):
    """All arms; each keeps a share of the images at the last epoch, 30% unless told."""
    return [make_cell(arm, seed, last=last.get(arm, 0.3), best=0.3) for arm in STUDY.arms for seed in range(seeds)]


def test_judge_a_finished_study():
    """Vanilla falls to 10%, CIFS stays at 30%, so does the permuted mask; 1/C and no label fall with vanilla."""
    judged = judge_hypotheses(study_cells(vanilla=0.1, scale_only=0.1, no_label=0.1), STUDY)
    verdicts_found = {name: each.verdict for name, each in judged.items()}
    assert verdicts_found == {
        "H1": "supported",
        "H2": "supported",
        "H3": "supported",
        "H4": "contradicted",
        "H5": "undecided",  # the gap between the protocols is the same everywhere
        "H6": "supported",
    }
    assert judged["H1"].contrasts["CIFS, mean one"].difference.mean == pytest.approx(0.2)


def test_arms_that_fare_differently_are_mixed_and_a_missing_effect_is_moot():
    judged = judge_hypotheses(study_cells(vanilla=0.2, mean_one=0.1), STUDY)
    assert judged["H1"].verdict == "mixed"
    assert judged["H6"].verdict == "moot, there is no effect to lose"


def test_too_few_seeds_are_told_and_not_judged():
    judged = judge_hypotheses(study_cells(seeds=2, vanilla=0.1), STUDY)
    assert {each.verdict for each in judged.values()} == {"not enough cells yet"}
    assert judged["H1"].contrasts["CIFS, mean one"].difference.seeds == 2
    assert judge_hypotheses([], STUDY)["H1"].contrasts["CIFS, mean one"].difference is None


def test_a_verdict_leaves_no_seed_out():
    """Seeds 1, 2 and 3 may be those that suit somebody."""
    cells = [
        make_cell(arm, seed, last=last) for arm, last in (("vanilla", 0.1), ("mean_one", 0.3)) for seed in (1, 2, 3)
    ]
    found = judge_hypotheses(cells, STUDY)["H1"].contrasts["CIFS, mean one"]
    assert (found.difference, found.verdict) == (None, "not enough cells yet")
    assert gate(cells, STUDY).seeds == 0
    whole = [
        *cells,
        *(
            make_cell(arm, seed, last=0.3 - 0.2 * (arm == "vanilla"))
            for arm, seed in (("vanilla", 0), ("mean_one", 0), ("vanilla", 7), ("mean_one", 7))
        ),
    ]  # seed 7 waits for those before it, and takes no verdict back
    found = judge_hypotheses(whole, STUDY)["H1"].contrasts["CIFS, mean one"]
    assert (found.difference.seeds, found.verdict) == (4, "supported")


def test_bootstrap_of_three_seeds_alone_reaches_from_the_lowest_to_the_highest():
    """One of 27 resamples has the lowest alone, more than 2.5%; all three are above the median in one case of eight."""
    found = bootstrap(np.array([[0.1], [0.5], [0.2]]))
    assert (found.low, found.high) == pytest.approx((0.1, 0.5))


def test_accuracies_of_an_arm():
    found = accuracies([make_cell("cas", 0, last=0.1), make_cell("cas", 1, last=0.3)], "cas")
    assert found["seeds"] == 2
    assert found["last"]["worst_case"].mean == pytest.approx(0.2)
    assert found["last"]["per_class"] == pytest.approx([0.2] * 10)
    assert accuracies([], "cas") is None
