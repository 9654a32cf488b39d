"""From rows to networks and commands."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from cifs_tf.command_line import parse_options
from cifs_tf.config import RunConfig
from cifs_tf.files import write_results
from cifs_tf.programs.analyse import AnalyseOptions
from cifs_tf.programs.evaluate import EvaluateOptions
from cifs_tf.reproduction.catalogue import figures, tables
from cifs_tf.reproduction.plan import Analysis, Evaluation, Training, jobs_of, plan_figure, plan_table
from cifs_tf.reproduction.scales import SCALES
from cifs_tf.runs.keys import stamp
from cifs_tf.runs.recipes import RECIPES, arguments, parse_config
from cifs_tf.runs.workdir import Workdir

PLACES = ("workdir", "data_dir")
WORKDIR = Path("runs/here")


def plan(number, scale="full", seeds=1):
    return plan_table(tables()[number], SCALES[scale], seeds)


def trainings(number, scale="full"):
    return {row.row.name: row.evaluations[0].training for row in plan(number, scale) if row.row.block != "WRN-28-10"}


def test_the_same_network_is_trained_once():
    """Tables 1, 5, B.2, B.4 and E.1 to E.3 all have the paper's ResNet-18 with CIFS."""
    first = trainings("1")["CIFS"]
    again = [
        ("5", "top-2"),
        ("B.2", "CIFS"),
        ("B.4", "CIFS-AT"),
        ("E.1", "beta = 2"),
        ("E.2", "P1-P2"),
        ("E.3", "MLP-Linear"),
    ]
    for number, name in again:
        assert trainings(number)[name] == first, number
    everything = [row for number in tables() for row in plan(number)]
    jobs = [job for job in jobs_of(everything) if isinstance(job, Training)]
    assert len({job.folder for job in jobs}) == len(jobs)
    assert len({tuple(pair for pair in job.config if pair[0] != "recipe") for job in jobs}) == len(jobs)


def test_the_same_measurement_is_made_once():
    """Tables 1, 4, 5 and B.3 read one report of the vanilla network."""
    reports = {
        row.evaluations[0].report_file
        for n in ("1", "4", "5", "B.3")
        for row in plan(n)
        if "anilla" in row.evaluations[0].folder and "wrn" not in row.evaluations[0].folder
    }
    assert reports == {"evaluations/cifar10-vanilla-seed0/last/paper/report.json"}


def test_a_network_is_trained_before_it_is_measured():
    jobs = jobs_of(plan("1", seeds=2))
    for index, job in enumerate(jobs):
        if isinstance(job, Evaluation):
            assert jobs.index(job.training) < index
    assert sum(isinstance(job, Training) for job in jobs) == 2 * 6


@pytest.mark.parametrize(("number", "scale"), [("B.4", "full"), ("E.2", "small"), ("B.1", "smoke")])
def test_every_command_is_one_that_its_program_takes(number, scale):
    for job in jobs_of(plan(number, scale)):
        options = job.argv(WORKDIR, "data")
        if isinstance(job, Training):
            config = parse_config("run.py", "", options)
            assert config.data.data_dir == "data"
            assert {name: value for name, value in config.flat().items() if name not in PLACES} == {
                name: job[name] for name in config.flat() if name not in PLACES
            }
        else:
            evaluation = parse_options(EvaluateOptions, "evaluate.py", options, "")
            assert (evaluation.checkpoint, evaluation.suite) == (job.checkpoint, job.setup.suite)


def test_only_the_very_same_run_and_measurement_count_as_done(tmp_path):
    training, evaluation = jobs_of(plan("4", "smoke"))
    config = {name: json.loads(value) for name, value in training.config}
    result = tmp_path / training.folder / "result.json"
    for stored, done in [({}, False), ({"finished": "now"}, True), ({"finished": "now", "epochs": 7}, False)]:
        write_results(result, {"config": {**config, "workdir": "elsewhere", **stored}, **stored})
        assert training.is_done(tmp_path) is done
    measured = {"networks": {training["defense"]: {"evaluation": {"last": {"weights": "abc"}}}}}
    write_results(result, {"config": config, "finished": "now", **measured})
    about = {
        **{"suite": "paper", "split": "test", "norm": "linf", "epsilon": 0.1, "seed": training["seed"]},
        **{"num_probes": 2, "mask_gradients": ["detached", "full", "smoothed"], "subset_of": 360, "unlike_run": []},
    }
    by_beta = {"by_beta": dict.fromkeys(["0", "0.1", "1", "2", "10", "100", "infinity", "infinity-1", "infinity-2"])}
    report = {
        "num_examples": 3,
        "paper": {"attacks": dict.fromkeys(("fgsm", "pgd2", "cw2"), by_beta)},
        "tasks": [{"section": "paper", "mask_gradient": "detached"}],
        "about": about,
        "key": {"weights": "abc"},
    }
    one_beta = {"attacks": {name: {"by_beta": {"0": None}} for name in ("fgsm", "pgd2", "cw2")}}
    of_all = dataclasses.replace(evaluation, setup=dataclasses.replace(evaluation.setup, examples=None))
    for subset_of in (None, 360):
        write_results(tmp_path / evaluation.report_file, {**report, "about": {**about, "subset_of": subset_of}})
        assert of_all.is_done(tmp_path) is (subset_of is None)
    for other, done in [
        ({}, True),
        ({"paper": {"attacks": {"fgsm": by_beta}}}, False),
        ({"paper": one_beta}, False),
        ({"num_examples": 5}, False),
        ({"about": {**about, "suite": "strict"}}, False),
        ({"about": {**about, "split": "validation"}}, False),
        ({"about": {**about, "epsilon": 0.001}}, False),
        ({"about": {**about, "norm": "l2"}}, False),
        ({"about": {**about, "seed": 7}}, False),
        ({"about": {**about, "unlike_run": ["other test images"]}}, False),
        ({"tasks": [{"section": "paper", "mask_gradient": "full"}]}, False),
        ({"key": {"weights": "of the run that lay there before"}}, False),
    ]:
        write_results(tmp_path / evaluation.report_file, {**report, **other})
        assert evaluation.is_done(tmp_path) is done, other


def test_where_the_best_epoch_is_the_last_a_network_is_measured_once(tmp_path):
    """Of ten epochs; robust accuracies of which the third, or the tenth, is the highest."""
    evaluation = plan("B.2", "small")[0].evaluations[0]
    run = Workdir(tmp_path / evaluation.training.folder)
    file = run.model_file("vanilla")
    assert evaluation.resolved(tmp_path) == evaluation
    with run.open(RunConfig()):
        file.parent.mkdir()
    for best, checkpoint in [(3, "best"), (10, "last")]:
        history = [{"val_robust_accuracy": 0.5 + 0.1 * (epoch == best)} for epoch in range(1, 11)]
        file.unlink(missing_ok=True)
        stamp(file, {"key": run.key, "defense": "vanilla", "checkpoint": "last", "history": history})
        assert evaluation.resolved(tmp_path).checkpoint == checkpoint


def test_commands_survive_the_shell():
    job = jobs_of(plan("1", "small"))[0]
    words = shlex.split(job.command(WORKDIR))
    assert words[:2] == ["python", "training/run.py"]
    assert words[2] == f"--recipe=training/recipes/{job.recipe}.yaml"
    assert [f"--recipe={RECIPES / job.recipe}.yaml", *words[3:]] == job.argv(WORKDIR)


def test_full_scale_has_the_papers_hyper_parameters():
    """Appendix B.1: WRN-28-10 for 110 epochs with a weight decay of 0.0005; Appendix C: SVHN at 0.01 and 0.0005."""
    wide = [row for row in plan("1") if row.row.block == "WRN-28-10"][-1].evaluations[0].training
    assert [wide[name] for name in ("arch", "epochs", "weight_decay", "lr_milestones")] == [
        "wrn28-10",
        110,
        5e-4,
        [75, 90],
    ]
    svhn = trainings("2")["CIFS"]
    assert [svhn[name] for name in ("learning_rate", "weight_decay", "epochs")] == [0.01, 5e-4, 120]
    assert [trainings("E.1")[f"beta = {beta}"]["beta"] for beta in (0.1, 1, 10, 100)] == [0.1, 1, 10, 100]
    assert trainings("E.2")["P1"]["cuts"] == ["stage4_block2_out"]
    assert trainings("E.2", "small")["P1"]["cuts"] == ["stage4_block1_out"]


def test_figures_share_the_analyses_of_the_same_networks():
    """Figures 3, A.1 and A.2 show one set of networks, of which A.1 is another picture."""
    analyses = {number: plan_figure(figure, SCALES["full"]) for number, figure in figures().items()}
    assert analyses["3"] == analyses["A.1"] == analyses["A.2"]
    assert [training["importance"] for training in analyses["3"].trainings[1:]] == ["sigmoid", "softplus", "softmax"]
    assert analyses["1"].trainings[0]["method"] == "standard"
    assert analyses["3"].names == ("vanilla", "CIFS-sigmoid", "CIFS-softplus", "CIFS-softmax")
    assert all(isinstance(analysis, Analysis) for analysis in analyses.values())


def test_folders_of_any_name_survive_the_command_line():
    runs = ["/t/a,b/x", "/t/c d/[y]", "/t/e: f", "/t/plain"]
    options = parse_options(AnalyseOptions, "analyse.py", arguments({"run": [Path(run) for run in runs]}), "")
    assert [str(run) for run in options.run] == runs
    assert arguments({"attack_betas": [0, "infinity-1"]}) == ["--attack_betas=0,infinity-1"]
