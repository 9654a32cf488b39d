"""One trial: a run with a workdir of its own, that reports each epoch to the oracle."""

import dataclasses
import time
from typing import Any

import keras
import keras_tuner
import keras_tuner.src.config
import tensorflow as tf
from keras_tuner.engine.trial import Trial, TrialStatus
from tensorboard.plugins.hparams import api as hparams

from cifs_tf.config import RunConfig
from cifs_tf.data import ImageDataset
from cifs_tf.errors import UserError
from cifs_tf.files import read_json
from cifs_tf.runs.checkpoints import adopt_checkpoints
from cifs_tf.runs.cluster import ALONE, Cluster
from cifs_tf.runs.images import record_images
from cifs_tf.runs.networks import build, build_networks
from cifs_tf.runs.training import fit
from cifs_tf.runs.workdir import Workdir
from cifs_tf.tuning.options import DIMENSIONS, OBJECTIVE, SearchConfig
from cifs_tf.tuning.oracle import make_oracle
from cifs_tf.tuning.space import alternatives, as_plain, trial_values

METRICS = (OBJECTIVE, "val_clean_accuracy")
MEMORY = "search"
POLL_SECONDS = 0.5

# Keras Tuner would print a traceback for every trial whose loss is not finite; `on_trial_end` says it in a sentence.
keras_tuner.src.config.DEBUG = False


class SearchTuner(keras_tuner.Tuner):
    """Runs the trials of a search, alone or as one of several workers; see Keras Tuner's `Tuner`.

    Args:
        config: what is searched, and around what.
        dataset: images to train and to validate on.
        workdir: of the search: `search/` in it is the oracle's memory, `trials/ID/` the workdir of a trial's run.
        cluster: devices that share the work of a trial. Default one device.

    Raises:
        UserError: if hyperband would run out of different values.

    Example:
        >>> SearchTuner(config, dataset, workdir).search()
    """

    def __init__(self, config: SearchConfig, dataset: ImageDataset, workdir: Workdir, cluster: Cluster = ALONE):
        super().__init__(make_oracle(config), directory=str(workdir.path), project_name=MEMORY)
        self.config, self.dataset, self.workdir, self.cluster = config, dataset, workdir, cluster
        if not self._is_worker():
            self.oracle.key = workdir.key
            if (workdir.path / MEMORY / "oracle.json").exists():
                self.oracle.reload()

    def pre_create_trial(self):
        """Wait a moment (Keras Tuner's hook): a worker without a trial asks again at once."""
        time.sleep(POLL_SECONDS)

    def run_trial(self, trial, *args, **kwargs):
        """Train the trial's network, or what is left of it, and report its epochs (Keras Tuner's hook)."""
        config, workdir = self.trial_config(trial), trial_workdir(self.workdir, trial.trial_id)
        defense = config.model.defense
        report = ReportEpochs(self.oracle, trial.trial_id)
        session = hparams.KerasCallback(
            str(workdir.tensorboard(defense)), as_plain(trial_values(trial.hyperparameters)), trial_id=trial.trial_id
        )
        # Layers are named as in a process of their own.
        keras.backend.clear_session()
        try:
            with workdir.open(config):
                record_images(self.dataset, workdir, config.train.warm_start)
                self._continue_shorter_trial(trial, workdir, defense)
                session.on_train_begin()
                network = build(config, config.model, self.dataset, self.cluster)
                fit(config, config.model, network, self.dataset, workdir, [report], self.cluster)
                session.on_train_end()
        except UserError as error:
            raise keras_tuner.errors.FailedTrialError(str(error)) from error
        # Epochs of a process that was killed before it reported them, or of a shorter trial.
        for epoch, logs in enumerate(read_json(workdir.history_file(defense))):
            report.on_epoch_end(epoch, logs)

    def trial_config(self, trial: Trial) -> RunConfig:
        """Return the config of a trial's run; hyperband lets it train for fewer epochs."""
        config = self.config.with_values(trial_values(trial.hyperparameters))
        epochs = trial.hyperparameters.values.get("tuner/epochs", config.train.epochs)
        return dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=epochs))

    def on_trial_end(self, trial):
        """Say why a trial failed, and tell the oracle that it ended (Keras Tuner's hook)."""
        if trial.status == TrialStatus.FAILED:
            print(f"trial {trial.trial_id}: {trial.message.strip().splitlines()[-1].partition(': ')[2]}", flush=True)
        elif trial.status == TrialStatus.INVALID:
            print(trial.message, flush=True)
        super().on_trial_end(trial)

    def save(self):
        """Save the oracle's memory (Keras Tuner's hook); a tuner has none of its own."""
        if not self._is_worker():
            self.oracle.save()

    def _continue_shorter_trial(self, trial: Trial, workdir: Workdir, defense: str) -> None:
        """Begin with the checkpoints of the trial that hyperband found worth more epochs, if there is one."""
        shorter = trial.hyperparameters.values.get("tuner/trial_id")
        checkpoints = workdir.checkpoints(defense)
        if shorter is None or checkpoints.exists():
            return
        source = trial_workdir(self.workdir, shorter)
        adopt_checkpoints(source.checkpoints(defense), checkpoints, workdir.key)


class ReportEpochs(keras.callbacks.Callback):
    """Tells the oracle of every epoch that was validated, once.

    Args:
        oracle: an oracle, or Keras Tuner's client of one in another process.
        trial_id: of the trial.
    """

    def __init__(self, oracle: Any, trial_id: str):
        super().__init__()
        self.oracle, self.trial_id = oracle, trial_id
        self.reported = set(metric_by_epoch(oracle.get_trial(trial_id), OBJECTIVE))

    def on_epoch_end(self, epoch, logs=None):
        """Report one epoch (Keras' hook)."""
        logs = logs or {}
        if epoch + 1 in self.reported or logs.get(OBJECTIVE) is None:
            return
        self.oracle.update_trial(self.trial_id, {name: float(logs[name]) for name in METRICS}, step=epoch + 1)
        self.reported.add(epoch + 1)


def metric_by_epoch(trial: Trial, name: str) -> dict[int, float]:
    """Return what a trial reported of a metric: {epoch, counted from 1: value}."""
    return (
        {seen.step: float(seen.mean()) for seen in trial.metrics.get_history(name)}
        if name in trial.metrics.metrics
        else {}
    )


def trial_workdir(workdir: Workdir, trial_id: str) -> Workdir:
    """Return the workdir of a trial's run, which `run.py` and `evaluate.py` take as any other."""
    return Workdir(workdir.path / "trials" / trial_id)


def check(config: SearchConfig, dataset: ImageDataset, cluster: Cluster) -> None:
    """Refuse a search that does not fit itself, the dataset or the devices, before anything is written.

    Raises:
        UserError: naming the option.
    """
    build_networks(config, dataset, cluster)
    if not len(dataset.validation):
        advice = "a search is judged on validation images, never on test images; give a number above 0"
        raise UserError("--val_examples", config.data.val_examples, advice)
    if config.evaluation.val_every != 1:
        raise UserError("--val_every", config.evaluation.val_every, "a trial is judged after each epoch; give 1")
    make_oracle(config)
    for name, values in alternatives(config).items():
        for value in values:
            try:
                build(config, config.with_values({name: value}).model, dataset)
            except UserError as error:
                raise UserError(f"--{DIMENSIONS[name].option}", error.received, error.advice) from error
    keras.backend.clear_session()


def describe_space_to_tensorboard(config: SearchConfig, workdir: Workdir) -> None:
    """Write the columns of TensorBoard's HParams tab, once."""
    folder = workdir.path / "tensorboard"
    if folder.exists():
        return
    listed = alternatives(config)
    columns = []
    for name in config.search.search:
        values = getattr(config.search, DIMENSIONS[name].option)
        if name in listed:
            domain = hparams.Discrete([as_plain({name: value})[name] for value in values])
        else:
            domain = hparams.RealInterval(float(min(values)), float(max(values)))
        columns.append(hparams.HParam(name, domain))
    # The tag and the folder in which `keras.callbacks.TensorBoard` leaves a metric of the validation images.
    metrics = [
        hparams.Metric(f"epoch_{name.removeprefix('val_')}", group="validation", display_name=name) for name in METRICS
    ]
    with tf.summary.create_file_writer(str(folder)).as_default():
        hparams.hparams_config(hparams=columns, metrics=metrics)
