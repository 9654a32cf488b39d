"""The command line of a launcher: its options, --, and the program that it starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifs_tf.command_line import parse_options
from cifs_tf.errors import UserError


def parse_command(options_class: type, name: str, argv: Sequence[str], description: str) -> tuple[Any, list[str]]:
    """Parse the command line of a launcher: its options, --, and the program with its arguments.

    Returns:
        (options, program and its arguments).

    Raises:
        UserError: for an option that does not fit, or if there is no program.
        SystemExit: after `--help`, with code 0.

    Example:
        >>> from cifs_tf.launch.local import LocalOptions
        >>> parse_command(LocalOptions, "local.py", ["--workers=4", "--", "training/run.py", "--epochs=1"], "")
        (LocalOptions(workers=4, max_restarts=3, port=0, grace_seconds=10.0), ['training/run.py', '--epochs=1'])
    """
    argv = list(argv)
    end = argv.index("--") if "--" in argv else len(argv)
    options, program = argv[:end], argv[end + 1 :]
    if not program and not {"-h", "--help"} & set(options):
        raise UserError("program", "nothing", f"give one after --, as in {name} -- training/run.py --dataset digits")
    return parse_options(options_class, name, options, description), program


def check_program(program: Sequence[str]) -> None:
    """Refuse a program that is no file of this machine."""
    if not Path(program[0]).is_file():
        raise UserError("program", program[0], "give a Python file after --, such as training/run.py")
