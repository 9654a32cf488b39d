"""`benchmark.py methods`: steps of several methods are timed in turns, beside one of PGD."""

import json

import pytest

from cifs_tf.benchmarks.tables import methods_table
from cifs_tf.errors import UserError
from cifs_tf.programs import benchmark


@pytest.mark.slow
def test_methods_are_measured_beside_pgd(tmp_path, capsys):
    file = tmp_path / "methods.json"
    tiny = ["--arch=resnet10", "--width=4", "--image_size=8", "--batch_size=4", "--num_steps=2", "--pairs=2"]
    benchmark.main(["methods", *tiny, "--methods=nfgsm", "--json", str(file)])
    result = json.loads(file.read_text())
    assert set(result["methods"]) == {"pgd", "nfgsm"}
    assert "flops" not in result["methods"]["nfgsm"]
    pairs = zip(*(result["methods"][name]["seconds"] for name in ("nfgsm", "pgd")), strict=True)
    assert result["ratios"]["nfgsm"]["ratio"]["pairs"] == pytest.approx([one / other for one, other in pairs])
    assert [row[0] for row in methods_table(result).rows] == ["pgd, 2 steps", "nfgsm"]
    assert "time over that of pgd" in " ".join(capsys.readouterr().out.split())


def test_unknown_methods_are_refused():
    with pytest.raises(UserError, match=r"--methods: received .*mine"):
        benchmark.main(["methods", "--methods=mine"])
    with pytest.raises(UserError, match="--methods"):
        benchmark.main(["methods", "--methods=[]"])
    with pytest.raises(UserError, match="pgd is timed anyway"):
        benchmark.main(["methods", "--methods=pgd"])
    with pytest.raises(UserError, match="--num_steps: received 0"):
        benchmark.main(["methods", "--num_steps=0"])
