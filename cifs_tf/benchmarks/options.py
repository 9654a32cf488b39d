"""Options of `benchmark.py`, a class for each of its commands; TensorFlow is not needed to refuse a bad one."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from cifs_tf.config import AttackConfig, DataConfig, Group, ModelConfig, Precision, RunConfig, TrainConfig, bounded
from cifs_tf.errors import UserError
from cifs_tf.files import read_json
from cifs_tf.runs.workdir import Workdir

STANDARD_ATTACKS = ("apgd_ce", "apgd_t", "fab_t", "square")
GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "reference" / "golden"


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions(Group):
    """Options of every command.

    Args:
        json: file for everything that was measured; null for none.
    """

    json: str | None = None

    def described(self) -> dict[str, Any]:
        """Return the options as the JSON file has them, without the paths of this machine."""
        return {**dataclasses.asdict(self), "json": None}


@dataclasses.dataclass(frozen=True)
class NetworkOptions(BenchmarkOptions):
    """A network with random weights, and the size of its batches.

    Args:
        arch: backbone.
        width: channels of the backbone's stem; null is the usual one (64 for resnet, 16 for wrn).
        batch_size: images per batch, over all devices.
        image_size: side of the images in pixels.
    """

    arch: Literal["resnet10", "resnet18", "resnet34", "wrn28-10", "wrn34-10"] = "resnet18"
    width: int | None = 16
    batch_size: int = 64
    image_size: int = 32

    def run_config(
        self, num_steps: int, defense: Literal["cifs", "vanilla"] = "cifs", precision: Precision = "float32"
    ) -> RunConfig:
        """Return the config of a run that takes such steps.

        Args:
            num_steps: of the training attack, >= 1.
            defense: of the network. Default `"cifs"`.
            precision: of the training. Default `"float32"`.

        Raises:
            UserError: for an option that no run can have.
        """
        return RunConfig(
            data=DataConfig(image_size=self.image_size),
            model=ModelConfig(arch=self.arch, width=self.width, defense=defense),
            # So small that the weights, and with them the work, stay the same from step to step.
            train=TrainConfig(batch_size=self.batch_size, precision=precision, learning_rate=1e-8),
            attack=AttackConfig(num_steps=num_steps),
        )


@dataclasses.dataclass(frozen=True)
class StepOptions(NetworkOptions):
    """One PGD-AT training step and one PGD-20 evaluation of a batch, of a CIFS and a vanilla network.

    Args:
        num_steps: of the training attack.
        pairs: how often both networks are timed, one after the other.
        precision: float32, mixed_bfloat16, or float64; in the latter two, CIFS in float32 is timed beside them.
    """

    width: int | None = None
    num_steps: int = 10
    pairs: int = bounded(10, low=1)
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.run_config(self.num_steps)


# The method whose step the others are compared with.
REFERENCE = "pgd"


@dataclasses.dataclass(frozen=True)
class MethodsOptions(NetworkOptions):
    """One training step of each method beside one of PGD, on the same network.

    Args:
        methods: of training, as for run.py. The attack of fat stops where an image is fooled, which on the untrained
            network of a benchmark is sooner than in training.
        defense: of the network.
        num_steps: of the training attack of those that have one.
        pairs: how often every method is timed, in turns.
    """

    methods: tuple[Literal["standard", "nfgsm", "pgd", "fat", "trades", "mart"], ...] = (
        "standard",
        "nfgsm",
        "trades",
        "mart",
    )
    defense: Literal["cifs", "vanilla"] = "cifs"
    num_steps: int = bounded(10, low=1)
    pairs: int = bounded(5, low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.methods:
            raise UserError("--methods", [], "name one at least, such as nfgsm")
        if set(self.methods) == {REFERENCE}:
            raise UserError("--methods", list(self.methods), f"{REFERENCE} is timed anyway; name others, such as nfgsm")
        self.run_config(self.num_steps)


@dataclasses.dataclass(frozen=True)
class ScaleOptions(NetworkOptions):
    """The same training step of a CIFS network on one device and shared among several.

    Without a GPU the devices are parts of one processor: nothing gets faster, what is measured is the cost of sharing.

    Args:
        num_steps: of the training attack.
        replicas: numbers of devices, which divide the batch size; one device alone is always measured.
        pairs: how often every number of devices is timed, in turns.
    """

    num_steps: int = 10
    replicas: tuple[int, ...] = (1, 2, 4)
    pairs: int = bounded(5, low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(count < 1 or self.batch_size % count for count in self.replicas):
            advice = f"give numbers of 1 or more that divide the batch of {self.batch_size}, such as 1,2"
            raise UserError("--replicas", list(self.replicas), advice)
        self.run_config(self.num_steps)


@dataclasses.dataclass(frozen=True)
class ResourcesOptions(NetworkOptions):
    """Images per second of the input pipeline, and the peak memory of PGD attacks of several lengths.

    Args:
        num_steps: of the attacks, each made in a process of its own.
        batches: of the input pipeline that are timed.
    """

    num_steps: tuple[int, ...] = bounded((1, 10, 100), low=1)
    batches: int = bounded(500, low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.num_steps:
            raise UserError("--num_steps", list(self.num_steps), "give numbers of 1 or more, separated by commas")
        self.run_config(self.num_steps[0])


@dataclasses.dataclass(frozen=True)
class ImagesOptions(BenchmarkOptions):
    """Images per second from the files of a folder: cold, from the cache and from memory, beside Keras' own way.

    Args:
        folder: of images, as for folder:PATH; each turn goes through its training images.
        image_size: side in pixels to which they are cropped (Keras stretches).
        batch_size: images per batch.
        turns: how often everything is timed.
        cache_dir: folder in which the decoded images lie meanwhile; null is that of temporary files.
    """

    folder: str = "pets"
    image_size: int = bounded(224, low=8)
    batch_size: int = bounded(64, low=1)
    turns: int = bounded(3, low=1)
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not Path(self.folder).expanduser().is_dir():
            raise UserError("--folder", self.folder, "there is no such folder; give one with a sub-folder per class")

    def described(self) -> dict[str, Any]:
        """Return the options as the JSON file has them, of folders the names alone."""
        return {**super().described(), "folder": Path(self.folder).name, "cache_dir": None}


@dataclasses.dataclass(frozen=True)
class AttackOptions(BenchmarkOptions):
    """The attacks of AutoAttack, each alone on all images of a recording of the official implementation.

    Args:
        recording: the .npz file, see tests/reference/golden.
        threads: processor threads to use; null leaves it to TensorFlow (and TF_NUM_INTRAOP_THREADS).
        batch_size: images per batch.
        official: file with the seconds of the official attacks on this machine, which `python
            tests/reference/official_seconds.py RECORDING FILE` writes in an environment with PyTorch and the official
            package; null quotes those of the recording, of another machine.
    """

    recording: str = str(GOLDEN / "autoattack_fashion_mnist.npz")
    threads: int | None = bounded(1, low=1)
    batch_size: int = bounded(250, low=1)
    official: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not Path(self.recording).is_file():
            raise UserError("--recording", self.recording, "there is no such file, give an autoattack_*.npz")
        self.official_seconds()

    def described(self) -> dict[str, Any]:
        """Return the options as the JSON file has them, of files the names alone."""
        official = self.official and Path(self.official).name
        return {**super().described(), "recording": Path(self.recording).name, "official": official}

    def official_seconds(self) -> dict[str, float] | None:
        """Return the seconds of the file, by attack; None without one.

        Raises:
            UserError: if they are not positive numbers, or an attack of the standard version is not among them.
        """
        if self.official is None:
            return None
        found = read_json(Path(self.official))
        seconds = found.get("seconds") if isinstance(found, dict) else None
        names = seconds if isinstance(seconds, dict) else {}
        for attack in STANDARD_ATTACKS:
            taken = names.get(attack)
            if isinstance(taken, bool) or not isinstance(taken, int | float) or not 0 < taken < math.inf:
                raise UserError("--official", self.official, f"it has no seconds of {attack}, measure them anew")
        return {attack: float(names[attack]) for attack in STANDARD_ATTACKS}


@dataclasses.dataclass(frozen=True)
class ServeOptions(BenchmarkOptions):
    """Requests to the server, beside calls of the same SavedModel in a loop.

    Args:
        arch: backbone of the CIFS network, with random weights.
        width: channels of the backbone's stem.
        image_size: side of the images in pixels.
        clients: that ask at a time.
        seconds: of each measurement.
        rounds: how often everything is measured, in turns.
    """

    arch: Literal["resnet10", "resnet18", "resnet34"] = "resnet18"
    width: int = bounded(32, low=1)
    image_size: int = bounded(32, low=1)
    clients: int = bounded(8, low=1)
    seconds: float = bounded(10, above=0)
    rounds: int = bounded(3, low=1)


@dataclasses.dataclass(frozen=True)
class PrecisionOptions(BenchmarkOptions):
    """The training attack and PGD-20 on a trained run, in float32 and in bfloat16, on the same images and starts.

    Args:
        run: workdir of a finished run, whose network is attacked.
        examples: test images, class-balanced.
        batch_size: images per batch.
    """

    run: str = "runs/fashion_mnist_small"
    examples: int = bounded(1000, low=1)
    batch_size: int = bounded(250, low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (Workdir(self.run).path / "config.yaml").is_file():
            raise UserError("--run", self.run, "there is no run, give the workdir of a finished one")

    def described(self) -> dict[str, Any]:
        """Return the options as the JSON file has them; an absolute path means nothing elsewhere, so its name alone."""
        run = Path(self.run)
        return {**super().described(), "run": run.name if run.is_absolute() else self.run}
