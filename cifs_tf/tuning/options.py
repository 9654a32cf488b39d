"""Options of a search, beside those of a run; imported without TensorFlow."""

import dataclasses
from typing import Any, Literal

from cifs_tf.config import GROUPS, Group, RunConfig, bounded
from cifs_tf.errors import UserError
from cifs_tf.runs.curves import WATCHED

OBJECTIVE = WATCHED
MAX_TRIALS = 10
# Options that may change between a search and its continuation.
HOW = ("max_trials", "workers")

Searched = Literal["beta", "top_k", "importance", "temperature", "alpha", "cuts", "learning_rate", "weight_decay"]


@dataclasses.dataclass(frozen=True)
class Dimension:
    """A hyper-parameter that can be searched.

    Args:
        group: the group of `RunConfig` that has it.
        option: the option with its values, or its range.
        is_range: whether the option is (low, high), searched on a logarithmic scale, or a list of values.
        defenses: those with a use for it.
        importances: the importance functions with a use for it; None for all.
    """

    group: Literal["train", "model"]
    option: str
    is_range: bool = False
    defenses: tuple[str, ...] = ("cifs", "cas", "vanilla")
    importances: tuple[str, ...] | None = None


# The importance function before its parameters, which depend on it.
DIMENSIONS = {
    "beta": Dimension("train", "search_betas", defenses=("cifs", "cas")),
    "top_k": Dimension("model", "search_top_k", defenses=("cifs",)),
    "importance": Dimension("model", "search_importances", defenses=("cifs",)),
    "temperature": Dimension("model", "search_temperature", True, ("cifs",), ("softmax",)),
    "alpha": Dimension("model", "search_alpha", True, ("cifs",), ("softplus", "sigmoid")),
    "cuts": Dimension("model", "search_cuts", defenses=("cifs", "cas")),
    "learning_rate": Dimension("train", "search_learning_rate", True),
    "weight_decay": Dimension("train", "search_weight_decay", True),
}


@dataclasses.dataclass(frozen=True)
class SearchOptions(Group):
    """Search hyper-parameters; every other option is that of each trial's run.

    Args:
        search: hyper-parameters to search; the others keep the run's values.
        tuner: random, bayesian, or hyperband (trains many for a few epochs, and the better ones for longer).
        max_trials: how many networks to train; null is 10; hyperband counts its own, from the epochs.
        workers: start so many processes on this machine, which share the trials; null is this process alone.
        search_betas: values of beta (default: the paper's Table E.1); for bayesian and hyperband their smallest and
            largest are the ends of a range.
        search_top_k: values of top_k.
        search_importances: importance functions.
        search_temperature: range of the softmax importance's temperature.
        search_alpha: range of the softplus and sigmoid importance's alpha.
        search_cuts: positions of the selection layers, such as a+b,b+c with layers a, b and c of the backbone.
        search_learning_rate: range of the learning rate.
        search_weight_decay: range of the weight decay.
    """

    search: tuple[Searched, ...] = ("beta",)
    tuner: Literal["random", "bayesian", "hyperband"] = "random"
    max_trials: int | None = bounded(None, low=1)
    workers: int | None = bounded(None, low=1)
    search_betas: tuple[float, ...] = (0.1, 1.0, 2.0, 10.0, 100.0)
    search_top_k: tuple[int, ...] = (1, 2, 3, 4)
    search_importances: tuple[str, ...] = ("softmax", "softplus", "sigmoid")
    search_temperature: tuple[float, ...] = (0.1, 10.0)
    search_alpha: tuple[float, ...] = (1.0, 20.0)
    search_cuts: tuple[tuple[str, ...], ...] = ()
    search_learning_rate: tuple[float, ...] = (0.003, 0.3)
    search_weight_decay: tuple[float, ...] = (5e-5, 5e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.search or len(set(self.search)) < len(self.search):
            raise UserError("--search", _shown(self.search), "name each hyper-parameter once, one at least")
        if self.tuner == "hyperband" and self.max_trials is not None:
            raise UserError("--max_trials", self.max_trials, "hyperband counts its own trials, leave the option out")
        for name in self.search:
            self._check_values(name)

    def _check_values(self, name: str) -> None:
        option = DIMENSIONS[name].option
        values = getattr(self, option)
        if self.is_range(name):
            low, high = (min(values, default=0), max(values, default=0)) if name == "beta" else (*values, 0, 0)[:2]
            if not 0 < low < high or (name != "beta" and len(values) != 2):
                advice = "give two numbers above 0, the smaller one first"
                if name == "beta":
                    advice = f"give two numbers or more, all above 0: --tuner {self.tuner} takes their range"
                raise UserError(f"--{option}", _shown(values), advice)
        elif not values or len(set(values)) < len(values):
            example = ", such as stage3_block2_out+stage4_block2_out" if name == "cuts" else ""
            raise UserError(f"--{option}", _shown(values), f"give one value or more, each once{example}")

    def is_range(self, name: str) -> bool:
        """Return whether a hyper-parameter is drawn from a range, on a logarithmic scale, and not from a list."""
        return DIMENSIONS[name].is_range or (name == "beta" and self.tuner != "random")

    @property
    def num_trials(self) -> int | None:
        """Number of trials at most; None for hyperband, which counts its own."""
        return None if self.tuner == "hyperband" else self.max_trials or MAX_TRIALS


@dataclasses.dataclass(frozen=True)
class SearchConfig(RunConfig):
    """The config of a run, and what is searched around it.

    Args:
        search: what is searched, and how.

    Example:
        >>> SearchConfig().flat()["search_betas"]
        [0.1, 1.0, 2.0, 10.0, 100.0]
    """

    search: SearchOptions = dataclasses.field(default_factory=SearchOptions)

    def __post_init__(self) -> None:
        for name in self.search.search:
            self._check_use(name)

    def flat(self) -> dict[str, Any]:
        """Return every field but `HOW` with its value in plain types."""
        return {name: value for name, value in super().flat().items() if name not in HOW}

    def with_values(self, values: dict[str, Any]) -> RunConfig:
        """Return the config of a trial's run, whose workdir is its own; values that are no options are left out."""
        changed: dict[str, dict[str, Any]] = {"train": {}, "model": {}, "output": {"workdir": None}}
        for name, value in values.items():
            if name in DIMENSIONS:
                changed[DIMENSIONS[name].group][name] = value
        groups = {group: getattr(self, group) for group in GROUPS}
        return RunConfig(**{group: dataclasses.replace(groups[group], **changed.get(group, {})) for group in groups})

    def _check_use(self, name: str) -> None:
        dimension, received = DIMENSIONS[name], _shown(self.search.search)
        if self.model.defense not in dimension.defenses:
            advice = f"{name} does nothing with --defense {self.model.defense}, leave it out or give another defense"
            raise UserError("--search", received, advice)
        functions = self.search.search_importances if "importance" in self.search.search else (self.model.importance,)
        if dimension.importances and not set(dimension.importances) & set(functions):
            advice = f"{name} belongs to {' and '.join(dimension.importances)}, the importance is {_shown(functions)}"
            raise UserError("--search", received, advice)


def groups_of_options() -> list[type]:
    """Return the dataclasses whose fields are the options of a search: its own first, then those of a run."""
    return [SearchOptions, *GROUPS.values()]


def _shown(values: tuple) -> str:
    return f"[{', '.join(str(value) for value in values)}]"
