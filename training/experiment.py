"""One network of a run: build, train, measure; each step is skipped if its result lies in the workdir already."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cifs_tf.adversarial import SGD, AdversarialTrainer, Method, PGDTraining, Standard, step_decay
from cifs_tf.attacks import PGD
from cifs_tf.config import ModelConfig, RunConfig
from cifs_tf.data import ImageDataset, Split
from cifs_tf.errors import UserError
from cifs_tf.evaluation import evaluate, make_attacks, make_suite, victim_of, write_report
from cifs_tf.files import write_atomically
from cifs_tf.losses import attack_betas_for, head_weights, training_loss_factor
from cifs_tf.models import Classifier, build_classifier, with_precision
from training.checkpoints import Checkpoints
from training.workdir import Workdir, read_json

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
    train = config.train
    step_decay(train.learning_rate, train.lr_milestones, train.lr_decay, steps_per_epoch=1)


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
        validation_attack=PGD(
            epsilon=config.attack.epsilon, step_size=config.attack.epsilon / 4, num_steps=VALIDATION_STEPS
        ),
        seed=train.seed,
    )
    schedule = step_decay(train.learning_rate, train.lr_milestones, train.lr_decay, steps_per_epoch)
    trainer.compile(optimizer=SGD(schedule, momentum=train.momentum, weight_decay=train.weight_decay))
    return trainer


def make_method(config: RunConfig, model: ModelConfig, num_probes: int) -> Method:
    """Make the training method of a config."""
    train, attack = config.train, config.attack
    factor = training_loss_factor(train.loss_scale, model.defense, train.beta)
    weights = head_weights(train.beta, num_probes) * factor
    if train.method == "standard":
        return Standard(head_weights=weights)
    pgd = PGD(
        epsilon=attack.epsilon,
        step_size=attack.step_size or attack.epsilon / 4,
        num_steps=attack.num_steps,
        random_start=attack.random_start,
    )
    return PGDTraining(head_weights=weights, attack=pgd, mask_gradient=attack.train_mask_gradient)


def fit(
    config: RunConfig,
    model: ModelConfig,
    dataset: ImageDataset,
    workdir: Workdir,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Classifier:
    """Train one network, or continue, or load it if it is trained.

    Args:
        config: what to do.
        model: which of its networks.
        dataset: images to train on and, if there are any, to validate on.
        workdir: where to leave it.
        callbacks: called after those that checkpoint and log.

    Returns:
        the trained classifier, in float32.
    """
    model_file = workdir.model_file(model.defense)
    if model_file.exists():
        classifier = keras.models.load_model(model_file, compile=False)
        return classifier if config.train.precision == "float32" else with_precision(classifier, "float32")
    train = config.train
    classifier = build(config, model, dataset)
    batch_size = min(train.batch_size, len(dataset.train))
    steps_per_epoch = dataset.train.steps_per_epoch(batch_size)
    trainer = make_trainer(config, model, classifier, steps_per_epoch)
    checkpoints = Checkpoints(workdir.checkpoints(model.defense), workdir.history_file(model.defense))
    first_epoch = checkpoints.restore(trainer)
    if first_epoch:
        print(f"continuing after epoch {first_epoch}")
    batches = dataset.train.training_batches(
        batch_size,
        seed=train.seed,
        start_step=first_epoch * steps_per_epoch,
        augmentation=config.data.augmentation,
    )
    validation = None
    if len(dataset.validation):
        validation = dataset.validation.evaluation_batches(config.evaluation.eval_batch_size)
    trainer.fit(
        batches,
        initial_epoch=first_epoch,
        epochs=train.epochs,
        steps_per_epoch=steps_per_epoch,
        validation_data=validation,
        callbacks=[
            checkpoints,
            keras.callbacks.TensorBoard(workdir.tensorboard(model.defense), write_graph=False),
            *callbacks,
        ],
        shuffle=False,  # the batches are shuffled by (seed, epoch) already
        verbose=1 if sys.stdout.isatty() else 2,
    )
    write_atomically(model_file, classifier.save)
    return classifier if train.precision == "float32" else with_precision(classifier, "float32")


def measure(
    config: RunConfig, model: ModelConfig, classifier: Classifier, dataset: ImageDataset, workdir: Workdir
) -> dict[str, Any]:
    """Attack one trained network on the test split with the suite `paper`, or read what was found before.

    Returns:
        the report, see `cifs_tf.evaluation.build_report`.
    """
    folder = workdir.evaluation(model.defense, "paper")
    if (folder / "report.json").exists():
        return read_json(folder / "report.json")
    victim = victim_of(classifier, name=f"{workdir.path}, {model.defense}")
    mask_gradient = config.evaluation.eval_mask_gradient
    tasks = make_suite(
        "paper",
        victim,
        config.attack.epsilon,
        attacks=attacks_of(config),
        betas=config.evaluation.attack_betas,
        mask_gradients=(mask_gradient,) if mask_gradient in victim.mask_gradients else None,
    )
    with attack_progress(f"attacking {model.defense}") as on_progress:
        report = evaluate(
            victim,
            dataset.test,
            tasks,
            epsilon=config.attack.epsilon,
            ledger_file=folder / "ledger.jsonl",
            batch_size=config.evaluation.eval_batch_size,
            seed=config.train.seed,
            about=about_images("paper", dataset, dataset.test),
            on_progress=on_progress,
        )
    write_report(report, folder)
    return report


def about_images(suite: str, dataset: ImageDataset, split: Split) -> dict[str, Any]:
    """What a report says of the images that it is about."""
    full = dataset.num_test_images
    return {
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
    """A progress bar with the images still standing and the time left; yields the function that moves it."""
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[standing]} standing"),
        TextColumn("{task.fields[attack]}"),
    ]
    with Progress(*columns) as progress:
        bar = progress.add_task(title, total=1.0, attack="", standing="")

        def on_progress(task: str, share: float, standing: int) -> None:
            progress.update(bar, completed=share, attack=task, standing=f"{standing:,}")

        yield on_progress


def import_plugins(model: ModelConfig) -> None:
    """Import the modules of a user, from the current folder or PYTHONPATH, that register what a network uses.

    Raises:
        UserError: if one cannot be imported.
    """
    if model.plugins and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in model.plugins:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a user's module does when it runs
            reason = f"{type(error).__name__}: {error}"
            advice = f"it cannot be imported ({reason}), give a module of this folder or of PYTHONPATH"
            raise UserError("--plugins", name, advice) from error


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
