"""The console command `cifs-tf`: one word for each program.

What takes long to import is imported once signals are taken care of.
"""

import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from cifs_tf import signals
from cifs_tf.runs import preemption

# A line of help for each; the modules of this package of the same names hold the programs.
PROGRAMS = {
    "run": "train, attack and export a robust classifier",
    "evaluate": "measure the robust accuracy of a trained classifier",
    "analyse": "look inside trained networks",
    "tune": "search hyper-parameters for the best robust accuracy on validation images",
    "reproduce": "reproduce the paper's tables and figures",
    "benchmark": "measure how fast this machine runs the library",
    "export": "publish a trained run as a version that a server takes up",
    "serve": "serve exported models over REST and gRPC",
    "predict": "ask a served classifier about images",
    "playground": "attack networks in the browser",
}
# SIGTERM ends them as it ends any process; the others save what they did.
WITHOUT_CHECKPOINTS = ("export", "serve", "predict", "playground")


def start_program(name: str) -> NoReturn:
    """Run a program of `PROGRAMS` on the command line of this process, and exit."""
    prepare(name)
    import importlib

    from cifs_tf import command_line

    def main(argv: Sequence[str]) -> int | None:
        # What may fail here is the import, if an extra is not installed.
        return importlib.import_module(f"cifs_tf.programs.{name}").main(argv)  # type: ignore[no-any-return]

    if name in WITHOUT_CHECKPOINTS:
        command_line.run_program(main)
    preemption.run_preemptible(main)


def prepare(name: str) -> None:
    """Prepare this process for a program, before its modules are imported."""
    ending: dict[int, tuple[str, int]] = {}
    if name == "serve":
        ending = dict.fromkeys((signal.SIGINT, signal.SIGTERM), ("ended before it served.", 0))
    elif name in PROGRAMS and name not in WITHOUT_CHECKPOINTS:
        ending = {number: preemption.ending(number) for number in preemption.SIGNALS}
    signals.prepare(ending)


def start() -> NoReturn:
    """Run the program that the first word of the command line names, on the words after it, and exit."""
    if sys.argv[1:2] and sys.argv[1] in PROGRAMS:
        name = sys.argv.pop(1)
        sys.argv[0] = f"cifs-tf {name}"
        start_program(name)
    sys.argv[0] = "cifs-tf"
    prepare("")
    from cifs_tf.command_line import run_program

    run_program(_help)


def _help(argv: Sequence[str]) -> int:
    import difflib

    from cifs_tf.errors import UserError
    from cifs_tf.extras import own_version

    if argv and argv[0] == "--version":
        print(f"cifs-tf {own_version()}")
        return 0
    if argv and argv[0] not in ("-h", "--help"):
        close = difflib.get_close_matches(argv[0], PROGRAMS, n=1)
        hint = f"did you mean {close[0]}? Give" if close else "give"
        raise UserError("command", argv[0], f"{hint} one of {', '.join(PROGRAMS)}")
    print("usage: cifs-tf COMMAND [OPTIONS]\n")
    for name, about in PROGRAMS.items():
        print(f"  {name:<10} {about}")
    print("\nEach has a --help of its own; cifs-tf --version tells the version.")
    return 0
