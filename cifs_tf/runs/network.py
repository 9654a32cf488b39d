"""One network of a run: build, train, measure; each step is skipped if its result lies in the workdir already."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cifs_tf.adversarial import SGD, AdversarialTrainer, WeightPerturbation, make_method, step_decay
from cifs_tf.attacks import PGD
from cifs_tf.command_line import import_plugins
from cifs_tf.config import ModelConfig, RunConfig
from cifs_tf.data import ImageDataset, Split
from cifs_tf.errors import UserError
from cifs_tf.evaluation import as_attacked, build_report, evaluate, make_attacks, make_suite, merge, write_report
from cifs_tf.extras import is_installed
from cifs_tf.files import write_atomically
from cifs_tf.losses import attack_betas_for, head_weights
from cifs_tf.models import Classifier, build_classifier, with_precision
from cifs_tf.runs import preemption
from cifs_tf.runs.checkpoints import BEST, Checkpoints, SingleStepWatch, best_epoch, read_arrays
from cifs_tf.runs.cluster import ALONE, Cluster
from cifs_tf.runs.curves import write_curves
from cifs_tf.runs.machine import exact_factors
from cifs_tf.runs.provenance import revision
from cifs_tf.runs.workdir import Workdir, read_json

VALIDATION_STEPS = 10


def model_configs(config: RunConfig) -> list[ModelConfig]:
    """Return the networks of a run: the twin first, if there is one."""
    twin = config.output.twin
    if twin is None or twin == config.model.defense:
        return [config.model]
    return [dataclasses.replace(config.model, defense=twin), config.model]


def check(config: RunConfig, dataset: ImageDataset) -> None:
    """Refuse a config that does not fit itself or the dataset, before anything is written.

    Raises:
        UserError: naming the option.
    """
    attacks_of(config)
    for model in model_configs(config):
        num_probes = build(config, model, dataset).num_probes
        for beta in attack_betas_for(config.evaluation.attack_betas, num_probes):
            head_weights(beta, num_probes)
        make_method(config, model, num_probes)
    train = config.train
    step_decay(train.learning_rate, train.lr_milestones, train.lr_decay, steps_per_epoch=1)
    if list(train.fat_tau_milestones) != sorted(set(train.fat_tau_milestones)):
        raise UserError("--fat_tau_milestones", list(train.fat_tau_milestones), "give ascending numbers of epochs")
    wanted = list(config.evaluation.checkpoints)
    if not wanted:
        raise UserError("--checkpoints", wanted, "give last, best or both")
    if not len(dataset.validation):
        if wanted == ["best"]:
            raise UserError("--checkpoints", wanted, "there is no best epoch without --val_examples; give last")
        if config.output.export_checkpoint == "best":
            raise UserError("--export_checkpoint", "best", "there is no best epoch without --val_examples; give last")


def build(config: RunConfig, model: ModelConfig, dataset: ImageDataset) -> Classifier:
    """Build one network of a run with its own initial weights, the same for the same seed.

    Raises:
        UserError: if it does not fit the dataset, or a plugin cannot be imported.
    """
    import_plugins(model)
    keras.utils.set_random_seed(config.train.seed)
    classifier = build_classifier(model, dataset.image_shape, dataset.num_classes, config.train.precision)
    if config.train.warm_start is not None:
        _warm_start(classifier, Workdir(config.train.warm_start).model_file(model.defense), config.train.warm_start)
    return classifier


def make_trainer(
    config: RunConfig, model: ModelConfig, classifier: Classifier, steps_per_epoch: int
) -> AdversarialTrainer:
    """Make the compiled trainer of one network."""
    train = config.train
    trainer = AdversarialTrainer(
        classifier,
        make_method(config, model, classifier.num_probes),
        steps_per_epoch=steps_per_epoch,
        weight_perturbation=None
        if train.awp_gamma is None
        else WeightPerturbation(gamma=train.awp_gamma, start_epoch=train.awp_start),
        ema_decay=train.ema_decay,
        attack_classifier=_attack_classifier(config, model, classifier),
        validation_attack=PGD(
            epsilon=config.attack.epsilon, step_size=config.attack.epsilon / 4, num_steps=VALIDATION_STEPS
        ),
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
    dataset: ImageDataset,
    workdir: Workdir,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    cluster: Cluster = ALONE,
) -> None:
    """Train one network, or what is left of it, and write it as it is after the last and after the best epoch.

    Args:
        config: what to do.
        model: which of its networks.
        dataset: images to train on and, if there are any, to validate on.
        workdir: where to leave it.
        callbacks: called after those that log and checkpoint.
        cluster: the devices and workers that share the work. Default one device.

    Raises:
        UserError: if something is not finite, the disk is full, or the devices cannot share a batch evenly.
        Preempted: after SIGTERM, with a checkpoint.
    """
    defense, train = model.defense, config.train
    if cluster.chief_says(workdir.model_file(defense).exists):
        return
    batch_size = global_batch_size(config, dataset, cluster)
    steps_per_epoch = dataset.train.steps_per_epoch(batch_size)
    with cluster.losses_told(), cluster.strategy.scope():
        classifier = build(config, model, dataset)
        trainer = make_trainer(config, model, classifier, steps_per_epoch)

    def batches_from(step: int) -> tf.data.Dataset:
        augmentation = config.data.augmentation
        return dataset.train.training_batches(batch_size, seed=train.seed, start_step=step, augmentation=augmentation)

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
            cluster=cluster,
        )
        single_step = getattr(getattr(trainer.method, "attack", None), "num_steps", None) == 1
        watches = [SingleStepWatch(checkpoints)] if single_step and cluster.is_chief else []
        with cluster.losses_told():
            first_step = checkpoints.restore(trainer)
        if first_step and cluster.is_chief:
            print(f"continuing after step {first_step}, in epoch {first_step // steps_per_epoch + 1}")
        epoch, done = divmod(first_step, steps_per_epoch)
        trainer.continues_an_epoch = done > 0
        # Keras counts the steps of an epoch from its beginning: the rest of one is an epoch of its own.
        legs = [(epoch, epoch + 1, done)] if done else []
        for first, last, skipped in (*legs, (epoch + len(legs), train.epochs, 0)):
            if first == last:
                continue
            with cluster.losses_told():
                trainer.fit(
                    batches_from(first * steps_per_epoch + skipped),
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
        _publish(config, model, dataset, workdir, trainer)
    cluster.wait_for_all()


def _publish(
    config: RunConfig, model: ModelConfig, dataset: ImageDataset, workdir: Workdir, trainer: AdversarialTrainer
) -> None:
    """Write curves and networks of a training that is finished."""
    defense = model.defense
    history = read_json(workdir.history_file(defense))
    if is_installed("report"):
        write_curves(history, f"{config.data.dataset}, {defense}, {config.train.method}", workdir.curves_file(defense))
    if best_epoch(history) is not None:
        best = build(config, model, dataset)
        best.set_weights(read_arrays(workdir.checkpoints(defense) / BEST, [w.shape for w in best.weights]))
        write_atomically(workdir.model_file(defense, "best"), best.save)
    # Last of all: its presence says that training is finished.
    write_atomically(workdir.model_file(defense), trainer.save)


def load(config: RunConfig, workdir: Workdir, defense: str, checkpoint: str = "last") -> Classifier:
    """Load a trained network, in float32 whatever it was trained in (or float64)."""
    import_plugins(config.model)
    classifier = keras.models.load_model(workdir.model_file(defense, checkpoint), compile=False)
    return with_precision(classifier, "float32") if config.train.precision == "mixed_bfloat16" else classifier


def global_batch_size(config: RunConfig, dataset: ImageDataset, cluster: Cluster) -> int:
    """Images of an optimizer step, over all devices.

    Raises:
        UserError: if the devices cannot share them evenly.
    """
    size = min(config.train.batch_size, len(dataset.train))
    if size % cluster.num_replicas:
        advice = f"give a multiple of {cluster.num_replicas}, the devices that share a batch, or --strategy one"
        if size < config.train.batch_size:
            advice += f"; the {size} training images are one batch"
        raise UserError("--batch_size", config.train.batch_size, advice)
    return size


def check_test_images(dataset: ImageDataset, cluster: Cluster) -> None:
    """Refuse, before the training, workers for which there are no test images to attack.

    Raises:
        UserError: if so.
    """
    if len(dataset.test) < cluster.num_workers:
        advice = f"give {cluster.num_workers} or more, the workers share them"
        raise UserError("--test_examples", len(dataset.test), advice)


def _validation_batches(config: RunConfig, dataset: ImageDataset, num_replicas: int) -> tf.data.Dataset | None:
    if not len(dataset.validation):
        return None
    size = min(config.evaluation.eval_batch_size, len(dataset.validation))
    return dataset.validation.validation_batches(math.ceil(size / num_replicas) * num_replicas)


def measure_checkpoints(
    config: RunConfig, defense: str, dataset: ImageDataset, workdir: Workdir, cluster: Cluster = ALONE
) -> dict[str, dict[str, Any]]:
    """Measure the last and the best epoch, whichever a config asks for; without validation images there is no best one.

    Returns:
        for each its `epoch`, counted from 1, and the `report` of `measure`; nothing in a worker that is not the chief.
    """
    epochs = _epochs_to_measure(config, workdir, defense) if cluster.is_chief else {}
    # The best epoch may be the last one: one network, one report, under the name that comes first.
    names = {name: next(first for first in epochs if epochs[first] == epochs[name]) for name in epochs}
    reports = {
        name: measure(config, defense, name, dataset, workdir, cluster)
        for name in ("last", "best")
        if cluster.chief_says(lambda name=name: name in names.values())  # type: ignore[misc]
    }
    return {name: {"epoch": epochs[name], "report": reports[names[name]]} for name in epochs}


def _epochs_to_measure(config: RunConfig, workdir: Workdir, defense: str) -> dict[str, int]:
    best = best_epoch(read_json(workdir.history_file(defense)))
    epochs = {"last": config.train.epochs, "best": best}
    return {name: epoch for name in config.evaluation.checkpoints if (epoch := epochs[name]) is not None}


def measure(
    config: RunConfig,
    defense: str,
    checkpoint: str,
    dataset: ImageDataset,
    workdir: Workdir,
    cluster: Cluster = ALONE,
) -> Mapping[str, Any]:
    """Attack one trained network on the test split with the suite `paper`, or read what was found before.

    Args:
        config: of the run.
        defense: of the network.
        checkpoint: `"last"` or `"best"`.
        dataset: whose test images are attacked.
        workdir: of the run.
        cluster: workers that share the images. Default this process alone.

    Returns:
        the report, see `cifs_tf.evaluation.build_report`; an empty dict in a worker that is not the chief.
    """
    folder = workdir.evaluation(defense, checkpoint, "paper")
    report_file = folder / "report.json"
    if cluster.chief_says(report_file.exists):
        return read_json(report_file) if cluster.is_chief else {}
    if not cluster.is_chief:
        cluster.wait_for_file(workdir.model_file(defense, checkpoint))
    strategy = cluster.strategy if cluster.num_workers == 1 < cluster.num_replicas else None
    with strategy.scope() if strategy else contextlib.nullcontext():
        classifier = load(config, workdir, defense, checkpoint)
    victim = as_attacked(classifier, name=f"{workdir.path}, {defense}, {checkpoint} epoch")
    mask_gradient = config.evaluation.eval_mask_gradient
    shard = cluster.shards[cluster.index]
    tasks = make_suite(
        "paper",
        victim,
        config.attack.epsilon,
        attacks=attacks_of(config),
        betas=config.evaluation.attack_betas,
        mask_gradients=(mask_gradient,) if mask_gradient in victim.mask_gradients else None,
    )
    with exact_factors(), attack_progress(f"attacking {defense}, {checkpoint} epoch") as on_progress:
        report = evaluate(
            victim,
            dataset.test,
            tasks,
            epsilon=config.attack.epsilon,
            ledger_file=folder / ledger_name(shard),
            shard=shard,
            batch_size=config.evaluation.eval_batch_size,
            seed=config.train.seed,
            strategy=strategy,
            about=about_images("paper", dataset, dataset.test),
            on_progress=on_progress,
        )
    cluster.wait_for_all()
    if not cluster.is_chief:
        return {}
    if cluster.num_workers > 1:
        ledgers = [folder / ledger_name(shard) for shard in cluster.shards]
        whole = folder / ledger_name("1/1")
        whole.unlink(missing_ok=True)  # one process may have begun it
        report = build_report(merge(ledgers, whole))
    write_report(report, folder)
    return report


def ledger_name(shard: str) -> str:
    """File name of the ledger of a part, `i/n`, of the images."""
    return "ledger.jsonl" if shard == "1/1" else f"ledger-{shard.replace('/', '-of-')}.jsonl"


def about_images(suite: str, dataset: ImageDataset, split: Split) -> dict[str, Any]:
    """What a report says of the images that it is about, and of the code that made it."""
    full = dataset.num_test_images
    return {
        "revision": revision(),
        "suite": suite,
        "dataset": dataset.name,
        "class_names": list(dataset.class_names),
        "subset_of": full if len(split) < full else None,
    }


def attacks_of(config: RunConfig) -> dict[str, PGD]:
    """Return the attacks of a config that measure.

    Raises:
        UserError: for an unknown attack.
    """
    evaluation = config.evaluation
    return make_attacks(
        evaluation.attacks, config.attack.epsilon, evaluation.eval_step_size, evaluation.eval_step_sizes
    )


@contextlib.contextmanager
def attack_progress(title: str = "attacking") -> Iterator[Any]:
    """Show a progress bar with the survivors and the time left; yields the function that moves it."""
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[survivors]} survivors"),
        TextColumn("{task.fields[attack]}"),
    ]
    with Progress(*columns) as progress:
        bar = progress.add_task(title, total=1.0, attack="", survivors="")

        def on_progress(task: str, share: float, survivors: int) -> None:
            progress.update(bar, completed=share, attack=task, survivors=f"{survivors:,}")

        yield on_progress


def _warm_start(classifier: Classifier, model_file: Path, option: str) -> None:
    if not model_file.exists():
        advice = f"there is no {model_file}, give the workdir of a finished run with the same defense"
        raise UserError("--warm_start", option, advice)
    source = keras.models.load_model(model_file, compile=False)
    theirs, ours = [w.shape for w in source.weights], [w.shape for w in classifier.weights]
    if theirs != ours:
        advice = (
            f"its network ({_summary(source)}) is not this one ({_summary(classifier)}), "
            "give a run of the same architecture and dataset"
        )
        raise UserError("--warm_start", option, advice)
    classifier.set_weights(source.get_weights())


def _summary(classifier: Classifier) -> str:
    return f"{classifier.name}, {classifier.num_classes} classes, {classifier.count_params():,} parameters"
