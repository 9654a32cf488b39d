"""Attacks in two precisions, image by image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifs_tf.benchmarks.precision import compare
from cifs_tf.errors import UserError
from cifs_tf.programs import benchmark


def test_comparison_by_hand():
    """Five images fell to one attack alone, one to the other: p = 2 (C(6,0) + C(6,1)) / 2^6."""
    float32 = np.array([True] * 4 + [False] * 5 + [True])
    bfloat16 = np.array([True] * 4 + [True] * 5 + [False])
    found = compare(float32, bfloat16)
    assert found["robust_accuracy"] == {"float32": 0.5, "mixed_bfloat16": 0.9}
    assert (found["broken_by_float32_alone"], found["broken_by_bfloat16_alone"]) == (5, 1)
    assert found["p_value"] == pytest.approx(2 * 7 / 64)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_neither_precision_is_favoured(verdicts):
    one, other = (np.array(side) for side in zip(*verdicts, strict=True))
    assert compare(one, other)["p_value"] == compare(other, one)["p_value"] <= 1
    assert compare(one, one)["p_value"] == 1


def test_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="--run: received"):
        benchmark.main(["precision", "--run", str(tmp_path)])
