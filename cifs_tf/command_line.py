"""Parse options that a dataclass declares, and report a person's error in one sentence, in every program."""

import argparse
import contextlib
import difflib
import errno
import importlib
import itertools
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter
from jsonargparse.typing import register_type

from cifs_tf import signals
from cifs_tf.config import GROUPS, ModelConfig, Ratio, RunConfig, as_tuple
from cifs_tf.errors import UserError
from cifs_tf.extras import how_to_install
from cifs_tf.files import check_utf8
from cifs_tf.signals import EXIT_CLOSED_OUTPUT, EXIT_INTERRUPTED, INTERRUPTED, program_name

EXIT_USER_ERROR = 2
# What the system says of a path that no program can use.
UNUSABLE = (
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
)

register_type(Ratio, serializer=lambda ratio: ratio.text if "/" in ratio.text else float(ratio), deserializer=Ratio)

# Names of the options of this process, those of a run always among them.
_options = set(RunConfig().flat())
# In a list they are numbers, everything else is text.
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


def parse_options(
    options_class: type, program: str, argv: Sequence[str], description: str, positional: str | None = None
) -> Any:
    """Parse a command line into a dataclass whose fields are the options; `normalise` says how they may be written.

    The field `positional`, a tuple of texts, takes the arguments in front of the first option.

    Raises:
        UserError: naming the option, what was received and how to fix it.
        SystemExit: after `--help`, with code 0.
    """
    first = next((index for index, argument in enumerate(argv) if argument.startswith("-")), len(argv))
    values: dict[str, Any] = {positional: tuple(argv[:first])} if positional else {}
    parser = make_parser(program, description, [options_class], skip={positional} if positional else None)
    values |= parse_values(parser, argv[first:] if positional else argv, [options_class])
    return options_class(**{name: as_tuple(value) for name, value in values.items()})


class _Parser(ArgumentParser):
    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        return super().format_help(formatter).replace("[ITEM,...]", "A,B,C")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print a help text (argparse's hook, which would say nothing of an output that is full or closed)."""
        print(message, end="", file=file or sys.stderr, flush=True)


class _Help(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keep the lines of the description; show types and defaults."""


def make_parser(
    program: str, description: str, groups: Sequence[type], skip: set[str | int] | None = None
) -> ArgumentParser:
    """Make the parser of all options that some dataclasses declare, except those to skip."""
    parser = _Parser(
        prog=as_started(program),
        description=as_started(description),
        epilog="A list is written with commas: a,b,c.",
        formatter_class=_Help,
        exit_on_error=False,
        allow_abbrev=False,
    )
    for group in groups:
        parser.add_class_arguments(group, skip=skip)
    _options.update(_hints(groups))
    return parser


def parse_values(parser: ArgumentParser, argv: Sequence[str], groups: Sequence[type]) -> dict[str, Any]:
    """Parse a command line with the parser that `make_parser` made of the groups; raises as `parse_options`."""
    try:
        return vars(parser.parse_args(normalise(argv, groups)))
    except argparse.ArgumentError as error:
        raise explain(str(error), groups, [with_underscores(argument) for argument in argv]) from error


def normalise(argv: Sequence[str], groups: Sequence[type]) -> list[str]:
    """Bring a command line into the form that jsonargparse reads.

    Words of an option may be joined by `-` or `_`; an option that is true or false may stand alone and is true then; a
    list may be written `a,b,c`, a list of lists `a+b,c+d`, the empty list as empty text, and both in YAML's brackets.

    Example:
        >>> normalise(["--eval-batch-size", "8", "--attacks", "fgsm,pgd20", "--deterministic"], list(GROUPS.values()))
        ['--eval_batch_size', '8', '--attacks=["fgsm", "pgd20"]', '--deterministic=true']
    """
    hints = _hints(groups)
    normal, waiting = [], [with_underscores(argument) for argument in reversed(argv)]
    while waiting:
        argument = waiting.pop()
        option, equals, value = argument.partition("=")
        hint = hints.get(option[2:]) if option.startswith("--") else None
        is_alone = not equals and (not waiting or waiting[-1].startswith("--"))
        if (hint is bool or bool in typing.get_args(hint)) and is_alone:
            argument = f"{option}=true"
        elif (item := _item_of(hint)) and not is_alone:
            value = value if equals else waiting.pop()
            try:
                argument = f"{option}={_bracketed(value, item)}"
            except ValueError as error:
                raise UserError(option, value, f"give {_describe(hint)}") from error
        normal.append(argument)
    return normal


def _item_of(hint: Any) -> Any:
    """Return the type of a list's items; None if there can be no list."""
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(filter(None, map(_item_of, typing.get_args(hint))), None)
    return None


def _bracketed(value: str, item: Any, separator: str = ",") -> str:
    """Write a list as YAML; text whose items would be numbers or words of YAML in quotes."""
    text = value.strip()
    if text == "null" or (text.startswith("[") and item is not str):
        return value
    if text.startswith("["):
        try:  # numbers among them are text too
            return json.dumps(yaml.load(text, yaml.BaseLoader), ensure_ascii=False)
        except yaml.YAMLError:  # which jsonargparse will report
            return value
    parts = [part.strip() for part in text.split(separator)] if text else []
    if not all(parts):
        raise ValueError("an item is empty")
    if inner := _item_of(item):
        return f"[{', '.join(_bracketed(part, inner, '+') for part in parts)}]"
    is_number = [item is not str and NUMBER.fullmatch(part) for part in parts]
    written = [
        part if bare else json.dumps(part, ensure_ascii=False) for part, bare in zip(parts, is_number, strict=True)
    ]
    return f"[{', '.join(written)}]"


def command(name: str) -> str:
    """Return how another program is started, in the way in which this one was.

    Example:
        >>> command("run")
        'python training/run.py'
    """
    return f"cifs-tf {name}" if program_name().startswith("cifs-tf ") else f"python training/{name}.py"


def run_program(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Run `main(argv)` and exit: a user's error or a missing extra is one sentence and code 2, Ctrl-C 130.

    An output that was closed, as by `head`, ends it without a word: with the program's own code if its work was done,
    else with 141.
    """
    program = program_name()
    code: Any
    try:
        signals.begin()
        for argument in sys.argv[1:]:
            check_utf8("command line", argument, argument)
        code = main(sys.argv[1:])
    except UserError as error:
        # The library names an argument, a person typed an option.
        option = "--" if error.argument in _options else ""
        code = _complain(f"{program}: error: {option}{error}", EXIT_USER_ERROR)
    except ModuleNotFoundError as error:
        sentence = how_to_install(error)
        if sentence is None:
            raise
        code = _complain(f"{program}: error: {sentence}", EXIT_USER_ERROR)
    except KeyboardInterrupt:
        code = _complain(f"\n{program}: {INTERRUPTED}", EXIT_INTERRUPTED)
    except BrokenPipeError:
        if not signals.is_output_closed():
            raise
        code = EXIT_CLOSED_OUTPUT
    except OSError as error:
        if error.errno == errno.ENOSPC:
            code = _complain(f"{program}: error: {error.filename or 'the output'}: no space is left on the device", 1)
        elif error.filename and (error.errno in UNUSABLE or _option_of(error.filename)):
            sentence = f"{error.filename} cannot be used ({error.strerror}), give another file or folder"
            code = _complain(f"{program}: error: {_option_of(error.filename)}{sentence}.", EXIT_USER_ERROR)
        else:
            raise
    except SystemExit as end:
        # rich ends a program whose output was closed.
        code = EXIT_CLOSED_OUTPUT if isinstance(end.__context__, BrokenPipeError) else end.code
    try:
        sys.stdout.flush()
    except OSError as error:  # closed, or full
        signals.discard_output()
        if not isinstance(error, BrokenPipeError):
            code = _complain(f"{program}: error: the output cannot be written ({error.strerror})", 1)
    signals.keep_exit_code(code if isinstance(code, int) else 0)
    sys.exit(code)


def _option_of(path: Any) -> str:
    """Return the option whose value is a path, or a folder around it, as a sentence begins; empty if there is none."""
    for before, argument in itertools.pairwise(sys.argv):
        option, _, value = argument.partition("=")
        if not option.startswith("--"):
            option, value = (before if before.startswith("--") else ""), argument
        value = value.removeprefix("folder:").rstrip("/")
        if option and not value.isdigit() and f"/{value or '/'}/" in f"/{path}/":
            return f"{with_underscores(option)}: "
    return ""


def _complain(sentence: str, code: int) -> int:
    """Print to standard error, if anybody reads it; return the code."""
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)
    return code


def as_started(text: str) -> str:
    """Rewrite the names of scripts in a help text to `cifs-tf COMMAND`, if that is what was started."""
    if not program_name().startswith("cifs-tf "):
        return text
    programs = "run|evaluate|analyse|tune|reproduce|benchmark|export|server|client"
    renamed = {"server": "serve", "client": "predict"}
    script = rf"(?:python )?(?:(?:training|serving)/)?\b({programs})\.py"
    return re.sub(script, lambda found: f"cifs-tf {renamed.get(found[1], found[1])}", text)


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


def with_underscores(argument: str) -> str:
    """Join the words of an option by `_`, so that `-` is accepted too; its value is left alone."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


def explain(message: str, groups: Sequence[type] = tuple(GROUPS.values()), arguments: Sequence[str] = ()) -> UserError:
    """Turn jsonargparse's report into an error that names the option, the value and what to give."""
    hints = _hints(groups)
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


def _hints(groups: Sequence[type]) -> dict[str, Any]:
    return {name: hint for group in groups for name, hint in typing.get_type_hints(group).items()}


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
        if _item_of(arguments[0]):
            return "lists such as a+b,b+c"
        return f"a list such as a,b,c, each item {_describe(arguments[0])}"
    if origin is dict:
        return "a mapping such as {pgd100: 0.02}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, "a number or a fraction such as 8/255" if hint is Ratio else str(hint))
