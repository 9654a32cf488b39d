"""Training of one network of a run, which continues from its checkpoints."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifs_tf.adversarial import SGD, AdversarialTrainer, WeightPerturbation, make_method, step_decay
from cifs_tf.attacks import PGD
from cifs_tf.config import ModelConfig, RunConfig
from cifs_tf.data import ImageDataset
from cifs_tf.extras import is_installed
from cifs_tf.files import read_json, write_atomically, write_json
from cifs_tf.models import Classifier, build_classifier
from cifs_tf.runs import preemption
from cifs_tf.runs.checkpoints import BEST, Checkpoints, SingleStepWatch, read_arrays
from cifs_tf.runs.cluster import ALONE, Cluster
from cifs_tf.runs.curves import VALIDATION_STEPS, best_epoch, write_curves
from cifs_tf.runs.keys import DAMAGE, read_stamp, stamp, warn
from cifs_tf.runs.networks import global_batch_size
from cifs_tf.runs.workdir import Workdir


def make_trainer(
    config: RunConfig, model: ModelConfig, classifier: Classifier, steps_per_epoch: int
) -> AdversarialTrainer:
    """Make the compiled trainer of one network."""
    train, epsilon = config.train, config.attack.epsilon
    method = make_method(config, model, classifier.num_probes)
    takes_one_step = getattr(getattr(method, "attack", None), "num_steps", None) == 1
    trainer = AdversarialTrainer(
        classifier,
        method,
        steps_per_epoch=steps_per_epoch,
        weight_perturbation=None
        if train.awp_gamma is None
        else WeightPerturbation(gamma=train.awp_gamma, start_epoch=train.awp_start),
        ema_decay=train.ema_decay,
        attack_classifier=_attack_classifier(config, model, classifier),
        validation_attack=PGD(epsilon=epsilon, step_size=epsilon / 4, num_steps=VALIDATION_STEPS),
        single_step_attack=PGD(epsilon=epsilon, step_size=epsilon, num_steps=1) if takes_one_step else None,
        seed=train.seed,
    )
    schedule = step_decay(train.learning_rate, train.lr_milestones, train.lr_decay, steps_per_epoch)
    trainer.compile(optimizer=SGD(schedule, momentum=train.momentum, weight_decay=train.weight_decay))
    return trainer


def _attack_classifier(config: RunConfig, model: ModelConfig, classifier: Classifier) -> Classifier | None:
    precision = config.attack.attack_precision
    if precision in (None, config.train.precision):
        return None
    return build_classifier(model, classifier.image_shape, classifier.num_classes, precision)


def fit(
    config: RunConfig,
    model: ModelConfig,
    classifier: Classifier,
    dataset: ImageDataset,
    workdir: Workdir,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    cluster: Cluster = ALONE,
) -> None:
    """Train one network, or what is left of it, and write it as it is after the last and after the best epoch.

    What is there already is taken if its stamp says that this run made it; what is missing, damaged or of another run
    is named and made again. Without the weights of the best epoch, which cannot be, the last network stands alone.

    Args:
        config: what to do.
        model: which of its networks.
        classifier: that network, as `cifs_tf.runs.networks.build` makes it.
        dataset: images to train on and, if there are any, to validate on.
        workdir: where to leave it.
        callbacks: called after those that log and checkpoint.
        cluster: the devices and workers that share the work. Default one device.

    Raises:
        UserError: if something is not finite, the disk is full, or the devices cannot share a batch evenly.
        Preempted: after SIGTERM, with a checkpoint.
    """
    defense, train = model.defense, config.train
    identity = {"key": workdir.key, "images": dataset.identity.hash, "defense": defense}
    if cluster.chief_says(lambda: _is_finished(config, defense, workdir, identity)):
        return
    batch_size = global_batch_size(config, dataset, cluster)
    steps_per_epoch = dataset.train.steps_per_epoch(batch_size)
    with cluster.translate_worker_errors(), cluster.strategy.scope():
        trainer = make_trainer(config, model, classifier, steps_per_epoch)

    def batches_from(step: int, share: tuple[int, int] = (0, 1)) -> tf.data.Dataset:
        augmentation = config.data.augmentation
        return dataset.train.training_batches(
            batch_size, seed=train.seed, start_step=step, augmentation=augmentation, share=share
        )

    logging = [keras.callbacks.TensorBoard(workdir.tensorboard(defense), write_graph=False)]
    verbosity = 1 if sys.stdout.isatty() else 2
    if not cluster.is_chief:
        logging, verbosity = [], 0
    with preemption.deferred() as requested:
        checkpoints = Checkpoints(
            workdir.checkpoints(defense),
            workdir.history_file(defense),
            steps_per_epoch=steps_per_epoch,
            minutes=config.output.checkpoint_minutes,
            on_nan=config.output.on_nan,
            batch_at=lambda step: next(batches_from(step).as_numpy_iterator()),
            requested=requested,
            identity=identity,
            cluster=cluster,
        )
        is_watched = trainer.single_step_attack is not None and cluster.is_chief
        watches = [SingleStepWatch(checkpoints)] if is_watched else []
        if watches and not len(dataset.validation):
            print("note: one gradient a step may collapse, which is watched on validation images: there are none")
        with cluster.translate_worker_errors():
            first_step = checkpoints.restore(trainer)
        if first_step and cluster.is_chief:
            print(f"continuing after step {first_step}, in epoch {first_step // steps_per_epoch + 1}")
        epoch, done = divmod(first_step, steps_per_epoch)
        trainer.continues_an_epoch = done > 0
        # Keras counts the steps of an epoch from its beginning: what is left of one is an epoch of its own.
        legs = [(epoch, epoch + 1, done)] if done else []
        for first, last, skipped in (*legs, (epoch + len(legs), train.epochs, 0)):
            if first == last:
                continue
            with cluster.translate_worker_errors(), dataset.naming_faults():
                trainer.fit(
                    _own_batches(batches_from, first * steps_per_epoch + skipped, cluster),
                    initial_epoch=first,
                    epochs=last,
                    steps_per_epoch=steps_per_epoch - skipped,
                    validation_data=_validation_batches(config, dataset, cluster.num_replicas),
                    validation_freq=config.evaluation.val_every,
                    callbacks=[*logging, checkpoints, *watches, *callbacks],
                    shuffle=False,  # the batches are shuffled by (seed, epoch) already
                    verbose=verbosity,
                )
    if cluster.is_chief:
        _write_networks(config, defense, workdir, trainer, identity, dataset.class_names)
    cluster.wait_for_all()


def _own_batches(
    batches_from: Callable[..., tf.data.Dataset], step: int, cluster: Cluster
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Return batches of which each worker reads its own part; of workers with several devices each reads the whole."""
    if not 1 < cluster.num_workers == cluster.num_replicas:
        return batches_from(step)
    return cluster.strategy.distribute_datasets_from_function(
        lambda context: batches_from(step, (context.input_pipeline_id, context.num_input_pipelines))
    )


def _is_finished(config: RunConfig, defense: str, workdir: Workdir, identity: Mapping[str, Any]) -> bool:
    """Return whether the networks are there, and of this run; what follows from them is written again then."""
    last, best = (workdir.model_file(defense, checkpoint) for checkpoint in ("last", "best"))
    if not last.exists():
        return False
    try:
        history = read_stamp(last, {**identity, "checkpoint": "last"}).get("history")
    except ValueError as error:
        warn(f"{last} cannot be used ({error}); it is made again from the checkpoints.")
        return False
    if history is None:  # begun before there were stamps
        history = read_json(workdir.history_file(defense))
    epoch = best_epoch(history)
    if epoch is not None and not _is_of_epoch(best, epoch, {**identity, "checkpoint": "best"}):
        weights = workdir.checkpoints(defense) / BEST
        if epoch == len(history) or _is_of_epoch(weights, epoch, identity):
            warn(f"{best} is missing, damaged or of another run; it is made again.")
            return False
        best.unlink(missing_ok=True)
        _tell_lost(best, weights, epoch)
    _write_history(config, defense, workdir, history)
    return True


def _is_of_epoch(file: Path, epoch: int, identity: Mapping[str, Any]) -> bool:
    """Return whether a file is whole, and holds the network after an epoch; so does one without a stamp, if it may."""
    try:
        return read_stamp(file, identity).get("epoch", epoch) == epoch
    except (FileNotFoundError, ValueError):
        return False


def _write_history(config: RunConfig, defense: str, workdir: Workdir, history: list[dict[str, Any]]) -> None:
    write_json(workdir.history_file(defense), history)
    if is_installed("report"):
        write_curves(history, f"{config.data.dataset}, {defense}, {config.train.method}", workdir.curves_file(defense))


def _write_networks(
    config: RunConfig,
    defense: str,
    workdir: Workdir,
    trainer: AdversarialTrainer,
    identity: Mapping[str, Any],
    class_names: Sequence[str],
) -> None:
    """Write curves and networks of a training that is finished."""
    history = read_json(workdir.history_file(defense))
    _write_history(config, defense, workdir, history)

    def write(checkpoint: str, epoch: int) -> None:
        def save(path: Path) -> None:
            trainer.save(path)
            told = {**identity, "checkpoint": checkpoint, "epoch": epoch, "history": history}
            stamp(path, {**told, "class_names": list(class_names)})

        write_atomically(workdir.model_file(defense, checkpoint), save)

    epoch = best_epoch(history)
    if epoch is not None:
        network = trainer.inference_classifier
        last = network.get_weights()
        weights = last if epoch == len(history) else _read_best(workdir, defense, epoch, identity, last)
        if weights is not None:
            network.set_weights(weights)
            write("best", epoch)
            network.set_weights(last)
    # Last of all: its presence says that training is finished.
    write("last", len(history))


def _read_best(
    workdir: Workdir, defense: str, epoch: int, identity: Mapping[str, Any], like: Sequence[np.ndarray]
) -> list[np.ndarray] | None:
    """Read the weights after the best epoch; return None, and say so, if they are lost."""
    file = workdir.checkpoints(defense) / BEST
    try:
        if _is_of_epoch(file, epoch, identity):
            return read_arrays(file, [weights.shape for weights in like])
    except DAMAGE:
        pass
    _tell_lost(workdir.model_file(defense, "best"), file, epoch)
    return None


def _tell_lost(network: Path, weights: Path, epoch: int) -> None:
    warn(
        f"{network} cannot be written: {weights} is missing, damaged or of another run, and with it the "
        f"network after the best epoch ({epoch}); last.keras is whole."
    )


def _validation_batches(config: RunConfig, dataset: ImageDataset, num_replicas: int) -> tf.data.Dataset | None:
    if not len(dataset.validation):
        return None
    size = min(config.evaluation.eval_batch_size, len(dataset.validation))
    return dataset.validation.validation_batches(math.ceil(size / num_replicas) * num_replicas)
