"""Command lines: options and recipes to a `RunConfig`, and errors to one sentence and an exit code."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser
from jsonargparse.typing import register_type

from cifs_tf.config import GROUPS, DataConfig, Ratio, RunConfig
from cifs_tf.errors import UserError
from training import preemption

RECIPES = Path(__file__).resolve().parent / "recipes"
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

register_type(Ratio, serializer=lambda ratio: ratio.text if "/" in ratio.text else float(ratio), deserializer=Ratio)


def parse_config(program: str, description: str, argv: Sequence[str]) -> RunConfig:
    """Parse the command line of a run, see `parse_flat`.

    Args:
        program: name shown in help and errors.
        description: what the program does, for `--help`.
        argv: arguments without the program's name.

    Returns:
        the config.

    Raises:
        UserError: naming the option, what was received and the way out.
        SystemExit: after `--help` and `--print_config`, with code 0.
    """
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
        UserError: naming the option, what was received and the way out.
        SystemExit: after `--help` and `--print_config`, with code 0.
    """
    arguments = [with_underscores(argument) for argument in argv]
    recipe = _given("recipe", arguments) or str(recipe_for(_given("dataset", arguments) or DataConfig.dataset))
    # In front, wherever it was given: the options override it.
    arguments = [f"--recipe={recipe}", *_without("recipe", arguments)]
    parser = make_parser(program, description, groups)
    try:
        parsed = parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        raise explain(str(error), groups, arguments) from error
    return {name: value for name, value in vars(parsed).items() if name != "recipe"}


def make_parser(program: str, description: str, groups: Sequence[type] = tuple(GROUPS.values())) -> ArgumentParser:
    """Make the parser of every option of a run, grouped as `cifs_tf.config` groups them, or of other groups."""
    parser = ArgumentParser(prog=program, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument(
        "--recipe",
        action=ActionConfigFile,
        help="YAML file of options; default: training/recipes/DATASET.yaml, or default.yaml",
    )
    for group in groups:
        parser.add_class_arguments(group)
    return parser


def parse_options(options_class: type, program: str, argv: Sequence[str], description: str) -> Any:
    """Parse a command line into a dataclass whose fields are the options.

    Args:
        options_class: the dataclass; a field without a default must be given.
        program: name shown in help and errors.
        argv: arguments without the program's name.
        description: what the program does, for `--help`.

    Returns:
        an instance of the dataclass.

    Raises:
        UserError: naming the option, what was received and the way out.
        SystemExit: after `--help`, with code 0.
    """
    arguments = [with_underscores(argument) for argument in argv]
    parser = ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_class_arguments(options_class)
    try:
        parsed = parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        raise explain(str(error), [options_class], arguments) from error
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(parsed).items()}
    return options_class(**values)


def recipe_for(dataset: str) -> Path:
    """Return the recipe of a dataset: its own, or `default.yaml`."""
    recipe = RECIPES / f"{dataset}.yaml"
    return recipe if re.fullmatch(r"\w+", dataset) and recipe.is_file() else RECIPES / "default.yaml"


def run_program(main: Callable[[Sequence[str]], int | None], options: Sequence[str] = ()) -> NoReturn:
    """Run a program's `main(argv)` and exit: a user's error is one sentence and code 2, Ctrl-C is 130, SIGTERM is 0.

    Args:
        main: the program.
        options: names of its options beside those of a run.
    """
    program = Path(sys.argv[0]).name
    preemption.install()
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        # The library names an argument, a person typed an option.
        option = "--" if error.argument in (*RunConfig().flat(), *options) else ""
        print(f"{program}: error: {option}{error}", file=sys.stderr)
        code = EXIT_USER_ERROR
    except preemption.Preempted:
        print(f"{program}: ended by SIGTERM, everything so far is saved; the same command continues.", file=sys.stderr)
        code = 0
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted; the same command continues.", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.exit(code)


def dump_yaml(config: RunConfig) -> str:
    """Return a config as the text of a recipe."""
    return yaml.safe_dump(config.flat(), sort_keys=False, allow_unicode=True)


def with_underscores(argument: str) -> str:
    """Join the words of an option by `_`, so that `-` is accepted too; its value is left alone."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


def explain(message: str, groups: Sequence[type] = tuple(GROUPS.values()), arguments: Sequence[str] = ()) -> UserError:
    """Turn jsonargparse's report into a sentence that names the option, the value and what to give.

    Args:
        message: what jsonargparse reported.
        groups: dataclasses whose fields are the options. Default those of a run.
        arguments: the command line, from which the received value is quoted.

    Returns:
        the error to raise.
    """
    hints: dict[str, Any] = {}
    for group in groups:
        hints.update(typing.get_type_hints(group))
    flat = " ".join(message.split())
    if unknown := re.search(r"[Uu]nrecognized arguments: (\S+)", flat):
        return _unknown_option(unknown[1], hints)
    if unknown := re.search(r"Option '(\w+)' is not accepted", flat):
        return _unknown_option(f"--{unknown[1]}", hints)
    if missing := re.search(r"argument --(\w+)\S*: expected|arguments are required: (\w+)", flat):
        name = missing[1] or missing[2]
        return UserError(f"--{name}", "no value", f"give {_describe(hints.get(name, str))}")
    key = re.search(r'[Kk]ey "(\w+)"', flat)
    if key and key[1] in hints:
        reported = re.search(r"(?:Got value|Given value): (.*)", flat)
        received = _given(key[1], arguments) or (reported[1] if reported else flat)
        return UserError(f"--{key[1]}", received, f"give {_describe(hints[key[1]])}")
    return UserError("--recipe", _given("recipe", arguments), f"give a YAML file of options ({flat})")


def _given(name: str, arguments: Sequence[str]) -> str | None:
    """Return the last value of an option on the command line."""
    received = None
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option == f"--{name}":
            received = value if equals else "".join(arguments[index + 1 : index + 2])
    return received


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


def _unknown_option(option: str, hints: dict[str, Any]) -> UserError:
    name = option.split("=")[0].lstrip("-")
    close = difflib.get_close_matches(name, [*hints, "recipe", "print_config"], n=1)
    advice = f"there is no such option, did you mean --{close[0]}" if close else "there is no such option, see --help"
    return UserError(option, "an unknown option", advice)


def _describe(hint: Any) -> str:
    """Say in words what a type accepts."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        words = [_describe(a) for a in arguments if a is not type(None)]
        return " or ".join([*words, "null"] if type(None) in arguments else words)
    if origin is tuple:
        return f"a list in brackets, each item {_describe(arguments[0])}"
    if origin is dict:
        return "a mapping such as {pgd100: 0.02}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, "a number or a fraction such as 8/255" if hint is Ratio else str(hint))
