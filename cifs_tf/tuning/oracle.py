"""Oracles that choose the trials of a search, and remember them through a kill.

Keras Tuner's lose trials in a kill (they write their files in place, repeat a trial that ended just before, and never
end one that had just begun), and wait for ever for a worker that has died. `Resumable` fixes both.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import TrialStatus

from cifs_tf.errors import UserError
from cifs_tf.files import read_json, write_json
from cifs_tf.tuning.options import OBJECTIVE, SearchConfig
from cifs_tf.tuning.space import describe, num_combinations, search_space, trial_values

ENDED = (TrialStatus.COMPLETED, TrialStatus.FAILED)
# Draws of values that were tried before, after which a space counts as exhausted. Keras Tuner's 20 miss the last of
# five values once in a hundred searches.
MAX_COLLISIONS = 1000


class Resumable(keras_tuner.Oracle):
    """An oracle that survives a kill, of its own process or of a worker.

    Attributes:
        is_alive: tells of a worker, by its id, whether its process is there. Default: it is.
        announce: told, in a sentence, of each trial's begin and end. Default: nobody is.
        announces_epochs: whether it is told of every epoch too. Default False.
        key: of the search, see `Workdir.key`; files of another one are refused. Default None: they are not told apart.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.is_alive = lambda worker: True
        self.announce = lambda sentence: None
        self.announces_epochs = False
        self.key = None
        self._at_work = {}
        self._max_collisions = MAX_COLLISIONS
        self.verbose = 0

    @keras_tuner.synchronized
    def create_trial(self, tuner_id):
        """Give a worker its next trial.

        While others are at work it is told to wait, not to stop: one of them may die, and its trial be left over.
        """
        self.release_dead_workers()
        trial = super().create_trial(tuner_id)
        if trial.status == TrialStatus.STOPPED and self.ongoing_trials:
            trial.status = TrialStatus.IDLE
            self.tuner_ids.add(tuner_id)
        if trial.status == TrialStatus.RUNNING:
            self.announce(f"trial {trial.trial_id} begins: {describe(trial_values(trial.hyperparameters))}")
        return trial

    @keras_tuner.synchronized
    def update_trial(self, trial_id, metrics, step=0):
        """Record the metrics of an epoch of a trial."""
        if self.announces_epochs:
            found = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            self.announce(f"trial {trial_id}, epoch {step}: {found}")
        return super().update_trial(trial_id, metrics, step=step)

    @keras_tuner.synchronized
    def end_trial(self, trial):
        """Record the end of a trial."""
        with contextlib.redirect_stdout(io.StringIO()):  # Keras Tuner announces a retry in its own words
            super().end_trial(trial)
        ended = self.trials[trial.trial_id]
        score = f", {OBJECTIVE} {ended.score:.4f}" if ended.status == TrialStatus.COMPLETED else ""
        self.announce(f"trial {trial.trial_id} {ended.status.lower()}{score}")

    @keras_tuner.synchronized
    def release_dead_workers(self):
        """Forget workers whose process is gone; their trials wait for another worker, which continues them."""
        dead = [worker for worker in {*self.tuner_ids, *self.ongoing_trials} if not self.is_alive(worker)]
        for worker in dead:
            self.tuner_ids.discard(worker)
            if trial := self.ongoing_trials.pop(worker, None):
                self._retry_queue.append(trial.trial_id)
                self.announce(f"worker {worker} is gone; trial {trial.trial_id} is left to be continued")
        if dead:
            self.save()

    def set_state(self, state):
        """Take over the state of `get_state()` (Keras Tuner's hook)."""
        super().set_state(state)
        self._at_work = self.ongoing_trials

    def reload(self):
        """Read the memory of an interrupted search.

        Trials that had begun belong to their workers still, which may be alive; see `release_dead_workers`. One that
        had been written down, but not been handed out, did not begin.

        Raises:
            UserError: if a file of the memory is missing, damaged, or of another search.
        """
        self._check_memory()
        super().reload()
        self.trials = {name: self.trials[name] for name in self.start_order}
        self.ongoing_trials = {w: trial for w, trial in self._at_work.items() if trial.status not in ENDED}
        self.tuner_ids = set(self.ongoing_trials)
        taken = {trial.trial_id for trial in self.ongoing_trials.values()}
        self._retry_queue = [name for name, t in self.trials.items() if t.status not in ENDED and name not in taken]

    def save(self):
        """Write the memory, whole or not at all."""
        write_json(Path(self._get_oracle_fname()), {**self.get_state(), "key": self.key})

    def _save_trial(self, trial):
        state = {**trial.get_state(), "key": self.key}
        write_json(Path(self._get_trial_dir(trial.trial_id)) / "trial.json", state)

    def _check_memory(self) -> None:
        file = Path(self._get_oracle_fname())
        try:
            names = self._read_state(file)["start_order"]
            there = {path.parent.name.partition("_")[2] for path in file.parent.glob("trial_*/trial.json")}
            for name in sorted({*names, *there}):
                file = Path(self._get_trial_dir(name)) / "trial.json"
                if self._read_state(file)["trial_id"] != name:
                    raise ValueError("it is of another trial")
        except (UserError, KeyError, TypeError, AttributeError, ValueError) as error:
            reason = error if type(error) is ValueError else "it is missing or damaged"
            memory = Path(self._project_dir)
            advice = f"{file} cannot be used ({reason}); move {memory} away: what is in trials is found again"
            raise UserError("--workdir", memory.parent, advice) from error

    def _read_state(self, file: Path) -> dict[str, Any]:
        state = read_json(file)
        if state.get("key", self.key) != self.key:
            raise ValueError("it is of another search")
        return state


class RandomSearch(Resumable, keras_tuner.oracles.RandomSearchOracle):
    """Values at random, none twice."""


class BayesianOptimization(Resumable, keras_tuner.oracles.BayesianOptimizationOracle):
    """Values where a Gaussian process expects most."""

    def populate_space(self, trial_id):
        """Choose the next values; Keras Tuner's may have been tried before, then take random ones."""
        response = super().populate_space(trial_id)
        if response["status"] != TrialStatus.RUNNING or not self._duplicate(response["values"]):
            return response
        values = self._random_values()
        return {"status": TrialStatus.RUNNING if values else TrialStatus.STOPPED, "values": values}


class Hyperband(Resumable, keras_tuner.oracles.HyperbandOracle):
    """Many values for a few epochs, the better ones for longer."""

    @property
    def num_first_trials(self) -> int:
        """Different values that it draws in all."""
        return sum(self._get_size(bracket, round_num=0) for bracket in range(self._get_num_brackets()))


def make_oracle(config: SearchConfig) -> Resumable:
    """Make the oracle of a search, without memory yet.

    Raises:
        UserError: if hyperband would run out of different values.
    """
    options = config.search
    arguments: dict[str, Any] = {
        "objective": keras_tuner.Objective(OBJECTIVE, "max"),
        "hyperparameters": search_space(config),
        # Keras Tuner takes 0 for no seed.
        "seed": config.train.seed + 1,
        # A trial whose process had bad luck; one whose loss is not finite is not repeated.
        "max_retries_per_trial": 1,
        # Its error would leave the chief's lock taken; that no trial at all was completed is said at the end.
        "max_consecutive_failed_trials": None,
    }
    if options.tuner == "hyperband":
        oracle = Hyperband(max_epochs=config.train.epochs, **arguments)
        if oracle.num_first_trials > num_combinations(config):
            advice = (
                f"it draws {oracle.num_first_trials} different values for {config.train.epochs} epochs, and there are "
                f"{num_combinations(config)}; search a range too, such as learning_rate, or give random"
            )
            raise UserError("--tuner", "hyperband", advice)
        return oracle
    oracle_class = RandomSearch if options.tuner == "random" else BayesianOptimization
    return oracle_class(max_trials=options.num_trials, **arguments)
