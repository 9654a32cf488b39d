"""Measure what a trained classifier is worth under attack.

    python training/evaluate.py --model runs/digits                      a first look, with an audit
    python training/evaluate.py --model runs/digits --suite strict       the worst case over everything
    python training/evaluate.py --model FILE --dataset svhn --suite standard
    python training/evaluate.py --model runs/digits --suite strict --shard 1/4      on one of four machines
    python training/evaluate.py merge FOLDER LEDGER LEDGER LEDGER LEDGER            then join what they found

--model takes the workdir of a run, a .keras file or a SavedModel, of this project or any other. Everything is written
to --workdir; the same command again continues there.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.table import Table

from cifs_tf.command_line import import_plugins, parse_options
from cifs_tf.config import RunConfig
from cifs_tf.errors import UserError
from cifs_tf.programs.evaluate_options import EvaluateOptions
from cifs_tf.runs.recipes import parse_config, run_program
from cifs_tf.runs.workdir import Workdir, check_folder

if TYPE_CHECKING:
    from cifs_tf.data import ImageDataset, Split
    from cifs_tf.evaluation import AttackedModel
    from cifs_tf.evaluation.records import Example, Report

# Images of a suite that is not meant for all of them.
EXAMPLES = {"quick": 200, "paper_aa": 2000}


def main(argv: Sequence[str]) -> int:
    """Parse the command line, and evaluate or merge; 1 if the audit failed."""
    if argv and argv[0] == "merge":
        return merge(argv[1:])
    return evaluate(parse_options(EvaluateOptions, "evaluate.py", argv, __doc__ or ""))


def evaluate(options: EvaluateOptions) -> int:
    """Carry out an evaluation, or what is left of it, and write the report.

    Returns:
        0, or 1 if the audit failed.

    Raises:
        UserError: for input that does not fit; nothing has been written then.
    """
    config, run = _config_of(options)
    folder = Path(options.workdir) if options.workdir else _default_folder(options, config, run)
    check_folder(folder)
    # After the check: importing TensorFlow takes seconds, an error should not.
    from cifs_tf.runs.machine import exact_factors

    with exact_factors():
        return _attack(options, config, run, folder)


def _attack(options: EvaluateOptions, config: RunConfig, run: Workdir | None, folder: Path) -> int:
    from cifs_tf import evaluation
    from cifs_tf.data import load_dataset
    from cifs_tf.evaluation.examples import pick_examples
    from cifs_tf.runs.cluster import make_local_cluster
    from cifs_tf.runs.network import about_images, attack_progress, attacks_of, ledger_name

    import_plugins(config.model)
    cluster = make_local_cluster(options.machine_config())
    strategy = cluster.strategy if cluster.num_replicas > 1 else None
    with strategy.scope() if strategy else contextlib.nullcontext():
        victim = _load(options.model, options.defense, options.checkpoint, run)
        surrogate = _load_surrogate(options.surrogate) if options.surrogate else None
    dataset = load_dataset(config.data)
    split = _images(options, dataset)
    tasks = evaluation.make_suite(
        options.suite,
        victim,
        config.attack.epsilon,
        attacks=attacks_of(config),
        betas=config.evaluation.attack_betas,
        mask_gradients=options.mask_gradients or _mask_gradients(config, victim),
        audit=options.audit,
        surrogate=surrogate,
    )
    console = Console()
    console.rule(f"{victim.name}: {options.suite}, {len(split):,} images, epsilon {config.attack.epsilon}")
    seed = config.train.seed if options.seed is None else options.seed
    with attack_progress() as on_progress:
        report = evaluation.evaluate(
            victim,
            split,
            tasks,
            epsilon=config.attack.epsilon,
            ledger_file=folder / ledger_name(options.shard),
            shard=options.shard,
            seed=seed,
            batch_size=options.batch_size,
            strategy=strategy,
            about=about_images(options.suite, dataset, split),
            on_progress=on_progress,
        )
    if options.shard != "1/1":
        console.print(f"shard {options.shard} is finished: {folder / ledger_name(options.shard)}", soft_wrap=True)
        console.print("When all are: python training/evaluate.py merge FOLDER LEDGER LEDGER ...")
        return 0
    evaluation.write_report(report, folder)  # whatever the pictures come to
    with console.status("making a few of the broken images again, to look at"):
        examples = pick_examples(victim, split, tasks, report, dataset.class_names)
    return _publish(report, folder, console, examples)


def merge(argv: Sequence[str]) -> int:
    """Join the ledgers of all shards, FOLDER LEDGER..., and write the report of the whole.

    Returns:
        as `evaluate`.

    Raises:
        UserError: if shards are missing, overlap, are not finished or belong to different evaluations.
    """
    if len(argv) < 2 or argv[0].startswith("-"):
        raise UserError("merge", " ".join(argv), "give the folder to write to, then the ledger of every shard")
    folder, *paths = argv
    check_folder(Path(folder))
    from cifs_tf import evaluation

    report = evaluation.build_report(evaluation.merge(paths, Path(folder) / "ledger.jsonl"))
    console = Console()
    code = _publish(report, Path(folder), console)
    console.print(f"The evaluation's command with --workdir {folder}, without --shard, adds pictures of broken images.")
    return code


def _publish(report: Report, folder: Path, console: Console, examples: Sequence[Example] = ()) -> int:
    from cifs_tf.evaluation import write_report

    written = write_report(report, folder, examples)
    console.print(summary(report))
    for check in report["audit"]:
        if check["verdict"] in ("warn", "fail"):
            console.print(f"audit: {check['verdict']}: {check['name']}: {check['sentence']}", soft_wrap=True)
    for limit in report["about"]["limits"]:
        console.print(f"note: {limit}", soft_wrap=True)
    console.print("Written:", *(f"  {path}" for path in written), sep="\n", soft_wrap=True)
    return 1 if report["believable"] is False else 0


def summary(report: Report) -> Table:
    """Lay out a report's main numbers."""
    about = report["about"]
    table = Table(
        title=f"{about['network']}: {about['suite']}\n"
        f"{report['num_examples']:,} images, epsilon {about['epsilon']:.4g}",
        caption="audit: " + {None: "not done", True: "no check failed", False: "FAILED"}[report["believable"]],
    )
    for column, justify in (("after", "left"), ("runs", "right"), ("broke", "right"), ("survivors", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_column("accuracy %", justify="right")
    natural = report["natural"]
    table.add_row("natural", "", "", f"{natural['count']:,}", f"{100 * natural['accuracy']:.2f}")
    for row in report["attacks"]:
        share = row["standing"] / report["num_examples"]
        name = f"{row['attack']} ({row['section']})"
        table.add_row(name, f"{row['runs']}", f"{row['broke_first']:,}", f"{row['standing']:,}", f"{100 * share:.2f}")
    worst = report["worst_case"]
    interval = "" if not worst["interval"] else " ({:.2f} to {:.2f})".format(*(100 * b for b in worst["interval"]))
    table.add_section()
    table.add_row("worst case of each image", "", "", f"{worst['count']:,}", f"{100 * worst['accuracy']:.2f}{interval}")
    if report["paper"]:
        paper = report["paper"]
        label = f"the paper's convention ({paper['attack']}, beta {paper['beta']})"
        table.add_row(label, "", "", "", f"{100 * paper['robust_accuracy']:.2f}")
        table.add_row("gap between the two", "", "", "", f"{100 * (report['gap'] or 0):.2f}")
    return table


def _config_of(options: EvaluateOptions) -> tuple[RunConfig, Workdir | None]:
    """The config of the run that the model belongs to, or of the dataset's recipe, with the options on top."""
    path = Path(options.model)
    if not path.exists():
        raise UserError("--model", options.model, "there is no such run or file, give a workdir, .keras or SavedModel")
    home = next((folder for folder in (path, *path.absolute().parents[:4]) if (folder / "config.yaml").is_file()), None)
    run = Workdir(home) if home == path else None
    if home is not None and options.dataset is None:
        config = Workdir(home).read_config()
    elif options.dataset is None:
        raise UserError("--dataset", None, "the model lies in no run's workdir, say what to measure it on")
    else:
        config = parse_config("evaluate.py", "", [f"--dataset={options.dataset}"])
    data: dict[str, Any] = {"data_dir": options.data_dir} if options.data_dir else {}
    if options.examples is not None or options.suite in EXAMPLES:
        data["test_examples"] = None
        # Without this, a run on a part of the training images measures on a part of the test images.
        data["train_examples"] = None
    asked = {"attacks": options.attacks, "attack_betas": options.attack_betas}
    evaluation = {name: value for name, value in asked.items() if value}
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, **data),
        attack=dataclasses.replace(config.attack, epsilon=options.epsilon or config.attack.epsilon),
        evaluation=dataclasses.replace(config.evaluation, **evaluation),  # type: ignore[arg-type]
    )
    return config, run


def _default_folder(options: EvaluateOptions, config: RunConfig, run: Workdir | None) -> Path:
    if run is not None:
        return run.evaluation(options.defense or config.model.defense, options.checkpoint, options.suite)
    name = "-".join(
        part for part in Path(options.model).resolve().with_suffix("").parts[-4:] if part not in ("/", "..", ".")
    )
    return Path("runs") / "evaluation" / name / options.suite


def _load(path: str, defense: str | None, checkpoint: str, run: Workdir | None) -> AttackedModel:
    from cifs_tf.evaluation import load_attacked

    folder = run or (Workdir(path) if (Path(path) / "config.yaml").is_file() else None)
    if folder is None:
        return load_attacked(path)
    file = folder.model_file(defense or folder.read_config().model.defense, checkpoint)
    if not file.exists():
        advice = (
            f"it has no {file.relative_to(folder.path)}, finish its training, or give another --defense, --checkpoint"
        )
        raise UserError("--model", path, advice)
    return load_attacked(file, name=f"{path}, {file.parent.name}, {checkpoint} epoch")


def _load_surrogate(path: str) -> AttackedModel:
    try:
        return _load(path, None, "last", None)
    except UserError as error:
        raise UserError("--surrogate", error.received, error.advice) from error


def _images(options: EvaluateOptions, dataset: ImageDataset) -> Split:
    number = options.examples
    if number is None and options.suite in EXAMPLES:
        number = min(EXAMPLES[options.suite], len(dataset.test))
    return dataset.test if number is None else dataset.test.class_balanced(number, "--examples")


def _mask_gradients(config: RunConfig, victim: AttackedModel) -> tuple[str, ...] | None:
    """That of the config first, for the paper's protocol; then the others the network has."""
    first = config.evaluation.eval_mask_gradient
    if first not in victim.mask_gradients:
        return None
    return first, *(mask for mask in victim.mask_gradients if mask != first)


def start() -> NoReturn:
    """Run the program on the command line of this process, and exit."""
    run_program(main, [field.name for field in dataclasses.fields(EvaluateOptions)])
