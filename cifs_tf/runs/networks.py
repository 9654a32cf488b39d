"""The networks of a run: how they are built, and which configs do not fit them."""

from __future__ import annotations

import dataclasses

import keras

from cifs_tf.adversarial import make_method, step_decay
from cifs_tf.command_line import import_plugins
from cifs_tf.config import ModelConfig, RunConfig
from cifs_tf.data import ImageDataset
from cifs_tf.errors import UserError
from cifs_tf.losses import attack_betas_for, head_weights
from cifs_tf.models import Classifier, build_classifier
from cifs_tf.runs.cluster import ALONE, Cluster
from cifs_tf.runs.images import check_warm_start, read_record
from cifs_tf.runs.measurement import attacks_of
from cifs_tf.runs.trained import TrainedNetwork
from cifs_tf.runs.workdir import Workdir

# What a network makes of the weights of its probes, which a warm start may change.
OF_THE_MASK = (
    *("importance", "importance_scale", "temperature", "alpha", "top_k"),
    *("mask_gradient", "label_in_mask", "mask_permutation"),
)


def model_configs(config: RunConfig) -> list[ModelConfig]:
    """Return the networks of a run: the twin first, if there is one."""
    twin = config.output.twin
    if twin is None or twin == config.model.defense:
        return [config.model]
    return [dataclasses.replace(config.model, defense=twin), config.model]


def build_networks(config: RunConfig, dataset: ImageDataset, cluster: Cluster = ALONE) -> dict[str, Classifier]:
    """Build the networks of a run; refuse a config that does not fit itself, them, the dataset or the devices.

    Nothing is written.

    Args:
        config: of the run.
        dataset: of its images.
        cluster: devices that get the networks' variables. Default one device.

    Returns:
        the networks by their defense, the twin first, if there is one.

    Raises:
        UserError: naming the option.
    """
    attacks_of(config)
    networks: dict[str, Classifier] = {}
    for model in model_configs(config):
        network = networks[model.defense] = build(config, model, dataset, cluster)
        for beta in attack_betas_for(config.evaluation.attack_betas, network.num_probes):
            head_weights(beta, network.num_probes)
        make_method(config, model, network.num_probes)
    train = config.train
    step_decay(train.learning_rate, train.lr_milestones, train.lr_decay, steps_per_epoch=1)
    if list(train.fat_tau_milestones) != sorted(set(train.fat_tau_milestones)):
        raise UserError("--fat_tau_milestones", list(train.fat_tau_milestones), "give ascending numbers of epochs")
    _check_checkpoints(config, dataset)
    global_batch_size(config, dataset, cluster)
    return networks


def build(config: RunConfig, model: ModelConfig, dataset: ImageDataset, cluster: Cluster = ALONE) -> Classifier:
    """Build one network of a run with its own initial weights, the same for the same seed.

    Raises:
        UserError: if it does not fit the dataset, or a plugin cannot be imported.
    """
    import_plugins(model)
    with cluster.translate_worker_errors(), cluster.strategy.scope():
        keras.utils.set_random_seed(config.train.seed)
        classifier = build_classifier(model, dataset.image_shape, dataset.num_classes, config.train.precision)
        if config.train.warm_start is not None:
            _warm_start(classifier, config.train.warm_start, model, dataset, cluster)
    return classifier


def global_batch_size(config: RunConfig, dataset: ImageDataset, cluster: Cluster) -> int:
    """Return the number of images in an optimizer step, over all devices.

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


def _check_checkpoints(config: RunConfig, dataset: ImageDataset) -> None:
    wanted = list(config.evaluation.checkpoints)
    if not wanted:
        raise UserError("--checkpoints", wanted, "give last, best or both")
    if len(dataset.validation):
        return
    if wanted == ["best"]:
        raise UserError("--checkpoints", wanted, "there is no best epoch without --val_examples; give last")
    if config.output.export_checkpoint == "best":
        raise UserError("--export_checkpoint", "best", "there is no best epoch without --val_examples; give last")


def _warm_start(classifier: Classifier, path: str, model: ModelConfig, dataset: ImageDataset, cluster: Cluster) -> None:
    run, defense = Workdir(path), model.defense
    model_file = run.model_file(defense)
    if not model_file.exists():
        advice = f"there is no {model_file}, give the workdir of a finished run with the same defense"
        raise UserError("--warm_start", path, advice)
    _check_origin(dataset, run)
    config = run.read_config("--warm_start")
    source = TrainedNetwork(run, config, defense, option="--warm_start").load()
    theirs, ours = [w.shape for w in source.weights], [w.shape for w in classifier.weights]
    if theirs != ours:
        advice = (
            f"its network ({_summary(source)}) is not this one ({_summary(classifier)}), "
            "give a run of the same architecture and dataset"
        )
        raise UserError("--warm_start", path, advice)
    # Weights of the same shapes, of which another network makes something else.
    for option, its, here in (
        ("--activation", config.model.activation, model.activation),
        ("--cuts", ",".join(source.cuts), ",".join(classifier.cuts)),
    ):
        if its != here:
            raise UserError("--warm_start", path, f"its network has {option} {its}, this one {here}; give the same")
    different = [name for name in OF_THE_MASK if getattr(config.model, name) != getattr(model, name)]
    if different and len(classifier.cuts) and cluster.is_chief:
        its = ", ".join(f"{name} {getattr(config.model, name)}" for name in different)
        print(f"note: the weights of {path} are of a network with {its}, which is otherwise here")
    classifier.set_weights(source.get_weights())


def _check_origin(dataset: ImageDataset, run: Workdir) -> None:
    """Refuse weights that have seen the images to test or validate on: in their run, or in one that it began from."""
    known = [run.path.absolute()]
    check_warm_start(dataset, run)
    while (begun_from := run.read_config("--warm_start").train.warm_start) is not None:
        record = read_record(run, "--warm_start")
        origin = (record and record.begun_from) or {"path": begun_from, "run": None, "images": None}
        run = Workdir(origin["path"] or "")
        there = read_record(run, "--warm_start")
        # Not recorded, gone, or another run lies there now, or the same on other images.
        found = {"path": origin["path"], "run": run.key, "images": there and there.identity.hash}
        if found != origin or None in found.values() or run.path.absolute() in known:
            advice = f"it began from the weights of {begun_from}, of which it is not known what they were trained on"
            raise UserError("--warm_start", known[0], f"{advice}; put that run back to {run.path}, or give another one")
        known.append(run.path.absolute())
        check_warm_start(dataset, run)


def _summary(classifier: Classifier) -> str:
    return f"{classifier.name}, {classifier.num_classes} classes, {classifier.count_params():,} parameters"
