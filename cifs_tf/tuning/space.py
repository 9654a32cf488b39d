"""The search space in Keras Tuner's terms, and a trial's values in ours."""

import contextlib
import math
from typing import Any

import keras_tuner

from cifs_tf.tuning.options import DIMENSIONS, SearchConfig

# Between the names of the layers of one choice of cuts.
JOIN = " "
FLOAT_DIGITS = 6


def search_space(config: SearchConfig) -> keras_tuner.HyperParameters:
    """Declare what is searched.

    A value of a list is declared as text, because Keras Tuner sends numbers to its workers as float32: 0.1 would come
    back as another value, and be tried again.

    Example:
        >>> [parameter.name for parameter in search_space(SearchConfig()).space]
        ['beta']
    """
    options, space = config.search, keras_tuner.HyperParameters()
    for name, dimension in DIMENSIONS.items():
        if name not in options.search:
            continue
        values = getattr(options, dimension.option)
        with contextlib.ExitStack() as scopes:
            if dimension.importances and "importance" in options.search:
                scopes.enter_context(space.conditional_scope("importance", list(dimension.importances)))
            if options.is_range(name):
                space.Float(name, min(values), max(values), sampling="log")
            else:
                space.Choice(name, [as_text(value) for value in values])
    return space


def trial_values(hyperparameters: keras_tuner.HyperParameters) -> dict[str, Any]:
    """Return the values that a trial has, by the names of `DIMENSIONS`, as the fields of a config take them.

    Numbers from a range are rounded to six digits, which float32 keeps.
    """
    values = hyperparameters.values
    return {name: _from_text(name, values[name]) for name in DIMENSIONS if name in values}


def alternatives(config: SearchConfig) -> dict[str, list[Any]]:
    """Return the values of every hyper-parameter that is searched in a list."""
    options = config.search
    listed = [name for name in options.search if not options.is_range(name)]
    return {name: list(getattr(options, DIMENSIONS[name].option)) for name in listed}


def num_combinations(config: SearchConfig) -> float:
    """Count the different trials there can be, infinity if a range is searched."""
    listed = alternatives(config)
    return math.prod(map(len, listed.values())) if len(listed) == len(config.search.search) else math.inf


def describe(values: dict[str, Any]) -> str:
    """Write values as a person reads them: "beta 2, top_k 3"."""
    return ", ".join(f"{name} {as_text(value)}" for name, value in values.items())


def as_plain(values: dict[str, Any]) -> dict[str, Any]:
    """Write values as numbers and text, for files and for TensorBoard."""
    return {name: as_text(value) if isinstance(value, tuple) else value for name, value in values.items()}


def as_text(value: Any) -> str:
    """Write one value as a person reads it."""
    if isinstance(value, (tuple, list)):
        return JOIN.join(value)
    return f"{value:.{FLOAT_DIGITS}g}" if isinstance(value, float) else str(value)


def _from_text(name: str, value: Any) -> Any:
    if name == "cuts":
        return tuple(value.split(JOIN))
    if name == "importance":
        return value
    return int(value) if name == "top_k" else float(f"{float(value):.{FLOAT_DIGITS}g}")
