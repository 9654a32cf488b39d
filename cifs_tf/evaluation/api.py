"""Evaluate a model in one call: tasks, engine, ledger, report."""

from __future__ import annotations

import contextlib
import json
import math
import numbers
import os
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from cifs_tf.config import parse_shard
from cifs_tf.errors import UserError
from cifs_tf.evaluation.cards.card import Card
from cifs_tf.evaluation.chance import describe_change
from cifs_tf.evaluation.engine import ProgressFn, check_input, header_of, run_tasks
from cifs_tf.evaluation.inputs import Data, as_split
from cifs_tf.evaluation.ledger import Ledger
from cifs_tf.evaluation.networks.answers import answers_of
from cifs_tf.evaluation.networks.attacked import AttackedModel, as_attacked
from cifs_tf.evaluation.records import Report
from cifs_tf.evaluation.reports.report import build_report
from cifs_tf.evaluation.suites import describe_missing, make_suite
from cifs_tf.evaluation.tasks import Crafted, Natural, Task

# Of a report's description what the evaluation itself says.
OWN_ABOUT = (
    *("network", "num_probes", "num_classes", "mask_gradients", "limits", "num_examples", "seed", "precision"),
    *("tensor_float_32", "tasks", "norm", "epsilon", "epsilon_given"),
)


def evaluate(
    model: keras.Model | AttackedModel,
    split: Data,
    suite: str | Sequence[Task] = "quick",
    *,
    epsilon: float | None = None,
    norm: str = "linf",
    ledger_file: str | os.PathLike[str] | None = None,
    card_file: str | os.PathLike[str] | None = None,
    shard: str = "1/1",
    seed: int = 0,
    batch_size: int = 250,
    strategy: tf.distribute.Strategy | None = None,
    about: dict[str, Any] | None = None,
    on_progress: ProgressFn = lambda task, share, survivors: None,
) -> Report:
    """Measure the robustness of a classifier.

    Args:
        model: any Keras classifier, see `as_attacked`, or an attacked model (`as_attacked`, `load_attacked`).
        split: the images to measure on: a `Split`, (images, labels), or a `tf.data.Dataset` of them, see `as_split`.
        suite: name of a suite, see `make_suite` (default `"quick"`), or tasks.
        epsilon: radius of the ball, above 0, in L-infinity at most 1; needed with the name of a suite.
        norm: of the ball, with the name of a suite: `"linf"` (default), `"l2"` or `"l1"`, see `make_suite`.
        ledger_file: file to resume from after an interruption; None (default) keeps the ledger in memory.
        card_file: file for the robustness card, see `cifs_tf.evaluation.cards.card`. Default None: no card.
        shard: `i/n`, to divide the images among n machines; the report is then of this part.
        seed: of everything random, 0 to 2^31 - 1. Default 0.
        batch_size: images per batch, over all devices. Default 250.
        strategy: spreads batches over its replicas; the model must have been made in its scope.
        about: what else the report says, in types that JSON has, numbers and arrays of NumPy, or paths.
        on_progress: called as (task, share of the work done, survivors).

    Returns:
        the report, see `build_report`.

    Raises:
        UserError: for input that does not fit.

    Example:
        >>> report = evaluate(classifier, test, "standard", epsilon=8 / 255)
        >>> report["worst_case"]["accuracy"]
        0.4871
    """
    most = 1.0 if norm == "linf" else math.inf
    for argument, value, is_right, wanted in (
        ("model", model, isinstance(model, keras.Model | AttackedModel), "a Keras model, or one of as_attacked"),
        ("suite", suite, isinstance(suite, str) or _are_tasks(suite), "the name of a suite, or tasks"),
        ("epsilon", epsilon, epsilon is None or _is_number(epsilon, 0, most), f"a number above 0, at most {most:g}"),
        ("seed", seed, _is_number(seed, -1, 2**31 - 1, whole=True), "a whole number from 0 to 2147483647"),
        ("batch_size", batch_size, _is_number(batch_size, 0, math.inf, whole=True), "a whole number of 1 or more"),
        ("ledger_file", ledger_file, ledger_file is None or _is_path(ledger_file), "the path of a file"),
        ("card_file", card_file, card_file is None or _is_path(card_file), "the path of a file"),
        ("on_progress", on_progress, callable(on_progress), "a function of (task, share, survivors)"),
    ):
        if not is_right:
            short = value if isinstance(value, int | float | str | None) else type(value).__name__
            raise UserError(argument, short, f"give {wanted}")
    parse_shard(shard, "shard")
    split, told, columns = as_split(split)
    shape = tuple(split.image_shape)
    attacked = model if isinstance(model, AttackedModel) else as_attacked(model, image_shape=shape)
    if columns not in (None, attacked.num_classes):
        advice = f"the network has {attacked.num_classes} classes, give as many columns, or integers"
        raise UserError("labels", f"one-hot rows of {columns} columns", advice)
    radius = {"norm": norm, "epsilon": None if epsilon is None else float(epsilon)}
    about = {**radius, "epsilon_given": None if epsilon is None else _as_written(epsilon), **_plain(about)}
    if isinstance(suite, str):
        about = {"suite": suite, **about}
        if epsilon is None:
            raise UserError("epsilon", None, "give the radius with the name of a suite, such as 8 / 255")
        tasks = make_suite(suite, attacked, epsilon, norm=norm)
    else:
        tasks = list(suite)
        if not any(isinstance(task, Natural) for task in tasks):
            raise UserError("suite", [task.name for task in tasks], "put Natural() first: a report needs it")
    _check_radius(about, tasks)
    check_input(attacked, split, tasks, shard)
    names = about.get("class_names")
    if names is not None and not (isinstance(names, list) and len(names) == attacked.num_classes):
        raise UserError("about", f"class_names {names}", f"give a list of {attacked.num_classes}, one for each class")
    header = header_of(attacked, split, tasks, seed=seed, shard=shard, about=about)
    header["about"]["limits"] += [*told, *describe_missing(attacked), *describe_change(about.get("suite"), tasks)]
    if ledger_file is not None:
        header["answers"] = answers_of(attacked, split)
    with contextlib.ExitStack() as stack:
        # The ledger first: it keeps other processes out.
        ledger = Ledger(header) if ledger_file is None else stack.enter_context(Ledger.open(ledger_file, header))
        card = None if card_file is None else stack.enter_context(Card.open(card_file, header))
        run_tasks(
            attacked,
            split,
            tasks,
            ledger,
            seed=seed,
            batch_size=batch_size,
            strategy=strategy,
            on_progress=on_progress,
            keep=None if card is None else card.keep,
        )
        report = build_report(ledger)
        if card is not None:
            card.finish(report)
        return report


def _check_radius(about: dict[str, Any], tasks: Sequence[Task]) -> None:
    """Let a report of tasks of one's own tell the ball of its attacks; refuse another that was given.

    Raises:
        UserError: if it is another.
    """
    attacks = [task.attack for task in tasks if isinstance(task, Crafted) and task.counts]
    balls = {(str(a.norm), float(a.epsilon)) for a in attacks if hasattr(a, "norm") and hasattr(a, "epsilon")}
    if not balls:
        return
    norms, radius = sorted({norm for norm, _ in balls}), max(epsilon for _, epsilon in balls)
    if len(norms) > 1:
        raise UserError("suite", " and ".join(norms), "give tasks of one norm: their survivors are of one ball")
    if about["epsilon"] is None:
        about |= {"norm": norms[0], "epsilon": radius, "epsilon_given": _as_written(radius)}
    elif about["norm"] != norms[0] or not math.isclose(about["epsilon"], radius):
        advice = f"the tasks attack in {norms[0]} with a radius of up to {radius:g}; give this one, or none"
        raise UserError("epsilon", about["epsilon_given"], advice)


def _plain(about: Any) -> dict[str, Any]:
    """Return what else a report says in the types of JSON."""

    def simple(value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value.tolist()

    try:
        plain = dict(json.loads(json.dumps(about or {}, default=simple, allow_nan=False)))
    except (TypeError, ValueError, AttributeError) as error:
        advice = "give a dict of text, finite numbers, true, false, None, and lists and dicts of these"
        raise UserError("about", about, advice) from error
    if own := [name for name in OWN_ABOUT if name in plain]:
        raise UserError("about", ", ".join(own), "the evaluation says this itself, give it another name")
    return plain


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) and "\0" not in str(value)


def _are_tasks(suite: Any) -> bool:
    return isinstance(suite, Sequence) and all(isinstance(task, Task) for task in suite)


def _is_number(value: Any, above: float, high: float, whole: bool = False) -> bool:
    """Return whether a value is a number in a range; true and false, and what is not finite, are not."""
    kind = numbers.Integral if whole else numbers.Real
    return (
        isinstance(value, kind)
        and not isinstance(value, bool)
        and above < float(value) <= high
        and math.isfinite(value)
    )


def _as_written(epsilon: float) -> str:
    """Return a radius as it was written, or as it would be: 8/255, 0.1."""
    levels, short = round(255 * epsilon), f"{epsilon:.4g}"
    is_fraction = float(short) != epsilon and math.isclose(levels, 255 * epsilon, rel_tol=1e-9)
    return str(getattr(epsilon, "text", f"{levels}/255" if is_fraction else short))
