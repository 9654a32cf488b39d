"""What the launchers share: their command lines, checks of their options, and where the text that they make goes."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cifs_tf.command_line import parse_options
from cifs_tf.errors import UserError


def parse_command(options_class: type, name: str, argv: Sequence[str], description: str) -> tuple[Any, list[str]]:
    """Parse the command line of a launcher: its options, --, and the program with its arguments.

    Args:
        options_class: dataclass of the options.
        name: of the launcher, shown in help and errors.
        argv: arguments without the launcher's name.
        description: what the launcher does, for `--help`.

    Returns:
        (options, program and its arguments).

    Raises:
        UserError: for an option that does not fit, or if there is no program.
        SystemExit: after `--help`, with code 0.

    Example:
        >>> parse_command(LocalOptions, "local.py", ["--workers=4", "--", "training/run.py", "--epochs=1"], "")
        (LocalOptions(workers=4), ['training/run.py', '--epochs=1'])
    """
    argv = list(argv)
    end = argv.index("--") if "--" in argv else len(argv)
    options, program = argv[:end], argv[end + 1 :]
    if not program and not {"-h", "--help"} & set(options):
        raise UserError("program", "nothing", f"give one after --, as in {name} -- training/run.py --dataset digits")
    return parse_options(options_class, name, options, description), program


def check_program(program: Sequence[str]) -> None:
    """Refuse a program that is no file of this machine.

    Args:
        program: and its arguments.

    Raises:
        UserError: if so.
    """
    if not Path(program[0]).is_file():
        raise UserError("program", program[0], "give a Python file after --, such as training/run.py")


def check_least(options: object, least: Mapping[str, float]) -> None:
    """Refuse options that are too small.

    Args:
        options: dataclass of the options; those that are None are not looked at.
        least: value of each option that is small enough.

    Raises:
        UserError: naming the first.
    """
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise UserError(name, value, f"give a number of {smallest} or more")


def check_forms(options: object, forms: Mapping[str, tuple[str, str]]) -> None:
    """Refuse options that do not look right.

    Args:
        options: dataclass of the options; those that are None are not looked at.
        forms: regular expression for each, and the same in words.

    Raises:
        UserError: naming the first.
    """
    for name, (form, words) in forms.items():
        value = getattr(options, name)
        if value is not None and not re.fullmatch(form, value, re.ASCII):
            raise UserError(name, value or "nothing", f"give {words}")


def write(text: str, output: str | None) -> None:
    """Write a text.

    Args:
        text: to write.
        output: file; None prints.

    Raises:
        UserError: if the file cannot be written.
    """
    if output is None:
        sys.stdout.write(text)
        return
    try:
        Path(output).write_text(text)
    except OSError as error:
        raise UserError("output", output, f"it cannot be written ({error.strerror}), give another file") from error
