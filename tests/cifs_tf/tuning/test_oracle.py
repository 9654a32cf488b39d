"""A search's memory: kills at every write, workers that die, values that travel."""

from __future__ import annotations

import functools
import json

import keras_tuner
import pytest
from keras_tuner.src.distribute.oracle_client import OracleClient

from cifs_tf.errors import UserError
from cifs_tf.runs.recipes import parse_flat
from cifs_tf.tuning import oracle as oracle_module
from cifs_tf.tuning.options import SearchConfig, groups_of_options
from cifs_tf.tuning.oracle import make_oracle
from cifs_tf.tuning.space import trial_values
from cifs_tf.tuning.workers import serving


class Killed(BaseException):
    """The process ended in the middle of it."""


@functools.cache
def make_config(*argv):
    return SearchConfig.from_flat(parse_flat("tune.py", "", argv, groups_of_options()))


def make_memory(folder, *argv):
    oracle = make_oracle(make_config(*argv))
    oracle._set_project_dir(str(folder), "search")
    if (folder / "search" / "oracle.json").exists():
        oracle.reload()
    return oracle


def values_of(oracle):
    return {name: trial_values(trial.hyperparameters) for name, trial in oracle.trials.items()}


def step(oracle, worker):
    """One trial of one worker; its status, and the id if it ran."""
    trial = oracle.create_trial(worker)
    if trial.status == "RUNNING":
        score = 1 / (1 + float(trial.hyperparameters.values["beta"]))
        oracle.update_trial(trial.trial_id, {"val_robust_accuracy": score, "val_clean_accuracy": 1.0}, step=1)
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    return trial.status, trial.trial_id


@pytest.mark.parametrize(
    "tuner", ["random", *(pytest.param(tuner, marks=pytest.mark.slow) for tuner in ("bayesian", "hyperband"))]
)
def test_the_memory_survives_a_kill_at_every_write(tuner, tmp_path, monkeypatch):
    """Killed before each of its writes in turn and read back, a search has each trial once, all with their values."""
    argv = ["--max_trials=4"] if tuner != "hyperband" else ["--epochs=3"]
    writes, kill_at = 0, None

    def write_or_die(path, value):
        nonlocal writes
        writes += 1
        if writes == kill_at:
            raise Killed
        write_json(path, value)

    write_json = oracle_module.write_json
    monkeypatch.setattr(oracle_module, "write_json", write_or_die)

    def search(folder, kill_before):
        nonlocal writes, kill_at
        writes, kill_at = 0, kill_before
        ended = []
        while True:
            oracle = make_memory(folder, f"--tuner={tuner}", *argv)
            try:
                while (found := step(oracle, "tuner0"))[0] == "COMPLETED":
                    ended.append(found[1])
                return (
                    ended,
                    {name: trial_values(trial.hyperparameters) for name, trial in oracle.trials.items()},
                    oracle,
                )
            except Killed:
                kill_at = None

    _, whole, oracle = search(tmp_path / "whole", None)
    assert len(whole) == (4 if tuner != "hyperband" else 6)
    for kill_before in range(1, writes + 1, 5 if tuner == "bayesian" else 1):  # which is slow to choose
        ended, values, oracle = search(tmp_path / str(kill_before), kill_before)
        assert len(ended) == len(set(ended))
        if tuner == "bayesian":  # its random numbers are not part of its memory
            values, whole = set(values), set(whole)
        assert values == whole
        assert all(trial.status == "COMPLETED" for trial in oracle.trials.values())


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("oracle.json", lambda state: "", "it is missing or damaged"),
        ("oracle.json", lambda state: "[]", "it is missing or damaged"),
        ("oracle.json", lambda state: json.dumps(state | {"key": "theirs"}), "it is of another search"),
        ("trial_0/trial.json", lambda state: json.dumps(state)[:-9], "it is missing or damaged"),
        ("trial_0/trial.json", lambda state: json.dumps(state | {"trial_id": "1"}), "it is of another trial"),
        ("trial_1/trial.json", None, "it is missing or damaged"),
    ],
)
def test_a_memory_that_is_not_whole_is_named(name, change, said, tmp_path):
    oracle = make_memory(tmp_path, "--max_trials=2")
    oracle.key = "ours"
    while step(oracle, "worker")[0] == "COMPLETED":
        pass
    oracle.save()
    file = tmp_path / "search" / name
    if change is None:
        file.unlink()
    else:
        file.write_text(change(json.loads(file.read_text())))
    again = make_oracle(make_config("--max_trials=2"))
    again._set_project_dir(str(tmp_path), "search")
    again.key = "ours"
    with pytest.raises(UserError, match=rf"^--workdir: received {tmp_path}; {file} cannot be used \({said}\); move"):
        again.reload()


def test_a_dead_workers_trial_is_left_to_another_and_none_stops_before(tmp_path):
    alive = {"a", "b"}
    oracle = make_memory(tmp_path, "--max_trials=2")
    oracle.is_alive = alive.__contains__
    first, second = oracle.create_trial("a"), oracle.create_trial("b")
    assert oracle.create_trial("a").trial_id == first.trial_id  # started again with the same id, it goes on
    oracle.update_trial(first.trial_id, {"val_robust_accuracy": 0.5}, step=1)
    first.status = "COMPLETED"
    oracle.end_trial(first)
    assert oracle.create_trial("a").status == "IDLE"
    alive.remove("b")
    assert oracle.create_trial("a").trial_id == second.trial_id
    second.status = "COMPLETED"
    oracle.update_trial(second.trial_id, {"val_robust_accuracy": 0.4}, step=1)
    oracle.end_trial(second)
    assert oracle.create_trial("a").status == "STOPPED"
    assert not oracle.tuner_ids


def test_a_restarted_chief_leaves_living_workers_their_trials(tmp_path):
    oracle = make_memory(tmp_path, "--max_trials=2")
    trials = {worker: oracle.create_trial(worker).trial_id for worker in "ab"}
    oracle = make_memory(tmp_path, "--max_trials=2")
    oracle.is_alive = {"b", "c"}.__contains__
    assert oracle.create_trial("c").trial_id == trials["a"]
    assert oracle.create_trial("b").trial_id == trials["b"]


def test_no_value_is_tried_twice_over_the_wire(tmp_path, monkeypatch):
    """Keras Tuner sends numbers as float32, in which 0.1 is another number."""
    oracle = make_memory(tmp_path, "--max_trials=9")
    with serving(oracle, "127.0.0.1:0") as (port, is_over):
        for name, value in (("IP", "127.0.0.1"), ("PORT", str(port))):
            monkeypatch.setenv(f"KERASTUNER_ORACLE_{name}", value)
        monkeypatch.setenv("KERASTUNER_TUNER_ID", "w1")
        client = OracleClient(make_memory(tmp_path / "client"))
        assert not is_over()
        while step(client, "w1")[0] == "COMPLETED":
            pass
        assert is_over()
    assert sorted(values["beta"] for values in values_of(oracle).values()) == [0.1, 1, 2, 10, 100]


def test_parameters_belong_to_their_importance_function(tmp_path):
    argv = ["--search=[importance, alpha, temperature, cuts]", "--search_cuts=[[a, b], [b, c]]", "--max_trials=30"]
    config = make_config(*argv)
    oracle = make_memory(tmp_path, *argv)
    seen = set()
    for number in range(30):
        values = trial_values(oracle.create_trial(f"w{number}").hyperparameters)
        assert ("temperature" in values) == (values["importance"] == "softmax")
        assert ("alpha" in values) == (values["importance"] != "softmax")
        run_config = config.with_values(values)
        assert run_config.model.importance == values["importance"]
        assert run_config.model.cuts in {("a", "b"), ("b", "c")}
        seen.add(values["importance"])
    assert seen == {"softmax", "softplus", "sigmoid"}


def test_the_version_whose_insides_we_know():
    """`cifs_tf.tuning` overrides private methods of Keras Tuner, as CONTRIBUTING says."""
    assert keras_tuner.__version__ == "1.4.8"
