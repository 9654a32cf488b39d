"""What every program of the project has in common: options from a dataclass, and errors in one sentence."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import itertools
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type

from cifs_tf.config import GROUPS, ModelConfig, Ratio, RunConfig
from cifs_tf.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

register_type(Ratio, serializer=lambda ratio: ratio.text if "/" in ratio.text else float(ratio), deserializer=Ratio)


def parse_options(
    options_class: type, program: str, argv: Sequence[str], description: str, positional: str | None = None
) -> Any:
    """Parse a command line into a dataclass whose fields are the options.

    Words of an option may be joined by `-` or `_`; an option that is true or false may stand alone and is true then.

    Args:
        options_class: the dataclass; a field without a default must be given.
        program: name shown in help and errors.
        argv: arguments without the program's name.
        description: what the program does, for `--help`.
        positional: field (a tuple of texts) that takes the arguments in front of the first option. Default None.

    Returns:
        an instance of the dataclass.

    Raises:
        UserError: naming the option, what was received and the way out.
        SystemExit: after `--help`, with code 0.
    """
    hints = typing.get_type_hints(options_class)
    arguments = [with_underscores(argument) for argument in argv]
    first = next((index for index, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    values = {positional: tuple(arguments[:first])} if positional else {}
    arguments = _with_true(arguments[first:] if positional else arguments, hints)
    parser = ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_class_arguments(options_class, skip={positional} if positional else None)
    try:
        parsed = parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        raise explain(str(error), [options_class], arguments) from error
    values |= {name: tuple(value) if isinstance(value, list) else value for name, value in vars(parsed).items()}
    return options_class(**values)


def run_program(main: Callable[[Sequence[str]], int | None], options: Sequence[str] = ()) -> NoReturn:
    """Run a program's `main(argv)` and exit: a user's error is one sentence and code 2, Ctrl-C is 130.

    Args:
        main: the program.
        options: names of its options beside those of a run.
    """
    program = Path(sys.argv[0]).name
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        # The library names an argument, a person typed an option.
        option = "--" if error.argument in (*RunConfig().flat(), *options) else ""
        print(f"{program}: error: {option}{error}", file=sys.stderr)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted; the same command continues.", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.exit(code)


def import_plugins(model: ModelConfig) -> None:
    """Import the modules of a user, from the current folder or PYTHONPATH, that register what a network uses.

    Raises:
        UserError: if one cannot be imported.
    """
    if model.plugins and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in model.plugins:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a user's module does when it runs
            reason = f"{type(error).__name__}: {error}"
            advice = f"it cannot be imported ({reason}), give a module of this folder or of PYTHONPATH"
            raise UserError("--plugins", name, advice) from error


def names_of(options_class: type) -> list[str]:
    """Names of a dataclass' options."""
    return [field.name for field in dataclasses.fields(options_class)]


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
        received = value_of(key[1], arguments) or (reported[1] if reported else flat)
        return UserError(f"--{key[1]}", received, f"give {_describe(hints[key[1]])}")
    return UserError("--recipe", value_of("recipe", arguments), f"give a YAML file of options ({flat})")


def value_of(name: str, arguments: Sequence[str]) -> str | None:
    """Return the last value of an option on the command line."""
    received = None
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option == f"--{name}":
            received = value if equals else "".join(arguments[index + 1 : index + 2])
    return received


def _with_true(arguments: Sequence[str], hints: dict[str, Any]) -> list[str]:
    """Give a value to the options that are true or false and stand alone."""
    flags = {f"--{name}" for name, hint in hints.items() if hint is bool}
    return [
        f"{argument}=true" if argument in flags and after.startswith("--") else argument
        for argument, after in itertools.pairwise([*arguments, "--"])
    ]


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
