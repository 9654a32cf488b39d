"""The paper's recipes, cut short, on real images."""

from __future__ import annotations

import pytest

from tests.training.running import SHARED, run

SHORTER = ["--twin=null", "--checkpoints=[last]", "--attack_betas=[0]"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "shorter"),
    [
        ("cifar10", []),
        *(
            (dataset, ["--twin=null", "--checkpoints=[last]", "--attack_betas=[0]"])
            for dataset in ("svhn", "fashion_mnist")
        ),
    ],
)
def test_paper_recipes_run_on_real_images(dataset, shorter, tmp_path):
    if not SHARED.is_dir():
        pytest.skip(f"needs the prepared datasets, and {SHARED} is not there")
    argv = ["--dataset", dataset, "--data-dir", str(SHARED / "data"), "--train-examples", "24", "--epochs", "1"]
    code, out, err = run(*argv, "--width", "4", "--workdir", "run", *shorter, cwd=tmp_path)
    assert code == 0, err
    assert "pgd100" in out
    assert "16 test images" in out
