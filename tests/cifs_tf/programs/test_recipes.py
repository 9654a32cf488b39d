"""The paper's recipes, cut short, on real images."""

from __future__ import annotations

import pytest

from tests.running import SHARED, run_here

SHORTER = ["--attacks=[pgd100]", "--eval_audit=false", "--export=false"]


@pytest.mark.parametrize(
    ("dataset", "shorter"),
    [
        pytest.param("cifar10", SHORTER, marks=pytest.mark.soak),
        pytest.param("svhn", SHORTER, marks=pytest.mark.slow),
        pytest.param("fashion_mnist", [], marks=pytest.mark.soak),
    ],
)
def test_paper_recipes_run_on_real_images(dataset, shorter, tmp_path):
    if not SHARED.is_dir():
        pytest.skip(f"needs the prepared datasets, and {SHARED} is not there")
    argv = ["--dataset", dataset, "--data-dir", str(SHARED / "data"), "--train-examples", "24", "--epochs", "1"]
    argv += ["--width", "4", "--twin=null", "--checkpoints=[last]", "--attack_betas=[0]"]
    code, out, err = run_here(*argv, *shorter, "--workdir", "run", cwd=tmp_path)
    assert code == 0, err
    assert "pgd100" in out
    assert "16 test images" in out
