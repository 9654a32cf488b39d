"""Start one worker of several: set TF_CONFIG, then become the program, which comes after --.

    python training/launch/worker.py --hosts a:2222,b:2222 --index 0 -- training/run.py --dataset svhn    on machine a
    python training/launch/worker.py --hosts a:2222,b:2222 --index 1 -- training/run.py --dataset svhn    on machine b

Worker 0 is the chief, which writes. The workdir must be the same folder on all machines.
"""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from cifs_tf.command_line import parse_options
from cifs_tf.errors import UserError

TF_CONFIG = "TF_CONFIG"
PORT = 2222
HOSTS_ADVICE = f"give HOST:PORT of every worker, such as a:{PORT},b:{PORT}"
# Set by those who number the workers: a Kubernetes Indexed Job, srun.
INDEX_VARIABLES = ("JOB_COMPLETION_INDEX", "SLURM_PROCID")


@dataclasses.dataclass(frozen=True)
class WorkerOptions:
    """One worker of several.

    Args:
        hosts: HOST:PORT of every worker, with commas between, the same list for all; with one there is nothing to join.
        index: place of this worker in the list, from 0; null takes JOB_COMPLETION_INDEX, as a Kubernetes Indexed Job
            sets it, or SLURM_PROCID, as srun does.
    """

    hosts: str | None = None
    index: int | None = None

    def __post_init__(self) -> None:
        if self.hosts is None:
            raise UserError("hosts", "nothing", HOSTS_ADVICE)
        _check_hosts(self.addresses)
        if self.index is not None and not 0 <= self.index < len(self.addresses):
            raise UserError("index", self.index, _range_of(self.addresses))

    @property
    def addresses(self) -> list[str]:
        """HOST:PORT of every worker."""
        # Split here, as no option that is a list: an IPv6 address begins with a bracket, as YAML's lists do.
        return (self.hosts or "").split(",")


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


def main(argv: Sequence[str]) -> NoReturn:
    """Parse the command line and become the program."""
    options, program = parse_command(WorkerOptions, "worker.py", argv, __doc__ or "")
    check_program(program)
    environment = environment_of(options.addresses, _index(options))
    os.execve(sys.executable, [sys.executable, *program], environment)


def tf_config(hosts: Sequence[str], index: int) -> str:
    """Return what TensorFlow reads from TF_CONFIG, JSON with all workers and the place of this one, from 0.

    Example:
        >>> tf_config(["a:2222", "b:2222"], 1)
        '{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 1}}'
    """
    return json.dumps({"cluster": {"worker": list(hosts)}, "task": {"type": "worker", "index": index}})


def environment_of(hosts: Sequence[str], index: int) -> dict[str, str]:
    """Return the environment of a worker, by its place from 0: ours, and TF_CONFIG if there are several."""
    environment = {name: value for name, value in os.environ.items() if name != TF_CONFIG}
    return environment | ({TF_CONFIG: tf_config(hosts, index)} if len(hosts) > 1 else {})


def _check_hosts(hosts: Sequence[str]) -> None:
    for host in hosts:
        match = re.fullmatch(r"(?:[\w.-]+|\[[\da-fA-F:.]+\]):(\d{1,5})", host, re.ASCII)
        if not match or not 0 < int(match[1]) < 2**16:
            raise UserError("hosts", host or "nothing", HOSTS_ADVICE)
        if hosts.count(host) > 1:
            raise UserError("hosts", host, "it is there more than once, give every worker an address of its own")


def _index(options: WorkerOptions) -> int:
    if options.index is not None:
        return options.index
    for name in INDEX_VARIABLES:
        if text := os.environ.get(name):
            if not text.isdecimal() or int(text) >= len(options.addresses):
                raise UserError(name, text, _range_of(options.addresses))
            return int(text)
    if len(options.addresses) == 1:
        return 0
    raise UserError("index", "nothing", _range_of(options.addresses))


def _range_of(addresses: Sequence[str]) -> str:
    return f"give a place in --hosts, from 0 to {len(addresses) - 1}"
