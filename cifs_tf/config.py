"""The vocabulary of a run: frozen dataclasses whose fields are the options of every program and the keys of a recipe.

Field names are unique across the groups, so the command line and a recipe are flat. Ranges are checked where a value
enters, once, by the declaration beside the field.
"""

import dataclasses
import math
import re
from typing import Any, Literal, Self

from cifs_tf.errors import UserError

MaskGradient = Literal["detached", "full", "smoothed"]
Defense = Literal["cifs", "cas", "ewas", "fsr", "se", "vanilla"]
Precision = Literal["float32", "mixed_bfloat16", "float64"]
Arch = Literal["auto", "resnet10", "resnet18", "resnet34", "wrn28-10", "wrn34-10"]
DATASETS = ("digits", "svhn", "cifar10", "cifar100", "fashion_mnist")  # besides tfds:NAME and folder:PATH
MAXIMUM_VAL_EXAMPLES = 1_000  # where `val_examples` is null


class Ratio(float):
    """A number that may be written as a fraction, and is remembered as it was written (8/255).

    Example:
        >>> Ratio("8/255") * 255
        8.0
    """

    text: str

    def __new__(cls, value: float | str) -> Self:
        """Parse a number, or text such as "8/255", "0.1", "1e-3"; raise ValueError if it is neither."""
        numerator, slash, denominator = str(value).partition("/")
        try:
            number = float(numerator) / (float(denominator) if slash else 1.0)
        except ZeroDivisionError as error:
            raise ValueError("the denominator is zero") from error
        self = super().__new__(cls, number)
        self.text = str(value)
        return self

    def __repr__(self) -> str:
        return self.text


def bounded(default: Any, *, low: float = -math.inf, high: float = math.inf, above: float = -math.inf) -> Any:
    """Declare a number and the range it must lie in: low <= value <= high, value > above."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "above": above})


def parse_shard(shard: Any, argument: str) -> tuple[int, int]:
    """Return i and n of a part `i/n` of the images.

    Args:
        shard: the text.
        argument: names it in the error.

    Raises:
        UserError: if it is no part.

    Example:
        >>> parse_shard("1/4", "shard")
        (1, 4)
    """
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard) if isinstance(shard, str) else None
    if match is None or int(match[1]) > int(match[2]):
        raise UserError(argument, shard, "give i/n with i from 1 to n, such as 1/4")
    return int(match[1]), int(match[2])


@dataclasses.dataclass(frozen=True)
class Group:
    """Options whose numbers are checked against the ranges that `bounded` declares."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and "\0" in value:
                raise UserError(f"--{field.name}", repr(value), "give a text without the character NUL")
            low, high, above = (field.metadata.get(key, 0) for key in ("low", "high", "above"))
            for number in value if isinstance(value, tuple) else (value,):
                if number is None or not field.metadata or (low <= number <= high and number > above):
                    continue
                lower = f"above {above:,}" if above > -math.inf else f"of {low:,} or more"
                upper = f" and at most {high:,}" if high < math.inf else ""
                raise UserError(f"--{field.name}", number, f"give a number {lower}{upper}")


@dataclasses.dataclass(frozen=True)
class DataConfig(Group):
    """The images of a run: their source, number, size and augmentation.

    Args:
        dataset: digits, svhn, cifar10, cifar100, fashion_mnist, tfds:NAME (any TFDS image classification set) or
            folder:PATH (one folder of image files per class).
        data_dir: where TFDS data lies or is downloaded to; null is TFDS' own default.
        image_size: side in pixels to which tfds: and folder: images are resized; null keeps their size.
        resize: crop (the central square), stretch, pad (black margins) or auto: crop for folder:, stretch for tfds:.
        cache: where decoded images of a folder: are kept, memory, disk, or auto: memory where it is plenty.
        cache_dir: folder of decoded images; null is cifs-tf/images in the user's folder of caches.
        num_classes: a check: the number of classes that the data must have; null accepts any.
        train_examples: use only the first so many training images of a fixed shuffle; null uses all.
        test_examples: likewise for the test images; null uses all of them, or, if train_examples is given, one for
            every 20 of those, but 16 at least: the attacks are the longer part of a short run.
        val_examples: training images set aside to watch robust overfitting and to choose the best epoch, never test
            images; null is a tenth of the training images, at most 1,000.
        augmentation: none, crop (pad 4, random crop), crop_flip or, for photographs, resized_crop_flip (parts, scaled).
        on_corrupt: what to do with files of a folder that cannot be read: refuse, or skip (they are named and counted).
    """

    dataset: str = "digits"
    data_dir: str | None = None
    image_size: int | None = bounded(None, low=8)
    resize: Literal["auto", "crop", "stretch", "pad"] = "auto"
    cache: Literal["auto", "memory", "disk"] = "auto"
    cache_dir: str | None = None
    num_classes: int | None = bounded(None, low=2)
    train_examples: int | None = bounded(None, low=1)
    test_examples: int | None = bounded(None, low=1)
    val_examples: int | None = bounded(None, low=0)
    augmentation: Literal["crop_flip", "crop", "resized_crop_flip", "none"] = "none"
    on_corrupt: Literal["refuse", "skip"] = "refuse"


@dataclasses.dataclass(frozen=True)
class ModelConfig(Group):
    """The network and its defense.

    Args:
        arch: backbone; auto is resnet18 for images of 32 pixels or more a side, resnet10 below.
        width: channels of the backbone's stem; null is the usual one (64 for resnet, 16 for wrn).
        stem: resnet only, 3x3, or 7x7 (a quarter of each side, by stride and max-pooling; for 112 pixels and more).
        activation: resnet only, relu, or silu, which is smooth (Xie et al. 2020).
        defense: cifs, cas (Bai et al. 2021), ewas (Zhang and Liu 2023), fsr (Kim et al. 2023), se (squeeze and
            excitation, Hu et al. 2018) or vanilla (no selection layer).
        cuts: names of the layers that selection layers follow; null is the paper's last two residual blocks.
        probes: probe of each CIFS layer, linear or mlp, in the order of the network.
        top_k: k of Eq. (1).
        importance: softmax, softplus, sigmoid, constant (every channel the same, a control), or that of a plugin.
        importance_scale: softmax and constant only, sum_to_one (the paper) or mean_one (for small budgets).
        temperature: T of the softmax importance.
        alpha: sharpness of the softplus or sigmoid importance; null is the paper's 5 or 10.
        mask_gradient: in training, detached (the official code), full (through the mask to the features) or smoothed
            (and through the choice of the top-k classes).
        label_in_mask: in training the label takes the place of the top-1 class in the mask, as in the paper, or not.
        mask_permutation: a control, seed of a fixed permutation of the channels' importances; null leaves them.
        plugins: Python modules to import first, which register importance functions or training methods.
    """

    arch: Arch = "auto"
    width: int | None = bounded(None, low=1)
    stem: Literal["3x3", "7x7"] = "3x3"
    activation: Literal["relu", "silu"] = "relu"
    defense: Defense = "cifs"
    cuts: tuple[str, ...] | None = None
    probes: tuple[Literal["linear", "mlp"], ...] = ("mlp", "linear")
    top_k: int = bounded(2, low=1)
    importance: str = "softmax"
    importance_scale: Literal["sum_to_one", "mean_one"] = "sum_to_one"
    temperature: float = bounded(1.0, above=0)
    alpha: float | None = bounded(None, above=0)
    mask_gradient: MaskGradient = "detached"
    label_in_mask: bool = True
    mask_permutation: int | None = bounded(None, low=0, high=2**31 - 1)
    plugins: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class TrainConfig(Group):
    """The training loop.

    Args:
        method: standard (natural images), pgd (adversarial training, Eq. 4), fat, trades, mart, nfgsm (one
            gradient a step), or one that a plugin registered.
        beta: beta of Eq. (3) in the training loss and its attack.
        beta_warmup: epochs in which beta rises linearly from 0; 0 for none.
        loss_scale: paper (Eq. 3) or official (times 3 for cifs, times 1 + beta for cas, as the official code).
        epochs: passes over the training images.
        batch_size: images per optimizer step, over all devices, whose number must divide it; at most all there are.
        learning_rate: of SGD, at the start.
        lr_milestones: the learning rate is multiplied by lr_decay after each of these epochs.
        lr_decay: see lr_milestones.
        momentum: of SGD.
        weight_decay: coupled, as PyTorch's: added to the gradient of every parameter.
        warm_start: workdir of a run whose final weights to start from, such as one of --method standard; null for none.
        label_smoothing: share of the cross-entropy's target that is spread over all classes; not with mart.
        fat_tau_milestones: fat only: after each of these epochs a wrong image goes one step further; default FAT's own.
        fat_omega: fat only: standard deviation of the noise in each step of the attack; FAT's own.
        trades_lambda: trades only: weight of the divergence.
        trades_bn_updates: trades only: 3 (x, x', x, as the original) or 2 (x, x') updates of batch statistics a step.
        mart_lambda: mart only: weight of the divergence.
        nfgsm_noise: nfgsm only: half the width of the noise, in epsilons. It takes one step of epsilon, whatever
            step_size and num_steps are.
        awp_gamma: adversarial weight perturbation on top of the method, its length against the weights' (0.01 for pgd,
            0.005 for trades in its paper); null for none.
        awp_start: epochs before it begins.
        ema_decay: exponential moving average of the weights, which then is what is validated, measured and exported;
            its decay per step, such as 0.995; null for none.
        precision: float32, mixed_bfloat16 (about twice as fast where the hardware has it), float64, or auto:
            mixed_bfloat16 where it is fast. Evaluation is in float32 at least.
        deterministic: make every operation repeatable, at the price of speed on a GPU; on a CPU they are anyway.
        seed: of everything random.
    """

    method: str = "pgd"
    beta: float = bounded(2.0, low=0, high=1e9)
    beta_warmup: float = bounded(0.0, low=0)
    loss_scale: Literal["paper", "official"] = "paper"
    epochs: int = bounded(120, low=1)
    batch_size: int = bounded(128, low=1)
    learning_rate: float = bounded(0.1, above=0)
    lr_milestones: tuple[int, ...] = bounded((75, 90), low=1)
    lr_decay: float = bounded(0.1, above=0, high=1)
    momentum: float = bounded(0.9, low=0, high=1)
    weight_decay: float = bounded(2e-4, low=0)
    warm_start: str | None = None
    label_smoothing: float = bounded(0.0, low=0, high=1)
    fat_tau_milestones: tuple[int, ...] = bounded((50, 90), low=1)
    fat_omega: float = bounded(1e-3, low=0)
    trades_lambda: float = bounded(6.0, low=0)
    trades_bn_updates: Literal[2, 3] = 3
    mart_lambda: float = bounded(5.0, low=0)
    nfgsm_noise: float = bounded(2.0, low=0)
    awp_gamma: float | None = bounded(None, low=0)
    awp_start: float = bounded(0.0, low=0)
    ema_decay: float | None = bounded(None, low=0, high=0.999999)
    precision: Literal["auto", "float32", "mixed_bfloat16", "float64"] = "float32"
    deterministic: bool = False
    seed: int = bounded(0, low=0, high=2**31 - 1)


@dataclasses.dataclass(frozen=True)
class AttackConfig(Group):
    """The threat model, and the attack inside adversarial training.

    Args:
        epsilon: radius of the L-infinity ball, images being in [0, 1]; 8/255 may be written so.
        step_size: of the training attack; null is epsilon/4.
        num_steps: of the training attack.
        random_start: whether the training attack starts at a random point: of the ball, or very near the image (trades,
            mart).
        epsilon_warmup: epochs in which the radius of the training attack rises linearly from 0; 0 for none.
        train_mask_gradient: what the training attack sees of the mask, as for mask_gradient.
        attack_precision: precision of the training attack, such as mixed_bfloat16 beside a float32 update; null is that
            of the update.
    """

    epsilon: Ratio = bounded(Ratio("8/255"), above=0, high=1)
    step_size: Ratio | None = bounded(None, above=0, high=1)
    num_steps: int = bounded(10, low=0)
    random_start: bool = True
    epsilon_warmup: float = bounded(0.0, low=0)
    train_mask_gradient: MaskGradient = "detached"
    attack_precision: Precision | None = None


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Group):
    """The attacks that measure the trained network; all of them start at the image itself and keep the last iterate.

    Args:
        attacks: fgsm, pgdN (N steps on the cross-entropy), cwN (N steps on the C&W margin).
        eval_step_size: of attacks with steps; null is epsilon/10.
        eval_step_sizes: step size of single attacks, such as {pgd100: 0.02}.
        attack_betas: the attacker's settings of beta in Eq. (3); the worst of them counts.
        eval_mask_gradient: what the attacker sees of the mask, as for mask_gradient; detached is the official
            evaluation.
        eval_batch_size: images per batch.
        eval_audit: look for gradient masking; null does so by a few batches beside the attacks, false not at all.
        checkpoints: which weights are measured at the end: last (Table 1), best (Table B.2; the best epoch on the
            validation images), or both.
        val_every: epochs from one look at the validation images to the next.
    """

    attacks: tuple[str, ...] = ("fgsm", "pgd20", "cw30", "pgd100")
    eval_step_size: Ratio | None = bounded(None, above=0, high=1)
    eval_step_sizes: dict[str, Ratio] = dataclasses.field(default_factory=dict)
    attack_betas: tuple[int | float | str, ...] = (0, 0.1, 1, 2, 10, 100, "infinity", "infinity-1", "infinity-2")
    eval_mask_gradient: MaskGradient = "detached"
    eval_batch_size: int = bounded(250, low=1)
    eval_audit: bool | None = None
    checkpoints: tuple[Literal["last", "best"], ...] = ("last", "best")
    val_every: int = bounded(1, low=1)


@dataclasses.dataclass(frozen=True)
class OutputConfig(Group):
    """The results of a run: their folder, networks, exports and checkpoints.

    Args:
        workdir: the only folder that a run writes to; null is runs/DATASET. The same command again continues it.
        twin: another defense to train and measure beside, for comparison; null for none.
        export: write SavedModel and ONNX when done.
        export_checkpoint: which weights are exported, last or best.
        checkpoint_minutes: time between checkpoints within an epoch; there is one at its end anyway.
        on_nan: what to do when a loss or gradient is not finite: stop there, or skip that step and count.
    """

    workdir: str | None = None
    twin: Literal["vanilla", "cas"] | None = None
    export: bool = True
    export_checkpoint: Literal["last", "best"] = "last"
    checkpoint_minutes: float = bounded(10.0, above=0)
    on_nan: Literal["stop", "skip"] = "stop"


@dataclasses.dataclass(frozen=True)
class MachineConfig(Group):
    """The devices that share the work. What comes out does not depend on them, but for rounding.

    Args:
        strategy: one (one device), mirrored (all GPUs of this machine), multiworker (many machines, see TF_CONFIG and
            training/launch), tpu (unverified: nobody has run it), or auto: what TF_CONFIG and the GPUs suggest.
        replicas: mirrored only: how many GPUs; without a GPU the processor is divided into so many devices, which is no
            faster. null is all GPUs.
    """

    strategy: Literal["auto", "one", "mirrored", "multiworker", "tpu"] = "auto"
    replicas: int | None = bounded(None, low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replicas is not None and self.strategy != "mirrored":
            raise UserError("--replicas", self.replicas, "it goes with --strategy mirrored only")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run, whole: a group of fields for each part of it.

    Args:
        data: where images come from.
        model: the network and its defense.
        train: the training loop.
        attack: the threat model and the training attack.
        evaluation: the attacks that measure.
        output: what is left behind.
        machine: the devices that share the work.

    Example:
        >>> RunConfig(train=TrainConfig(epochs=1)).flat()["epochs"]
        1
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    attack: AttackConfig = dataclasses.field(default_factory=AttackConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    output: OutputConfig = dataclasses.field(default_factory=OutputConfig)
    machine: MachineConfig = dataclasses.field(default_factory=MachineConfig)

    @classmethod
    def from_flat(cls, values: dict[str, Any]) -> Self:
        """Sort flat values, such as a parsed command line, into their groups.

        Args:
            values: field names of any group and their values; missing ones keep their defaults.

        Returns:
            the config.

        Raises:
            UserError: for a value out of range.
        """
        groups = {}
        for group, group_class in cls.groups().items():
            chosen = {field.name for field in dataclasses.fields(group_class)} & values.keys()
            groups[group] = group_class(**{name: as_tuple(values[name]) for name in chosen})
        return cls(**groups)

    @classmethod
    def groups(cls) -> dict[str, Any]:
        """Return the class of each group."""
        return {field.name: field.default_factory for field in dataclasses.fields(cls)}

    def flat(self) -> dict[str, Any]:
        """Return every field with its value in plain types, as a recipe writes them."""
        return {
            field.name: _plain(getattr(group, field.name))
            for group in vars(self).values()
            for field in dataclasses.fields(group)
        }


def as_tuple(value: Any) -> Any:
    """Return a list, and the lists in it, as tuples; anything else as it is."""
    return tuple(map(as_tuple, value)) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Ratio):
        return value.text if "/" in value.text else float(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


GROUPS = RunConfig.groups()
