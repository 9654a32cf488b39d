"""The robust accuracy of networks: those of a run at its end, and any model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cifs_tf.attacks import PGD
from cifs_tf.config import RunConfig
from cifs_tf.data import ImageDataset, Split
from cifs_tf.errors import UserError
from cifs_tf.evaluation import (
    AttackedModel,
    Ledger,
    as_attacked,
    build_report,
    evaluate,
    make_attacks,
    make_suite,
    merge,
    write_report,
)
from cifs_tf.evaluation.cards.card import Card
from cifs_tf.evaluation.records import Report
from cifs_tf.evaluation.reports.examples import pick_examples
from cifs_tf.files import read_json
from cifs_tf.runs.cluster import ALONE, Cluster
from cifs_tf.runs.curves import best_epoch
from cifs_tf.runs.precision import tf32_disabled
from cifs_tf.runs.provenance import revision
from cifs_tf.runs.tensorboard import write_to_tensorboard
from cifs_tf.runs.trained import TrainedNetwork
from cifs_tf.runs.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class AttackPlan:
    """What a network is attacked with, see `cifs_tf.evaluation.make_suite`.

    Args:
        suite: of attacks. Default `"paper"`.
        mask_gradients: the mask gradients to attack through. Default all.
        audit: whether to look for gradient masking. Default None: as the suite does.
        surrogate: another model, for a transfer attack in the audit. Default None.
        shard: the part `i/n` of the images. Default all of them.
        norm: of the ball. Default `"linf"`.
        epsilon: its radius. Default None: that of the config.
    """

    suite: str = "paper"
    mask_gradients: Sequence[str] | None = None
    audit: bool | None = None
    surrogate: AttackedModel | None = None
    shard: str = "1/1"
    norm: str = "linf"
    epsilon: float | None = None


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
    networks = {name: TrainedNetwork(workdir, config, defense, name, "--workdir") for name in ("last", "best")}
    reports = {
        name: measure(network, dataset, cluster, epochs.get(name, 0))
        for name, network in networks.items()
        if cluster.chief_says(lambda name=name: name in names.values())  # type: ignore[misc]
    }
    return {name: {"epoch": epochs[name], "report": reports[names[name]]} for name in epochs}


def _epochs_to_measure(config: RunConfig, workdir: Workdir, defense: str) -> dict[str, int]:
    best = best_epoch(read_json(workdir.history_file(defense)))
    has_best = workdir.model_file(defense, "best").exists()  # its weights may be lost, which `fit` has said
    epochs = {"last": config.train.epochs, "best": best if has_best else None}
    wanted = config.evaluation.checkpoints
    found: dict[str, int] = {name: epoch for name in wanted if (epoch := epochs[name]) is not None}
    if not found:
        advice = f"the weights of the best epoch ({best}) are lost; another --workdir trains anew"
        raise UserError("--checkpoints", list(wanted), advice)
    return found


def measure(
    network: TrainedNetwork, dataset: ImageDataset, cluster: Cluster = ALONE, epoch: int = 0
) -> Mapping[str, Any]:
    """Attack one network of a run on the test split with the suite `paper`, or with what is left of it.

    What was found before is in the ledger, whose key says what it was found of; the report is always made from it.

    Args:
        network: what is attacked.
        dataset: whose test images are attacked.
        cluster: workers that share the images. Default this process alone.
        epoch: after which the network is as it is, for TensorBoard. Default 0.

    Returns:
        the report, see `cifs_tf.evaluation.build_report`; an empty dict in a worker that is not the chief.
    """
    folder = network.evaluation("paper")
    whole = folder / ledger_name("1/1")
    # Measured by one process, or merged: what several would find is there, and the chief looks at it.
    is_whole = cluster.num_workers > 1 and cluster.chief_says(lambda: whole.exists() and Ledger.read(whole).finished)
    if is_whole and not cluster.is_chief:
        return {}
    shard = "1/1" if is_whole else cluster.shards[cluster.index]
    if not cluster.is_chief:
        cluster.wait_for_file(network.model_file)
    strategy = cluster.strategy if cluster.num_workers == 1 < cluster.num_replicas else None
    with strategy.scope() if strategy else contextlib.nullcontext():
        classifier = network.load()
        attacked = as_attacked(classifier, name=network.title)
    mask_gradient = network.config.evaluation.eval_mask_gradient
    plan = AttackPlan(
        mask_gradients=(mask_gradient,) if mask_gradient in attacked.mask_gradients else None,
        audit=network.config.evaluation.eval_audit,
        shard=shard,
    )
    report = attack(
        network.config,
        attacked,
        dataset,
        dataset.test,
        folder,
        plan,
        strategy=strategy,
        title=f"attacking {network.defense}, {network.checkpoint} epoch",
        with_card=shard == "1/1",
    )
    if not is_whole:
        cluster.wait_for_all()
    if not cluster.is_chief:
        return {}
    if shard != "1/1":
        ledgers = [folder / ledger_name(shard) for shard in cluster.shards]
        whole.unlink(missing_ok=True)  # one process may have begun it
        report = build_report(merge(ledgers, whole))
        write_report(report, folder)
        return report
    card = Card.read(folder / card_name(shard))
    with tf32_disabled():
        examples = pick_examples(attacked, dataset.test, card, dataset.class_names)
        write_to_tensorboard(network, classifier, dataset.test, card, report, examples, epoch)
    write_report(report, folder, examples)
    return report


def attack(
    config: RunConfig,
    attacked: AttackedModel,
    dataset: ImageDataset,
    split: Split,
    folder: Path,
    plan: AttackPlan,
    *,
    strategy: tf.distribute.Strategy | None = None,
    title: str = "attacking",
    with_card: bool = False,
    split_name: str = "test",
) -> Report:
    """Attack a network with a suite, or with what is left of it, and show the progress.

    Args:
        config: its attacks and their beta_atk, epsilon, batch size and seed.
        attacked: the model.
        dataset: what the report names.
        split: the images of it to attack.
        folder: where the ledger is written.
        plan: what to attack with.
        strategy: devices that share each batch. Default one device.
        title: of the progress bar.
        with_card: whether to leave a robustness card beside the ledger. Default False.
        split_name: `"test"` (default) or `"validation"`, for the report.

    Returns:
        the report, see `cifs_tf.evaluation.build_report`.
    """
    epsilon = config.attack.epsilon if plan.epsilon is None else plan.epsilon
    tasks = make_suite(
        plan.suite,
        attacked,
        epsilon,
        attacks=attacks_of(config),
        betas=config.evaluation.attack_betas,
        mask_gradients=plan.mask_gradients,
        audit=plan.audit,
        surrogate=plan.surrogate,
        norm=plan.norm,
    )
    in_all = dataset.num_test_images if split_name == "test" else len(dataset.validation)
    about = {
        "revision": revision(),
        "suite": plan.suite,
        "dataset": dataset.name,
        "images": dataset.identity.hash,
        "unlike_run": list(dataset.unlike_run),
        "class_names": list(dataset.class_names),
        "split": split_name,
        "subset_of": in_all if len(split) < in_all else None,
    }
    with tf32_disabled(), _attack_progress(title) as on_progress:
        return evaluate(
            attacked,
            split,
            tasks,
            epsilon=epsilon,
            norm=plan.norm,
            ledger_file=folder / ledger_name(plan.shard),
            card_file=folder / card_name(plan.shard) if with_card else None,
            shard=plan.shard,
            batch_size=config.evaluation.eval_batch_size,
            seed=config.train.seed,
            strategy=strategy,
            about=about,
            on_progress=on_progress,
        )


def check_test_images(dataset: ImageDataset, cluster: Cluster) -> None:
    """Refuse, before the training, workers for which there are no test images to attack.

    Raises:
        UserError: if so.
    """
    if len(dataset.test) < cluster.num_workers:
        advice = f"give {cluster.num_workers} or more, the workers share them"
        raise UserError("--test_examples", len(dataset.test), advice)


def ledger_name(shard: str) -> str:
    """Return the file name of the ledger of a part, `i/n`, of the images."""
    return "ledger.jsonl" if shard == "1/1" else f"ledger-{shard.replace('/', '-of-')}.jsonl"


def card_name(shard: str) -> str:
    """Return the file name of the robustness card of a part, `i/n`, of the images."""
    return ledger_name(shard).replace("ledger", "card")


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
def _attack_progress(title: str = "attacking") -> Iterator[Any]:
    """Show a progress bar with the survivors and the time left; yield the function that moves it."""
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
