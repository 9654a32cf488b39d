"""From a run to a preset: weights, and a card whose numbers are those of the run's reports."""

import json

import numpy as np
import pytest

import cifs_tf
from cifs_tf.errors import UserError
from cifs_tf.files import read_results, write_results
from cifs_tf.presets.from_run import main
from tests import running
from tests.runs import write_run


def test_a_run_becomes_a_preset(trained, make_images, tmp_path, capsys):
    run = write_run(tmp_path / "run", trained.classifier)
    options = ["--run", str(run), "--folder", str(tmp_path / "mine")]
    with pytest.raises(UserError, match=r"--checkpoint last --suite paper"):
        main(options)
    small = ["--suite=paper", "--attacks=fgsm", "--attack_betas=0", "--audit=false"]
    code, _, err = running.run_here("--model", run, *small, cwd=tmp_path, program="evaluate.py")
    assert code == 0, err
    with pytest.raises(UserError, match=r"no cifs/best\.keras"):
        main([*options, "--checkpoint=best"])
    assert not (tmp_path / "mine").exists()

    file = run / "cifs" / "evaluation" / "last" / "paper" / "report.json"
    report = read_results(file)
    for words, other in (
        ("of other epsilon", {"about": {**report["about"], "epsilon": 0.01}}),
        ("of other images", {"about": {**report["about"], "unlike_run": ["other test images"]}}),
        ("of other weights", {"key": {**report["key"], "weights": "abc"}}),
    ):
        write_results(file, {**report, **other})
        with pytest.raises(UserError, match=rf"--run: .*paper/report\.json is {words}; measure it anew"):
            main(options)
        assert not (tmp_path / "mine").exists()
    strict = {"about": {**report["about"], "suite": "strict"}, "audit": [], "believable": None}  # without its audit
    write_results(run / "cifs/evaluation/last/strict/report.json", {**report, **strict})
    write_results(file, {**report, "about": {**report["about"], "seed": 7}})
    with pytest.raises(UserError, match="strict was measured without the audit"):
        main(options)
    (run / "cifs/evaluation/last/strict/report.json").unlink()
    main(options)
    assert str(tmp_path / "mine" / "card.json") in capsys.readouterr().out
    images = make_images((2, 8, 8, 1))
    np.testing.assert_array_equal(cifs_tf.from_preset(tmp_path / "mine")(images), trained.classifier(images))
    card = json.loads((tmp_path / "mine" / "card.json").read_text())
    assert card["measured"]["natural"]["count"] == report["natural"]["count"]
    assert card["measured"]["paper"]["count"] == report["worst_case"]["count"]
    assert card["measured"]["strict"] is None
    assert (card["name"], card["checkpoint"], card["data"]["num_examples"]) == ("mine", "last", 40)
    assert f"--model {tmp_path / 'mine' / 'model.keras'} --suite strict" in card["commands"]["measure_strict"]
    assert card["commands"]["measure_paper"].endswith("--seed=7 --attacks=fgsm --attack_betas=0 --examples=40")
    with pytest.raises(UserError, match="holds a preset already"):
        main(options)
