"""Look inside the networks of a run: channels under attack, training curves, robustness class by class.

    python training/analyse.py --run runs/digits
    python training/analyse.py --run runs/digits --checkpoint best --examples 200 --classes all
    python training/analyse.py --run runs/standard,runs/pgd                  several runs side by side
    python training/analyse.py --run runs/standard,runs/pgd --names standard,PGD        with names of your own

Draws the paper's Figures 1, 3 and A.2 (channels_*.png), 4 (curves.png) and A.1 (class_robustness.png), and writes the
numbers behind them (channels.csv, classes.csv, summary.json) into RUN/analysis; docs/analysis.md tells what they mean.
The same command again continues there.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cifs_tf.attack_names import parse_attack_name
from cifs_tf.command_line import parse_options
from cifs_tf.config import Group, RunConfig, bounded
from cifs_tf.errors import UserError
from cifs_tf.extras import require
from cifs_tf.runs.trained import TrainedNetwork, find_network
from cifs_tf.runs.workdir import Workdir, check_folder


@dataclasses.dataclass(frozen=True)
class AnalyseOptions(Group):
    """Draw what channels do under attack, training curves and class-wise robustness of every network of a run.

    Args:
        run: workdirs of runs, drawn side by side.
        names: what figures and tables call the networks: one for each, in the order of the runs, in a run
            the twin first; empty is their defenses, of several runs behind the run's name.
        checkpoint: the networks after their last epoch, or after their best on the validation images.
        examples: a class-balanced subset of so many test images; null is all those of the run.
        classes: names or numbers of the classes to draw the channels of, or all; null is the most and the
            least robust class of the last network. The files of numbers have every class.
        attack: fgsm, pgdN or cwN with N steps, as in the run's evaluation.
        attack_beta: beta_atk of the attack, see Eq. (3); null is the strongest of the run's evaluation, after which the
            fewest images were robust, or the run's own beta if it was not evaluated with this attack.
        dataset: where the run's images are now; null is where they were.
        other_images: measure on images that the run was not trained beside, of the same classes; summary.json says in
            what they differ.
        data_dir: where TFDS data lies; null is the run's, or TFDS' own default.
        cache: where decoded images of a folder are kept, see run.py; null is the run's.
        cache_dir: of --cache disk; null is the run's.
        batch_size: images per batch.
        workdir: folder to write to; null is RUN/analysis, or RUN/analysis/other-images. Of several runs it is
            runs/analysis/NAMES then, and what was measured stays in the RUN/analysis of each, so that it is not
            measured again.
    """

    run: tuple[str, ...]
    names: tuple[str, ...] = ()
    checkpoint: Literal["last", "best"] = "last"
    examples: int | None = bounded(None, low=1)
    classes: tuple[int | str, ...] | None = None
    attack: str = "pgd20"
    attack_beta: int | float | str | None = None
    dataset: str | None = None
    other_images: bool = False
    data_dir: str | None = None
    cache: Literal["auto", "memory", "disk"] | None = None
    cache_dir: str | None = None
    batch_size: int = bounded(250, low=1)
    workdir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.run or len(set(self.run)) < len(self.run):
            raise UserError("--run", list(self.run), "give the workdir of a run, or several different ones")
        parse_attack_name(self.attack, "--attack")


def main(argv: Sequence[str]) -> None:
    """Parse the command line and look inside."""
    options = parse_options(AnalyseOptions, "analyse.py", argv, __doc__ or "")
    require("report")
    analyse(options)


def analyse(options: AnalyseOptions) -> dict[str, Any]:
    """Attack the networks of some runs, or what is left of it, write figures and numbers, and return `summary.json`.

    Raises:
        UserError: for input that does not fit; nothing has been written then.
    """
    networks = find_networks(options)
    default = Workdir(options.run[0]).path if len(options.run) == 1 else Path("runs")
    names = [] if len(options.run) == 1 else ["-".join(map(_name, options.run))]
    names += ["other-images"] if options.other_images else []
    folder = Path(options.workdir) if options.workdir else default.joinpath("analysis", *names)
    measured_in = {
        name: (folder if options.workdir else network.path / "analysis") / "activations"
        for name, network in networks.items()
    }
    for each in (folder, *measured_in.values()):
        check_folder(each)
    places = ("dataset", "data_dir", "cache", "cache_dir")
    data: dict[str, Any] = {name: value for name in places if (value := getattr(options, name))}
    if options.examples is not None:
        # Without this, a run on a part of the training images offers a part of the test images only.
        data |= {"test_examples": None, "train_examples": None}
    first = next(iter(networks.values())).config
    # After the check: importing TensorFlow takes seconds, an error should not.
    from cifs_tf.runs.inspection import inspect_networks

    return inspect_networks(
        networks,
        dataclasses.replace(first.data, **data),
        folder,
        measured_in,
        attack=options.attack,
        attack_beta=options.attack_beta,
        examples=options.examples,
        classes=options.classes,
        batch_size=options.batch_size,
        other_images=options.other_images,
    )


def find_networks(options: AnalyseOptions) -> dict[str, TrainedNetwork]:
    """Find the networks of every run by what figures and tables call them, in each the twin first, if there is one.

    Raises:
        UserError: if something is no run, a network is missing, or the runs cannot be compared.
    """
    networks, names = [], []
    for path in options.run:
        config = Workdir(path).read_config()
        for defense in dict.fromkeys([config.output.twin or config.model.defense, config.model.defense]):
            networks.append(find_network(path, defense, options.checkpoint))
            names.append(defense if len(options.run) == 1 else f"{_name(path)}, {defense}")
    _check_comparable(options, networks)
    if options.names and len(options.names) != len(networks):
        advice = f"give one for each of the {len(networks)} networks: {', '.join(names)}"
        raise UserError("--names", list(options.names), advice)
    names = list(options.names or names)
    if len(set(names)) < len(names):
        raise UserError("--names", names, f"two are the same, give {len(names)} different names")
    return dict(zip(names, networks, strict=True))


def _check_comparable(options: AnalyseOptions, networks: Sequence[TrainedNetwork]) -> None:
    def terms(config: RunConfig) -> dict[str, Any]:
        flat = config.flat()
        names = ["dataset", "image_size", *(["resize"] if flat["image_size"] else []), "epsilon"]
        if options.examples is None:
            names += ["test_examples", "train_examples"]
        return {name: flat[name] for name in names}

    first = networks[0]
    for other in networks[1:]:
        for name, value in terms(first.config).items():
            theirs = terms(other.config)[name]
            if theirs != value:
                advice = f"{name} is {value} in {first.path} and {theirs} there, give runs that can be compared"
                if name in ("test_examples", "train_examples"):
                    advice += ", or a number of --examples"
                raise UserError("--run", other.path, advice)


def _name(path: str) -> str:
    return Path(path).resolve().name
