"""The search from the outside: alone, killed and continued, and as a chief with workers that die."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard import context
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from cifs_tf.errors import UserError
from cifs_tf.programs import tune
from cifs_tf.runs.recipes import parse_config, parse_flat
from cifs_tf.runs.workdir import Workdir
from cifs_tf.tuning.options import SearchConfig, groups_of_options

ROOT = Path(__file__).parents[3]
SMALL = [
    "--arch=resnet10",
    "--width=4",
    "--train-examples=64",
    "--val_examples=32",
    "--batch_size=16",
    "--num_steps=2",
    "--epochs=1",
    "--workdir=out",
]
DEADLINE = 150


@pytest.fixture
def start(tmp_path):
    """Start the program in an empty folder; what it says is in `log`, and it ends with the test."""
    processes = []

    def start_one(*argv, **environment):
        command = [sys.executable, str(ROOT / "training" / "tune.py"), *argv]
        environment = {"PYTHONUNBUFFERED": "1", "TF_NUM_INTRAOP_THREADS": "1", **os.environ, **environment}
        path = tmp_path / f"{len(processes)}.log"
        with path.open("w") as log:
            process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
        process.log = path
        processes.append(process)
        return process

    yield start_one
    for process in processes:
        kill(process)


@pytest.fixture
def run(start):
    """Run the program to its end: (exit code, what it said)."""

    def run_to_its_end(*argv):
        process = start(*argv)
        return process.wait(DEADLINE), process.log.read_text()

    return run_to_its_end


def wait_for(pattern, process):
    """Wait until a process has written it."""
    deadline = time.monotonic() + DEADLINE
    while not re.search(pattern, process.log.read_text()):
        assert process.poll() is None, process.log.read_text()
        assert time.monotonic() < deadline, process.log.read_text()
        time.sleep(0.05)


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


def result(folder):
    return json.loads((folder / "out" / "result.json").read_text())


def hparams_sessions(folder):
    """What TensorBoard's HParams tab shows: {trial: (values, metrics, status)}."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
    request_context = context.RequestContext()
    plugin = backend_context.Context(base_plugin.TBContext(data_provider=provider, logdir=str(folder)))
    metadata = plugin.hparams_metadata(request_context, "")
    experiment = plugin.experiment_from_metadata(request_context, "", True, metadata, None)
    statuses = list(api_pb2.Status.values())
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=100, allowed_statuses=statuses)
    for info in experiment.metric_infos:
        request.col_params.add(metric=info.name)
    names = {info.name.tag: info.display_name for info in experiment.metric_infos}
    found = list_session_groups.Handler(request_context, plugin, "", request).run()
    return {
        group.name: (
            {name: value.number_value or value.string_value for name, value in group.hparams.items()},
            {names[metric.name.tag]: metric.value for metric in group.metric_values},
            api_pb2.Status.Name(group.sessions[0].status),
        )
        for group in found.session_groups
    }


@pytest.mark.slow
def test_a_search_ends_with_table_picture_recipe_and_hparams(tmp_path, run):
    argv = [*SMALL, "--max_trials=2", "--search_betas=[0.1, 2]"]
    code, out = run(*argv)
    assert code == 0, out
    assert {path.name for path in tmp_path.iterdir()} == {"out", "0.log"}
    trials = result(tmp_path)["trials"]
    assert sorted(row["values"]["beta"] for row in trials) == [0.1, 2.0]
    assert [row["status"] for row in trials] == ["completed"] * 2
    assert trials[0]["val_robust_accuracy"] >= trials[1]["val_robust_accuracy"]
    for words in ("val_robust_accuracy", "val_clean_accuracy", "completed", "best.yaml", "32 validation images"):
        assert words in out
    assert (tmp_path / "out" / "accuracy.png").read_bytes().startswith(b"\x89PNG")

    recipe = tmp_path / "out" / "best.yaml"
    first, second = recipe.read_text().splitlines()[:2]
    assert first.startswith("# Best of 2 trials on digits")
    assert second == "# python training/run.py --recipe out/best.yaml"
    best = parse_config("", "", [f"--recipe={recipe}"])
    assert best.train.beta == trials[0]["values"]["beta"]
    assert (best.model.width, best.train.epochs, best.output.workdir) == (4, 1, None)
    # A trial's folder is the workdir of that run: `run.py` goes on there.
    Workdir(tmp_path / "out" / "trials" / trials[0]["trial"]).check(best)

    sessions = hparams_sessions(tmp_path / "out")
    assert set(sessions) == {row["trial"] for row in trials}
    for row in trials:
        values, metrics, status = sessions[row["trial"]]
        assert values == row["values"]
        assert metrics == pytest.approx({name: row[name] for name in metrics})
        assert set(metrics) == {"val_robust_accuracy", "val_clean_accuracy"}
        assert status == "STATUS_SUCCESS"

    # The same command again has nothing to do, another search is refused.
    before = (tmp_path / "out" / "result.json").read_text()
    code, again = run(*argv)
    assert (code, (tmp_path / "out" / "result.json").read_text()) == (0, before)
    assert "Epoch" not in again
    code, refused = run(*argv, "--search_betas=[1, 2]")
    assert code == 2
    assert "--workdir: received out" in refused
    assert "search_betas" in refused


@pytest.mark.soak
def test_a_killed_search_goes_on(tmp_path, start, run):
    """Killed in its second trial, it trains neither the first nor the second from its beginning."""
    argv = [*SMALL, "--max_trials=2", "--epochs=3"]
    process = start(*argv)
    wait_for(r"trial 1 begins(.|\n)*Epoch 2/3", process)
    kill(process)
    assert not (tmp_path / "out" / "result.json").exists()
    code, out = run(*argv)
    assert code == 0, out
    assert "trial 0 begins" not in out
    assert "trial 1 begins" in out
    assert "Epoch 1/3" not in out
    trials = result(tmp_path)["trials"]
    assert [(row["status"], row["epochs"]) for row in trials] == [("completed", 3)] * 2


@pytest.mark.soak
def test_hyperband_continues_the_better_trials(tmp_path, run):
    """Three epochs make two brackets: of three trials of one epoch the best gets two more; two get three at once."""
    argv = [*SMALL, "--tuner=hyperband", "--epochs=3", "--search=[learning_rate]"]
    code, out = run(*argv, "--defense=vanilla", "--method=standard")  # the quickest to compile
    assert code == 0, out
    trials = result(tmp_path)["trials"]
    assert sorted(row["epochs"] for row in trials) == [1, 1, 1, 3, 3, 3]
    assert len({row["values"]["learning_rate"] for row in trials}) == 5
    (shorter, longer) = sorted(
        (row for row in trials if [other["values"] for other in trials].count(row["values"]) == 2),
        key=lambda row: row["epochs"],
    )
    histories = [
        json.loads((tmp_path / "out" / "trials" / row["trial"] / "vanilla" / "history.json").read_text())
        for row in (shorter, longer)
    ]
    assert histories[1][:1] == histories[0]
    assert len(histories[1]) == 3
    assert out.count("Epoch 1/3") == 2


@pytest.mark.soak
def test_a_diverging_trial_fails_and_the_search_goes_on(tmp_path, run):
    argv = [*SMALL, "--search=[learning_rate]", "--search_learning_rate=[1e29, 1e30]", "--max_trials=1"]
    code, out = run(*argv)
    assert code == 2
    assert "Traceback" not in out
    assert "--learning_rate" in out
    assert "none of its trials was completed" in out
    assert [row["status"] for row in result(tmp_path)["trials"]] == ["failed"]


@pytest.mark.soak
@pytest.mark.multi_worker
def test_a_chief_and_two_workers_survive_the_death_of_one(tmp_path, start):
    """The one that is left has no trial of its own to do any more, and takes over that of the dead one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    argv = [*SMALL, "--max_trials=2", "--epochs=2"]
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    chief, worker, dying = (start(*argv, KERASTUNER_TUNER_ID=name, **address) for name in ("chief", "w1", "w2"))
    wait_for("Epoch 1/2", dying)
    kill(dying)
    assert chief.wait(DEADLINE) == 0, chief.log.read_text()
    assert worker.wait(DEADLINE) == 0, worker.log.read_text()
    out = chief.log.read_text()
    assert "worker w2 is gone" in out
    assert "Best" not in worker.log.read_text()
    assert [(row["status"], row["epochs"]) for row in result(tmp_path)["trials"]] == [("completed", 2)] * 2


@pytest.mark.soak
@pytest.mark.multi_worker
def test_a_killed_launcher_takes_its_workers_with_it_and_goes_on(tmp_path, start, run):
    """Had they stayed, the second command's workers of the same names would be refused."""
    argv = [*SMALL, "--max_trials=1", "--workers=2"]
    process = start(*argv)
    wait_for("trial 0 begins", process)
    kill(process)
    code, out = run(*argv)
    assert code == 0, out
    assert [row["status"] for row in result(tmp_path)["trials"]] == ["completed"]
    assert (tmp_path / "out" / "workers" / "worker-1.log").exists()


@functools.cache
def make_config(*argv):
    return SearchConfig.from_flat(parse_flat("tune.py", "", argv, groups_of_options()))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--search=[]"], ["--search", "[]", "one at least"]),
        (["--search=[betta]"], ["--search", "betta", "beta"]),
        (["--max_trials=0"], ["--max_trials", "0", "1 or more"]),
        (["--workers=0"], ["--workers", "0", "1 or more"]),
        (["--tuner=hyperband", "--max_trials=3"], ["--max_trials", "3", "leave the option out"]),
        (["--search_betas=[]"], ["--search_betas", "[]", "one value or more"]),
        (["--search_betas=[0, 1]", "--tuner=bayesian"], ["--search_betas", "[0.0, 1.0]", "above 0"]),
        (["--search_betas=[-1, 1]"], ["--search_betas", "-1.0", "of 0 or more"]),
        (
            ["--search=[learning_rate]", "--search_learning_rate=[1]"],
            ["--search_learning_rate", "[1.0]", "two numbers"],
        ),
        (["--search=[cuts]"], ["--search_cuts", "[]", "stage4_block2_out"]),
        (["--search=[cuts]", "--search_cuts=[[nope, pool]]"], ["--search_cuts", "nope", "name a layer"]),
        (["--search=[top_k]", "--search_top_k=[2, 11]"], ["--search_top_k", "11", "10"]),
        (["--search=[alpha]"], ["--search", "[alpha]", "softplus", "softmax"]),
        (["--defense=vanilla"], ["--search", "[beta]", "vanilla"]),
        (["--search=[top_k]", "--tuner=hyperband"], ["--tuner", "hyperband", "4", "random"]),
        (["--val_examples=0"], ["--val_examples", "0", "never on test images"]),
        (["--val_every=2"], ["--val_every", "2", "give 1"]),
        (["--workdir=/dev/null/run"], ["--workdir", "/dev/null/run", "another folder"]),
        (["--maxtrials=3"], ["--maxtrials", "--max_trials"]),
    ],
)
def test_refusals_name_the_option_and_leave_nothing(argv, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        tune.main(["--val_examples=32", "--width=4", *argv])
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ORACLE_IP": "127.0.0.1", "TUNER_ID": "chief"}, ["KERASTUNER_ORACLE_PORT", "set all"]),
        ({"ORACLE_IP": "127.0.0.1", "TUNER_ID": "chief", "ORACLE_PORT": "http"}, ["KERASTUNER_ORACLE_PORT", "http"]),
        ({"ORACLE_IP": "127.0.0.1", "TUNER_ID": "../w", "ORACLE_PORT": "80"}, ["KERASTUNER_TUNER_ID", "../w"]),
    ],
)
def test_refusals_of_the_environment(variables, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(f"KERASTUNER_{name}", value)
    with pytest.raises(UserError) as caught:
        tune.main(["--val_examples=32", "--width=4"])
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_program_says_it_in_one_sentence_with_code_2(run):
    code, out = run("--search=[]")
    assert code == 2
    assert [line.split(" ", 3)[:3] for line in out.splitlines()] == [["tune.py:", "error:", "--search:"]]


def test_commands_of_the_documentation_parse():
    text = (ROOT / "docs" / "tuning.md").read_text() + (ROOT / "training" / "tune.py").read_text().split('"""')[1]
    lines = re.findall(r"python (training/tune\.py [^#\n]*?)(?:  |&|#|$)", text, re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        make_config(*shlex.split(line)[1:])
