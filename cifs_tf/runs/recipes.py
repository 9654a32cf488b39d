"""Recipes: a YAML file of options, and the command line that overrides it, to a `RunConfig` and back."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile

from cifs_tf.command_line import make_parser, parse_values, value_of, with_underscores
from cifs_tf.config import DATASETS, GROUPS, DataConfig, RunConfig
from cifs_tf.errors import UserError
from cifs_tf.files import carried_folder

# Names that need no plugin.
KNOWN = {
    "method": ("standard", "pgd", "fat", "trades", "mart", "nfgsm"),
    "importance": ("softmax", "softplus", "sigmoid", "constant", "identity"),
}
RECIPES = carried_folder("recipes", "training/recipes")


def parse_config(program: str, description: str, argv: Sequence[str]) -> RunConfig:
    """Parse the command line of a run, with the arguments and errors of `parse_flat`, into a config."""
    return RunConfig.from_flat(parse_flat(program, description, argv))


def parse_flat(
    program: str, description: str, argv: Sequence[str], groups: Sequence[type] = tuple(GROUPS.values())
) -> dict[str, Any]:
    """Parse a command line: recipe first, then the options that override it.

    The recipe is the file given with `--recipe`, or the one named after the dataset, or `default.yaml`. Words of an
    option may be joined by `-` or `_`.

    Args:
        program: name shown in help and errors.
        description: what the program does, for `--help`.
        argv: arguments without the program's name.
        groups: dataclasses whose fields are the options. Default those of a run.

    Returns:
        the value of every option.

    Raises:
        UserError: naming the option, what was received and how to fix it.
        SystemExit: after `--help` and `--print_config`, with code 0.
    """
    arguments = [with_underscores(argument) for argument in argv]
    given = value_of("recipe", arguments)
    recipe = find_recipe(given) if given else str(recipe_for(value_of("dataset", arguments) or DataConfig.dataset))
    # In front, wherever it was given: the options override it.
    arguments = [f"--recipe={recipe}", *_without("recipe", arguments)]
    parser = make_parser(program, description, groups)
    parser.add_argument(
        "--recipe",
        action=ActionConfigFile,
        help="YAML file of options, or the name of one of training/recipes; default: that of the dataset, or default",
    )
    parsed = parse_values(parser, arguments, groups)
    return {name: value for name, value in parsed.items() if name != "recipe"}


def check_names(config: RunConfig) -> None:
    """Refuse names of what there cannot be, and a folder of images that is not there, before TensorFlow is imported.

    Raises:
        UserError: naming the option.
    """
    dataset = config.data.dataset
    kind, _, rest = dataset.partition(":")
    if dataset not in DATASETS and not (rest and kind in ("tfds", "folder")):
        raise UserError("--dataset", dataset, f"give one of {', '.join(DATASETS)}, tfds:NAME or folder:PATH")
    if kind == "folder" and not Path(rest).expanduser().is_dir():
        raise UserError("--dataset", dataset, "there is no such folder; give one with a sub-folder per class")
    for name, known in KNOWN.items() if not config.model.plugins else ():
        if (value := config.flat()[name]) not in known:
            advice = f"give one of {', '.join(known)}, or name the module that registers it with --plugins"
            raise UserError(f"--{name}", value, advice)


def find_recipe(recipe: str) -> str:
    """Return the path of a recipe: a file, or one of the project's own, from whichever folder it is asked for.

    Args:
        recipe: path of a file, or the project's recipe as `cifar10_fat` or `training/recipes/cifar10_fat.yaml`.

    Returns:
        the path; what was given if there is no such recipe.
    """
    name = recipe.removeprefix("training/recipes/").removesuffix(".yaml")
    own = RECIPES / f"{name}.yaml"
    return str(own) if not Path(recipe).is_file() and "/" not in name and own.is_file() else recipe


def recipe_for(dataset: str) -> Path:
    """Return the recipe of a dataset: its own, or `default.yaml`."""
    recipe = RECIPES / f"{dataset}.yaml"
    return recipe if re.fullmatch(r"\w+", dataset) and recipe.is_file() else RECIPES / "default.yaml"


def dump_yaml(config: RunConfig) -> str:
    """Return a config as the text of a recipe."""
    return yaml.safe_dump(config.flat(), sort_keys=False, allow_unicode=True)


def changes_of(config: RunConfig, recipe: str) -> dict[str, Any]:
    """Return the options of a run that differ from a recipe's, but for those that say where things are."""
    base = parse_config("run.py", "", [f"--recipe={recipe}"]).flat()
    places = ("workdir", "data_dir", "cache_dir")
    return {name: value for name, value in config.flat().items() if value != base[name] and name not in places}


def arguments(changes: dict[str, Any]) -> list[str]:
    """Return options as a command line has them.

    Example:
        >>> from cifs_tf.runs.recipes import arguments
        >>> arguments({"twin": None, "attacks": ["fgsm", "pgd20"]})
        ['--twin=null', '--attacks=fgsm,pgd20']
    """
    return [f"--{name}={_text(value)}" for name, value in changes.items()]


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, list | tuple):
        return str(value)
    items = [_text(item) for item in value]
    if all(re.fullmatch(r"[^][{},#\"'\s]([^][{},#\"']*[^][{},#\"'\s])?", item) for item in items):
        return ",".join(items)
    # A comma in a folder's name, for example, needs YAML's brackets and quotes.
    return json.dumps(items, ensure_ascii=False)


def _without(name: str, arguments: Sequence[str]) -> list[str]:
    """Return a command line without an option and its value."""
    kept, skip = [], False
    for argument in arguments:
        if skip or argument.startswith(f"--{name}="):
            skip = False
        elif argument == f"--{name}":
            skip = True
        else:
            kept.append(argument)
    return kept
