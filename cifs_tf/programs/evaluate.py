"""Measure what a trained classifier is worth under attack.

    python training/evaluate.py --model runs/digits                      a first look, with an audit
    python training/evaluate.py --model runs/digits --suite strict       the worst case over everything
    python training/evaluate.py --model FILE --dataset svhn --suite standard
    python training/evaluate.py --model runs/digits --suite standard --norm l2      or l1
    python training/evaluate.py --model runs/digits --suite strict --shard 1/4      on one of four machines
    python training/evaluate.py merge FOLDER LEDGER LEDGER LEDGER LEDGER            then join what they found
    python training/evaluate.py verify FOLDER/card.jsonl --model runs/digits        checks a result, without attacks

--model takes the workdir of a run, a .keras file, a SavedModel or an .onnx file, of this project or any other. A
SavedModel runs its operations, the others no code of their own; see --trust. An .onnx file is attacked through the
gradient that export wrote beside it, any other without one. Everything is written to --workdir; the same command again
continues there.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cifs_tf.attack_names import NORM_SUITES, SUITE_EXAMPLES, Suite
from cifs_tf.command_line import parse_options
from cifs_tf.config import Defense, Group, MachineConfig, MaskGradient, Ratio, RunConfig, bounded, parse_shard
from cifs_tf.errors import UserError
from cifs_tf.runs.recipes import check_names, parse_config
from cifs_tf.runs.trained import TrainedNetwork, find_network
from cifs_tf.runs.workdir import Workdir, check_folder


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(Group):
    """Attack a trained classifier, and write a report: JSON, Markdown and one HTML page.

    Args:
        model: workdir of a run, .keras file, SavedModel folder, or .onnx file.
        suite: quick (a first look, with an audit), paper (Section 4.1, every beta_atk), paper_aa (Appendix B.1, APGD
            and Square), apgd (APGD-CE and APGD-T, three targets), standard (AutoAttack), plus (with five starts of
            APGD), rand (AutoAttack's for networks that answer by chance, taken by itself where calls differ), adaptive
            (paper, then short runs of APGD at every beta_atk through every mask gradient), strict (per image, the
            worst case over all of it), minimal (the smallest distance of a misclassified point, and robust accuracy
            over epsilon from it), fast (APGD-CE, and APGD-T towards few classes in MALT's order) or corruptions (the
            fifteen of CIFAR-10-C).
        checkpoint: of a run: the network after its last epoch, or after its best on the validation images.
        defense: which network of a run; null is its own, not the twin.
        dataset: as for run.py; null is that of the run in whose workdir the model lies. With a run it says where the
            run's images are now.
        image_size: side in pixels to which tfds: and folder: images are resized; null is the run's, or keeps their
            size.
        resize: how, see run.py; null is the run's, or auto.
        cache: where decoded images of a folder are kept, see run.py; null is the run's, or auto.
        cache_dir: of --cache disk; null is the run's, or the user's folder of caches.
        other_images: of a run, its networks and exports: measure on images that it was not trained beside, of the same
            classes; the report says in what they differ, and the default workdir is another.
        data_dir: where TFDS data lies; null is the run's, or TFDS' own default.
        split: of a run, given as its workdir: its test images, or those that it held out for validation, to choose by;
            the default workdir is another then.
        examples: attack a class-balanced subset of so many images; null is 200 for quick, 2000 for paper_aa, and all
            of them otherwise.
        epsilon: radius of the ball; null is that of the run, or of the dataset's recipe; in l2 and l1 0.5 and 12 for
            images of 32 x 32 x 3 (RobustBench), as much for each value of others.
        norm: of the ball; l2 and l1 for the suites standard, plus, strict, minimal, fast and rand.
        attacks: of the suites paper, adaptive and strict: fgsm, pgdN, cwN; null is the run's, or those of the dataset's
            recipe.
        attack_betas: the attacker's settings of beta in Eq. (3); null is the run's, or the paper's nine.
        mask_gradients: attack through these gradients of the mask, first the one for paper; null is all there are.
        audit: look for gradient masking; null does so in quick, adaptive and strict, and by a few batches elsewhere.
        surrogate: another model, for a transfer attack in the audit.
        batch_size: images per batch.
        seed: of everything random; null is that of the run, or 0.
        shard: i/n, attack only the i-th of n parts of the images; see merge.
        strategy: one (one device), mirrored (all GPUs of this machine), or auto: mirrored where there are several GPUs.
        replicas: mirrored only: how many GPUs; without a GPU the processor is divided into so many devices, which is no
            faster. null is all GPUs.
        workdir: folder for ledger and report; null is DEFENSE/evaluation/CHECKPOINT/SUITE in the run's workdir
            (SUITE-other-images or SUITE-validation there), or runs/evaluation/MODEL/SUITE.
        trust: load a SavedModel whose operations reach files, the network or Python code too.
    """

    model: str
    suite: Suite = "quick"
    checkpoint: Literal["last", "best"] = "last"
    defense: Defense | None = None
    dataset: str | None = None
    image_size: int | None = bounded(None, low=8)
    resize: Literal["crop", "stretch", "pad"] | None = None
    cache: Literal["auto", "memory", "disk"] | None = None
    cache_dir: str | None = None
    other_images: bool = False
    data_dir: str | None = None
    split: Literal["test", "validation"] = "test"
    examples: int | None = bounded(None, low=1)
    epsilon: Ratio | None = bounded(None, above=0)
    norm: Literal["linf", "l2", "l1"] = "linf"
    attacks: tuple[str, ...] | None = None
    attack_betas: tuple[int | float | str, ...] | None = None
    mask_gradients: tuple[MaskGradient, ...] | None = None
    audit: bool | None = None
    surrogate: str | None = None
    batch_size: int = bounded(250, low=1)
    seed: int | None = bounded(None, low=0, high=2**31 - 1)
    shard: str = "1/1"
    strategy: Literal["auto", "one", "mirrored"] = "auto"
    replicas: int | None = None
    workdir: str | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_shard(self.shard, "--shard")
        if self.norm != "linf" and self.suite not in NORM_SUITES:
            raise UserError(
                "--norm", self.norm, f"with the suite {self.suite} give linf, or --suite {', '.join(NORM_SUITES)}"
            )
        if self.norm == "linf" and self.epsilon is not None and self.epsilon > 1:
            raise UserError("--epsilon", self.epsilon, "give a number above 0, at most 1, or --norm l2 or l1")
        if self.split != "test" and self.other_images:
            advice = "other images have none that this run held out; give test, or leave --other_images out"
            raise UserError("--split", self.split, advice)
        self.machine_config()

    def machine_config(self) -> MachineConfig:
        """Return the devices that share the attacks."""
        return MachineConfig(strategy=self.strategy, replicas=self.replicas)


VERIFY = """Check a robustness card that an evaluation has left, card.jsonl, in a minute and without an attack.

    python training/evaluate.py verify CARD --model runs/digits
    python training/evaluate.py verify CARD --model FILE --dataset cifar10
"""


@dataclasses.dataclass(frozen=True)
class VerifyOptions(Group):
    """Check that every image that a card calls broken is, by an adversarial image in the ball; 1 if not.

    Args:
        cards: the card.
        model: as for evaluate.py.
        checkpoint: as for evaluate.py.
        defense: as for evaluate.py.
        dataset: as for evaluate.py.
        image_size: as for evaluate.py.
        data_dir: as for evaluate.py.
        batch_size: images per batch.
        trust: as for evaluate.py.
    """

    model: str
    cards: tuple[str, ...] = ()
    checkpoint: Literal["last", "best"] = "last"
    defense: Defense | None = None
    dataset: str | None = None
    image_size: int | None = bounded(None, low=8)
    data_dir: str | None = None
    batch_size: int = bounded(250, low=1)
    trust: bool = False


def main(argv: Sequence[str]) -> int:
    """Parse the command line, and evaluate or merge; 1 if the audit failed."""
    if argv and argv[0] == "merge":
        return merge(argv[1:])
    if argv and argv[0] == "verify":
        return verify(parse_options(VerifyOptions, "evaluate.py verify", argv[1:], VERIFY, positional="cards"))
    return evaluate(parse_options(EvaluateOptions, "evaluate.py", argv, __doc__ or ""))


def evaluate(options: EvaluateOptions) -> int:
    """Carry out an evaluation, or what is left of it, write the report, and return 0, or 1 if the audit failed.

    Raises:
        UserError: for input that does not fit; nothing has been written then.
    """
    config, home, network = _config_of(options)
    folder = Path(options.workdir) if options.workdir else _default_folder(options, network)
    check_folder(folder)
    check_names(config)
    # After the check: importing TensorFlow takes seconds, an error should not.
    from cifs_tf.runs.any_model import AttackPlan, evaluate_model

    plan = AttackPlan(
        suite=options.suite,
        mask_gradients=options.mask_gradients,
        audit=options.audit,
        shard=options.shard,
        norm=options.norm,
        epsilon=options.epsilon if options.norm != "linf" else None,
    )
    return evaluate_model(
        network or options.model,
        config,
        folder,
        home,
        plan=plan,
        surrogate=_network_at(options.surrogate, "--surrogate") if options.surrogate else None,
        other_images=options.other_images,
        split=options.split,
        examples=options.examples,
        at_most=SUITE_EXAMPLES.get(options.suite),
        trust=options.trust,
    )


def merge(argv: Sequence[str]) -> int:
    """Join the ledgers of all shards, FOLDER LEDGER..., and write the report of the whole.

    Raises:
        UserError: if shards are missing, overlap, are not finished or belong to different evaluations.
    """
    if len(argv) < 2 or argv[0].startswith("-"):
        raise UserError("merge", " ".join(argv), "give the folder to write to, then the ledger of every shard")
    folder, *ledgers = map(Path, argv)
    check_folder(folder)
    from cifs_tf.runs.any_model import merge_shards

    return merge_shards(ledgers, folder)


def verify(options: VerifyOptions) -> int:
    """Check a card, and return 0, or 1 if it does not hold.

    Raises:
        UserError: for a file that is no card, or input that does not fit.
    """
    if len(options.cards) != 1 or not Path(options.cards[0]).is_file():
        raise UserError("verify", " ".join(options.cards), "give one card.jsonl, in front of the options")
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    (card,) = values.pop("cards")
    config, _, network = _config_of(EvaluateOptions(**values, suite="standard"))
    from cifs_tf.runs.any_model import verify_card

    return verify_card(Path(card), network or options.model, config, batch_size=options.batch_size, trust=options.trust)


def _config_of(options: EvaluateOptions) -> tuple[RunConfig, Workdir | None, TrainedNetwork | None]:
    """Return the config of the run that the model lies in, or of the dataset's recipe, with the options on top.

    Beside it that run, if there is one, and its network, if that is the model.
    """
    path = Path(options.model)
    if not path.exists():
        raise UserError(
            "--model",
            options.model,
            "there is no such run or file, give a workdir, .keras or .onnx file, or SavedModel",
        )
    home = next((folder for folder in (path, *path.absolute().parents[:4]) if (folder / "config.yaml").is_file()), None)
    if home is None and options.dataset is None:
        raise UserError("--dataset", None, "the model lies in no run's workdir, say what to measure it on")
    try:
        config = None if home is None else Workdir(home).read_config("--model")
    except UserError:
        if home == path or options.dataset is None:
            raise
        config, home = None, None  # the file is of another program
    if config is None:
        config = parse_config("evaluate.py", "", [f"--dataset={options.dataset}"])
    named = ("dataset", "image_size", "resize", "cache", "cache_dir", "data_dir")
    data = {name: value for name in named if (value := getattr(options, name))}
    if options.other_images:
        data |= dict.fromkeys(("train_examples", "test_examples", "num_classes")) | {"val_examples": 0}
    if options.split == "test" and (options.examples is not None or options.suite in SUITE_EXAMPLES):
        # Without this, a run on a part of the training images measures on a part of the test images.
        data |= {"test_examples": None, "train_examples": None}
    asked = {"attacks": options.attacks, "attack_betas": options.attack_betas, "eval_batch_size": options.batch_size}
    evaluation: dict[str, Any] = {name: value for name, value in asked.items() if value}
    seed = config.train.seed if options.seed is None else options.seed
    epsilon = options.epsilon if options.epsilon and options.norm == "linf" else config.attack.epsilon
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, **data),
        train=dataclasses.replace(config.train, seed=seed),
        attack=dataclasses.replace(config.attack, epsilon=epsilon),
        evaluation=dataclasses.replace(config.evaluation, **evaluation),
        machine=options.machine_config(),
    )
    network = find_network(path, options.defense, options.checkpoint, "--model") if home == path else None
    return config, None if home is None else Workdir(home), network


def _network_at(path: str, option: str) -> TrainedNetwork | str:
    """Return the network of a run, or the path of another model."""
    return find_network(path, option=option) if (Path(path) / "config.yaml").is_file() else path


def _default_folder(options: EvaluateOptions, network: TrainedNetwork | None) -> Path:
    suite = options.suite + ("" if options.norm == "linf" else f"-{options.norm}")
    suite += "-other-images" if options.other_images else ""
    suite += "" if options.split == "test" else f"-{options.split}"
    if network is not None:
        return network.evaluation(suite)
    name = "-".join(
        part for part in Path(options.model).resolve().with_suffix("").parts[-4:] if part not in ("/", "..", ".")
    )
    return Path("runs") / "evaluation" / name / suite
